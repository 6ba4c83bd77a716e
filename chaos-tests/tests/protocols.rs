//! The ways to say which bucket and over what: virtual-host style and HTTP/2 reach the same objects as path style over
//! HTTP/1.1.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use bytes::Bytes;
use futures::future::join_all;
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::s3::{Call, S3};
use http::Version;
use rand::RngCore;

fn client() -> S3 {
    Zone::shared().s3()
}

fn random(bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    rand::rng().fill_bytes(&mut content);
    content.into()
}

/// A call in virtual-host style: `dev` has `localhost` for a domain.
fn virtual_host(s3: &S3, method: &'static str, bucket: &str, path: &str) -> Call {
    s3.call_path(method, path).host(format!("{bucket}.localhost:{}", s3.port()))
}

#[tokio::test]
async fn a_bucket_in_the_host_is_the_bucket_in_the_path() {
    let s3 = client();
    let bucket = format!("virtual-{:08x}", rand::random::<u32>());
    virtual_host(&s3, "PUT", &bucket, "/").expect(200).await;
    s3.head(&bucket, "").expect(200).await;

    let content = random(300_000);
    virtual_host(&s3, "PUT", &bucket, "/dir/key").body(content.clone()).expect(200).await;
    let got = virtual_host(&s3, "GET", &bucket, "/dir/key").expect(200).await;
    assert!(got.body == content, "other bytes came back");
    let by_path = s3.get(&bucket, "dir/key").expect(200).await;
    assert!(by_path.body == content, "path style reads something else");

    s3.put(&bucket, "by path", "x").expect(200).await;
    assert_eq!(virtual_host(&s3, "GET", &bucket, "/by%20path").expect(200).await.body, "x");
    // The first segment is a key here, though it looks like a bucket.
    let inner = format!("/{bucket}/key");
    virtual_host(&s3, "GET", &bucket, &inner).refused(404, "NoSuchKey").await;

    let listing = virtual_host(&s3, "GET", &bucket, "/").query("list-type", "2").expect(200).await.tree();
    assert_eq!(listing.name, "ListBucketResult");
    assert_eq!(listing.texts("Contents", "Key"), ["by path", "dir/key"]);

    virtual_host(&s3, "DELETE", &bucket, "/dir/key").expect(204).await;
    s3.get(&bucket, "dir/key").refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn a_host_outside_the_domains_is_path_style() {
    let s3 = client();
    let bucket = s3.bucket("virtual").await;
    s3.put(&bucket, "key", "x").expect(200).await;
    for host in ["localhost", "balancer.example.com", "notlocalhost"] {
        let call = s3.get(&bucket, "key").host(format!("{host}:{}", s3.port()));
        assert_eq!(call.expect(200).await.body, "x", "{host}");
    }
}

/// Who changes the host changes the bucket, so the signature covers it.
#[tokio::test]
async fn a_signature_for_one_bucket_opens_no_other() {
    let s3 = client();
    let (own, other) = (s3.bucket("virtual").await, s3.bucket("virtual").await);
    s3.put(&other, "key", "secret").expect(200).await;
    s3.put(&own, "key", "mine").expect(200).await;
    let signed = virtual_host(&s3, "GET", &own, "/key");
    let presigned = signed.presign(60);
    let answer = signed.send_to(&presigned).await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"mine"[..]), "{answer:?}");
    let elsewhere = virtual_host(&s3, "GET", &other, "/key").send_to(&presigned).await.unwrap();
    elsewhere.assert_refused(403, "SignatureDoesNotMatch");
}

#[tokio::test]
async fn http_2_with_prior_knowledge_reaches_the_same_objects() {
    let s3 = client();
    let h2 = s3.http2().await.unwrap();
    let bucket = h2.bucket("h2").await;
    // More than one frame, and more than the windows that a connection begins with.
    for bytes in [0, 1, 70_000, 9_000_000] {
        let (key, content) = (format!("size-{bytes}"), random(bytes));
        let put = h2.put(&bucket, &key, content.clone()).expect(200).await;
        assert_eq!(put.version, Version::HTTP_2);
        let got = h2.get(&bucket, &key).expect(200).await;
        assert_eq!(got.version, Version::HTTP_2);
        assert_eq!(got.header("etag"), put.header("etag"));
        assert!(got.body == content, "{bytes} bytes: other bytes came back");
        let by_h1 = s3.get(&bucket, &key).expect(200).await;
        assert_eq!(by_h1.version, Version::HTTP_11);
        assert!(by_h1.body == content, "{bytes} bytes: HTTP/1.1 reads something else");
    }
    let range = h2.get(&bucket, "size-70000").header("range", "bytes=10-19").expect(206).await;
    assert_eq!(range.body.len(), 10);
    h2.head(&bucket, "size-70000").expect(200).await;
    h2.get(&bucket, "absent").refused(404, "NoSuchKey").await;
    h2.get(&bucket, "size-1").wrong_signature().refused(403, "SignatureDoesNotMatch").await;
    // The connection outlives what it was refused.
    h2.delete(&bucket, "size-0").expect(204).await;
}

#[tokio::test]
async fn many_requests_share_one_http_2_connection() {
    let h2 = client().http2().await.unwrap();
    let bucket = h2.bucket("h2").await;
    let contents: Vec<Bytes> = (0..40).map(|number| random(number * 7919)).collect();
    let put = |(number, content): (usize, &Bytes)| {
        let call = h2.put(&bucket, format!("{number:02}"), content.clone());
        async move { call.expect(200).await }
    };
    join_all(contents.iter().enumerate().map(put)).await;
    let got =
        join_all((0..contents.len()).map(|number| h2.get(&bucket, format!("{number:02}")).expect(200))).await;
    for (number, (got, content)) in got.iter().zip(&contents).enumerate() {
        assert!(got.body == content, "{number}: other bytes came back");
    }
    assert_eq!(h2.keys(&bucket, 7).await.unwrap().len(), contents.len());
}

#[tokio::test]
async fn tls_agrees_to_either_version() {
    let zone = Zone::start(Options { one_process: true, tls: true, nodes: Some(3), ..Options::default() });
    let s3 = zone.s3();
    let h2 = s3.http2().await.unwrap();
    let bucket = s3.bucket("tls").await;
    let content = random(2_000_000);
    assert_eq!(h2.put(&bucket, "key", content.clone()).expect(200).await.version, Version::HTTP_2);
    for (client, version) in [(&h2, Version::HTTP_2), (&s3, Version::HTTP_11)] {
        let got = client.get(&bucket, "key").expect(200).await;
        assert_eq!(got.version, version);
        assert!(got.body == content, "{version:?}: other bytes came back");
    }
}

/// HTTP/2 has no `Host` header: the bucket is in the authority.
#[tokio::test]
async fn virtual_host_style_over_http_2() {
    let s3 = client();
    let h2 = s3.http2().await.unwrap();
    let bucket = s3.bucket("h2-virtual").await;
    virtual_host(&h2, "PUT", &bucket, "/key").body("over h2").expect(200).await;
    assert_eq!(virtual_host(&h2, "GET", &bucket, "/key").expect(200).await.body, "over h2");
    assert_eq!(s3.get(&bucket, "key").expect(200).await.body, "over h2");
}
