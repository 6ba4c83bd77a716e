//! Bad input gets S3's own code and XML, stores nothing, and harms nobody else.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::Duration as Silence;

use bytes::Bytes;
use holdfast_chaos::cluster::Zone;
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::s3::S3;
use holdfast_chaos::sigv4::{Credentials, amz_date};
use holdfast_chaos::sums::Sum;
use time::{Duration, OffsetDateTime};

const QUIET: Silence = Silence::from_secs(10);

fn client() -> S3 {
    Zone::shared().s3()
}

/// The zone still answers, and nothing in it panicked.
async fn unharmed(s3: &S3, bucket: &str) {
    s3.get(bucket, "").expect(200).await;
    let log = Zone::shared().log_tail();
    assert!(!log.contains("panicked"), "{log}");
}

fn status_of(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn wrong_signatures_and_keys() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    s3.put(&bucket, "a", "x").wrong_signature().refused(403, "SignatureDoesNotMatch").await;
    s3.get(&bucket, "").wrong_signature().refused(403, "SignatureDoesNotMatch").await;
    s3.put(&bucket, "a", "x").anonymous().refused(403, "AccessDenied").await;

    let own = s3.credentials.clone();
    let other_secret = s3.with_credentials(Credentials { secret_key: "wrong".into(), ..own.clone() });
    other_secret.put(&bucket, "a", "x").refused(403, "SignatureDoesNotMatch").await;
    let unknown =
        s3.with_credentials(Credentials { access_key: "AKIAUNKNOWN000000000".into(), ..own.clone() });
    unknown.put(&bucket, "a", "x").refused(403, "InvalidAccessKeyId").await;

    s3.put(&bucket, "a", "x").payload_hash(&"0".repeat(64)).refused(400, "XAmzContentSHA256Mismatch").await;
    let version_2 = s3.put(&bucket, "a", "x").anonymous().header("authorization", "AWS AKIA:c2lnbmF0dXJl");
    version_2.refused(400, "InvalidRequest").await;
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
    unharmed(&s3, &bucket).await;
}

#[tokio::test]
async fn clocks_that_are_far_off() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    let now = OffsetDateTime::now_utc();
    for off in [Duration::minutes(-16), Duration::minutes(16)] {
        s3.put(&bucket, "a", "x").at(now + off).refused(403, "RequestTimeTooSkewed").await;
    }
    s3.put(&bucket, "b", "x").at(now - Duration::minutes(10)).expect(200).await;
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn presigned_urls_that_are_over_or_overlong() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    let put = s3.put(&bucket, "a", "x");
    let now = OffsetDateTime::now_utc();

    let expired = put.clone().at(now - Duration::minutes(10)).presign(60);
    put.send_to(&expired).await.unwrap().assert_refused(403, "AccessDenied");
    let overlong = put.presign(604_801);
    put.send_to(&overlong).await.unwrap().assert_refused(400, "AuthorizationQueryParametersError");
    let wrong = put.clone().wrong_signature().presign(60);
    put.send_to(&wrong).await.unwrap().assert_refused(403, "SignatureDoesNotMatch");
    let of_tomorrow = put.clone().at(now + Duration::days(1)).presign(60);
    put.send_to(&of_tomorrow).await.unwrap().assert_refused(403, "AccessDenied");
    // A URL for one method is none for another.
    let for_get = s3.get(&bucket, "a").presign(60);
    put.send_to(&for_get).await.unwrap().assert_refused(403, "SignatureDoesNotMatch");
    let cut = put.presign(60).replace("X-Amz-Expires=60&", "");
    put.send_to(&cut).await.unwrap().assert_refused(400, "AuthorizationQueryParametersError");
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
    unharmed(&s3, &bucket).await;
}

#[tokio::test]
async fn bodies_that_end_early() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    for bytes in [1000, 500_000, 6 << 20] {
        let (request, head) =
            s3.put(&bucket, "cut", Bytes::from(vec![b'x'; bytes])).unsigned_payload().wire();
        for sent in [head, head + bytes / 2, head + bytes - 1] {
            let answer = s3.raw(&request[..sent], true, QUIET).await.unwrap_or_default();
            // Whether the refusal still reaches the client depends on who closes first; success must not.
            assert!(matches!(status_of(&answer), 0 | 400), "{}", String::from_utf8_lossy(&answer));
        }
    }
    s3.get(&bucket, "cut").refused(404, "NoSuchKey").await;

    let upload = Upload::create(&s3, &bucket, "cut").await;
    let (request, head) = upload.put(1, vec![b'x'; 500_000]).unsigned_payload().wire();
    s3.raw(&request[..head + 250_000], true, QUIET).await.unwrap_or_default();
    assert_eq!(upload.call("GET").expect(200).await.tree().all("Part").count(), 0);
    upload.abort().await;
    unharmed(&s3, &bucket).await;
}

#[tokio::test]
async fn an_overwrite_that_fails_leaves_the_old_object() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    s3.put(&bucket, "kept", "old").expect(200).await;
    let new = vec![b'n'; 400_000];
    let (request, head) = s3.put(&bucket, "kept", new.clone()).unsigned_payload().wire();
    s3.raw(&request[..head + 300_000], true, QUIET).await.unwrap_or_default();
    s3.put(&bucket, "kept", new.clone()).wrong_signature().refused(403, "SignatureDoesNotMatch").await;
    s3.put(&bucket, "kept", new).header(&Sum::Crc32.header(), "AAAAAA==").refused(400, "BadDigest").await;
    assert_eq!(s3.get(&bucket, "kept").expect(200).await.body, "old");
}

