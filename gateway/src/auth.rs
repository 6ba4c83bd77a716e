//! Who is asking, and whether they may: secrets for the signature check, and the rule that an account owns its buckets.
//!
//! Secrets come sealed from the realm and are opened with the realm's key; an opened one is kept as long as the row it
//! came from is the one that the cluster client has, so that a disabled or changed key takes effect with the client's
//! revalidation.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_client::{Cluster, seal};
use holdfast_proto::id::AccountId;
use holdfast_proto::meta::{AccessKey, Bucket};
use parking_lot::RwLock;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use sha2::Digest as _;

use crate::error::{S3ErrorCode, S3Result, cluster, refuse};
use crate::surface;
use crate::ticket::Ticket;

/// Opened secrets kept at most; beyond it they are opened again.
const OPENED_MAX: usize = 4096;
/// Longest access key id, bytes.
const ACCESS_KEY_BYTES_MAX: usize = 128;

/// The account behind a verified signature. In the request's extensions once access was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub account: AccountId,
}

struct Opened {
    row: Arc<AccessKey>,
    secret: SecretKey,
    account: AccountId,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    realm_key: [u8; 32],
    opened: RwLock<HashMap<String, Arc<Opened>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.realm_key.fill(0);
    }
}

impl Auth {
    pub(crate) fn new(cluster: Cluster, realm_key: [u8; 32]) -> Self {
        Self { inner: Arc::new(Inner { cluster, realm_key, opened: RwLock::default() }) }
    }

    /// The account of an access key whose signature was verified.
    pub(crate) async fn caller(&self, access_key: &str) -> S3Result<Caller> {
        Ok(Caller { account: self.open(access_key).await?.account })
    }

    async fn open(&self, id: &str) -> S3Result<Arc<Opened>> {
        let unknown = || {
            refuse(
                S3ErrorCode::InvalidAccessKeyId,
                "the AWS access key id you provided does not exist in our records",
            )
        };
        if id.is_empty() || id.len() > ACCESS_KEY_BYTES_MAX {
            return Err(unknown());
        }
        let row = self.inner.cluster.access_key(id).await.map_err(cluster)?.ok_or_else(unknown)?;
        if row.disabled {
            return Err(unknown());
        }
        if let Some(opened) = self.inner.opened.read().get(id)
            && Arc::ptr_eq(&opened.row, &row)
        {
            return Ok(opened.clone());
        }
        let failed = |what: &str| {
            tracing::error!(access_key = id, what, "an access key cannot be opened");
            refuse(S3ErrorCode::InternalError, "the access key cannot be read")
        };
        let secret = seal::open_secret(&self.inner.realm_key, id, &row.sealed_secret)
            .map_err(|error| failed(&error.to_string()))?;
        let secret = String::from_utf8(secret).map_err(|_| failed("the secret is no text"))?;
        let account = AccountId::from_wire(&row.account).map_err(|error| failed(&error.to_string()))?;
        let opened = Arc::new(Opened { row, secret: SecretKey::from(secret), account });
        let mut all = self.inner.opened.write();
        if all.len() >= OPENED_MAX {
            all.clear();
        }
        all.insert(id.to_owned(), opened.clone());
        Ok(opened)
    }
}

#[async_trait::async_trait]
impl S3Auth for Auth {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        Ok(self.open(access_key).await?.secret.clone())
    }
}

#[async_trait::async_trait]
impl S3Access for Auth {
    /// Runs for every operation, after the signature check: anonymous requests end here, and so does whatever the
    /// operation would ignore.
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let Some(credentials) = cx.credentials() else {
            return Err(refuse(S3ErrorCode::AccessDenied, "access denied"));
        };
        let caller = self.caller(&credentials.access_key).await?;
        cx.extensions_mut().insert(caller);
        check_surface(cx)
    }
}

/// Refuses what the operation would ignore, and names it on the request's ticket.
pub(crate) fn check_surface(cx: &mut S3AccessContext<'_>) -> S3Result<()> {
    let name = cx.s3_op().name();
    let Some(operation) = surface::operation(name) else {
        return Err(crate::error::not_implemented(format!("{name} is not implemented")));
    };
    operation.check(cx.uri().query(), cx.headers())?;
    if let Some(ticket) = cx.extensions_mut().get::<Arc<Ticket>>() {
        ticket.set_operation(operation.name);
    }
    Ok(())
}

/// Whether the caller may use the bucket: it has to be theirs, and the owner that they expect.
///
/// # Errors
/// AccessDenied.
pub(crate) fn check_owner(bucket: &Bucket, caller: Caller, expected_owner: Option<&str>) -> S3Result<()> {
    let owner = AccountId::from_wire(&bucket.owner).ok();
    let as_expected = expected_owner.is_none_or(|expected| {
        owner.is_some_and(|owner| expected == owner.to_string() || expected == canonical_id(owner))
    });
    if owner == Some(caller.account) && as_expected {
        return Ok(());
    }
    Err(refuse(S3ErrorCode::AccessDenied, "access denied"))
}

/// An account's canonical user id: 64 hex digits that say nothing of the account.
pub(crate) fn canonical_id(account: AccountId) -> String {
    hex::encode(sha2::Sha256::digest(account.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_its_owners() {
        let (mine, other) = (AccountId::from_bytes([1; 16]), AccountId::from_bytes([2; 16]));
        let bucket = Bucket { owner: mine.to_wire(), ..Bucket::default() };
        let caller = Caller { account: mine };
        assert!(check_owner(&bucket, caller, None).is_ok());
        assert!(check_owner(&bucket, caller, Some(&mine.to_string())).is_ok());
        assert!(check_owner(&bucket, caller, Some(&canonical_id(mine))).is_ok());
        assert!(check_owner(&bucket, caller, Some("123456789012")).is_err());
        assert!(check_owner(&bucket, Caller { account: other }, None).is_err());
        assert!(
            check_owner(&Bucket::default(), caller, None).is_err(),
            "a bucket without an owner is nobody's"
        );
    }

    #[test]
    fn canonical_ids_are_64_hex_digits() {
        let id = canonical_id(AccountId::from_bytes([7; 16]));
        assert_eq!(id.len(), 64);
        assert_ne!(id, canonical_id(AccountId::from_bytes([8; 16])));
    }
}
