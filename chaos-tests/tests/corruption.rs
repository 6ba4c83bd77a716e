//! A flipped bit on disk: the bytes returned are right, and `status` and a metric say what was found.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::damage::flip;
use holdfast_chaos::wait;
use rand::RngCore;

fn random(bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    rand::rng().fill_bytes(&mut content);
    content.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_are_mended_on_the_way_out_and_reported() {
    let zone = Zone::start(Options::default());
    let s3 = zone.s3();
    let bucket = s3.bucket("corruption").await;
    // Full copies and an erasure-coded body.
    for (key, bytes) in [("copies", 40_000), ("coded", 5_000_000)] {
        let content = random(bytes);
        s3.put(&bucket, key, content.clone()).expect(200).await;
        let before = zone.metric("holdfast_client_bad_blocks_total").unwrap();
        let needle = &content[bytes / 2..bytes / 2 + 64];
        // One copy of those that are there; the only data shard that holds these bytes.
        let damaged = zone.nodes("data").iter().find(|node| flip(&node.data_dir, needle) > 0).is_some();
        assert!(damaged, "{key}: no segment holds the bytes");

        // A copy may be read from another target; reading often enough meets the bad one.
        wait::until_async("the damage to be met and counted", Duration::from_secs(60), async || {
            let get = s3.get(&bucket, key).expect(200).await;
            assert!(get.body == content, "{key}: wrong bytes");
            let range =
                s3.get(&bucket, key).header("range", format!("bytes={}-{}", bytes / 2, bytes / 2 + 9));
            assert_eq!(range.expect(206).await.body, content[bytes / 2..bytes / 2 + 10]);
            (zone.metric("holdfast_client_bad_blocks_total").ok()? > before).then_some(())
        })
        .await;
    }
    wait::until("status to speak of corruption", Duration::from_secs(60), || {
        let status = zone.status().ok()?;
        let codes = status["health"].as_array()?.iter().map(|code| code["code"].as_str().unwrap_or_default());
        let named = codes.into_iter().any(|code| code == "CORRUPT_BLOCKS");
        (named && status["corrupt_blocks"].as_u64()? > 0).then_some(())
    });
}
