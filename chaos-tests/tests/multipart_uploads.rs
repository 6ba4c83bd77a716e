//! Multipart uploads: parts in any order and at once, replaced, copied, listed, completed once or aborted without trace.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use bytes::Bytes;
use futures::future::join_all;
use holdfast_chaos::cluster::Zone;
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::s3::S3;
use holdfast_chaos::sums;
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

fn slices(parts: &[Bytes]) -> Vec<&[u8]> {
    parts.iter().map(Bytes::as_ref).collect()
}

#[tokio::test]
async fn parallel_parts_in_any_order_become_one_object() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let parts = [random(5 * MIB), random(5 * MIB + 17), random(6 * MIB), random(100)];
    let upload = Upload::create_with(&s3, &bucket, "big", |call| {
        call.header("content-type", "video/x").header("x-amz-meta-a", "1").header("cache-control", "no-cache")
    })
    .await;
    // Uploaded all at once, in no order; the short one has the highest number.
    let numbers = [3_u32, 7, 40, 10_000];
    let etags = join_all([2, 0, 3, 1].map(|index: usize| {
        let upload = upload.part(numbers[index], parts[index].clone());
        async move { (index, upload.await) }
    }))
    .await;
    let mut listed = vec![(0, String::new()); 4];
    for (index, etag) in etags {
        assert_eq!(etag, sums::etag(&parts[index]));
        listed[index] = (numbers[index], etag);
    }

    let done = upload.complete(&listed).expect(200).await.tree();
    assert_eq!(done.name, "CompleteMultipartUploadResult");
    assert_eq!((done.get("Bucket"), done.get("Key")), (bucket.as_str(), "big"));
    let etag = sums::multipart_etag(&slices(&parts));
    assert_eq!(done.get("ETag"), etag);

    let whole = parts.concat();
    let get = s3.get(&bucket, "big").expect(200).await;
    assert!(get.body == whole);
    assert_eq!(get.header("etag"), etag);
    assert_eq!(get.header("content-type"), "video/x");
    assert_eq!((get.header("x-amz-meta-a"), get.header("cache-control")), ("1", "no-cache"));
    let head = s3.head(&bucket, "big").expect(200).await;
    assert_eq!(head.header("content-length"), whole.len().to_string());

    // A range over the edge of two parts.
    let (first, last) = (5 * MIB + 10, 5 * MIB + 30);
    let range = s3.get(&bucket, "big").header("range", format!("bytes={first}-{last}")).expect(206).await;
    assert_eq!(range.body, whole[first..=last]);
}

#[tokio::test]
async fn a_part_can_be_read_by_its_number() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let parts = [random(5 * MIB), random(5 * MIB), random(1234)];
    let upload = Upload::create(&s3, &bucket, "parts").await;
    let mut listed = Vec::new();
    for (number, part) in (1..).zip(&parts) {
        listed.push((number, upload.part(number, part.clone()).await));
    }
    upload.complete(&listed).expect(200).await;
    let total: usize = parts.iter().map(Bytes::len).sum();
    let mut offset = 0;
    for (number, part) in (1..).zip(&parts) {
        let number: u32 = number;
        let get = s3.get(&bucket, "parts").query("partNumber", number.to_string()).expect(206).await;
        assert!(get.body == *part, "part {number}");
        assert_eq!(get.header("x-amz-mp-parts-count"), "3");
        let range = format!("bytes {offset}-{}/{total}", offset + part.len() - 1);
        assert_eq!(get.header("content-range"), range);
        let head = s3.head(&bucket, "parts").query("partNumber", number.to_string()).expect(206).await;
        assert_eq!(head.header("content-length"), part.len().to_string());
        assert_eq!(head.header("x-amz-mp-parts-count"), "3");
        offset += part.len();
    }
    s3.get(&bucket, "parts").query("partNumber", "4").refused(416, "InvalidPartNumber").await;
    // A plain object is its own part 1.
    s3.put(&bucket, "plain", "x").expect(200).await;
    assert_eq!(s3.get(&bucket, "plain").query("partNumber", "1").expect(206).await.body, "x");
}

#[tokio::test]
async fn the_latest_of_a_parts_uploads_counts() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let upload = Upload::create(&s3, &bucket, "again").await;
    let (old, new, last) = (random(5 * MIB), random(5 * MIB + 1), random(10));
    let old_etag = upload.part(1, old).await;
    let new_etag = upload.part(1, new.clone()).await;
    let last_etag = upload.part(2, last.clone()).await;
    upload.complete(&[(1, old_etag), (2, last_etag.clone())]).refused(400, "InvalidPart").await;
    upload.complete(&[(1, new_etag), (2, last_etag)]).expect(200).await;
    assert!(s3.get(&bucket, "again").expect(200).await.body == [new, last].concat());
}

