//! Names: which bucket names may be created ("Bucket naming rules", S3 user guide) and which keys may be written.

use holdfast_proto::limits::{BUCKET_NAME_BYTES, KEY_BYTES_MAX};

use crate::error::{S3ErrorCode, S3Result, refuse};

const PREFIXES_RESERVED: [&str; 3] = ["xn--", "sthree-", "amzn-s3-demo-"];
const SUFFIXES_RESERVED: [&str; 5] = ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"];

/// Whether a bucket may be created under this name.
///
/// # Errors
/// InvalidBucketName.
pub(crate) fn check_new_bucket(name: &str) -> S3Result<()> {
    let is_edge =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    let valid = BUCKET_NAME_BYTES.contains(&bytes.len())
        && bytes.iter().all(|byte| is_edge(Some(byte)) || matches!(byte, b'.' | b'-'))
        && is_edge(bytes.first())
        && is_edge(bytes.last())
        && !["..", ".-", "-."].iter().any(|pair| name.contains(pair))
        && name.parse::<std::net::Ipv4Addr>().is_err()
        && !PREFIXES_RESERVED.iter().any(|prefix| name.starts_with(prefix))
        && !SUFFIXES_RESERVED.iter().any(|suffix| name.ends_with(suffix));
    if valid {
        Ok(())
    } else {
        Err(refuse(S3ErrorCode::InvalidBucketName, "the specified bucket is not valid"))
    }
}

/// Whether an object may have this key: any text of 1 to 1,024 bytes.
///
/// # Errors
/// KeyTooLongError, or InvalidArgument for an empty one.
pub(crate) fn check_key(key: &str) -> S3Result<()> {
    match key.len() {
        0 => Err(crate::error::invalid_argument("an object's key must not be empty")),
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(refuse(S3ErrorCode::KeyTooLongError, "your key is too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_the_rules() {
        for name in ["abc", "my-bucket", "my.bucket.1", "1a2", &"a".repeat(63)] {
            assert!(check_new_bucket(name).is_ok(), "{name}");
        }
        for name in [
            "ab",
            "",
            "Abc",
            "a_b_c",
            "-abc",
            "abc-",
            ".abc",
            "a..b",
            "a.-b",
            "a-.b",
            "192.168.5.4",
            "xn--abc",
            "abc-s3alias",
            "sthree-x",
            "abc--x-s3",
            "ab c",
            "abc/",
            "äbc",
            &"a".repeat(64),
        ] {
            assert!(check_new_bucket(name).is_err(), "{name}");
        }
    }

    #[test]
    fn keys_are_any_text_up_to_their_length() {
        for key in ["a/", "//", "..", "\0", "\x01\r\n", "ä", &"k".repeat(1024)] {
            assert!(check_key(key).is_ok(), "{key:?}");
        }
        assert_eq!(check_key(&"k".repeat(1025)).unwrap_err().code().as_str(), "KeyTooLongError");
        assert!(check_key("").is_err());
    }
}
