//! The operations of S3. Each file owns the operations of one kind of resource; this one binds them to the protocol
//! library and holds what they share. What is not bound here is answered NotImplemented.

mod acl;
mod attributes;
mod bucket;
mod copy;
mod delete;
mod get;
mod list;
mod multipart;
mod put;

use std::sync::Arc;
use std::time::Duration;

use holdfast_client::{Cluster, Error as ClusterError, PutError};
use holdfast_proto::id::{BucketId, VersionId};
use holdfast_proto::meta::{Body, Bucket, BucketState, Refusal};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response};

use crate::auth::{Caller, check_owner};
use crate::body::{BodyError, Declared, Payload};
use crate::chunked::Decoder;
use crate::config::GatewayConfig;
use crate::error::{self, S3Error, S3ErrorCode, S3Result, refuse};
use crate::inflight::Inflight;
use crate::sigv4::{Authorization, ChunkSigner};
use crate::ticket::Ticket;

/// What every operation works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    cluster: Cluster,
    region: String,
    inflight: Inflight,
    idle: Duration,
}

impl Store {
    pub(crate) fn new(cluster: Cluster, config: &GatewayConfig, inflight: Inflight) -> Self {
        Self { cluster, region: config.region.clone(), inflight, idle: config.idle_timeout }
    }

    /// The caller's bucket of that name.
    ///
    /// # Errors
    /// NoSuchBucket; AccessDenied when it is another account's.
    async fn bucket(
        &self,
        name: &str,
        caller: Caller,
        expected_owner: Option<&str>,
    ) -> S3Result<Arc<Bucket>> {
        let bucket = self.cluster.bucket(name).await.map_err(error::cluster)?;
        check_owner(&bucket, caller, expected_owner)?;
        if bucket.state() == BucketState::BucketCreating {
            return Err(refuse(S3ErrorCode::NoSuchBucket, "the specified bucket does not exist"));
        }
        Ok(bucket)
    }

    /// What to do with a stored body whose commit failed. Only when it is certain that nothing owns it is it removed.
    fn commit_failed(&self, body: &Body, failure: ClusterError) -> S3Error {
        let certain = match &failure {
            // These do not fence the write: a late copy of the command could still be applied.
            ClusterError::Refused { refusal: Refusal::StaleBucket | Refusal::NoSuchBucket, .. } => false,
            ClusterError::Refused { .. } => true,
            ClusterError::Unavailable { unknown, .. } => !unknown,
            ClusterError::Full { .. }
            | ClusterError::Lost { .. }
            | ClusterError::Invalid { .. }
            | ClusterError::Internal { .. } => false,
        };
        if certain {
            self.cluster.discard(body);
        }
        error::cluster(failure)
    }
}

/// The account behind a request.
fn caller<T>(request: &S3Request<T>) -> S3Result<Caller> {
    request.extensions.get().copied().ok_or_else(|| refuse(S3ErrorCode::AccessDenied, "access denied"))
}

/// What accompanies a request.
fn ticket<T>(request: &S3Request<T>) -> S3Result<Arc<Ticket>> {
    request
        .extensions
        .get::<Arc<Ticket>>()
        .cloned()
        .ok_or_else(|| refuse(S3ErrorCode::InternalError, "the request came past the guard"))
}

/// What takes the framing off a declared body, where it has one.
fn decoder<T>(request: &S3Request<T>, declared: &Declared) -> S3Result<Option<Decoder>> {
    let Payload::Streaming { signed, trailer } = declared.payload else { return Ok(None) };
    if !signed {
        return Ok(Some(Decoder::new(None, trailer)));
    }
    let header = |name| request.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let signer = header("authorization").and_then(Authorization::parse).and_then(|authorization| {
        let secret = request.credentials.as_ref()?.secret_key.expose();
        ChunkSigner::new(secret, authorization, header("x-amz-date")?)
    });
    match signer {
        Some(signer) => Ok(Some(Decoder::new(Some(signer), trailer))),
        None => Err(error::invalid_request("a signed streaming payload needs a signed header")),
    }
}

/// Why a body was not stored, as S3 says it.
fn put_failed(failure: PutError<BodyError>) -> S3Error {
    match failure {
        PutError::Source(failure) => error::body(failure),
        PutError::Cluster(failure) => error::cluster(failure),
    }
}

fn bucket_id(bucket: &Bucket) -> S3Result<BucketId> {
    BucketId::from_wire(&bucket.id).map_err(|_| corrupt("a bucket's id"))
}

/// Stored metadata that does not parse.
fn corrupt(what: &'static str) -> S3Error {
    error::cluster(ClusterError::Internal { detail: format!("{what} does not parse") })
}

