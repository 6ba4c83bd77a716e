//! CopyObject and UploadPartCopy: the source is read through the cluster client and written as a new body, so that a copy
//! has an ETag and checksums of its own and shares nothing with its source.
//!
//! The source is read at one version; an overwrite of it meanwhile does not mix in, and a source that is freed while it
//! is copied fails the copy.

use std::ops::Range;

use holdfast_client::{StoredBody, WriteIntent};
use holdfast_proto::limits::PUT_BYTES_MAX;
use holdfast_proto::meta::{self, GetObject, ObjectFound, ObjectHeaders, Version};
use http::{HeaderMap, header};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::multipart::{self, PartSpot};
use super::{Store, bucket_id, caller, corrupt, put_failed, version_query, version_shown};
use crate::auth::Caller;
use crate::body::{CopyBody, Digests};
use crate::checksum::{self, Algorithm, Value};
use crate::condition::{ReadConditions, Verdict, resolve_range, write_preconditions};
use crate::error::{self, S3ErrorCode, S3Result, invalid_argument, invalid_request, not_implemented, refuse};
use crate::headers::{Given, shown_time, storage_class};
use crate::name::check_key;

/// A source that was found and whose conditions hold.
struct Source {
    found: ObjectFound,
    version: Version,
    headers: ObjectHeaders,
    /// As `x-amz-copy-source-version-id` shows it.
    version_id: Option<String>,
}

async fn open_source(
    store: &Store,
    caller: Caller,
    source: &CopySource,
    expected_owner: Option<&str>,
    conditions: ReadConditions,
    range: Option<&Range<u64>>,
) -> S3Result<Source> {
    let CopySource::Bucket { bucket, key, version_id } = source else {
        return Err(not_implemented("copies from access points are not implemented"));
    };
    let bucket = store.bucket(bucket, caller, expected_owner).await?;
    let (version, version_null) = version_query(version_id.as_deref())?;
    let query = GetObject {
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
        version,
        version_null,
        range_start: range.map(|range| range.start),
        range_end: range.map(|range| range.end),
        ..Default::default()
    };
    let mut found = store.cluster.get_object(&bucket, query).await.map_err(error::cluster)?;
    let mut version = found.version.take().ok_or_else(|| corrupt("an object"))?;
    let headers = version.headers.take().unwrap_or_default();
    // For a source, S3 answers 412 whichever condition fails.
    if conditions.evaluate(&version.etag, version.modified_ms) != Verdict::Proceed {
        return Err(refuse(
            S3ErrorCode::PreconditionFailed,
            "at least one of the preconditions you specified did not hold",
        ));
    }
    let version_id = version_shown(found.versioned, version.null, &found.version_id);
    found.version = Some(version.clone());
    Ok(Source { found, version, headers, version_id })
}

/// Reads `range` of the source and stores it for `intent`.
async fn store_copy(
    store: &Store,
    source: &Source,
    range: Range<u64>,
    intent: WriteIntent,
    algorithms: impl IntoIterator<Item = Algorithm>,
) -> S3Result<(StoredBody, Digests)> {
    let length = intent.length;
    let _room = store.inflight.enter(length).await?;
    let reader = store.cluster.read_object(&source.found, range);
    let mut body = CopyBody::new(reader, length, algorithms);
    let stored = store.cluster.put_body(intent, &mut body).await.map_err(put_failed)?;
    let digests = body
        .digests()
        .ok_or_else(|| refuse(S3ErrorCode::InternalError, "the copy was stored before it had been read"))?;
    Ok((stored, digests))
}

/// The condition on the destination, which the protocol library does not parse for copies.
fn condition(headers: &HeaderMap, name: header::HeaderName) -> S3Result<Option<ETagCondition>> {
    headers
        .get(&name)
        .map(|value| {
            ETagCondition::parse_http_header(value.as_bytes())
                .map_err(|_| invalid_argument(format!("invalid header: {name}")))
        })
        .transpose()
}

