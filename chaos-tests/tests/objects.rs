//! Objects: every byte, header and key comes back as it went in.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_chaos::chunked::Chunked;
use holdfast_chaos::cluster::Zone;
use holdfast_chaos::s3::S3;
use holdfast_chaos::sigv4::encode_path;
use holdfast_chaos::sums::{self, Sum};
use rand::RngCore;

fn client() -> S3 {
    Zone::shared().s3()
}

fn random(bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    rand::rng().fill_bytes(&mut content);
    content.into()
}

/// Sizes around every boundary of the write path: inline, copies, one stripe, full stripes, the last short one.
#[tokio::test]
async fn bodies_of_every_shape_come_back() {
    let s3 = client();
    let bucket = s3.bucket("objects").await;
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    for bytes in [
        0,
        1,
        2 * KIB - 1,
        2 * KIB,
        2 * KIB + 1,
        64 * KIB,
        256 * KIB - 1,
        256 * KIB,
        256 * KIB + 1,
        MIB - 1,
        MIB,
        MIB + 1,
        4 * MIB - 1,
        4 * MIB,
        4 * MIB + 1,
        9 * MIB + 12_345,
    ] {
        let content = random(bytes);
        let key = format!("size-{bytes}");
        let put = s3.put(&bucket, &key, content.clone()).expect(200).await;
        assert_eq!(put.header("etag"), sums::etag(&content), "{bytes}");
        let head = s3.head(&bucket, &key).expect(200).await;
        assert_eq!(head.header("content-length"), bytes.to_string());
        assert_eq!(head.header("etag"), sums::etag(&content));
        let get = s3.get(&bucket, &key).expect(200).await;
        assert!(get.body == content, "{bytes} bytes: other bytes came back");
        assert_eq!(get.header("accept-ranges"), "bytes");
        assert!(get.header("last-modified").ends_with(" GMT"), "{get:?}");
    }
}

#[tokio::test]
async fn ranges_are_cut_exactly() {
    let s3 = client();
    let bucket = s3.bucket("ranges").await;
    // Two full stripes and a short one.
    let content = random((9 << 20) + 777);
    let bytes = content.len();
    s3.put(&bucket, "large", content.clone()).expect(200).await;
    let mib = 1 << 20;
    for (first, last) in [
        (0, 0),
        (0, 9),
        (bytes - 1, bytes - 1),
        (mib - 1, mib),
        (4 * mib - 1, 4 * mib),
        (4 * mib - 5, 8 * mib + 5),
        (65_535, 65_536),
        (3 * mib + 17, 3 * mib + 17 + 70_000),
        (0, bytes - 1),
    ] {
        let get = s3.get(&bucket, "large").header("range", format!("bytes={first}-{last}")).expect(206).await;
        assert_eq!(get.header("content-range"), format!("bytes {first}-{last}/{bytes}"));
        assert_eq!(get.header("content-length"), (last - first + 1).to_string());
        assert!(get.body == content[first..=last], "{first}-{last}");
    }

    let open = s3.get(&bucket, "large").header("range", format!("bytes={}-", bytes - 5)).expect(206).await;
    assert_eq!(open.body, content[bytes - 5..]);
    let suffix = s3.get(&bucket, "large").header("range", "bytes=-7").expect(206).await;
    assert_eq!(suffix.body, content[bytes - 7..]);
    let long_suffix = s3.get(&bucket, "large").header("range", "bytes=-99999999").expect(206).await;
    assert_eq!(long_suffix.body.len(), bytes);
    let past_end =
        s3.get(&bucket, "large").header("range", format!("bytes={}-99999999", bytes - 3)).expect(206).await;
    assert_eq!(past_end.body, content[bytes - 3..]);

    s3.get(&bucket, "large").header("range", format!("bytes={bytes}-")).refused(416, "InvalidRange").await;
    s3.get(&bucket, "large").header("range", "bytes=-0").refused(416, "InvalidRange").await;
    s3.put(&bucket, "empty", "").expect(200).await;
    s3.get(&bucket, "empty").header("range", "bytes=0-0").refused(416, "InvalidRange").await;
    // What is no valid range is no range (RFC 9110, section 14.2).
    for ignored in ["bytes=9-1", "lines=1-2", "bytes=a-b"] {
        let get = s3.get(&bucket, "large").header("range", ignored).expect(200).await;
        assert_eq!(get.body.len(), bytes, "{ignored}");
    }
    let head = s3.head(&bucket, "large").header("range", "bytes=0-9").expect(206).await;
    assert_eq!(head.header("content-length"), "10");
}

