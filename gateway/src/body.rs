//! Bodies on their way in: what a request declares of its body, and the source that hands it to the write pipeline only
//! when all of it holds.
//!
//! The declared length, Content-MD5, `x-amz-checksum-*` (header or trailer), `x-amz-content-sha256` and the signatures
//! of chunks are verified before the source says that it has ended. The write pipeline stores nothing of the last
//! stripe before that, and nothing is committed: a body that breaks any of them leaves no object behind.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_client::{BodyReader, BodySource};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use md5::Md5;
use sha2::{Digest as _, Sha256};

use crate::checksum::{self, Algorithm, Hasher, Value};
use crate::chunked::Decoder;
use crate::error::{S3ErrorCode, S3Result, invalid_request, not_implemented, refuse};
use crate::ticket::Ticket;

/// What was wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body ended before its declared length")]
    Short,
    #[error("the body is longer than declared")]
    Long,
    #[error("the client went away")]
    Disconnected,
    #[error("the client sent nothing for too long")]
    Stalled,
    #[error("Content-MD5 does not match")]
    Md5,
    #[error("x-amz-content-sha256 does not match")]
    Sha256,
    #[error("{} does not match", .0.name())]
    Checksum(Algorithm),
    #[error("{0}")]
    Trailer(&'static str),
    #[error("{0}")]
    Framing(&'static str),
    #[error("a chunk signature does not match")]
    ChunkSignature,
    #[error(transparent)]
    Cluster(#[from] holdfast_client::Error),
}

/// How `x-amz-content-sha256` says that the payload is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    Unsigned,
    Sha256([u8; 32]),
    Streaming { signed: bool, trailer: bool },
}

impl Payload {
    /// From the headers; a presigned request may leave it out.
    ///
    /// # Errors
    /// For a value that is none of S3's, or one of its newer signing methods.
    pub(crate) fn from_headers(headers: &HeaderMap) -> S3Result<Self> {
        let Some(value) = headers.get("x-amz-content-sha256") else { return Ok(Self::Unsigned) };
        match value.as_bytes() {
            b"UNSIGNED-PAYLOAD" => Ok(Self::Unsigned),
            b"STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(Self::Streaming { signed: false, trailer: true }),
            b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Ok(Self::Streaming { signed: true, trailer: false }),
            b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => {
                Ok(Self::Streaming { signed: true, trailer: true })
            }
            other if other.starts_with(b"STREAMING-") => {
                Err(not_implemented("this payload signing method is not implemented"))
            }
            other => {
                let mut digest = [0; 32];
                hex::decode_to_slice(other, &mut digest).map_err(|_| {
                    crate::error::invalid_argument(
                        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
                    )
                })?;
                Ok(Self::Sha256(digest))
            }
        }
    }
}

/// What a request says of its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declared {
    /// Of the data, without any framing, bytes.
    pub length: u64,
    pub payload: Payload,
    pub md5: Option<[u8; 16]>,
    /// Value known beforehand.
    pub checksum: Option<Value>,
    /// Value that comes as a trailer.
    pub trailing: Option<Algorithm>,
}