pub(super) async fn object(
    store: &Store,
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let caller = caller(&request)?;
    let if_match = condition(&request.headers, header::IF_MATCH)?;
    let if_none_match = condition(&request.headers, header::IF_NONE_MATCH)?;
    let write_conditions = write_preconditions(if_match.as_ref(), if_none_match.as_ref())?;
    let input = request.input;
    check_key(&input.key)?;
    let replace = match input.metadata_directive.as_ref().map(MetadataDirective::as_str) {
        None | Some("COPY") => false,
        Some("REPLACE") => true,
        Some(_) => return Err(invalid_argument("Unknown metadata directive.")),
    };
    let algorithm =
        input.checksum_algorithm.as_ref().map(|name| checksum::named(name.as_str())).transpose()?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let class = storage_class(&store.cluster, input.storage_class.as_ref().map(StorageClass::as_str))?;
    let conditions = ReadConditions {
        if_match: input.copy_source_if_match,
        if_none_match: input.copy_source_if_none_match,
        if_modified_since: input.copy_source_if_modified_since,
        if_unmodified_since: input.copy_source_if_unmodified_since,
    };
    let expected = input.expected_source_bucket_owner.as_deref();
    let source = open_source(store, caller, &input.copy_source, expected, conditions, None).await?;
    let length = source.version.size;
    if length > PUT_BYTES_MAX {
        return Err(invalid_request(
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120",
        ));
    }
    let onto_itself = matches!(&input.copy_source, CopySource::Bucket { bucket, key, version_id: None }
        if **bucket == *input.bucket && **key == *input.key);
    if onto_itself && !replace && class == source.headers.storage_class && algorithm.is_none() {
        return Err(invalid_request(
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.",
        ));
    }
    let headers = match replace {
        false => ObjectHeaders { storage_class: class.clone(), ..source.headers.clone() },
        true => Given {
            content_type: input.content_type,
            content_encoding: input.content_encoding,
            content_language: input.content_language,
            content_disposition: input.content_disposition,
            cache_control: input.cache_control,
            expires: input.expires,
            metadata: input.metadata,
        }
        .into_stored(class.clone())?,
    };
    let intent = WriteIntent {
        bucket: bucket_id(&bucket)?,
        key: input.key.clone().into(),
        upload: None,
        length,
        storage_class: class,
        headers: Some(headers.clone()),
    };
    // A copy keeps the algorithm of its source unless another is asked for.
    let inherited = source.version.checksums.iter().filter_map(|sum| Algorithm::from_stored(sum.algorithm()));
    let algorithms: Vec<Algorithm> = match algorithm {
        Some(algorithm) => vec![algorithm],
        None => inherited.collect(),
    };
    let (stored, digests) = store_copy(store, &source, 0..length, intent, algorithms).await?;
    let etag = hex::encode(digests.md5);
    let checksums: Vec<meta::Checksum> = digests.checksums.iter().map(Value::to_stored).collect();
    let version = Version {
        size: length,
        etag: etag.clone(),
        headers: Some(headers),
        checksums: checksums.clone(),
        body: Some(stored.body.clone()),
        owner: caller.account.to_wire(),
        begin_hlc: stored.begin.get(),
        ..Default::default()
    };
    let committed = store
        .cluster
        .put_object(&bucket, input.key.as_bytes(), version, write_conditions, stored.missed)
        .await;
    let committed = match committed {
        Ok(committed) => committed,
        Err(failure) => return Err(store.commit_failed(&stored.body, failure)),
    };
    let sums = checksum::shown(&checksums);
    Ok(S3Response::new(CopyObjectOutput {
        copy_object_result: Some(CopyObjectResult {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_type: sums.kind.map(ChecksumType::from_static),
            e_tag: Some(ETag::Strong(etag)),
            last_modified: Some(shown_time(committed.modified_ms)),
        }),
        copy_source_version_id: source.version_id,
        version_id: version_shown(committed.versioned, committed.null, &committed.version),
        ..Default::default()
    }))
}

/// `x-amz-copy-source-range`: both ends, and no suffix.
fn part_range(text: &str) -> S3Result<Range<u64>> {
    match s3s::dto::Range::parse(text) {
        Ok(s3s::dto::Range::Int { first, last: Some(last) }) => Ok(first..last.saturating_add(1)),
        _ => Err(invalid_argument(
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
        )),
    }
}

pub(super) async fn part(
    store: &Store,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let asked = input.copy_source_range.as_deref().map(part_range).transpose()?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let spot = PartSpot::find(store, bucket, input.key, &input.upload_id, input.part_number).await?;
    let conditions = ReadConditions {
        if_match: input.copy_source_if_match,
        if_none_match: input.copy_source_if_none_match,
        if_modified_since: input.copy_source_if_modified_since,
        if_unmodified_since: input.copy_source_if_unmodified_since,
    };
    let expected = input.expected_source_bucket_owner.as_deref();
    let source = open_source(store, caller, &input.copy_source, expected, conditions, asked.as_ref()).await?;
    let size = source.version.size;
    let range = match asked {
        None => 0..size,
        // Unlike a GET, a copy must not be cut at the end of its source.
        Some(asked) if asked.end > size => {
            return Err(invalid_argument(format!(
                "Range specified is not valid for source object of size: {size}"
            )));
        }
        Some(asked) => {
            let range = s3s::dto::Range::Int { first: asked.start, last: Some(asked.end - 1) };
            resolve_range(&range, size)?
        }
    };
    let length = range.end - range.start;
    if length > PUT_BYTES_MAX {
        return Err(invalid_request(
            "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120",
        ));
    }
    let algorithm = spot.algorithm();
    let intent = spot.intent(length)?;
    let (stored, digests) = store_copy(store, &source, range, intent, algorithm).await?;
    multipart::commit_part(store, &spot, stored, &digests, length).await?;
    let sums = checksum::shown(&digests.checksums.iter().map(Value::to_stored).collect::<Vec<_>>());
    Ok(S3Response::new(UploadPartCopyOutput {
        copy_part_result: Some(CopyPartResult {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            e_tag: Some(ETag::Strong(hex::encode(digests.md5))),
            last_modified: Some(shown_time(store.cluster.now().ms())),
        }),
        copy_source_version_id: source.version_id,
        ..Default::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_parts_have_both_ends() {
        assert_eq!(part_range("bytes=0-9").unwrap(), 0..10);
        for text in ["bytes=5-", "bytes=-5", "0-9", "bytes=9-0", "bytes=0-9,20-29", ""] {
            assert_eq!(part_range(text).unwrap_err().code().as_str(), "InvalidArgument", "{text}");
        }
    }

    #[test]
    fn destination_conditions_come_from_the_raw_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(condition(&headers, header::IF_MATCH).unwrap(), None);
        headers.insert(header::IF_NONE_MATCH, "*".parse().unwrap());
        assert_eq!(condition(&headers, header::IF_NONE_MATCH).unwrap(), Some(ETagCondition::Any));
        headers.insert(header::IF_MATCH, "\"a".parse().unwrap());
        assert!(condition(&headers, header::IF_MATCH).is_err());
    }
}