#[tokio::test]
async fn the_last_write_wins() {
    let s3 = client();
    let bucket = s3.bucket("objects").await;
    for round in 0..5_usize {
        let content = random(round * 300_000);
        s3.put(&bucket, "same", content.clone()).expect(200).await;
        assert_eq!(s3.get(&bucket, "same").expect(200).await.body, content);
    }
    assert_eq!(s3.keys(&bucket, 1000).await.unwrap(), ["same"]);
}

#[tokio::test]
async fn metadata_and_standard_headers_come_back() {
    let s3 = client();
    let bucket = s3.bucket("headers").await;
    let headers = [
        ("cache-control", "max-age=60, public"),
        ("content-disposition", "attachment; filename=\"a b.txt\""),
        ("content-encoding", "gzip"),
        ("content-language", "de-CH"),
        ("content-type", "text/plain; charset=utf-8"),
        ("expires", "Wed, 21 Oct 2026 07:28:00 GMT"),
        ("x-amz-meta-one", "1"),
        ("x-amz-meta-with-dash", "a, b; c=\"d\""),
        ("x-amz-storage-class", "STANDARD"),
    ];
    let mut put = s3.put(&bucket, "full", "body");
    for (name, value) in headers {
        put = put.header(name, value);
    }
    put.expect(200).await;
    for answer in [s3.head(&bucket, "full").expect(200).await, s3.get(&bucket, "full").expect(200).await] {
        for (name, value) in headers.iter().filter(|(name, _)| *name != "x-amz-storage-class") {
            assert_eq!(answer.header(name), *value, "{name}");
        }
    }

    s3.put(&bucket, "bare", "body").expect(200).await;
    let bare = s3.get(&bucket, "bare").expect(200).await;
    assert_eq!(bare.header("content-type"), "binary/octet-stream");
    assert!(bare.headers.keys().all(|name| !name.as_str().starts_with("x-amz-meta-")));

    let overridden = s3
        .get(&bucket, "full")
        .query("response-content-type", "text/x-other")
        .query("response-content-disposition", "inline")
        .query("response-cache-control", "no-store")
        .expect(200)
        .await;
    assert_eq!(overridden.header("content-type"), "text/x-other");
    assert_eq!(overridden.header("content-disposition"), "inline");
    assert_eq!(overridden.header("cache-control"), "no-store");
}

#[tokio::test]
async fn too_much_metadata_is_refused() {
    let s3 = client();
    let bucket = s3.bucket("headers").await;
    let value = "v".repeat(2048);
    s3.put(&bucket, "a", "x").header("x-amz-meta-a", &value).refused(400, "MetadataTooLarge").await;
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn aws_chunked_is_framing_and_never_stored() {
    let s3 = client();
    let bucket = s3.bucket("chunked").await;
    let content = random(300_000);
    s3.put(&bucket, "plain", content.clone()).chunked(Chunked::signed()).expect(200).await;
    let plain = s3.get(&bucket, "plain").expect(200).await;
    assert_eq!(plain.body, content);
    assert_eq!(plain.header("content-encoding"), "");

    let zipped = Chunked::unsigned(&Sum::Crc32.header(), Sum::Crc32.of(&content));
    s3.put(&bucket, "zip", content.clone())
        .header("content-encoding", "gzip")
        .chunked(zipped)
        .expect(200)
        .await;
    let zip = s3.get(&bucket, "zip").expect(200).await;
    assert_eq!(zip.body, content);
    assert_eq!(zip.header("content-encoding"), "gzip");
}

fn awkward_keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = [
        "a/",
        "a//",
        "//",
        "/",
        "/leading",
        "..",
        ".",
        "../..",
        "a/../b",
        "./a",
        "a/./b",
        " ",
        " lead",
        "trail ",
        "a b",
        "a+b",
        "a%20b",
        "a%2Fb",
        "%",
        "%zz",
        "a?b",
        "a#b",
        "a&b",
        "a=b",
        "a;b",
        "a:b",
        "a@b",
        "a,b",
        "a'b",
        "a\"b",
        "a<b>",
        "a\\b",
        "a|b",
        "a^b",
        "a`b",
        "a{b}",
        "a[b]",
        "~tilde",
        "a*b",
        "a$b",
        "a!b",
        "(a)",
        "caf\u{e9}",
        "cafe\u{301}",
        "\u{65e5}\u{672c}\u{8a9e}",
        "\u{1f980}",
        "\u{ff5e}",
        "\u{feff}bom",
        "\u{200b}",
        "a\u{7f}b",
    ]
    .iter()
    .map(|key| key.as_bytes().to_vec())
    .collect();
    keys.extend((0..32_u8).map(|control| vec![b'c', control, b'd']));
    keys.push("\u{e9}".repeat(512).into_bytes());
    keys.push("\u{1f980}".repeat(256).into_bytes());
    keys.push(vec![b'k'; 1024]);
    keys
}

