//! GetObject and HeadObject: whole objects, ranges and parts, under conditions.
//!
//! A GET is answered only after its first bytes are there, so that a loss that can be known beforehand is an error and
//! not a broken answer. A body that breaks off later ends the connection short of its length.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream as _;
use holdfast_client::BodyReader;
use holdfast_proto::meta::{GetObject, ObjectFound, ObjectHeaders, Version};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::{Frame, SizeHint};
use s3s::dto::{self, *};
use s3s::{S3Request, S3Response};

use super::{Store, caller, corrupt, size_shown, version_query, version_shown};
use crate::checksum;
use crate::condition::{ReadConditions, Verdict, content_range, if_range_holds, range_error, resolve_range};
use crate::error::{self, S3Error, S3ErrorCode, S3Result, invalid_argument, invalid_request, refuse};
use crate::headers::{self, CONTENT_TYPE_DEFAULT, STANDARD, shown_time};
use crate::inflight::Room;
use crate::surface::query_value;

/// What GET and HEAD ask alike.
struct Read {
    range: Option<dto::Range>,
    if_range: Option<String>,
    part: Option<u32>,
    conditions: ReadConditions,
    checksums: bool,
}

/// What is to be sent of an object.
struct Piece {
    bytes: Range<u64>,
    content_range: Option<String>,
    parts_count: Option<i32>,
}

impl Read {
    fn new(
        request_headers: &HeaderMap,
        query: Option<&str>,
        range: Option<dto::Range>,
        part: Option<i32>,
        checksum_mode: Option<&ChecksumMode>,
        conditions: ReadConditions,
    ) -> S3Result<Self> {
        let part = match part {
            None => None,
            Some(number @ 1..=10_000) => Some(number.unsigned_abs()),
            Some(_) => {
                return Err(invalid_argument(
                    "Part number must be an integer between 1 and 10000, inclusive",
                ));
            }
        };
        if part.is_some() && range.is_some() {
            return Err(invalid_request("Cannot specify both Range header and partNumber query parameter"));
        }
        let if_range =
            request_headers.get(header::IF_RANGE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let hoisted = query.and_then(|query| query_value(query, "x-amz-checksum-mode"));
        let mode = checksum_mode.map(ChecksumMode::as_str).or(hoisted);
        let checksums = match mode {
            None => false,
            Some(mode) if mode.eq_ignore_ascii_case("ENABLED") => true,
            Some(_) => return Err(invalid_argument("Invalid value for x-amz-checksum-mode")),
        };
        Ok(Self { range, if_range, part, conditions, checksums })
    }

    /// The query that answers this: of a multipart object only the parts that are needed.
    fn query(&self, key: String, version_id: Option<&str>, head: bool) -> S3Result<GetObject> {
        let (version, version_null) = version_query(version_id)?;
        let (range_start, range_end) = match (&self.range, &self.if_range) {
            (Some(dto::Range::Int { first, last }), None) => {
                (Some(*first), last.map(|last| last.saturating_add(1)))
            }
            _ => (None, None),
        };
        Ok(GetObject {
            key: key.into(),
            version,
            version_null,
            range_start,
            range_end,
            part: self.part.unwrap_or(0),
            no_parts: head && self.part.is_none(),
            ..Default::default()
        })
    }

    /// Evaluates conditions and range.
    fn piece(&self, found: &ObjectFound, version: &Version, head: &HeaderMap) -> S3Result<Piece> {
        match self.conditions.evaluate(&version.etag, version.modified_ms) {
            Verdict::Proceed => {}
            Verdict::NotModified => return Err(not_modified(head)),
            Verdict::Failed => {
                return Err(refuse(
                    S3ErrorCode::PreconditionFailed,
                    "at least one of the preconditions you specified did not hold",
                ));
            }
        }
        let parts_count =
            version.multipart.as_ref().and_then(|multipart| i32::try_from(multipart.parts).ok());
        if let Some(part) = self.part {
            return part_piece(part, found, version, parts_count);
        }
        let size = version.size;
        let stands = self
            .if_range
            .as_deref()
            .is_none_or(|value| if_range_holds(value, &version.etag, version.modified_ms));
        match self.range.as_ref().filter(|_| stands) {
            None => Ok(Piece { bytes: 0..size, content_range: None, parts_count: None }),
            Some(range) => {
                let bytes = resolve_range(range, size)?;
                let content_range = Some(content_range(&bytes, size));
                Ok(Piece { bytes, content_range, parts_count: None })
            }
        }
    }
}

fn part_piece(
    part: u32,
    found: &ObjectFound,
    version: &Version,
    parts_count: Option<i32>,
) -> S3Result<Piece> {
    let size = version.size;
    let bytes = match (&version.multipart, part) {
        (None, 1) => 0..size,
        (Some(_), _) => match found.parts.iter().find(|placed| placed.ordinal == part) {
            Some(placed) => placed.offset..placed.offset + placed.row.as_ref().map_or(0, |row| row.size),
            None => return Err(no_such_part(size)),
        },
        (None, _) => return Err(no_such_part(size)),
    };
    let content_range = (!bytes.is_empty()).then(|| content_range(&bytes, size));
    Ok(Piece { bytes, content_range, parts_count })
}

fn no_such_part(size: u64) -> S3Error {
    let headers = range_error(size).headers().cloned().unwrap_or_default();
    let mut failure = error::custom(
        "InvalidPartNumber",
        http::StatusCode::RANGE_NOT_SATISFIABLE,
        "The requested partnumber is not satisfiable",
    );
    failure.set_headers(headers);
    failure
}

/// 304, with the headers that a cache needs.
fn not_modified(head: &HeaderMap) -> S3Error {
    let mut failure = S3Error::new(S3ErrorCode::NotModified);
    failure.set_status_code(http::StatusCode::NOT_MODIFIED);
    failure.set_headers(head.clone());
    failure
}

fn cache_headers(version: &Version, stored: &ObjectHeaders) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(4);
    let mut put = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value)
            && !value.is_empty()
        {
            out.insert(name, value);
        }
    };
    put(header::ETAG, &format!("\"{}\"", version.etag));
    put(header::CACHE_CONTROL, &stored.cache_control);
    put(header::EXPIRES, &stored.expires);
    let mut date = Vec::with_capacity(32);
    if shown_time(version.modified_ms).format(TimestampFormat::HttpDate, &mut date).is_ok() {
        put(header::LAST_MODIFIED, str::from_utf8(&date).unwrap_or_default());
    }
    out
}

