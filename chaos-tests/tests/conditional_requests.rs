//! Conditions: reads that answer 304 or 412, and writes that are honest compare-and-swaps.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use futures::future::join_all;
use holdfast_chaos::cluster::Zone;
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::s3::{Call, S3};
use holdfast_chaos::sums;

const PAST: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
const OTHER: &str = "\"00000000000000000000000000000000\"";

fn client() -> S3 {
    Zone::shared().s3()
}

async fn stored(s3: &S3, body: &'static str) -> (String, String, String) {
    let bucket = s3.bucket("conditions").await;
    let etag = s3.put(&bucket, "a", body).expect(200).await.header("etag").to_owned();
    let modified = s3.head(&bucket, "a").expect(200).await.header("last-modified").to_owned();
    (bucket, etag, modified)
}

#[tokio::test]
async fn reads_obey_their_conditions() {
    let s3 = client();
    let (bucket, etag, modified) = stored(&s3, "body").await;
    // Of the object's own second or later, and not of the future, which S3 ignores.
    let cases: &[(&[(&str, &str)], u16)] = &[
        (&[("if-match", &etag)], 200),
        (&[("if-match", etag.trim_matches('"'))], 200),
        (&[("if-match", "*")], 200),
        (&[("if-match", OTHER)], 412),
        (&[("if-none-match", &etag)], 304),
        (&[("if-none-match", "*")], 304),
        (&[("if-none-match", OTHER)], 200),
        (&[("if-modified-since", PAST)], 200),
        (&[("if-modified-since", &modified)], 304),
        (&[("if-unmodified-since", PAST)], 412),
        (&[("if-unmodified-since", &modified)], 200),
        // "Conditional reads" in the user guide: the tag outranks the date.
        (&[("if-match", &etag), ("if-unmodified-since", PAST)], 200),
        (&[("if-none-match", &etag), ("if-modified-since", PAST)], 304),
    ];
    for (conditions, status) in cases {
        let with = |call: Call| conditions.iter().fold(call, |call, (name, value)| call.header(name, value));
        let get = with(s3.get(&bucket, "a")).send().await.unwrap();
        assert_eq!(get.status, *status, "GET {conditions:?}");
        match status {
            304 => assert_eq!((get.header("etag"), get.body.len()), (etag.as_str(), 0)),
            412 => get.assert_refused(412, "PreconditionFailed"),
            _ => assert_eq!(get.body, "body"),
        }
        let head = with(s3.head(&bucket, "a")).send().await.unwrap();
        assert_eq!(head.status, *status, "HEAD {conditions:?}");
    }
    s3.get(&bucket, "missing").header("if-match", OTHER).refused(404, "NoSuchKey").await;
    s3.get(&bucket, "missing").header("if-none-match", OTHER).refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn a_write_if_absent_creates_and_never_overwrites() {
    let s3 = client();
    let bucket = s3.bucket("conditions").await;
    s3.put(&bucket, "a", "first").header("if-none-match", "*").expect(200).await;
    s3.put(&bucket, "a", "second").header("if-none-match", "*").refused(412, "PreconditionFailed").await;
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "first");
    s3.delete(&bucket, "a").expect(204).await;
    s3.put(&bucket, "a", "third").header("if-none-match", "*").expect(200).await;
    // S3 supports only the asterisk on writes; anything else must not be taken for no condition.
    s3.put(&bucket, "a", "fourth").header("if-none-match", OTHER).refused(501, "NotImplemented").await;
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "third");
}

#[tokio::test]
async fn a_write_if_match_replaces_only_what_it_names() {
    let s3 = client();
    let (bucket, etag, _) = stored(&s3, "one").await;
    s3.put(&bucket, "a", "two").header("if-match", OTHER).refused(412, "PreconditionFailed").await;
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "one");
    s3.put(&bucket, "a", "two").header("if-match", &etag).expect(200).await;
    s3.put(&bucket, "a", "three").header("if-match", &etag).refused(412, "PreconditionFailed").await;
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "two");
    s3.put(&bucket, "missing", "x").header("if-match", &etag).refused(404, "NoSuchKey").await;
    s3.get(&bucket, "missing").refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn of_many_writers_if_absent_one_wins() {
    let s3 = client();
    let bucket = s3.bucket("conditions").await;
    for size in [10_usize, 200_000] {
        let key = format!("contended-{size}");
        let answers = join_all((0..12_u8).map(|writer| {
            let body = vec![writer; size];
            let call = s3.put(&bucket, &key, body).header("if-none-match", "*");
            async move { (writer, call.send().await.unwrap().status) }
        }))
        .await;
        let winners: Vec<u8> =
            answers.iter().filter(|(_, status)| *status == 200).map(|(writer, _)| *writer).collect();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert!(answers.iter().all(|(_, status)| matches!(status, 200 | 409 | 412)), "{answers:?}");
        assert_eq!(s3.get(&bucket, &key).expect(200).await.body, vec![winners[0]; size]);
    }
}