impl Declared {
    /// From the request's headers.
    ///
    /// # Errors
    /// MissingContentLength, InvalidDigest, EntityTooLarge, and InvalidRequest for claims that contradict each other or
    /// for aws-chunked framing that `x-amz-content-sha256` does not announce.
    pub(crate) fn from_headers(headers: &HeaderMap) -> S3Result<Self> {
        let payload = Payload::from_headers(headers)?;
        let streaming = matches!(payload, Payload::Streaming { .. });
        let framed = headers.contains_key("x-amz-decoded-content-length")
            || headers.contains_key("x-amz-trailer")
            || headers.get_all(http::header::CONTENT_ENCODING).iter().any(|value| {
                encodings(value.as_bytes()).any(|coding| coding.eq_ignore_ascii_case(b"aws-chunked"))
            });
        if framed && !streaming {
            return Err(invalid_request(
                "aws-chunked content needs a STREAMING- value of x-amz-content-sha256; its framing cannot be told from data",
            ));
        }
        let length_header = if streaming { "x-amz-decoded-content-length" } else { "content-length" };
        let length = match headers.get(length_header) {
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| invalid_request(format!("the value of {length_header} is not a length")))?,
            None => {
                return Err(refuse(
                    S3ErrorCode::MissingContentLength,
                    "you must provide the Content-Length HTTP header",
                ));
            }
        };
        if length > holdfast_proto::limits::PUT_BYTES_MAX {
            return Err(refuse(
                S3ErrorCode::EntityTooLarge,
                "your proposed upload exceeds the maximum allowed size",
            ));
        }
        let checksum = checksum::claimed(headers)?;
        let trailing = trailer(headers)?;
        if checksum.is_some() && trailing.is_some() {
            return Err(invalid_request(
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
            ));
        }
        let declared = Self { length, payload, md5: content_md5(headers)?, checksum, trailing };
        for name in ["x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm"] {
            if let Some(value) = headers.get(name) {
                declared.check_named(name, checksum::named(value.to_str().unwrap_or_default())?)?;
            }
        }
        Ok(declared)
    }

    /// The algorithm that a header names has to be that of the value that comes.
    fn check_named(&self, header: &str, named: Algorithm) -> S3Result<()> {
        match self.algorithm() {
            Some(given) if given == named => Ok(()),
            Some(_) => Err(invalid_request(format!("Value for {header} header is invalid."))),
            None => Err(invalid_request(format!(
                "{header} specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found."
            ))),
        }
    }

    /// The algorithm whose value comes with the body, one way or the other.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        self.checksum.as_ref().map(|value| value.algorithm).or(self.trailing)
    }
}

fn encodings(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// `Content-Encoding` as it is stored: without `aws-chunked`, which describes the transfer alone.
pub(crate) fn stored_encoding(value: &str) -> String {
    let kept: Vec<&str> = value
        .split(',')
        .map(str::trim)
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("aws-chunked"))
        .collect();
    kept.join(",")
}

fn content_md5(headers: &HeaderMap) -> S3Result<Option<[u8; 16]>> {
    let Some(value) = headers.get("content-md5") else { return Ok(None) };
    STANDARD
        .decode(value.as_bytes())
        .ok()
        .and_then(|raw| <[u8; 16]>::try_from(raw).ok())
        .map(Some)
        .ok_or_else(|| refuse(S3ErrorCode::InvalidDigest, "the Content-MD5 you specified was invalid"))
}

/// The checksum that `x-amz-trailer` announces.
fn trailer(headers: &HeaderMap) -> S3Result<Option<Algorithm>> {
    let mut found = None;
    for name in headers
        .get_all("x-amz-trailer")
        .iter()
        .flat_map(|value| encodings(value.as_bytes()))
        .filter(|name| !name.is_empty())
    {
        let algorithm = str::from_utf8(name).ok().and_then(Algorithm::from_header);
        if algorithm.is_none() || found.is_some() {
            return Err(invalid_request("The value specified in the x-amz-trailer header is not supported"));
        }
        found = algorithm;
    }
    Ok(found)
}

/// What is known of a body once it has ended.
#[derive(Debug, Clone)]
pub(crate) struct Digests {
    pub md5: [u8; 16],
    pub checksums: Vec<Value>,
}

/// The digests that run along a body.
struct Running {
    md5: Md5,
    sha256: Option<Sha256>,
    sums: Vec<Hasher>,
}

impl Running {
    fn new(payload: Payload, algorithms: impl IntoIterator<Item = Algorithm>) -> Self {
        let mut sums: Vec<Hasher> = Vec::new();
        for algorithm in algorithms {
            if !sums.iter().any(|sum| sum.algorithm() == algorithm) {
                sums.push(Hasher::new(algorithm));
            }
        }
        Self { md5: Md5::new(), sha256: matches!(payload, Payload::Sha256(_)).then(Sha256::new), sums }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        for sum in &mut self.sums {
            sum.update(bytes);
        }
    }

