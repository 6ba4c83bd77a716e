use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

fn code(pairs: &[(&'static str, &'static str)]) -> String {
    Declared::from_headers(&headers(pairs)).unwrap_err().code().as_str().to_owned()
}

#[test]
fn a_plain_body_declares_its_length() {
    let declared = Declared::from_headers(&headers(&[("content-length", "7")])).unwrap();
    assert_eq!((declared.length, declared.payload), (7, Payload::Unsigned));
    assert_eq!(code(&[]), "MissingContentLength");
    assert_eq!(code(&[("content-length", "5368709121")]), "EntityTooLarge");
}

#[test]
fn a_streaming_body_declares_its_decoded_length() {
    let declared = Declared::from_headers(&headers(&[
        ("content-length", "100"),
        ("content-encoding", "aws-chunked,gzip"),
        ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        ("x-amz-decoded-content-length", "42"),
        ("x-amz-trailer", "x-amz-checksum-crc32"),
        ("x-amz-sdk-checksum-algorithm", "CRC32"),
    ]))
    .unwrap();
    assert_eq!(declared.length, 42);
    assert_eq!(declared.trailing, Some(Algorithm::Crc32));
    assert_eq!(
        code(&[("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"), ("content-length", "1")]),
        "MissingContentLength"
    );
}

/// Framing that nothing announces would be stored as data.
#[test]
fn framing_must_be_announced() {
    for framing in [
        ("content-encoding", "aws-chunked"),
        ("content-encoding", "gzip, AWS-Chunked"),
        ("x-amz-decoded-content-length", "1"),
        ("x-amz-trailer", "x-amz-checksum-crc32"),
    ] {
        assert_eq!(code(&[("content-length", "9"), framing]), "InvalidRequest", "{framing:?}");
        let unsigned = ("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
        assert_eq!(code(&[("content-length", "9"), framing, unsigned]), "InvalidRequest", "{framing:?}");
    }
}

#[test]
fn claims_that_contradict_each_other_are_refused() {
    let length = ("content-length", "1");
    assert_eq!(code(&[length, ("content-md5", "AAAA")]), "InvalidDigest");
    assert_eq!(code(&[length, ("x-amz-sdk-checksum-algorithm", "CRC32")]), "InvalidRequest");
    assert_eq!(
        code(&[length, ("x-amz-sdk-checksum-algorithm", "CRC32C"), ("x-amz-checksum-crc32", "AAAAAA==")]),
        "InvalidRequest"
    );
    assert_eq!(code(&[length, ("x-amz-sdk-checksum-algorithm", "MD4")]), "InvalidRequest");
    assert_eq!(code(&[length, ("x-amz-content-sha256", "nonsense")]), "InvalidArgument");
    assert_eq!(
        code(&[length, ("x-amz-content-sha256", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD")]),
        "NotImplemented"
    );
}

#[test]
fn aws_chunked_is_not_stored() {
    for (sent, stored) in [
        ("aws-chunked", ""),
        ("aws-chunked,gzip", "gzip"),
        ("gzip, aws-chunked", "gzip"),
        ("gzip,br", "gzip,br"),
        ("AWS-CHUNKED , gzip", "gzip"),
    ] {
        assert_eq!(stored_encoding(sent), stored);
    }
}

#[test]
fn xml_bodies_keep_their_claims() {
    let body = [Bytes::from_static(b"hello "), Bytes::from_static(b"world")];
    assert!(verify_xml(&headers(&[]), &body, false).is_ok());
    assert!(verify_xml(&headers(&[]), &body, true).is_err());
    assert!(verify_xml(&headers(&[("content-md5", "XrY7u+Ae7tCTyyK7j1rNww==")]), &body, true).is_ok());
    let error =
        verify_xml(&headers(&[("content-md5", "XrY7u+Ae7tCTyyK7j1rNwA==")]), &body, true).unwrap_err();
    assert_eq!(error.code().as_str(), "BadDigest");
    let error = verify_xml(&headers(&[("x-amz-checksum-crc32", "AAAAAA==")]), &body, true).unwrap_err();
    assert_eq!(error.code().as_str(), "BadDigest");
    assert!(verify_xml(&headers(&[("x-amz-checksum-crc32", "DUoRhQ==")]), &body, true).is_ok());
}

#[test]
fn trailers_must_be_the_announced_ones() {
    let upload = |trailing| {
        let declared = Declared {
            length: 0,
            payload: Payload::Streaming { signed: false, trailer: true },
            md5: None,
            checksum: None,
            trailing,
        };
        UploadBody::new(Arc::new(Ticket::new()), declared, None, None, Duration::from_secs(1))
    };
    let trailer = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let announced = upload(Some(Algorithm::Crc32));
    assert!(announced.trailing_value(&trailer("x-amz-checksum-crc32", "AAAAAA==")).unwrap().is_some());
    assert!(announced.trailing_value(&[]).is_err(), "announced and not sent");
    assert!(announced.trailing_value(&trailer("x-amz-checksum-crc32c", "AAAAAA==")).is_err());
    assert!(announced.trailing_value(&trailer("x-amz-checksum-crc32", "AAAA")).is_err());
    assert!(upload(None).trailing_value(&trailer("x-amz-checksum-crc32", "AAAAAA==")).is_err());
}

#[tokio::test]
async fn an_empty_body_has_the_digests_of_nothing() {
    let declared = Declared {
        length: 0,
        payload: Payload::Unsigned,
        md5: None,
        checksum: Value::parse(Algorithm::Crc32, "AAAAAA=="),
        trailing: None,
    };
    let mut body =
        UploadBody::new(Arc::new(Ticket::new()), declared.clone(), None, None, Duration::from_secs(1));
    assert!(body.next().await.is_none());
    assert_eq!(hex::encode(body.md5().unwrap()), "d41d8cd98f00b204e9800998ecf8427e");
    let short = Declared { length: 1, ..declared };
    let mut body = UploadBody::new(Arc::new(Ticket::new()), short, None, None, Duration::from_secs(1));
    assert_eq!(body.next().await.unwrap().unwrap_err(), BodyError::Short);
    assert!(body.digests().is_none());
}
