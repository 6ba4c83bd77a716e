//! A flipped bit on disk: the bytes returned are right, and `status` and a metric say what was found.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::wait;
use rand::RngCore;

fn random(bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    rand::rng().fill_bytes(&mut content);
    content.into()
}

/// Flips one bit wherever `needle` lies in the files below `dir`; how many places there were.
///
/// The code is systematic: a piece of an object lies in a segment as it is.
fn flip(dir: &Path, needle: &[u8]) -> usize {
    let mut flipped = 0;
    for path in files_below(dir) {
        let content = std::fs::read(&path).unwrap();
        let Some(at) = content.windows(needle.len()).position(|window| window == needle) else { continue };
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
        file.sync_all().unwrap();
        flipped += 1;
    }
    flipped
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() && entry.metadata().unwrap().len() > 0 {
                found.push(entry.path());
            }
        }
    }
    found
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
