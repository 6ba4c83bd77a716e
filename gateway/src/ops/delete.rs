//! DeleteObject and DeleteObjects.

use holdfast_proto::limits::DELETE_KEYS_MAX;
use holdfast_proto::meta::{DeleteObject, Deleted, Preconditions};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::{Store, caller, ticket, version_query, version_shown};
use crate::auth::Caller;
use crate::body::verify_xml;
use crate::condition::preconditions;
use crate::error::{self, S3Error, S3ErrorCode, S3Result, invalid_argument, refuse};
use crate::name::check_key;

/// What a delete may be conditional on.
struct Conditions<'r> {
    if_match: Option<&'r ETagCondition>,
    modified: Option<&'r Timestamp>,
    size: Option<i64>,
}

impl Conditions<'_> {
    fn stored(&self) -> S3Result<Preconditions> {
        let mut out = preconditions(self.if_match, None);
        out.if_match_size = self
            .size
            .map(|size| u64::try_from(size).map_err(|_| invalid_argument("a size cannot be negative")))
            .transpose()?;
        out.if_match_modified_ms = self
            .modified
            .map(|at| {
                let seconds = time::OffsetDateTime::from(at.clone()).unix_timestamp();
                u64::try_from(seconds).map(|seconds| seconds * 1000)
            })
            .transpose()
            .map_err(|_| invalid_argument("a time before 1970"))?;
        Ok(out)
    }
}

fn command(
    key: &str,
    version_id: Option<&str>,
    conditions: &Conditions<'_>,
    caller: Caller,
) -> S3Result<DeleteObject> {
    check_key(key)?;
    let (version, version_null) = version_query(version_id)?;
    Ok(DeleteObject {
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
        version,
        version_null,
        conditions: Some(conditions.stored()?),
        owner: caller.account.to_wire(),
        ..Default::default()
    })
}

/// The version or marker that an answer names; none where versioning was never on.
fn shown(deleted: &Deleted) -> Option<String> {
    let named = !deleted.version.is_empty() && (deleted.marker || !deleted.null);
    version_shown(named, deleted.null, &deleted.version)
}

pub(super) async fn one(
    store: &Store,
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let caller = caller(&request)?;
    let input = &request.input;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let conditions = Conditions {
        if_match: input.if_match.as_ref(),
        modified: input.if_match_last_modified_time.as_ref(),
        size: input.if_match_size,
    };
    let command = command(&input.key, input.version_id.as_deref(), &conditions, caller)?;
    let deleted = store.cluster.delete_object(&bucket, command).await.map_err(error::cluster)?;
    Ok(S3Response::new(DeleteObjectOutput {
        delete_marker: deleted.marker.then_some(true),
        version_id: shown(&deleted),
        ..Default::default()
    }))
}

pub(super) async fn many(
    store: &Store,
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let caller = caller(&request)?;
    verify_xml(&request.headers, &ticket(&request)?.take_xml(), true)?;
    let input = request.input;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let quiet = input.delete.quiet.unwrap_or(false);
    let objects = input.delete.objects;
    if objects.is_empty() || objects.len() > DELETE_KEYS_MAX {
        return Err(refuse(
            S3ErrorCode::MalformedXML,
            "The XML you provided was not well-formed or did not validate against our published schema",
        ));
    }
    let mut commands = Vec::with_capacity(objects.len());
    // The outcome of each: refused here, or the place of its command.
    let mut outcomes: Vec<Result<usize, S3Error>> = Vec::with_capacity(objects.len());
    for object in &objects {
        let if_match = object.e_tag.clone().map(|etag| match etag.value() {
            "*" => ETagCondition::Any,
            _ => ETagCondition::ETag(etag),
        });
        let conditions = Conditions {
            if_match: if_match.as_ref(),
            modified: object.last_modified_time.as_ref(),
            size: object.size,
        };
        outcomes.push(command(&object.key, object.version_id.as_deref(), &conditions, caller).map(
            |command| {
                commands.push(command);
                commands.len() - 1
            },
        ));
    }
    let mut results = store.cluster.delete_objects(&bucket, commands).await;
    // One fault may befall many keys.
    if let Some(failure) = results.iter().find_map(|result| result.as_ref().err()) {
        error::log(failure);
    }
    let mut done = Vec::new();
    let mut errors = Vec::new();
    for (object, outcome) in objects.into_iter().zip(outcomes) {
        let result = outcome.and_then(|place| match results.get_mut(place) {
            Some(result) => std::mem::replace(result, Ok(Deleted::default())).map_err(error::unlogged),
            None => Err(refuse(S3ErrorCode::InternalError, "a key got no answer")),
        });
        match result {
            Ok(_) if quiet => {}
            Ok(deleted) => done.push(DeletedObject {
                key: Some(object.key),
                delete_marker: deleted.marker.then_some(true),
                delete_marker_version_id: deleted.marker.then(|| shown(&deleted)).flatten(),
                version_id: object.version_id,
            }),
            Err(failure) => errors.push(Error {
                code: Some(failure.code().as_str().to_owned()),
                key: Some(object.key),
                message: failure.message().map(str::to_owned),
                version_id: object.version_id,
            }),
        }
    }
    Ok(S3Response::new(DeleteObjectsOutput {
        deleted: (!done.is_empty()).then_some(done),
        errors: (!errors.is_empty()).then_some(errors),
        ..Default::default()
    }))
}

#[cfg(test)]
mod tests {
    use holdfast_proto::id::AccountId;

    use super::*;

    const NONE: Conditions<'_> = Conditions { if_match: None, modified: None, size: None };

    #[test]
    fn keys_and_conditions_are_checked_one_by_one() {
        let caller = Caller { account: AccountId::default() };
        let made = command("k", Some("null"), &NONE, caller).unwrap();
        assert!(made.version_null && made.version.is_empty());
        assert_eq!(
            command(&"k".repeat(1025), None, &NONE, caller).unwrap_err().code().as_str(),
            "KeyTooLongError"
        );
        let conditions = Conditions { size: Some(-1), ..NONE };
        assert!(command("k", None, &conditions, caller).is_err());
        let any = ETagCondition::Any;
        let conditions = Conditions { if_match: Some(&any), size: Some(4), ..NONE };
        let stored = command("k", None, &conditions, caller).unwrap().conditions.unwrap();
        assert_eq!((stored.if_match, stored.if_match_size), (vec!["*".to_owned()], Some(4)));
    }

    #[test]
    fn without_versioning_nothing_is_named() {
        assert_eq!(shown(&Deleted::default()), None);
        let null = Deleted { marker: false, version: vec![0; 10].into(), null: true };
        assert_eq!(shown(&null), None);
        let marker = Deleted { marker: true, version: vec![0; 10].into(), null: false };
        assert_eq!(shown(&marker).map(|text| text.len()), Some(16));
    }
}
