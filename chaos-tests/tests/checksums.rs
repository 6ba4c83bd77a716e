//! Checksums: what a client states is verified, stored and returned; what is wrong is refused and stores nothing.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use bytes::Bytes;
use holdfast_chaos::chunked::{Chunked, Fault};
use holdfast_chaos::cluster::Zone;
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::s3::S3;
use holdfast_chaos::sums::{self, Sum};
use rand::RngCore;

const MIB: usize = 1 << 20;

fn client() -> S3 {
    Zone::shared().s3()
}

fn random(bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    rand::rng().fill_bytes(&mut content);
    content.into()
}

async fn assert_returned(s3: &S3, bucket: &str, key: &str, sum: Sum, content: &Bytes) {
    let get = s3.get(bucket, key).header("x-amz-checksum-mode", "ENABLED").expect(200).await;
    assert!(get.body == *content);
    assert_eq!(get.header(&sum.header()), sum.of(content), "{sum:?}");
    assert_eq!(get.header("x-amz-checksum-type"), "FULL_OBJECT");
    let head = s3.head(bucket, key).header("x-amz-checksum-mode", "ENABLED").expect(200).await;
    assert_eq!(head.header(&sum.header()), sum.of(content), "{sum:?}");
    let silent = s3.head(bucket, key).expect(200).await;
    assert_eq!(silent.header(&sum.header()), "", "checksums are returned when asked for");
}

#[tokio::test]
async fn checksums_in_headers_are_verified_stored_and_returned() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    for (sum, bytes) in Sum::ALL.into_iter().flat_map(|sum| [(sum, 0), (sum, 100), (sum, 700_000)]) {
        let content = random(bytes);
        let key = format!("{}-{bytes}", sum.name());
        let put =
            s3.put(&bucket, &key, content.clone()).header(&sum.header(), sum.of(&content)).expect(200).await;
        assert_eq!(put.header(&sum.header()), sum.of(&content));
        assert_returned(&s3, &bucket, &key, sum, &content).await;
    }
}

#[tokio::test]
async fn a_wrong_checksum_stores_nothing() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    for bytes in [10, 300_000] {
        let content = random(bytes);
        for sum in Sum::ALL {
            let put = s3.put(&bucket, "bad", content.clone()).header(&sum.header(), sum.of(b"other"));
            put.refused(400, "BadDigest").await;
            s3.put(&bucket, "bad", content.clone())
                .header(&sum.header(), "!")
                .refused(400, "InvalidRequest")
                .await;
        }
        s3.put(&bucket, "bad", content.clone())
            .header("content-md5", sums::content_md5(b"x"))
            .refused(400, "BadDigest")
            .await;
        s3.put(&bucket, "bad", content.clone())
            .header("content-md5", "no base64")
            .refused(400, "InvalidDigest")
            .await;
        let two = s3.put(&bucket, "bad", content.clone());
        let two = two.header(&Sum::Crc32.header(), Sum::Crc32.of(&content));
        two.header(&Sum::Sha1.header(), Sum::Sha1.of(&content)).refused(400, "InvalidRequest").await;
    }
    assert!(s3.keys(&bucket, 1000).await.unwrap().is_empty());
}

#[tokio::test]
async fn content_md5_is_verified() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    let content = random(300_000);
    s3.put(&bucket, "md5", content.clone())
        .header("content-md5", sums::content_md5(&content))
        .expect(200)
        .await;
    assert!(s3.get(&bucket, "md5").expect(200).await.body == content);
}

#[tokio::test]
async fn trailing_checksums_are_verified_stored_and_returned() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    for sum in Sum::ALL {
        for (bytes, chunk) in [(0, 64 << 10), (10, 64 << 10), (300_000, 64 << 10), (300_000, 1 << 20)] {
            let content = random(bytes);
            let unsigned = Chunked::unsigned(&sum.header(), sum.of(&content)).chunk_bytes(chunk);
            let signed = Chunked::signed().trailer(&sum.header(), sum.of(&content)).chunk_bytes(chunk);
            for (name, framing) in [("unsigned", unsigned), ("signed", signed)] {
                let key = format!("{name}-{}-{bytes}-{chunk}", sum.name());
                let put =
                    s3.put(&bucket, &key, content.clone()).header("x-amz-sdk-checksum-algorithm", sum.name());
                put.chunked(framing).expect(200).await;
                assert_returned(&s3, &bucket, &key, sum, &content).await;
            }
        }
    }
}