#[tokio::test]
async fn parts_left_out_of_the_completion_are_left_out() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let upload = Upload::create(&s3, &bucket, "some").await;
    let (first, third) = (random(5 * MIB), random(9));
    let etag_1 = upload.part(1, first.clone()).await;
    upload.part(2, random(5 * MIB)).await;
    let etag_3 = upload.part(3, third.clone()).await;
    upload.complete(&[(1, etag_1), (3, etag_3)]).expect(200).await;
    assert!(s3.get(&bucket, "some").expect(200).await.body == [first, third].concat());
    upload.call("GET").refused(404, "NoSuchUpload").await;
}

#[tokio::test]
async fn a_repeated_completion_gets_the_same_answer() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let upload = Upload::create(&s3, &bucket, "twice").await;
    let part = upload.part(1, "only").await;
    let first = upload.complete(&[(1, part.clone())]).expect(200).await.tree();
    // The first answer may have been lost on its way.
    let second = upload.complete(&[(1, part)]).expect(200).await.tree();
    assert_eq!(first.get("ETag"), second.get("ETag"));
}

#[tokio::test]
async fn so_does_a_repeated_completion_with_a_checksum() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let upload = Upload::create(&s3, &bucket, "twice").await;
    let part = upload.part(1, "only").await;
    let complete = || upload.complete(&[(1, part.clone())]).header("x-amz-mp-object-size", "4");
    let complete = || complete().header("x-amz-checksum-type", "FULL_OBJECT");
    let first = complete().expect(200).await.tree();
    let second = complete().expect(200).await.tree();
    assert_eq!(first.get("ETag"), second.get("ETag"));
}

#[tokio::test]
async fn parts_are_listed_in_pages() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let upload = Upload::create(&s3, &bucket, "listed").await;
    for number in [9, 2, 5, 1, 77] {
        upload.part(number, vec![b'p'; number as usize]).await;
    }
    let all = upload.call("GET").expect(200).await.tree();
    assert_eq!(all.name, "ListPartsResult");
    assert_eq!(all.texts("Part", "PartNumber"), ["1", "2", "5", "9", "77"]);
    assert_eq!(all.texts("Part", "Size"), ["1", "2", "5", "9", "77"]);
    assert_eq!(all.get("IsTruncated"), "false");
    assert_eq!(all.texts("Part", "ETag")[0], sums::etag(b"p"));

    let page = upload.call("GET").query("max-parts", "2").expect(200).await.tree();
    assert_eq!(page.texts("Part", "PartNumber"), ["1", "2"]);
    assert_eq!((page.get("IsTruncated"), page.get("NextPartNumberMarker")), ("true", "2"));
    let rest = upload.call("GET").query("part-number-marker", "2").expect(200).await.tree();
    assert_eq!(rest.texts("Part", "PartNumber"), ["5", "9", "77"]);
    upload.abort().await;
}

#[tokio::test]
async fn uploads_are_listed_by_key_and_prefix() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let mut ids = Vec::new();
    for key in ["b", "a/1", "a/2", "a/1"] {
        ids.push((key, Upload::create(&s3, &bucket, key).await.id));
    }
    let uploads = || s3.get(&bucket, "").query("uploads", "");
    let all = uploads().expect(200).await.tree();
    assert_eq!(all.name, "ListMultipartUploadsResult");
    assert_eq!(all.texts("Upload", "Key"), ["a/1", "a/1", "a/2", "b"]);
    let mut listed = all.texts("Upload", "UploadId");
    listed.sort();
    let mut expected: Vec<String> = ids.iter().map(|(_, id)| id.clone()).collect();
    expected.sort();
    assert_eq!(listed, expected);

    assert_eq!(
        uploads().query("prefix", "a/").expect(200).await.tree().texts("Upload", "Key"),
        ["a/1", "a/1", "a/2"]
    );
    let grouped = uploads().query("delimiter", "/").expect(200).await.tree();
    assert_eq!(grouped.texts("Upload", "Key"), ["b"]);
    assert_eq!(grouped.texts("CommonPrefixes", "Prefix"), ["a/"]);

    let mut keys = Vec::new();
    let (mut key_marker, mut id_marker) = (String::new(), String::new());
    loop {
        let page = uploads().query("max-uploads", "1").query("key-marker", &key_marker);
        let page = if id_marker.is_empty() { page } else { page.query("upload-id-marker", &id_marker) };
        let page = page.expect(200).await.tree();
        keys.extend(page.texts("Upload", "Key"));
        if page.get("IsTruncated") != "true" {
            break;
        }
        key_marker = page.get("NextKeyMarker").to_owned();
        id_marker = page.get("NextUploadIdMarker").to_owned();
        assert!(keys.len() < 10, "pages do not end");
    }
    assert_eq!(keys, ["a/1", "a/1", "a/2", "b"]);
}