#[tokio::test]
async fn awkward_keys_come_back_exactly() {
    let s3 = client();
    let bucket = s3.bucket("awkward").await;
    let keys = awkward_keys();
    for key in &keys {
        s3.put(&bucket, key, key.clone()).expect(200).await;
    }
    for key in &keys {
        let get = s3.get(&bucket, key).expect(200).await;
        assert_eq!(get.body, key.as_slice(), "{}", String::from_utf8_lossy(key));
    }

    let listing =
        s3.get(&bucket, "").query("list-type", "2").query("encoding-type", "url").expect(200).await.tree();
    let mut expected = keys.clone();
    expected.sort();
    let listed: Vec<Vec<u8>> = listing.texts("Contents", "Key").iter().map(|key| url_decode(key)).collect();
    assert_eq!(listed, expected);

    for key in &keys {
        s3.delete(&bucket, key).expect(204).await;
    }
    assert!(s3.keys(&bucket, 1000).await.unwrap().is_empty());
}

/// S3's url encoding of keys: percent escapes, and `+` for a space.
fn url_decode(text: &str) -> Vec<u8> {
    percent_encoding::percent_decode_str(&text.replace('+', " ")).collect()
}

#[tokio::test]
async fn deleting_is_idempotent() {
    let s3 = client();
    let bucket = s3.bucket("deletes").await;
    s3.put(&bucket, "a", "x").expect(200).await;
    s3.delete(&bucket, "a").expect(204).await;
    s3.delete(&bucket, "a").expect(204).await;
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
    s3.head(&bucket, "a").refused(404, "").await;
}

fn delete_request(keys: impl IntoIterator<Item = String>, quiet: bool) -> String {
    let objects: String = keys
        .into_iter()
        .map(|key| format!("<Object><Key>{}</Key></Object>", key.replace('&', "&amp;")))
        .collect();
    format!("<Delete><Quiet>{quiet}</Quiet>{objects}</Delete>")
}