#[tokio::test]
async fn counters_by_compare_and_swap_lose_no_step() {
    let s3 = client();
    let bucket = s3.bucket("conditions").await;
    s3.put(&bucket, "counter", "0").expect(200).await;
    const STEPS: u64 = 5;
    const WRITERS: u64 = 4;
    join_all((0..WRITERS).map(|_| async {
        for _ in 0..STEPS {
            loop {
                let read = s3.get(&bucket, "counter").expect(200).await;
                let value: u64 = std::str::from_utf8(&read.body).unwrap().parse().unwrap();
                let write = s3.put(&bucket, "counter", (value + 1).to_string());
                let status = write.header("if-match", read.header("etag")).send().await.unwrap().status;
                match status {
                    200 => break,
                    409 | 412 => {}
                    other => panic!("status {other}"),
                }
            }
        }
    }))
    .await;
    let counted = s3.get(&bucket, "counter").expect(200).await.body;
    assert_eq!(counted, (STEPS * WRITERS).to_string());
}

#[tokio::test]
async fn completing_an_upload_obeys_its_condition() {
    let s3 = client();
    let (bucket, etag, _) = stored(&s3, "in the way").await;
    let upload = Upload::create(&s3, &bucket, "a").await;
    let part = upload.part(1, "uploaded").await;
    let complete = || upload.complete(&[(1, part.clone())]);
    complete().header("if-none-match", "*").refused(412, "PreconditionFailed").await;
    complete().header("if-match", OTHER).refused(412, "PreconditionFailed").await;
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "in the way");
    // A refused completion leaves the upload.
    complete().header("if-match", &etag).expect(200).await;
    assert_eq!(s3.get(&bucket, "a").expect(200).await.body, "uploaded");
}

#[tokio::test]
async fn a_delete_if_match_deletes_only_what_it_names() {
    let s3 = client();
    let (bucket, etag, _) = stored(&s3, "x").await;
    s3.delete(&bucket, "a").header("if-match", OTHER).refused(412, "PreconditionFailed").await;
    s3.get(&bucket, "a").expect(200).await;
    s3.delete(&bucket, "a").header("if-match", &etag).expect(204).await;
    s3.get(&bucket, "a").refused(404, "NoSuchKey").await;
}

#[tokio::test]
async fn a_copy_obeys_conditions_on_its_source_and_its_destination() {
    let s3 = client();
    let (bucket, etag, modified) = stored(&s3, "source").await;
    let copy = |name: &str, value: &str| {
        s3.put(&bucket, "copy", "").header("x-amz-copy-source", format!("{bucket}/a")).header(name, value)
    };
    copy("x-amz-copy-source-if-match", OTHER).refused(412, "PreconditionFailed").await;
    copy("x-amz-copy-source-if-none-match", &etag).refused(412, "PreconditionFailed").await;
    copy("x-amz-copy-source-if-modified-since", &modified).refused(412, "PreconditionFailed").await;
    copy("x-amz-copy-source-if-unmodified-since", PAST).refused(412, "PreconditionFailed").await;
    s3.get(&bucket, "copy").refused(404, "NoSuchKey").await;
    copy("x-amz-copy-source-if-match", &etag).header("if-none-match", "*").expect(200).await;
    copy("x-amz-copy-source-if-match", &etag)
        .header("if-none-match", "*")
        .refused(412, "PreconditionFailed")
        .await;
    assert_eq!(s3.get(&bucket, "copy").expect(200).await.header("etag"), sums::etag(b"source"));
}
