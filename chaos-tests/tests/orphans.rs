//! What was written and never committed is deleted after its time, and an upload that is slow but alive is never touched.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::s3::{Call, S3};
use holdfast_chaos::wait;
use rand::RngCore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::block_in_place;

const BODY: usize = 9 << 20;
/// One stripe of a body is on disk once this much of it was sent.
const FIRST: usize = 6 << 20;
const ORPHAN_AFTER: Duration = Duration::from_secs(4);
const TIME: Duration = Duration::from_secs(120);

fn start(renew_every: &'static str) -> Zone {
    let env = vec![("HOLDFAST_META_ORPHAN_AFTER", "4s"), ("HOLDFAST_GATEWAY_RENEW_EVERY", renew_every)];
    Zone::start(Options { env, ..Options::default() })
}

fn shards(zone: &Zone) -> u64 {
    let targets = zone.json(&["target", "list"]).unwrap();
    targets.as_array().unwrap().iter().filter_map(|target| target["shards"].as_u64()).sum()
}

fn body() -> Bytes {
    let mut body = vec![0; BODY];
    rand::rng().fill_bytes(&mut body);
    body.into()
}

/// Sends the head of a request and the first part of its body; the rest is returned with the open connection.
async fn begin(s3: &S3, call: Call) -> (TcpStream, Vec<u8>) {
    let (mut request, head) = call.unsigned_payload().wire();
    let mut stream = TcpStream::connect(("127.0.0.1", s3.port())).await.unwrap();
    let rest = request.split_off(head + FIRST);
    stream.write_all(&request).await.unwrap();
    (stream, rest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_in_a_write_leaves_nothing() {
    // A write that was renewed once is left alone for half a day.
    let mut zone = block_in_place(|| start("1h"));
    let s3 = zone.s3();
    let bucket = s3.bucket("orphans").await;
    let kept = body();
    s3.put(&bucket, "kept", kept.clone()).expect(200).await;
    let upload = Upload::create(&s3, &bucket, "parts").await;
    let part = upload.part(1, kept.clone()).await;
    let before = wait::until("the shards of what is kept", TIME, || {
        let count = block_in_place(|| shards(&zone));
        (count == 2 * 18).then_some(count)
    });

    let put = begin(&s3, s3.put(&bucket, "put", body())).await;
    let another = begin(&s3, upload.put(2, body())).await;
    wait::until("both writes to have a stripe", TIME, || {
        (block_in_place(|| shards(&zone)) >= before + 2 * 5).then_some(())
    });
    let gateway = zone.gateway();
    zone.kill(&gateway);
    drop((put, another));
    block_in_place(|| {
        wait::until("orphans to be deleted", TIME, || (shards(&zone) == before).then_some(()));
        zone.revive(&gateway).unwrap();
    });
    let s3 = zone.s3();
    s3.get(&bucket, "put").refused(404, "NoSuchKey").await;
    upload.complete(&[(1, part)]).expect(200).await;
    for key in ["kept", "parts"] {
        assert!(s3.get(&bucket, key).expect(200).await.body == kept, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_upload_that_is_alive_is_never_touched() {
    let zone = block_in_place(|| start("1s"));
    let s3 = zone.s3();
    let bucket = s3.bucket("slow").await;
    let slow = body();
    let (mut stream, rest) = begin(&s3, s3.put(&bucket, "slow", slow.clone())).await;
    let begun = Instant::now();
    let mut rest = rest.as_slice();
    // Well past the time after which it would be an orphan, several looks for orphans included.
    while begun.elapsed() < 4 * ORPHAN_AFTER {
        let (some, more) = rest.split_at(1000);
        stream.write_all(some).await.unwrap();
        rest = more;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stream.write_all(rest).await.unwrap();
    let mut answer = vec![0; 12];
    tokio::time::timeout(TIME, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200");
    assert!(s3.get(&bucket, "slow").expect(200).await.body == slow);
    let orphans = block_in_place(|| zone.metric("holdfast_meta_repair_orphan_writes_total").unwrap());
    assert_eq!(orphans, 0.0);
}