#[tokio::test]
async fn lengths_that_are_missing_or_absurd() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    let (request, _) = s3.put(&bucket, "a", "").unsigned_payload().wire();
    let text = String::from_utf8(request).unwrap();
    let no_length =
        text.replace("content-length: 0\r\n", "transfer-encoding: chunked\r\n") + "1\r\nx\r\n0\r\n\r\n";
    let answer = s3.raw(no_length.as_bytes(), false, QUIET).await.unwrap();
    assert_eq!(status_of(&answer), 411, "{}", String::from_utf8_lossy(&answer));
    // 5 GiB and a byte: one more than a single PUT may have.
    let too_large = text.replace("content-length: 0\r\n", "content-length: 5368709121\r\n");
    let answer = s3.raw(too_large.as_bytes(), false, QUIET).await.unwrap();
    assert_eq!(status_of(&answer), 400, "{}", String::from_utf8_lossy(&answer));
    assert!(String::from_utf8_lossy(&answer).contains("<Code>EntityTooLarge</Code>"));
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn keys_that_are_too_long() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    for key in ["k".repeat(1025), "\u{e9}".repeat(513), "k".repeat(4000)] {
        s3.put(&bucket, &key, "x").refused(400, "KeyTooLongError").await;
    }
    assert!(s3.keys(&bucket, 1000).await.unwrap().is_empty());
    unharmed(&s3, &bucket).await;
}

#[tokio::test]
async fn keys_that_are_no_utf8() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    let answer = s3.put(&bucket, [b'a', 0xff, 0xfe], "x").send().await.unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    let answer = s3.call_path("PUT", format!("/{bucket}/%zz")).body("x").send().await.unwrap();
    assert!((400..500).contains(&answer.status), "{answer:?}");
    assert!(s3.keys(&bucket, 1000).await.unwrap().is_empty());
    unharmed(&s3, &bucket).await;
}

#[tokio::test]
async fn xml_that_is_none() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    s3.put(&bucket, "a", "x").expect(200).await;
    let deep = "<a>".repeat(20_000);
    let bomb = "<!DOCTYPE d [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;\">]><Delete><Object><Key>&b;</Key></Object></Delete>";
    for body in [
        "",
        "no xml",
        "<Delete>",
        "<Delete><Object></Object></Delete>",
        "<Other/>",
        &deep,
        bomb,
        "\u{0}\u{1}",
    ] {
        let md5 = holdfast_chaos::sums::content_md5(body.as_bytes());
        let call = s3.call("POST", &bucket, "").query("delete", "").header("content-md5", md5);
        call.body(body.to_owned()).refused(400, "MalformedXML").await;
    }
    s3.get(&bucket, "a").expect(200).await;
    let name = format!("bad-{:08x}", rand::random::<u32>());
    s3.call("PUT", &name, "").body("<CreateBucketConfiguration><").refused(400, "MalformedXML").await;
    s3.head(&name, "").refused(404, "").await;
    unharmed(&s3, &bucket).await;
}

#[tokio::test]
async fn a_huge_document_is_refused_before_it_is_read() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    let body = format!("<Delete>{}</Delete>", " ".repeat(32 << 20));
    let call = s3.call("POST", &bucket, "").query("delete", "").unsigned_payload().body(body);
    // The server may close while the client still sends.
    if let Ok(answer) = call.send().await {
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
    unharmed(&s3, &bucket).await;
}

#[tokio::test]
async fn subresources_that_are_not_there_are_never_taken_for_plain_operations() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    s3.put(&bucket, "a", "x").expect(200).await;
    for subresource in
        ["analytics", "intelligent-tiering", "inventory", "accelerate", "requestPayment", "metrics"]
    {
        s3.get(&bucket, "").query(subresource, "").refused(501, "NotImplemented").await;
        s3.put(&bucket, "", "<X/>").query(subresource, "").refused(501, "NotImplemented").await;
        s3.delete(&bucket, "").query(subresource, "").refused(501, "NotImplemented").await;
    }
    for subresource in ["torrent", "select", "restore"] {
        s3.call("POST", &bucket, "a").query(subresource, "").refused(501, "NotImplemented").await;
        s3.put(&bucket, "a", "<X/>").query(subresource, "").refused(501, "NotImplemented").await;
        s3.delete(&bucket, "a").query(subresource, "").refused(501, "NotImplemented").await;
    }
    s3.get(&bucket, "a").query("torrent", "").refused(501, "NotImplemented").await;
    // Nothing was deleted or overwritten by any of it.
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "x");
}

#[tokio::test]
async fn requests_that_are_no_http() {
    let s3 = client();
    let bucket = s3.bucket("bad").await;
    let date = amz_date(OffsetDateTime::now_utc());
    for request in [
        "\r\n\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\u{2}\u{0}".to_owned(),
        format!("GET /{bucket} HTTP/1.1\r\n\r\n"),
        format!("GET /{bucket} HTTP/1.1\r\nhost: x\r\nauthorization: AWS4-HMAC-SHA256 nonsense\r\n\r\n"),
        format!(
            "GET /{bucket} HTTP/1.1\r\nhost: x\r\nx-amz-date: {date}\r\nauthorization: AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=, Signature=\r\n\r\n"
        ),
        format!("GET /{bucket} HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "h".repeat(1 << 20)),
    ] {
        let answer = s3.raw(request.as_bytes(), true, QUIET).await.unwrap_or_default();
        let status = status_of(&answer);
        assert!(
            status == 0 || (400..500).contains(&status),
            "{request:.80}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    unharmed(&s3, &bucket).await;
}