/// The version that a request names: its bytes, or the flag of the null one.
///
/// # Errors
/// InvalidArgument for what is no version id.
fn version_query(version_id: Option<&str>) -> S3Result<(bytes::Bytes, bool)> {
    match version_id {
        None => Ok((bytes::Bytes::new(), false)),
        Some("null") => Ok((bytes::Bytes::new(), true)),
        Some(text) => match text.parse::<VersionId>() {
            Ok(version) => Ok((bytes::Bytes::copy_from_slice(&version.to_bytes()), false)),
            Err(_) => Err(error::invalid_argument("Invalid version id specified")),
        },
    }
}

/// How S3 names a version in `x-amz-version-id`: not at all unless the bucket has had versioning on.
fn version_shown(versioned: bool, null: bool, version: &[u8]) -> Option<String> {
    if !versioned {
        return None;
    }
    if null {
        return Some("null".to_owned());
    }
    <[u8; 10]>::try_from(version).ok().map(|raw| VersionId::from_bytes(raw).to_string())
}

fn size_shown(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A count that S3 lets clients choose, at most 1,000.
///
/// # Errors
/// InvalidArgument for a negative one.
fn page_limit(given: Option<i32>, name: &str) -> S3Result<i32> {
    match given {
        None => Ok(1000),
        Some(count @ 0..) => Ok(count.min(1000)),
        Some(_) => Err(error::invalid_argument(format!(
            "Argument {name} must be an integer between 0 and 2147483647"
        ))),
    }
}

macro_rules! bind {
    ($($name:ident => $module:ident :: $function:ident ($input:ty) -> $output:ty;)*) => {
        #[async_trait::async_trait]
        impl S3 for Store {
            $(async fn $name(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                $module::$function(self, request).await
            })*
        }
    };
}

bind! {
    create_bucket => bucket::create(CreateBucketInput) -> CreateBucketOutput;
    head_bucket => bucket::head(HeadBucketInput) -> HeadBucketOutput;
    list_buckets => bucket::list(ListBucketsInput) -> ListBucketsOutput;
    delete_bucket => bucket::delete(DeleteBucketInput) -> DeleteBucketOutput;
    get_bucket_location => bucket::location(GetBucketLocationInput) -> GetBucketLocationOutput;
    get_bucket_versioning => bucket::versioning(GetBucketVersioningInput) -> GetBucketVersioningOutput;
    get_bucket_acl => acl::of_bucket(GetBucketAclInput) -> GetBucketAclOutput;
    get_object_acl => acl::of_object(GetObjectAclInput) -> GetObjectAclOutput;
    put_object => put::put(PutObjectInput) -> PutObjectOutput;
    get_object => get::get(GetObjectInput) -> GetObjectOutput;
    head_object => get::head(HeadObjectInput) -> HeadObjectOutput;
    get_object_attributes => attributes::get(GetObjectAttributesInput) -> GetObjectAttributesOutput;
    delete_object => delete::one(DeleteObjectInput) -> DeleteObjectOutput;
    delete_objects => delete::many(DeleteObjectsInput) -> DeleteObjectsOutput;
    copy_object => copy::object(CopyObjectInput) -> CopyObjectOutput;
    upload_part_copy => copy::part(UploadPartCopyInput) -> UploadPartCopyOutput;
    create_multipart_upload => multipart::create(CreateMultipartUploadInput) -> CreateMultipartUploadOutput;
    upload_part => multipart::part(UploadPartInput) -> UploadPartOutput;
    complete_multipart_upload => multipart::complete(CompleteMultipartUploadInput) -> CompleteMultipartUploadOutput;
    abort_multipart_upload => multipart::abort(AbortMultipartUploadInput) -> AbortMultipartUploadOutput;
    list_parts => list::parts(ListPartsInput) -> ListPartsOutput;
    list_multipart_uploads => list::uploads(ListMultipartUploadsInput) -> ListMultipartUploadsOutput;
    list_objects => list::objects_v1(ListObjectsInput) -> ListObjectsOutput;
    list_objects_v2 => list::objects_v2(ListObjectsV2Input) -> ListObjectsV2Output;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_as_s3_does() {
        let version = VersionId::default();
        assert_eq!(version_query(None).unwrap(), (bytes::Bytes::new(), false));
        assert_eq!(version_query(Some("null")).unwrap(), (bytes::Bytes::new(), true));
        assert_eq!(version_query(Some(&version.to_string())).unwrap().0, version.to_bytes()[..]);
        assert_eq!(version_query(Some("x")).unwrap_err().code().as_str(), "InvalidArgument");
        assert_eq!(version_shown(false, true, &[]), None);
        assert_eq!(version_shown(true, true, &[]).as_deref(), Some("null"));
        assert_eq!(version_shown(true, false, &version.to_bytes()), Some(version.to_string()));
    }

    #[test]
    fn pages_hold_a_thousand_at_most() {
        assert_eq!(page_limit(None, "max-keys").unwrap(), 1000);
        assert_eq!(page_limit(Some(0), "max-keys").unwrap(), 0);
        assert_eq!(page_limit(Some(5000), "max-keys").unwrap(), 1000);
        assert!(page_limit(Some(-1), "max-keys").is_err());
    }
}
