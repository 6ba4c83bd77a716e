use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

fn refused(name: &str, query: &str, pairs: &[(&'static str, &'static str)]) -> bool {
    let operation = operation(name).unwrap();
    match operation.check(Some(query), &headers(pairs)) {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.code().as_str(), "NotImplemented");
            true
        }
    }
}

#[test]
fn operations_are_sorted_so_that_the_search_finds_them() {
    assert!(OPERATIONS.is_sorted_by(|a, b| a.name < b.name));
    for each in OPERATIONS {
        assert_eq!(operation(each.name).unwrap().name, each.name);
    }
    assert!(operation("PutBucketPolicy").is_none());
}

/// Subresources of S3 that fall through to the plain operation in the protocol library.
#[test]
fn subresources_never_fall_through() {
    for key in ["metadataConfiguration", "metadataInventoryTable", "ownershipControls", "abac", "frobnicate"]
    {
        assert!(refused("ListObjects", key, &[]), "{key}");
        assert!(refused("CreateBucket", key, &[]), "{key}");
        assert!(refused("DeleteBucket", key, &[]), "{key}");
    }
    for key in ["renameObject", "encryption", "append", "restore", "torrent=1"] {
        assert!(refused("PutObject", key, &[]), "{key}");
        assert!(refused("GetObject", key, &[]), "{key}");
        assert!(refused("DeleteObject", key, &[]), "{key}");
    }
    assert!(refused("ListObjects", "versions", &[]));
    assert!(
        refused("PutObject", "partNumber=1", &[]),
        "a part without its upload must not become the object"
    );
    assert!(refused("PutObject", "uploadId=x", &[]));
    assert!(refused("PutObject", "versionId=null", &[]));
    assert!(refused("PutObject", "x-amz-acl=public-read", &[]), "hoisted headers are not ignored");
}

#[test]
fn headers_that_ask_for_more_than_is_here_are_refused() {
    for (name, value) in [
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-website-redirect-location", "/x"),
        ("x-amz-grant-read", "id=1"),
        ("x-amz-acl", "public-read"),
        ("x-amz-write-offset-bytes", "0"),
        ("x-amz-checksum-sha512", "x"),
        ("if-modified-since", "Mon, 01 Jan 2024 00:00:00 GMT"),
    ] {
        assert!(refused("PutObject", "", &[(name, value)]), "{name}");
    }
    assert!(refused("DeleteObject", "", &[("x-amz-mfa", "1 2")]));
    assert!(refused("DeleteObject", "", &[("if-none-match", "*")]));
    assert!(refused("CopyObject", "", &[("x-amz-tagging-directive", "REPLACE")]));
    assert!(refused("CreateBucket", "", &[("x-amz-object-ownership", "ObjectWriter")]));
}

#[test]
fn what_clients_send_is_taken() {
    assert!(!refused(
        "PutObject",
        "x-id=PutObject",
        &[
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
            ("x-amz-date", "20260101T000000Z"),
            ("x-amz-meta-a", "b"),
            ("x-amz-acl", "private"),
            ("x-amz-sdk-checksum-algorithm", "CRC32"),
            ("x-amz-trailer", "x-amz-checksum-crc32"),
            ("if-none-match", "*"),
            ("content-type", "text/plain"),
            ("x-amzn-trace-id", "Root=1"),
        ],
    ));
    assert!(!refused(
        "GetObject",
        "X-Amz-Expires=60&X-Amz-Signature=0&x-custom=1&x-amz-checksum-mode=ENABLED",
        &[]
    ));
    assert!(!refused("ListObjectsV2", "list-type=2&prefix=a%2Fb&delimiter=%2F", &[]));
}

#[test]
fn query_values_are_found_raw() {
    assert_eq!(query_value("a=1&b&c=x%20y", "c"), Some("x%20y"));
    assert_eq!(query_value("a=1&b&c", "b"), Some(""));
    assert_eq!(query_value("a=1", "aa"), None);
}