/// A version with its headers out of a found row.
fn parts_of(found: &mut ObjectFound) -> S3Result<(Version, ObjectHeaders)> {
    let mut version = found.version.take().ok_or_else(|| corrupt("an object"))?;
    let stored = version.headers.take().unwrap_or_default();
    Ok((version, stored))
}

fn class_shown(stored: &ObjectHeaders) -> Option<StorageClass> {
    (!stored.storage_class.is_empty() && stored.storage_class != STANDARD)
        .then(|| StorageClass::from(stored.storage_class.clone()))
}

/// Checksums are of the whole object: S3 shows none with a range of it, and those of a part with a part.
fn checksums_shown(read: &Read, piece: &Piece, found: &ObjectFound, version: &Version) -> checksum::Shown {
    if !read.checksums {
        return checksum::Shown::default();
    }
    match (read.part, &version.multipart) {
        (Some(part), Some(_)) => {
            let placed = found.parts.iter().find(|placed| placed.ordinal == part);
            let mut shown = checksum::shown(
                placed.and_then(|placed| placed.row.as_ref()).map_or(&[][..], |row| &row.checksums),
            );
            shown.kind = version.checksums.first().and_then(|sum| checksum::kind_name(sum.r#type()));
            shown
        }
        _ if piece.bytes == (0..version.size) => checksum::shown(&version.checksums),
        _ => checksum::Shown::default(),
    }
}

pub(super) async fn get(
    store: &Store,
    request: S3Request<GetObjectInput>,
) -> S3Result<S3Response<GetObjectOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let conditions = ReadConditions {
        if_match: input.if_match,
        if_none_match: input.if_none_match,
        if_modified_since: input.if_modified_since,
        if_unmodified_since: input.if_unmodified_since,
    };
    let mode = input.checksum_mode.as_ref();
    let read =
        Read::new(&request.headers, request.uri.query(), input.range, input.part_number, mode, conditions)?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let query = read.query(input.key, input.version_id.as_deref(), false)?;
    let mut found = store.cluster.get_object(&bucket, query).await.map_err(error::cluster)?;
    let (mut version, stored) = parts_of(&mut found)?;
    let piece = read.piece(&found, &version, &cache_headers(&version, &stored))?;
    let sums = checksums_shown(&read, &piece, &found, &version);
    let length = piece.bytes.end - piece.bytes.start;
    let size = version.size;
    let etag = std::mem::take(&mut version.etag);
    let modified_ms = version.modified_ms;
    let null = version.null;
    found.version = Some(version);
    let body = open_body(store, &found, piece.bytes.clone(), size).await?;
    Ok(S3Response::new(GetObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        body: Some(StreamingBlob::from(body)),
        cache_control: headers::shown(&stored.cache_control),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind.map(ChecksumType::from_static),
        content_disposition: headers::shown(&stored.content_disposition),
        content_encoding: headers::shown(&stored.content_encoding),
        content_language: headers::shown(&stored.content_language),
        content_length: Some(size_shown(length)),
        content_range: piece.content_range,
        content_type: headers::shown(&stored.content_type).or_else(|| Some(CONTENT_TYPE_DEFAULT.to_owned())),
        e_tag: Some(ETag::Strong(etag)),
        expires: headers::shown_expires(&stored.expires),
        last_modified: Some(shown_time(modified_ms)),
        metadata: headers::shown_metadata(&stored.user),
        parts_count: piece.parts_count,
        storage_class: class_shown(&stored),
        version_id: version_shown(found.versioned, null, &found.version_id),
        ..Default::default()
    }))
}

