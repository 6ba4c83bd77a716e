//! Large bodies stream through: the gateway's memory does not grow with them.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::multipart::Upload;
use holdfast_chaos::process;
use rand::RngCore;

const MIB: usize = 1 << 20;
const PART: usize = 16 * MIB;
const PARTS: u32 = 16;
/// DESIGN.md section 13 allows a gateway 200 MiB; the dev profile's larger frames and code get a little more.
const GATEWAY_RSS_MAX: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_holds_no_object_whole() {
    let zone = Zone::start(Options::default());
    let s3 = zone.s3();
    let bucket = s3.bucket("large").await;
    let mut content = vec![0; PART * PARTS as usize];
    rand::rng().fill_bytes(&mut content);
    let content = Bytes::from(content);

    let upload = Upload::create(&s3, &bucket, "multipart").await;
    let parts: Vec<(u32, String)> = stream::iter(1..=PARTS)
        .map(|number| {
            let start = PART * (number as usize - 1);
            let call = upload.put(number, content.slice(start..start + PART)).unsigned_payload();
            async move { anyhow::Ok((number, call.expect(200).await.header("etag").to_owned())) }
        })
        .buffered(4)
        .try_collect()
        .await
        .unwrap();
    upload.complete(&parts).expect(200).await;
    s3.put(&bucket, "single", content.clone()).unsigned_payload().expect(200).await;
    for key in ["multipart", "single"] {
        assert!(s3.get(&bucket, key).expect(200).await.body == content, "{key}");
    }

    let peak = process::rss(zone.gateway().pid, true).unwrap();
    println!("gateway peak RSS {} MiB", peak >> 20);
    assert!(peak < GATEWAY_RSS_MAX, "the gateway's memory reached {} MiB", peak >> 20);
}
