//! AWS Signature Version 4, written from its specification ("Authenticating Requests (AWS Signature Version 4)" in the
//! Amazon S3 API reference): header signatures, presigned queries, and the chained signatures of aws-chunked bodies.

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

/// Everything but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same for a path, whose slashes stay.
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// SHA-256 of nothing, in hex.
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Percent-encodes a query name or value as the canonical request wants it.
pub fn encode(text: impl AsRef<[u8]>) -> String {
    percent_encode(text.as_ref(), RESERVED).to_string()
}

/// Percent-encodes a path, leaving its slashes.
pub fn encode_path(path: impl AsRef<[u8]>) -> String {
    percent_encode(path.as_ref(), RESERVED_IN_PATH).to_string()
}

/// Hex SHA-256.
pub fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

/// `20260131T235959Z`.
pub fn amz_date(at: OffsetDateTime) -> String {
    at.format(format_description!("[year][month][day]T[hour][minute][second]Z"))
        .expect("the format names only fields that a date-time has")
}

/// An access key and the region its signatures name.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// The scope of one signature and the key that makes it.
#[derive(Clone)]
pub struct Signer {
    /// `20260131T235959Z`.
    pub date: String,
    /// `20260131/us-east-1/s3/aws4_request`.
    pub scope: String,
    key: [u8; 32],
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("scope", &self.scope).finish_non_exhaustive()
    }
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

impl Signer {
    pub fn new(credentials: &Credentials, at: OffsetDateTime) -> Self {
        let date = amz_date(at);
        let day = &date[..8];
        let mut key = hmac(format!("AWS4{}", credentials.secret_key).as_bytes(), day.as_bytes());
        for part in [credentials.region.as_str(), "s3", "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        let scope = format!("{day}/{}/s3/aws4_request", credentials.region);
        Self { date, scope, key }
    }

    /// Signs a canonical request; the signature in hex.
    pub fn sign(&self, canonical_request: &str) -> String {
        let hash = sha256_hex(canonical_request.as_bytes());
        self.sign_text(&format!("AWS4-HMAC-SHA256\n{}\n{}\n{hash}", self.date, self.scope))
    }

    /// Signs one chunk of an aws-chunked body; `previous` is the signature before it.
    pub fn sign_chunk(&self, previous: &str, chunk: &[u8]) -> String {
        let hash = sha256_hex(chunk);
        self.sign_text(&format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{previous}\n{EMPTY_SHA256}\n{hash}",
            self.date, self.scope
        ))
    }

    /// Signs the trailers of an aws-chunked body, given as `name:value\n` lines.
    pub fn sign_trailer(&self, previous: &str, lines: &str) -> String {
        let hash = sha256_hex(lines.as_bytes());
        self.sign_text(&format!(
            "AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{previous}\n{hash}",
            self.date, self.scope
        ))
    }

    fn sign_text(&self, text: &str) -> String {
        hex::encode(hmac(&self.key, text.as_bytes()))
    }
}

/// The canonical request. `headers` are lower-case and sorted, `query` is encoded and sorted.
pub fn canonical_request(
    method: &str,
    path: &str,
    query: &str,
    headers: &[(String, String)],
    payload_hash: &str,
) -> String {
    let mut text = format!("{method}\n{path}\n{query}\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}:{}\n", value.trim()));
    }
    text.push_str(&format!("\n{}\n{payload_hash}", signed_names(headers)));
    text
}

/// `host;x-amz-date`.
pub fn signed_names(headers: &[(String, String)]) -> String {
    headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";")
}

/// The canonical query of unencoded pairs.
pub fn canonical_query(pairs: &[(String, String)]) -> String {
    let mut encoded: Vec<(String, String)> =
        pairs.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    encoded.sort();
    encoded.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn example() -> (Credentials, OffsetDateTime) {
        let credentials = Credentials {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            region: "us-east-1".into(),
        };
        (credentials, datetime!(2013-05-24 00:00:00 UTC))
    }

    /// The GET example of "Signature Calculations for the Authorization Header".
    #[test]
    fn the_documented_get_example() {
        let (credentials, at) = example();
        let headers: Vec<(String, String)> = [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", EMPTY_SHA256),
            ("x-amz-date", "20130524T000000Z"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let request = canonical_request("GET", "/test.txt", "", &headers, EMPTY_SHA256);
        assert_eq!(
            Signer::new(&credentials, at).sign(&request),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// The example of "Signature Calculations: Transferring Payload in Multiple Chunks": 65 KiB of `a` in two chunks.
    #[test]
    fn the_documented_chunk_example() {
        let (credentials, at) = example();
        let signer = Signer::new(&credentials, at);
        let seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";
        let first = signer.sign_chunk(seed, &vec![b'a'; 65536]);
        assert_eq!(first, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648");
        let second = signer.sign_chunk(&first, &[b'a'; 1024]);
        assert_eq!(second, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497");
        let last = signer.sign_chunk(&second, b"");
        assert_eq!(last, "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9");
    }
}