    fn finish(&mut self) -> (Digests, Option<[u8; 32]>) {
        let sha256 = self.sha256.take().map(|digest| digest.finalize().into());
        let checksums = self
            .sums
            .drain(..)
            .map(|sum| Value { algorithm: sum.algorithm(), value: sum.finish() })
            .collect();
        (Digests { md5: std::mem::take(&mut self.md5).finalize().into(), checksums }, sha256)
    }
}

/// A request's body as a source for the write pipeline.
pub(crate) struct UploadBody {
    ticket: Arc<Ticket>,
    body: Option<Incoming>,
    decoder: Option<Decoder>,
    /// Raw bytes that the decoder has not seen.
    raw: Bytes,
    declared: Declared,
    seen: u64,
    running: Running,
    digests: Option<Digests>,
    idle: Duration,
}

impl UploadBody {
    /// `decoder` with a streaming payload; `also` is an algorithm to compute besides the claimed one.
    pub(crate) fn new(
        ticket: Arc<Ticket>,
        declared: Declared,
        decoder: Option<Decoder>,
        also: Option<Algorithm>,
        idle: Duration,
    ) -> Self {
        let body = ticket.take_body();
        let running = Running::new(declared.payload, declared.algorithm().into_iter().chain(also));
        Self { ticket, body, decoder, raw: Bytes::new(), declared, seen: 0, running, digests: None, idle }
    }

    /// What was computed. `None` unless the body ended well.
    pub(crate) fn digests(&mut self) -> Option<Digests> {
        self.digests.take()
    }

    /// More of the raw body; `None` at its end.
    async fn frame(&mut self) -> Result<Option<Bytes>, BodyError> {
        let Some(body) = &mut self.body else { return Ok(None) };
        loop {
            match tokio::time::timeout(self.idle, body.frame()).await {
                Err(_) => return Err(BodyError::Stalled),
                Ok(None) => {
                    self.body = None;
                    return Ok(None);
                }
                Ok(Some(Err(error))) => {
                    tracing::debug!(%error, "the request's body broke off");
                    self.body = None;
                    return Err(BodyError::Disconnected);
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.ticket.add_bytes_in(data.len() as u64);
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    async fn data(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let Some(decoder) = &mut self.decoder else { return self.frame().await };
            if let Some(data) = decoder.next(&mut self.raw)? {
                return Ok(Some(data));
            }
            match self.frame().await? {
                Some(raw) => self.raw = raw,
                None => return Ok(None),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            match self.data().await? {
                Some(data) if data.is_empty() => {}
                Some(data) => {
                    self.seen += data.len() as u64;
                    if self.seen > self.declared.length {
                        return Err(BodyError::Long);
                    }
                    self.running.update(&data);
                    return Ok(Some(data));
                }
                None => {
                    self.verify()?;
                    return Ok(None);
                }
            }
        }
    }

    fn verify(&mut self) -> Result<(), BodyError> {
        let trailers = self.decoder.take().map(Decoder::finish).transpose()?.unwrap_or_default();
        if self.seen < self.declared.length {
            return Err(BodyError::Short);
        }
        let (digests, sha256) = self.running.finish();
        if let Payload::Sha256(declared) = self.declared.payload
            && sha256 != Some(declared)
        {
            return Err(BodyError::Sha256);
        }
        if self.declared.md5.is_some_and(|declared| declared != digests.md5) {
            return Err(BodyError::Md5);
        }
        let trailing = self.trailing_value(&trailers)?;
        for claimed in self.declared.checksum.iter().chain(&trailing) {
            if !digests.checksums.contains(claimed) {
                return Err(BodyError::Checksum(claimed.algorithm));
            }
        }
        self.digests = Some(digests);
        Ok(())
    }

    /// The announced trailer's value; other trailers than the announced one are refused.
    fn trailing_value(&self, trailers: &[(String, String)]) -> Result<Option<Value>, BodyError> {
        match (self.declared.trailing, trailers) {
            (None, []) => Ok(None),
            (None, _) => {
                Err(BodyError::Trailer("a trailing header was sent that x-amz-trailer did not announce"))
            }
            (Some(algorithm), [(name, value)]) if name == algorithm.header() => {
                let value = Value::parse(algorithm, value);
                Ok(Some(
                    value
                        .ok_or(BodyError::Trailer("the trailing checksum is not a value of its algorithm"))?,
                ))
            }
            (Some(_), _) => {
                Err(BodyError::Trailer("the trailing headers are not those that x-amz-trailer announced"))
            }
        }
    }
}

impl BodySource for UploadBody {
    type Error = BodyError;

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.step().await.transpose()
    }

    fn md5(&mut self) -> Option<[u8; 16]> {
        self.digests.as_ref().map(|digests| digests.md5)
    }
}

impl Drop for UploadBody {
    /// What was not read goes back, so that it can be drained and the client gets to read its answer.
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            self.ticket.return_body(body);
        }
    }
}

/// A stored body that is copied.
pub(crate) struct CopyBody {
    reader: BodyReader,
    left: u64,
    running: Running,
    digests: Option<Digests>,
}

impl CopyBody {
    /// `length` bytes of `reader`, with the checksums that the copy will carry.
    pub(crate) fn new(
        reader: BodyReader,
        length: u64,
        algorithms: impl IntoIterator<Item = Algorithm>,
    ) -> Self {
        Self { reader, left: length, running: Running::new(Payload::Unsigned, algorithms), digests: None }
    }

