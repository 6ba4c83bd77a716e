//! Continuation tokens: opaque to clients, versioned, and checked, so that a token of another listing or of a later
//! version is refused instead of misread.
//!
//! Form: base64url without padding of one byte of version, one byte of kind, the position, and four bytes of XXH3 over
//! all before.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{S3Result, invalid_argument};

const VERSION: u8 = 1;
const CHECK_BYTES: usize = 4;

/// Which listing a token belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The last key or common prefix of a page of objects.
    Objects = 1,
    /// The last name of a page of buckets.
    Buckets = 2,
}

/// A token for everything after `position`.
pub(crate) fn encode(kind: Kind, position: &[u8]) -> String {
    let mut raw = Vec::with_capacity(2 + position.len() + CHECK_BYTES);
    raw.extend_from_slice(&[VERSION, kind as u8]);
    raw.extend_from_slice(position);
    let check = xxh3_64(&raw).to_be_bytes();
    raw.extend_from_slice(&check[..CHECK_BYTES]);
    URL_SAFE_NO_PAD.encode(raw)
}

/// The position in a token.
///
/// # Errors
/// InvalidArgument for anything that [`encode`] did not make.
pub(crate) fn decode(kind: Kind, token: &str) -> S3Result<Vec<u8>> {
    let parse = || {
        let raw = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (body, check) = raw.split_at_checked(raw.len().checked_sub(CHECK_BYTES)?)?;
        if xxh3_64(body).to_be_bytes()[..CHECK_BYTES] != *check {
            return None;
        }
        match body {
            [VERSION, found, position @ ..] if *found == kind as u8 => Some(position.to_vec()),
            _ => None,
        }
    };
    parse().ok_or_else(|| invalid_argument("The continuation token provided is incorrect"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Clients keep tokens across an upgrade of the gateway: this form stays readable.
    #[test]
    fn golden_form() {
        let token = encode(Kind::Objects, b"photos/2026/");
        assert_eq!(decode(Kind::Objects, &token).unwrap(), b"photos/2026/");
        assert!(token.starts_with("AQFwaG90b3MvMjAyNi"), "{token}");
    }

    #[test]
    fn a_token_of_another_listing_is_refused() {
        let token = encode(Kind::Buckets, b"a");
        assert!(decode(Kind::Objects, &token).is_err());
    }

    proptest! {
        #[test]
        fn tokens_round_trip(position in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let token = encode(Kind::Objects, &position);
            prop_assert_eq!(decode(Kind::Objects, &token).unwrap(), position);
        }

        #[test]
        fn other_text_is_refused(text in "\\PC{0,60}") {
            let _ = decode(Kind::Objects, &text);
        }

        #[test]
        fn a_changed_token_is_refused(position in proptest::collection::vec(any::<u8>(), 0..50), at in 0usize..8) {
            let token = encode(Kind::Objects, &position);
            let mut raw = URL_SAFE_NO_PAD.decode(&token).unwrap();
            let at = at % raw.len();
            raw[at] ^= 0x40;
            prop_assert!(decode(Kind::Objects, &URL_SAFE_NO_PAD.encode(raw)).is_err());
        }
    }
}
