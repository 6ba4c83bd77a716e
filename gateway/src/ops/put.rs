//! PutObject: the body is stored and verified, then a version that refers to it is committed under the request's
//! conditions. A crash in between leaves shards that nobody owns, which the reconciler removes.

use holdfast_client::WriteIntent;
use holdfast_proto::meta::Version;
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::{Store, bucket_id, caller, decoder, put_failed, ticket, version_shown};
use crate::body::{Declared, UploadBody};
use crate::checksum::{self, Value};
use crate::condition::write_preconditions;
use crate::error::{S3ErrorCode, S3Result, invalid_request, refuse};
use crate::headers::{Given, storage_class};
use crate::name::check_key;
use crate::surface::query_value;

pub(super) async fn put(
    store: &Store,
    request: S3Request<PutObjectInput>,
) -> S3Result<S3Response<PutObjectOutput>> {
    let caller = caller(&request)?;
    let ticket = ticket(&request)?;
    let declared = Declared::from_headers(&request.headers)?;
    let decoder = decoder(&request, &declared)?;
    // A presigned URL may name an algorithm whose value does not come: it is computed and stored.
    let named = request.uri.query().and_then(|query| query_value(query, "x-amz-sdk-checksum-algorithm"));
    let named = named.map(checksum::named).transpose()?;
    if let (Some(named), Some(sent)) = (named, declared.algorithm())
        && named != sent
    {
        return Err(invalid_request("Value for x-amz-sdk-checksum-algorithm header is invalid."));
    }
    let also = named.filter(|_| declared.algorithm().is_none());
    let input = request.input;
    check_key(&input.key)?;
    let conditions = write_preconditions(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let class = storage_class(&store.cluster, input.storage_class.as_ref().map(StorageClass::as_str))?;
    let headers = Given {
        content_type: input.content_type,
        content_encoding: input.content_encoding,
        content_language: input.content_language,
        content_disposition: input.content_disposition,
        cache_control: input.cache_control,
        expires: input.expires,
        metadata: input.metadata,
    }
    .into_stored(class.clone())?;
    let length = declared.length;
    let _room = store.inflight.enter(length).await?;
    let intent = WriteIntent {
        bucket: bucket_id(&bucket)?,
        key: input.key.clone().into(),
        upload: None,
        length,
        storage_class: class,
        headers: Some(headers.clone()),
    };
    let mut source = UploadBody::new(ticket, declared, decoder, also, store.idle);
    let stored = store.cluster.put_body(intent, &mut source).await.map_err(put_failed)?;
    let digests = source.digests().ok_or_else(|| {
        refuse(S3ErrorCode::InternalError, "the body was stored before it had been verified")
    })?;
    let etag = hex::encode(digests.md5);
    let checksums: Vec<_> = digests.checksums.iter().map(Value::to_stored).collect();
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
    let committed =
        store.cluster.put_object(&bucket, input.key.as_bytes(), version, conditions, stored.missed).await;
    let committed = match committed {
        Ok(committed) => committed,
        Err(failure) => return Err(store.commit_failed(&stored.body, failure)),
    };
    let sums = checksum::shown(&checksums);
    Ok(S3Response::new(PutObjectOutput {
        e_tag: Some(ETag::Strong(etag)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind.map(ChecksumType::from_static),
        version_id: version_shown(committed.versioned, committed.null, &committed.version),
        ..Default::default()
    }))
}
