//! Buckets: create, look up, list, delete. A bucket belongs to the account that created it.

use holdfast_client::Error as ClusterError;
use holdfast_proto::meta::{BucketState, Refusal};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::{Store, caller, ticket};
use crate::auth::{canonical_id, check_owner};
use crate::body::verify_xml;
use crate::error::{self, S3ErrorCode, S3Result, invalid_argument, not_implemented, refuse};
use crate::headers::shown_time;
use crate::name::check_new_bucket;
use crate::token::{self, Kind};

/// The region whose buckets have no LocationConstraint.
const REGION_WITHOUT_CONSTRAINT: &str = "us-east-1";

pub(super) async fn create(
    store: &Store,
    request: S3Request<CreateBucketInput>,
) -> S3Result<S3Response<CreateBucketOutput>> {
    let caller = caller(&request)?;
    verify_xml(&request.headers, &ticket(&request)?.take_xml(), false)?;
    let name = &request.input.bucket;
    check_new_bucket(name)?;
    let configuration = request.input.create_bucket_configuration.unwrap_or_default();
    if configuration.bucket.is_some() || configuration.location.is_some() {
        return Err(not_implemented("directory buckets are not implemented"));
    }
    let location = configuration.location_constraint.as_ref().map_or("", BucketLocationConstraint::as_str);
    if !location.is_empty() && location != store.region {
        return Err(refuse(
            S3ErrorCode::IllegalLocationConstraintException,
            format!(
                "The {location} location constraint is incompatible for the region specific endpoint this request was sent to."
            ),
        ));
    }
    match store.cluster.create_bucket(name, caller.account, location).await {
        Ok(_) => {}
        // Whoever began to create it may have died: the owner's next attempt finishes it.
        Err(
            failure @ ClusterError::Refused {
                refusal: Refusal::BucketBusy | Refusal::BucketExistsOwned, ..
            },
        ) => {
            let found = store.cluster.bucket(name).await.map_err(error::cluster)?;
            if found.state() != BucketState::BucketCreating || check_owner(&found, caller, None).is_err() {
                return Err(error::cluster(failure));
            }
            store.cluster.settle_bucket(&found).await.map_err(error::cluster)?;
        }
        Err(failure) => return Err(error::cluster(failure)),
    }
    Ok(S3Response::new(CreateBucketOutput { location: Some(format!("/{name}")) }))
}

pub(super) async fn head(
    store: &Store,
    request: S3Request<HeadBucketInput>,
) -> S3Result<S3Response<HeadBucketOutput>> {
    let input = &request.input;
    store.bucket(&input.bucket, caller(&request)?, input.expected_bucket_owner.as_deref()).await?;
    Ok(S3Response::new(HeadBucketOutput { bucket_region: Some(store.region.clone()), ..Default::default() }))
}

pub(super) async fn delete(
    store: &Store,
    request: S3Request<DeleteBucketInput>,
) -> S3Result<S3Response<DeleteBucketOutput>> {
    let input = &request.input;
    let bucket = store.cluster.bucket(&input.bucket).await.map_err(error::cluster)?;
    check_owner(&bucket, caller(&request)?, input.expected_bucket_owner.as_deref())?;
    store.cluster.delete_bucket(&bucket).await.map_err(error::cluster)?;
    Ok(S3Response::new(DeleteBucketOutput::default()))
}

pub(super) async fn location(
    store: &Store,
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    let input = &request.input;
    store.bucket(&input.bucket, caller(&request)?, input.expected_bucket_owner.as_deref()).await?;
    let constraint = (store.region != REGION_WITHOUT_CONSTRAINT)
        .then(|| BucketLocationConstraint::from(store.region.clone()));
    Ok(S3Response::new(GetBucketLocationOutput { location_constraint: constraint }))
}

/// Versioning is off in every bucket; S3 says so with an empty document.
pub(super) async fn versioning(
    store: &Store,
    request: S3Request<GetBucketVersioningInput>,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    use holdfast_proto::meta::Versioning;
    let input = &request.input;
    let bucket =
        store.bucket(&input.bucket, caller(&request)?, input.expected_bucket_owner.as_deref()).await?;
    let status = match bucket.versioning() {
        Versioning::Off => None,
        Versioning::Enabled => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED)),
        Versioning::Suspended => Some(BucketVersioningStatus::from_static(BucketVersioningStatus::SUSPENDED)),
    };
    Ok(S3Response::new(GetBucketVersioningOutput { status, ..Default::default() }))
}

pub(super) async fn list(
    store: &Store,
    request: S3Request<ListBucketsInput>,
) -> S3Result<S3Response<ListBucketsOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let limit = match input.max_buckets {
        None => 10_000,
        Some(count @ 1..=10_000) => count.unsigned_abs(),
        Some(_) => return Err(invalid_argument("max-buckets must be an integer between 1 and 10000")),
    };
    let owner = Owner { id: Some(canonical_id(caller.account)), ..Default::default() };
    let mut output = ListBucketsOutput {
        owner: Some(owner),
        prefix: input.prefix.clone(),
        buckets: Some(Vec::new()),
        continuation_token: None,
    };
    if input.bucket_region.is_some_and(|region| region != store.region) {
        return Ok(S3Response::new(output));
    }
    let after = match &input.continuation_token {
        None => String::new(),
        Some(given) => String::from_utf8(token::decode(Kind::Buckets, given)?)
            .map_err(|_| invalid_argument("The continuation token provided is incorrect"))?,
    };
    let prefix = input.prefix.unwrap_or_default();
    let mut names: Vec<(String, u64)> = Vec::new();
    let mut after = after;
    // The realm answers in pages of its own size.
    let more = loop {
        let left = limit - names.len() as u32;
        let page = store
            .cluster
            .list_buckets(Some(caller.account), &prefix, &after, left)
            .await
            .map_err(error::cluster)?;
        match page.buckets.last() {
            Some(last) => after = last.name.clone(),
            None => break false,
        }
        names.extend(
            page.buckets
                .into_iter()
                .filter(|bucket| bucket.state() == BucketState::BucketActive)
                .map(|bucket| (bucket.name, bucket.created_ms)),
        );
        if !page.more || names.len() >= limit as usize {
            break page.more;
        }
    };
    if more {
        output.continuation_token = Some(token::encode(Kind::Buckets, after.as_bytes()));
    }
    let buckets = names.into_iter().map(|(name, created_ms)| Bucket {
        name: Some(name),
        creation_date: Some(shown_time(created_ms)),
        bucket_region: Some(store.region.clone()),
    });
    output.buckets = Some(buckets.collect());
    Ok(S3Response::new(output))
}