#[tokio::test]
async fn an_aborted_upload_leaves_nothing() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let upload = Upload::create(&s3, &bucket, "aborted").await;
    let part = upload.part(1, random(MIB)).await;
    upload.abort().await;
    upload.put(2, "late").refused(404, "NoSuchUpload").await;
    upload.call("GET").refused(404, "NoSuchUpload").await;
    upload.complete(&[(1, part)]).refused(404, "NoSuchUpload").await;
    s3.get(&bucket, "aborted").refused(404, "NoSuchKey").await;
    assert_eq!(s3.get(&bucket, "").query("uploads", "").expect(200).await.tree().all("Upload").count(), 0);
    s3.delete(&bucket, "").expect(204).await;
}

#[tokio::test]
async fn parts_can_be_copied_from_objects() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let source = random(12 * MIB);
    s3.put(&bucket, "source \u{e9}", source.clone()).expect(200).await;
    let upload = Upload::create(&s3, &bucket, "copied").await;
    let from = format!("{bucket}/source%20%C3%A9");
    let copy = |number: u32, range: Option<(usize, usize)>| {
        let call = upload.put(number, "").header("x-amz-copy-source", &from);
        match range {
            Some((first, last)) => call.header("x-amz-copy-source-range", format!("bytes={first}-{last}")),
            None => call,
        }
    };
    let ranged = copy(1, Some((100, 5 * MIB + 199))).expect(200).await.tree();
    assert_eq!(ranged.name, "CopyPartResult");
    assert_eq!(ranged.get("ETag"), sums::etag(&source[100..5 * MIB + 200]));
    let whole = copy(2, None).expect(200).await.tree();
    copy(3, Some((0, 99_999_999))).refused(400, "InvalidArgument").await;
    let parts = [(1, ranged.get("ETag").to_owned()), (2, whole.get("ETag").to_owned())];
    upload.complete(&parts).expect(200).await;
    let expected = [&source[100..5 * MIB + 200], &source[..]].concat();
    assert!(s3.get(&bucket, "copied").expect(200).await.body == expected);
}

#[tokio::test]
async fn wrong_completions_are_refused_and_store_nothing() {
    let s3 = client();
    let bucket = s3.bucket("multipart").await;
    let upload = Upload::create(&s3, &bucket, "wrong").await;
    let small = upload.part(1, "small").await;
    let second = upload.part(2, "last").await;
    let (one, two) = ((1, small), (2, second));
    upload.complete(&[one.clone(), two.clone()]).refused(400, "EntityTooSmall").await;
    upload.complete(&[two.clone(), one.clone()]).refused(400, "InvalidPartOrder").await;
    upload.complete(&[one.clone(), one.clone()]).refused(400, "InvalidPartOrder").await;
    upload.complete(&[(1, two.1.clone())]).refused(400, "InvalidPart").await;
    upload.complete(&[(5, two.1.clone())]).refused(400, "InvalidPart").await;
    upload.complete(&[]).refused(400, "MalformedXML").await;
    upload.call("POST").body("<CompleteMultipartUpload><Part>").refused(400, "MalformedXML").await;
    upload.put(0, "x").refused(400, "InvalidArgument").await;
    upload.put(10_001, "x").refused(400, "InvalidArgument").await;
    upload.with_id("made-up").put(1, "x").refused(404, "NoSuchUpload").await;
    upload.with_id("made-up").complete(std::slice::from_ref(&one)).refused(404, "NoSuchUpload").await;
    upload.with_id("made-up").call("DELETE").refused(404, "NoSuchUpload").await;
    s3.get(&bucket, "wrong").refused(404, "NoSuchKey").await;
    // After all that the upload is still good.
    upload.complete(&[one]).expect(200).await;
    assert_eq!(s3.get(&bucket, "wrong").expect(200).await.body, "small");
}
