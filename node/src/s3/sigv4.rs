//! AWS Signature Version 4 for plain requests: every header that is set is signed.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

/// Stands for a body that the signature does not cover.
pub(crate) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// An access key and the region it signs for.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) region: String,
}

/// The signing key of one day.
pub(crate) struct Signer {
    credential: String,
    scope: String,
    key: [u8; 32],
}

/// The headers that make a request signed.
pub(crate) struct Signed {
    pub(crate) date: String,
    pub(crate) authorization: String,
}

fn hmac(key: &[u8], data: &str) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data.as_bytes());
    mac.finalize().into_bytes().into()
}

pub(crate) fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

impl Signer {
    /// A signer for the day of `at`.
    pub(crate) fn new(keys: &Keys, at: OffsetDateTime) -> Self {
        let day = &amz_date(at)[..8];
        let mut key = hmac(format!("AWS4{}", keys.secret_key).as_bytes(), day);
        for part in [keys.region.as_str(), "s3", "aws4_request"] {
            key = hmac(&key, part);
        }
        let scope = format!("{day}/{}/s3/aws4_request", keys.region);
        Self { credential: format!("{}/{scope}", keys.access_key), scope, key }
    }

    /// Signs a request. `query` is encoded and sorted; `payload_hash` goes out as `x-amz-content-sha256`.
    pub(crate) fn sign(
        &self,
        at: OffsetDateTime,
        method: &str,
        host: &str,
        path: &str,
        query: &str,
        payload_hash: &str,
    ) -> Signed {
        const NAMES: &str = "host;x-amz-content-sha256;x-amz-date";
        let date = amz_date(at);
        let canonical = format!(
            "{method}\n{path}\n{query}\nhost:{host}\nx-amz-content-sha256:{payload_hash}\nx-amz-date:{date}\n\n{NAMES}\n{payload_hash}"
        );
        let hash = sha256_hex(canonical.as_bytes());
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{}\n{hash}", self.scope);
        let signature = hex::encode(hmac(&self.key, &text));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}, SignedHeaders={NAMES}, Signature={signature}",
            self.credential
        );
        Signed { date, authorization }
    }
}

fn amz_date(at: OffsetDateTime) -> String {
    at.format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .expect("the format names only fields that a date-time has")
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    /// "GET Bucket Lifecycle" of AWS's signature examples signs exactly the headers that we sign.
    #[test]
    fn the_documented_lifecycle_example() {
        let keys = Keys {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
        };
        let at = datetime!(2013-05-24 00:00:00 UTC);
        let empty = sha256_hex(b"");
        let host = "examplebucket.s3.amazonaws.com";
        let signed = Signer::new(&keys, at).sign(at, "GET", host, "/", "lifecycle=", &empty);
        let signature = "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543";
        assert!(signed.authorization.ends_with(signature), "{}", signed.authorization);
    }
}
