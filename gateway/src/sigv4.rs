//! The part of Signature Version 4 that belongs to bodies: the chain of chunk signatures of a signed aws-chunked upload
//! ("Signature calculations for the Authorization header: transferring payload in multiple chunks", S3 API reference).
//!
//! Headers are verified by the protocol library. It would hold a whole signed chunk in memory before it looks at it,
//! and it does not insist on the final chunk; so bodies are verified here, as they stream.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// The fields of an `Authorization: AWS4-HMAC-SHA256 ...` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Authorization<'h> {
    /// `date/region/service/aws4_request`.
    pub scope: &'h str,
    /// Names with `;` between them, lower case.
    pub signed_headers: &'h str,
    /// 64 hex digits.
    pub signature: &'h str,
}

impl<'h> Authorization<'h> {
    /// `None` when it is not a well-formed SigV4 header.
    pub(crate) fn parse(header: &'h str) -> Option<Self> {
        let fields = header.strip_prefix("AWS4-HMAC-SHA256")?;
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in fields.split(',') {
            let (name, value) = field.trim().split_once('=')?;
            match name {
                "Credential" => credential = Some(value),
                "SignedHeaders" => signed_headers = Some(value),
                "Signature" => signature = Some(value),
                _ => return None,
            }
        }
        Some(Self { scope: scope_of(credential?)?, signed_headers: signed_headers?, signature: signature? })
    }
}

/// The scope of a credential: its last four fields. An access key may itself hold a slash.
pub(crate) fn scope_of(credential: &str) -> Option<&str> {
    let (at, _) = credential.rmatch_indices('/').nth(3)?;
    Some(&credential[at + 1..])
}

/// Verifies the chunks of one body, in order.
#[derive(Debug)]
pub(crate) struct ChunkSigner {
    key: [u8; 32],
    /// `x-amz-date` and the scope with a newline between them: what every string to sign holds.
    date_and_scope: String,
    previous: String,
    chunk: Sha256,
}

impl ChunkSigner {
    /// Starts the chain at the signature of the headers. `None` when the scope is not four fields.
    pub(crate) fn new(secret: &str, authorization: Authorization<'_>, amz_date: &str) -> Option<Self> {
        let mut key = format!("AWS4{secret}").into_bytes();
        let mut fields = authorization.scope.split('/');
        let mut derived = mac(&key, fields.next()?.as_bytes());
        key.fill(0);
        for _ in 0..3 {
            derived = mac(&derived, fields.next()?.as_bytes());
        }
        Some(Self {
            key: derived,
            date_and_scope: format!("{amz_date}\n{}", authorization.scope),
            previous: authorization.signature.to_owned(),
            chunk: Sha256::new(),
        })
    }

    /// More data of the current chunk.
    pub(crate) fn update(&mut self, data: &[u8]) {
        self.chunk.update(data);
    }

    /// Ends the current chunk; whether its signature is right.
    pub(crate) fn end_chunk(&mut self, signature: &str) -> bool {
        let digest = std::mem::take(&mut self.chunk).finalize();
        let right = self.verify("AWS4-HMAC-SHA256-PAYLOAD", &[EMPTY_SHA256, &hex::encode(digest)], signature);
        self.previous.clear();
        self.previous.push_str(signature);
        right
    }

    /// Whether the trailers' signature is right. `canonical` holds a `name:value` line for each, sorted.
    pub(crate) fn verify_trailers(&self, canonical: &str, signature: &str) -> bool {
        let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
        self.verify("AWS4-HMAC-SHA256-TRAILER", &[&digest], signature)
    }

    fn verify(&self, kind: &str, digests: &[&str], signature: &str) -> bool {
        let Ok(signature) = hex::decode(signature) else { return false };
        let mut mac = new_mac(&self.key);
        for line in [kind, &self.date_and_scope, &self.previous] {
            mac.update(line.as_bytes());
            mac.update(b"\n");
        }
        mac.update(digests.join("\n").as_bytes());
        mac.verify_slice(&signature).is_ok()
    }
}

impl Drop for ChunkSigner {
    fn drop(&mut self) {
        self.key.fill(0);
    }
}

const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn new_mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = new_mac(key);
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class,Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9";

    /// The example of the S3 API reference, section "Example: PUT object" of the chunked upload page.
    #[test]
    fn the_documented_example_verifies() {
        let authorization = Authorization::parse(HEADER).unwrap();
        assert_eq!(authorization.scope, "20130524/us-east-1/s3/aws4_request");
        let mut signer =
            ChunkSigner::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", authorization, "20130524T000000Z")
                .unwrap();
        signer.update(&[b'a'; 65536]);
        assert!(signer.end_chunk("ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"));
        signer.update(&[b'a'; 1000]);
        signer.update(&[b'a'; 24]);
        assert!(signer.end_chunk("0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"));
        assert!(signer.end_chunk("b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"));
    }

    #[test]
    fn a_changed_chunk_does_not_verify() {
        let authorization = Authorization::parse(HEADER).unwrap();
        let mut signer = ChunkSigner::new("secret", authorization, "20130524T000000Z").unwrap();
        signer.update(&[b'a'; 65536]);
        assert!(!signer.end_chunk("ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"));
        assert!(!signer.end_chunk("not hex"));
    }

    #[test]
    fn headers_of_other_schemes_are_not_taken() {
        assert_eq!(Authorization::parse("AWS AKID:signature"), None);
        assert_eq!(
            Authorization::parse("AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=0"),
            None
        );
        assert_eq!(
            scope_of("a/b/20130524/us-east-1/s3/aws4_request"),
            Some("20130524/us-east-1/s3/aws4_request")
        );
    }
}