#[tokio::test]
async fn broken_chunked_bodies_store_nothing() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    let content = random(200_000);
    let good = Sum::Crc32c.of(&content);
    let header = Sum::Crc32c.header();
    let signed = || Chunked::signed().trailer(&header, &good);
    let unsigned = || Chunked::unsigned(&header, &good);
    let put = |framing: Chunked| s3.put(&bucket, "broken", content.clone()).chunked(framing);

    put(Chunked::unsigned(&header, Sum::Crc32c.of(b"other"))).refused(400, "BadDigest").await;
    put(Chunked::signed().trailer(&header, Sum::Crc32c.of(b"other"))).refused(400, "BadDigest").await;
    put(signed().fault(Fault::ChunkSignature)).refused(403, "SignatureDoesNotMatch").await;
    put(Chunked::signed().fault(Fault::ChunkSignature)).refused(403, "SignatureDoesNotMatch").await;
    put(signed().fault(Fault::TrailerSignature)).refused(403, "SignatureDoesNotMatch").await;
    for framing in [signed().declared(199_999), unsigned().declared(200_001), Chunked::signed().declared(1)] {
        put(framing).refused(400, "IncompleteBody").await;
    }
    for framing in [signed(), unsigned(), Chunked::signed()] {
        put(framing.clone().fault(Fault::NoFinalChunk)).refused(400, "IncompleteBody").await;
        let answer = put(framing.fault(Fault::ChunkLength)).send().await.unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    for framing in [signed(), unsigned()] {
        let answer = put(framing.fault(Fault::NoTrailer)).send().await.unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    s3.get(&bucket, "broken").refused(404, "NoSuchKey").await;
    put(signed()).expect(200).await;
}

#[tokio::test]
async fn composite_checksums_of_uploads() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    let parts = [random(5 * MIB), random(1000)];
    let slices = [parts[0].as_ref(), parts[1].as_ref()];
    for sum in [Sum::Crc32, Sum::Crc32c, Sum::Sha1, Sum::Sha256] {
        let upload = Upload::create_with(&s3, &bucket, sum.name(), |call| {
            call.header("x-amz-checksum-algorithm", sum.name()).header("x-amz-checksum-type", "COMPOSITE")
        })
        .await;
        let mut listed = Vec::new();
        for (number, part) in (1..).zip(&parts) {
            let put = upload.put(number, part.clone()).header(&sum.header(), sum.of(part)).expect(200).await;
            assert_eq!(put.header(&sum.header()), sum.of(part));
            let element = format!("<{0}>{1}</{0}>", sum.element(), sum.of(part));
            listed.push((number, put.header("etag").to_owned(), element));
        }
        let page = upload.call("GET").expect(200).await.tree();
        assert_eq!(page.texts("Part", &sum.element()), [sum.of(&parts[0]), sum.of(&parts[1])]);
        let done = upload.complete_with(listed).expect(200).await.tree();
        assert_eq!(done.get(&sum.element()), sum.composite(&slices), "{sum:?}");
        assert_eq!(done.get("ChecksumType"), "COMPOSITE");
        let head = s3.head(&bucket, sum.name()).header("x-amz-checksum-mode", "ENABLED").expect(200).await;
        assert_eq!(head.header(&sum.header()), sum.composite(&slices));
        assert_eq!(head.header("x-amz-checksum-type"), "COMPOSITE");
    }
}

#[tokio::test]
async fn full_object_checksums_of_uploads() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    let parts = [random(5 * MIB), random(5 * MIB), random(1000)];
    let whole = Bytes::from(parts.concat());
    for sum in [Sum::Crc32, Sum::Crc32c, Sum::Crc64nvme] {
        let upload = Upload::create_with(&s3, &bucket, sum.name(), |call| {
            call.header("x-amz-checksum-algorithm", sum.name()).header("x-amz-checksum-type", "FULL_OBJECT")
        })
        .await;
        let mut listed = Vec::new();
        for (number, part) in (1..).zip(&parts) {
            let put = upload.put(number, part.clone()).header(&sum.header(), sum.of(part)).expect(200).await;
            listed.push((number, put.header("etag").to_owned()));
        }
        let wrong = upload.complete(&listed).header(&sum.header(), sum.of(b"other"));
        wrong.header("x-amz-checksum-type", "FULL_OBJECT").refused(400, "BadDigest").await;
        let right = upload.complete(&listed).header(&sum.header(), sum.of(&whole));
        let done = right.header("x-amz-checksum-type", "FULL_OBJECT").expect(200).await.tree();
        assert_eq!(done.get(&sum.element()), sum.of(&whole), "{sum:?}");
        assert_eq!(done.get("ChecksumType"), "FULL_OBJECT");
        let head = s3.head(&bucket, sum.name()).header("x-amz-checksum-mode", "ENABLED").expect(200).await;
        assert_eq!(head.header(&sum.header()), sum.of(&whole));
        assert_eq!(head.header("x-amz-checksum-type"), "FULL_OBJECT");
    }
}

#[tokio::test]
async fn a_part_with_a_wrong_checksum_is_not_stored() {
    let s3 = client();
    let bucket = s3.bucket("checksums").await;
    let upload =
        Upload::create_with(&s3, &bucket, "parts", |call| call.header("x-amz-checksum-algorithm", "SHA256"))
            .await;
    upload
        .put(1, "body")
        .header(&Sum::Sha256.header(), Sum::Sha256.of(b"other"))
        .refused(400, "BadDigest")
        .await;
    upload.put(1, "body").header("content-md5", sums::content_md5(b"other")).refused(400, "BadDigest").await;
    assert_eq!(upload.call("GET").expect(200).await.tree().all("Part").count(), 0);
    upload.abort().await;
}