#[tokio::test]
async fn a_batch_deletes_what_it_names() {
    let s3 = client();
    let bucket = s3.bucket("deletes").await;
    for number in 0..30 {
        s3.put(&bucket, format!("k&{number}"), "x").expect(200).await;
    }
    let body = delete_request((0..20).map(|number| format!("k&{number}")).chain(["not there".into()]), false);
    let answer = s3
        .call("POST", &bucket, "")
        .query("delete", "")
        .header("content-md5", sums::content_md5(body.as_bytes()));
    let answer = answer.body(body).expect(200).await.tree();
    let deleted: BTreeSet<String> = answer.texts("Deleted", "Key").into_iter().collect();
    assert_eq!(deleted.len(), 21, "{answer:?}");
    assert_eq!(answer.all("Error").count(), 0);
    assert_eq!(s3.keys(&bucket, 1000).await.unwrap().len(), 10);

    let body = delete_request((20..30).map(|number| format!("k&{number}")), true);
    let call = s3
        .call("POST", &bucket, "")
        .query("delete", "")
        .header(&Sum::Crc32.header(), Sum::Crc32.of(body.as_bytes()));
    let answer = call.body(body).expect(200).await.tree();
    assert_eq!(answer.all("Deleted").count(), 0, "quiet: {answer:?}");
    assert!(s3.keys(&bucket, 1000).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_batch_names_at_most_a_thousand_keys() {
    let s3 = client();
    let bucket = s3.bucket("deletes").await;
    s3.put(&bucket, "0", "x").expect(200).await;
    let body = delete_request((0..1001).map(|number| number.to_string()), false);
    let md5 = sums::content_md5(body.as_bytes());
    let call = s3.call("POST", &bucket, "").query("delete", "").header("content-md5", md5);
    call.body(body).refused(400, "MalformedXML").await;
    s3.get(&bucket, "0").expect(200).await;
}

#[tokio::test]
async fn copies_carry_bytes_and_headers() {
    let s3 = client();
    let bucket = s3.bucket("copies").await;
    let other = s3.bucket("copies").await;
    let content = random(5_000_000);
    let source = "dir/a b+c%20\u{e9}";
    let put = s3
        .put(&bucket, source, content.clone())
        .header("content-type", "text/x-a")
        .header("x-amz-meta-a", "1");
    let etag = put.expect(200).await.header("etag").to_owned();
    let from = format!("/{bucket}/{}", encode_path(source));

    let copied = s3.put(&other, "copy", "").header("x-amz-copy-source", &from).expect(200).await.tree();
    assert_eq!(copied.name, "CopyObjectResult");
    assert_eq!(copied.get("ETag"), etag);
    let get = s3.get(&other, "copy").expect(200).await;
    assert!(get.body == content);
    assert_eq!((get.header("content-type"), get.header("x-amz-meta-a")), ("text/x-a", "1"));

    s3.put(&other, "replaced", "")
        .header("x-amz-copy-source", &from)
        .header("x-amz-metadata-directive", "REPLACE")
        .header("content-type", "text/x-b")
        .header("x-amz-meta-b", "2")
        .expect(200)
        .await;
    let get = s3.head(&other, "replaced").expect(200).await;
    assert_eq!((get.header("content-type"), get.header("x-amz-meta-b")), ("text/x-b", "2"));
    assert_eq!(get.header("x-amz-meta-a"), "");

    // A copy outlives its source.
    s3.delete(&bucket, source).expect(204).await;
    assert!(s3.get(&other, "copy").expect(200).await.body == content);
}

#[tokio::test]
async fn a_copy_onto_itself_must_change_something() {
    let s3 = client();
    let bucket = s3.bucket("copies").await;
    s3.put(&bucket, "a", "x").expect(200).await;
    let onto_itself = || s3.put(&bucket, "a", "").header("x-amz-copy-source", format!("{bucket}/a"));
    onto_itself().refused(400, "InvalidRequest").await;
    onto_itself().header("x-amz-metadata-directive", "REPLACE").header("x-amz-meta-n", "1").expect(200).await;
    let get = s3.get(&bucket, "a").expect(200).await;
    assert_eq!((get.body.as_ref(), get.header("x-amz-meta-n")), (b"x".as_slice(), "1"));
}

#[tokio::test]
async fn copies_of_what_is_not_there_are_refused() {
    let s3 = client();
    let bucket = s3.bucket("copies").await;
    let copy = |from: String| s3.put(&bucket, "copy", "").header("x-amz-copy-source", from);
    copy(format!("{bucket}/missing")).refused(404, "NoSuchKey").await;
    copy("no-such-bucket-here/missing".into()).refused(404, "NoSuchBucket").await;
    copy("no-slash".into()).refused(400, "InvalidArgument").await;
    s3.get(&bucket, "copy").refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn presigned_urls_read_and_write() {
    let s3 = client();
    let bucket = s3.bucket("presigned").await;
    let content = random(100_000);
    let put = s3.put(&bucket, "a b/\u{e9}", content.clone());
    let url = put.presign(600);
    assert_eq!(put.send_to(&url).await.unwrap().status, 200);
    let get = s3.get(&bucket, "a b/\u{e9}");
    assert_eq!(get.send_to(&get.presign(604_800)).await.unwrap().body, content);
    let with_override = get.query("response-content-type", "text/x-y");
    let answer = with_override.send_to(&with_override.presign(60)).await.unwrap();
    assert_eq!(answer.header("content-type"), "text/x-y");
}

#[tokio::test]
async fn a_presigned_url_that_names_an_algorithm_gets_its_checksum() {
    let s3 = client();
    let bucket = s3.bucket("presigned").await;
    let put = s3.put(&bucket, "a", "123456789").query("x-amz-sdk-checksum-algorithm", "CRC32");
    assert_eq!(put.send_to(&put.presign(60)).await.unwrap().status, 200);
    let head = s3.call("HEAD", &bucket, "a").header("x-amz-checksum-mode", "ENABLED").expect(200).await;
    assert_eq!(head.header("x-amz-checksum-crc32"), "y/Q5Jg==");
}

#[tokio::test]
async fn the_length_of_an_xml_object_is_known_before_it_is_read() {
    let s3 = client();
    let bucket = s3.bucket("xml").await;
    s3.put(&bucket, "a", "<a/>").header("content-type", "application/xml").expect(200).await;
    assert_eq!(s3.call("HEAD", &bucket, "a").expect(200).await.header("content-length"), "4");
}

/// Clients exist that take a connection's next answer for part of one that came without a 100.
#[tokio::test]
async fn an_answer_that_was_not_preceded_by_a_100_ends_its_connection() {
    let s3 = client();
    let bucket = s3.bucket("expect").await;
    let empty = s3.put(&bucket, "a", "").header("expect", "100-continue").expect(200).await;
    assert_eq!(empty.header("connection"), "close");
    let full = s3.put(&bucket, "a", "x").header("expect", "100-continue").expect(200).await;
    assert_eq!(full.header("connection"), "");
}

#[tokio::test]
async fn every_answer_has_a_request_id_of_its_own() {
    let s3 = client();
    let bucket = s3.bucket("requests").await;
    s3.put(&bucket, "a", "x").expect(200).await;
    let mut ids = BTreeSet::new();
    for _ in 0..5 {
        ids.insert(s3.get(&bucket, "a").expect(200).await.header("x-amz-request-id").to_owned());
    }
    assert_eq!(ids.len(), 5, "{ids:?}");
    assert!(!ids.contains(""));
}
