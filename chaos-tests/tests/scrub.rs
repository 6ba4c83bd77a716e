//! What went bad on a disk is found and made good before anybody asks for it.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::damage::flip;
use holdfast_chaos::wait;
use rand::RngCore;
use tokio::task::block_in_place;

const OBJECTS: usize = 12;

fn random(bytes: usize) -> Bytes {
    let mut content = vec![0; bytes];
    rand::rng().fill_bytes(&mut content);
    content.into()
}

/// The sum of a number over all targets, once each has told its own.
fn sum(zone: &Zone, what: &str) -> Option<u64> {
    let targets = zone.json(&["scrub", "status"]).ok()?;
    targets.as_array()?.iter().map(|target| target[what].as_u64()).sum()
}

fn min(zone: &Zone, what: &str) -> Option<u64> {
    let targets = zone.json(&["scrub", "status"]).ok()?;
    targets
        .as_array()?
        .iter()
        .map(|target| target[what].as_u64())
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .min()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_bad_unseen_is_found_and_stored_again() {
    let env = vec![("HOLDFAST_META_DOWN_AFTER", "3s")];
    let zone = block_in_place(|| Zone::start(Options { env, ..Options::default() }));
    let s3 = zone.s3();
    let bucket = s3.bucket("scrub").await;
    let mut objects = Vec::new();
    for number in 0..OBJECTS {
        // Coded bodies and full copies.
        let content = random(if number % 3 == 0 { 30_000 } else { 3_000_000 });
        s3.put(&bucket, format!("object {number}"), content.clone()).expect(200).await;
        objects.push(content);
    }
    // A first pass ends soon after a start: what is found below is found by the one that is asked for.
    block_in_place(|| {
        wait::until("every target to have been read once", Duration::from_secs(120), || {
            min(&zone, "finished_ms").filter(|finished| *finished > 0)
        });
    });
    assert_eq!(sum(&zone, "found"), Some(0));

    // One bit in each of two shards of every object at most: 4+2 bears that, and what is left bears no third.
    let data = zone.nodes("data");
    let mut flipped = 0;
    for content in &objects {
        for at in [content.len() / 5, content.len() / 2] {
            let needle = &content[at..at + 64];
            let damaged = data.iter().map(|node| flip(&node.data_dir, needle)).find(|places| *places > 0);
            flipped += damaged.unwrap_or_default();
            if content.len() < 100_000 {
                // Of three copies one.
                break;
            }
        }
    }
    assert!(flipped >= OBJECTS, "{flipped} bits were flipped");
    block_in_place(|| {
        let begun = zone.json(&["scrub", "start"]).unwrap();
        assert_eq!(begun["started"].as_array().unwrap().len(), data.len());
        wait::until("the damage to be found", Duration::from_secs(120), || {
            sum(&zone, "found").filter(|found| *found >= flipped as u64)
        });
        wait::until("the damage to be made good", Duration::from_secs(120), || {
            (sum(&zone, "bad_now")? == 0 && !zone.health().ok()?.contains("SHARDS_BAD")).then_some(())
        });
        assert_eq!(sum(&zone, "found"), Some(flipped as u64), "and nothing but that");
        for number in 0..OBJECTS {
            let (wanted, present, elsewhere) = zone.shards(&bucket, &format!("object {number}")).unwrap();
            assert_eq!((present, elsewhere), (wanted, 0), "object {number}");
        }
    });

    // Whole again, everything bears the loss of any two nodes.
    let asked_before = zone.metric("holdfast_client_bad_blocks_total").unwrap();
    block_in_place(|| {
        for node in &data[..2] {
            zone.kill(node);
            zone.until_missed(node);
        }
    });
    for (number, content) in objects.iter().enumerate() {
        let got = s3.get(&bucket, format!("object {number}")).expect(200).await;
        assert!(got.body == *content, "object {number}");
    }
    assert_eq!(
        zone.metric("holdfast_client_bad_blocks_total").unwrap(),
        asked_before,
        "no reader met any of it"
    );
}
