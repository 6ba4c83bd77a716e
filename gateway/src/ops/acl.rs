//! Access control lists as they are under "bucket owner enforced": the owner has full control and nobody else is listed.
//! They can be read and not be changed.

use holdfast_proto::meta::GetObject;
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::{Store, caller, version_query};
use crate::auth::{Caller, canonical_id};
use crate::error::{self, S3Result};

fn grants(caller: Caller) -> (Owner, Vec<Grant>) {
    let id = canonical_id(caller.account);
    let grantee = Grantee {
        id: Some(id.clone()),
        type_: Type::from_static(Type::CANONICAL_USER),
        display_name: None,
        email_address: None,
        uri: None,
    };
    let grant =
        Grant { grantee: Some(grantee), permission: Some(Permission::from_static(Permission::FULL_CONTROL)) };
    (Owner { id: Some(id), ..Default::default() }, vec![grant])
}

pub(super) async fn of_bucket(
    store: &Store,
    request: S3Request<GetBucketAclInput>,
) -> S3Result<S3Response<GetBucketAclOutput>> {
    let caller = caller(&request)?;
    let input = &request.input;
    store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let (owner, grants) = grants(caller);
    Ok(S3Response::new(GetBucketAclOutput { owner: Some(owner), grants: Some(grants) }))
}

pub(super) async fn of_object(
    store: &Store,
    request: S3Request<GetObjectAclInput>,
) -> S3Result<S3Response<GetObjectAclOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let (version, version_null) = version_query(input.version_id.as_deref())?;
    let query =
        GetObject { key: input.key.into(), version, version_null, no_parts: true, ..Default::default() };
    store.cluster.get_object(&bucket, query).await.map_err(error::cluster)?;
    let (owner, grants) = grants(caller);
    Ok(S3Response::new(GetObjectAclOutput { owner: Some(owner), grants: Some(grants), ..Default::default() }))
}