    /// What was computed. `None` unless the body ended well.
    pub(crate) fn digests(&mut self) -> Option<Digests> {
        self.digests.take()
    }
}

impl BodySource for CopyBody {
    type Error = BodyError;

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        match self.reader.next().await {
            Some(Ok(data)) => {
                self.left = match self.left.checked_sub(data.len() as u64) {
                    Some(left) => left,
                    None => return Some(Err(BodyError::Long)),
                };
                self.running.update(&data);
                Some(Ok(data))
            }
            Some(Err(error)) => Some(Err(BodyError::Cluster(error))),
            None if self.left > 0 => Some(Err(BodyError::Short)),
            None => {
                self.digests = Some(self.running.finish().0);
                None
            }
        }
    }

    fn md5(&mut self) -> Option<[u8; 16]> {
        self.digests.as_ref().map(|digests| digests.md5)
    }
}

/// Checks the claims of a request whose XML body was read whole: Content-MD5 and `x-amz-checksum-*`.
///
/// # Errors
/// InvalidDigest, BadDigest; with `required`, InvalidRequest when nothing was claimed.
pub(crate) fn verify_xml(headers: &HeaderMap, pieces: &[Bytes], required: bool) -> S3Result<()> {
    let md5 = content_md5(headers)?;
    let claimed = checksum::claimed(headers)?;
    if md5.is_none() && claimed.is_none() {
        return match required {
            true => Err(invalid_request(
                "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
            )),
            false => Ok(()),
        };
    }
    let mut running = Running::new(Payload::Unsigned, claimed.as_ref().map(|value| value.algorithm));
    pieces.iter().for_each(|piece| running.update(piece));
    let (digests, _) = running.finish();
    if md5.is_some_and(|declared| declared != digests.md5) {
        return Err(crate::error::body(BodyError::Md5));
    }
    match claimed {
        Some(claimed) if !digests.checksums.contains(&claimed) => {
            Err(crate::error::body(BodyError::Checksum(claimed.algorithm)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "body_test.rs"]
mod tests;