/// Opens the object and waits for its first bytes.
async fn open_body(store: &Store, found: &ObjectFound, bytes: Range<u64>, size: u64) -> S3Result<s3s::Body> {
    if bytes.is_empty() {
        return Ok(s3s::Body::empty());
    }
    let inline = found
        .version
        .as_ref()
        .and_then(|version| version.body.as_ref())
        .and_then(|body| body.inline.as_ref());
    if let Some(inline) = inline
        && inline.len() as u64 == size
    {
        return Ok(s3s::Body::from(inline.slice(bytes.start as usize..bytes.end as usize)));
    }
    let left = bytes.end - bytes.start;
    let room = store.inflight.enter(left).await?;
    let mut reader = store.cluster.read_object(found, bytes);
    reader.first().await.map_err(error::cluster)?;
    Ok(s3s::Body::http_body_unsync(ObjectBody { reader, left, _room: room, span: tracing::Span::current() }))
}

pub(super) async fn head(
    store: &Store,
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let conditions = ReadConditions {
        if_match: input.if_match,
        if_none_match: input.if_none_match,
        if_modified_since: input.if_modified_since,
        if_unmodified_since: input.if_unmodified_since,
    };
    let mode = input.checksum_mode.as_ref();
    let read =
        Read::new(&request.headers, request.uri.query(), input.range, input.part_number, mode, conditions)?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let query = read.query(input.key, input.version_id.as_deref(), true)?;
    let mut found = store.cluster.get_object(&bucket, query).await.map_err(error::cluster)?;
    let (version, stored) = parts_of(&mut found)?;
    let piece = read.piece(&found, &version, &cache_headers(&version, &stored))?;
    let sums = checksums_shown(&read, &piece, &found, &version);
    Ok(S3Response::new(HeadObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        cache_control: input.response_cache_control.or_else(|| headers::shown(&stored.cache_control)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind.map(ChecksumType::from_static),
        content_disposition: input
            .response_content_disposition
            .or_else(|| headers::shown(&stored.content_disposition)),
        content_encoding: input
            .response_content_encoding
            .or_else(|| headers::shown(&stored.content_encoding)),
        content_language: input
            .response_content_language
            .or_else(|| headers::shown(&stored.content_language)),
        content_length: Some(size_shown(piece.bytes.end - piece.bytes.start)),
        content_range: piece.content_range,
        content_type: input
            .response_content_type
            .or_else(|| headers::shown(&stored.content_type))
            .or_else(|| Some(CONTENT_TYPE_DEFAULT.to_owned())),
        e_tag: Some(ETag::Strong(version.etag)),
        expires: input.response_expires.or_else(|| headers::shown_expires(&stored.expires)),
        last_modified: Some(shown_time(version.modified_ms)),
        metadata: headers::shown_metadata(&stored.user),
        parts_count: piece.parts_count,
        storage_class: class_shown(&stored),
        version_id: version_shown(found.versioned, version.null, &found.version_id),
        ..Default::default()
    }))
}

/// An object's bytes on their way out.
struct ObjectBody {
    reader: BodyReader,
    left: u64,
    _room: Room,
    /// The request's, which is over when the body is sent.
    span: tracing::Span,
}

impl http_body::Body for ObjectBody {
    type Data = Bytes;
    type Error = holdfast_client::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, holdfast_client::Error>>> {
        match Pin::new(&mut self.reader).poll_next(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(data))) => {
                self.left = self.left.saturating_sub(data.len() as u64);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Some(Err(failure))) => {
                self.span.in_scope(|| {
                    tracing::error!(%failure, left = self.left, "an object broke off while it was being sent");
                });
                Poll::Ready(Some(Err(failure)))
            }
            Poll::Ready(None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
