//! More shards are gone than the code bears: readers are told before the first byte, operators by key, and what comes back with
//! its disks is whole again. Only an operator ends the waiting.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::cluster::{Node, Options, Zone};
use holdfast_chaos::s3::S3;
use holdfast_chaos::wait;
use rand::RngCore;
use tokio::task::block_in_place;

/// With three nodes of eight gone, about a third of them are lost.
const OBJECTS: usize = 24;

fn key(number: usize) -> String {
    format!("object {number}")
}

/// Keys of which some stripe has too few shards, by asking every target.
fn unreadable(zone: &Zone, bucket: &str, keys: impl Iterator<Item = String>) -> BTreeSet<String> {
    keys.filter(|key| zone.json(&["object", "stat", bucket, key]).unwrap()["readable"] == false).collect()
}

/// Keys that status calls lost.
fn told(zone: &Zone) -> Option<BTreeSet<String>> {
    let status = zone.status().ok()?;
    let lost = status["repair"]["lost"].as_array()?.iter();
    Some(lost.filter_map(|lost| lost["key"].as_str().map(str::to_owned)).collect())
}

async fn read_all(s3: &S3, bucket: &str, objects: &[Bytes], lost: &BTreeSet<String>) {
    // At once: while targets are only silent, a reader waits for them.
    let reads = objects.iter().enumerate().map(async |(number, content)| {
        let got = s3.get(bucket, key(number)).send().await.unwrap();
        if lost.contains(&key(number)) {
            assert!(matches!(got.status, 500 | 503), "{}: {}", key(number), got.status);
            assert!(got.body.starts_with(b"<?xml"), "an error before the first byte of the body");
            s3.head(bucket, key(number)).expect(200).await;
        } else {
            assert!(got.status == 200 && got.body == *content, "{}", key(number));
        }
    });
    futures::future::join_all(reads).await;
}

fn stop(zone: &Zone, nodes: &[Node]) {
    for node in nodes {
        zone.kill(node);
    }
    nodes.iter().for_each(|node| zone.until_missed_or_out(node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_repair_waits_for_its_disks_or_for_an_operator() {
    let env = vec![("HOLDFAST_META_DOWN_AFTER", "3s"), ("HOLDFAST_META_OUT_AFTER", "5s")];
    let mut zone = block_in_place(|| Zone::start(Options { nodes: Some(8), env, ..Options::default() }));
    let s3 = zone.s3();
    let bucket = s3.bucket("lost").await;
    let mut objects = Vec::new();
    for number in 0..OBJECTS {
        let mut content = vec![0; 600_000];
        rand::rng().fill_bytes(&mut content);
        let content = Bytes::from(content);
        s3.put(&bucket, key(number), content.clone()).expect(200).await;
        objects.push(content);
    }
    let gone = zone.nodes("data")[..3].to_vec();
    let lost = block_in_place(|| {
        zone.until_settled();
        stop(&zone, &gone);
        let lost = unreadable(&zone, &bucket, (0..OBJECTS).map(key));
        assert!(!lost.is_empty() && lost.len() < OBJECTS, "{lost:?}");
        wait::until("status to name what is lost", Duration::from_secs(120), || {
            told(&zone).filter(|told| *told == lost)
        });
        assert!(zone.health().unwrap().contains("OBJECTS_LOST"));
        lost
    });
    read_all(&s3, &bucket, &objects, &lost).await;
    let one = lost.first().unwrap().clone();
    block_in_place(|| {
        let refused = zone.cli(&["object", "accept-loss", &bucket, &one, "--yes"]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("did not answer"), "{said}");
    });

    // The disks come back, and with them everything.
    block_in_place(|| {
        gone.iter().for_each(|node| zone.revive(node).unwrap());
        wait::until("nothing to be lost any more", Duration::from_secs(120), || {
            told(&zone).filter(BTreeSet::is_empty)
        });
        zone.until_settled();
        let refused = zone.cli(&["object", "accept-loss", &bucket, &one, "--yes"]);
        assert!(!refused.status.success(), "it can be read");
    });
    read_all(&s3, &bucket, &objects, &BTreeSet::new()).await;

    // They go for good.
    let lost = block_in_place(|| {
        let gone: Vec<Node> = zone.nodes("data")[..3].to_vec();
        stop(&zone, &gone);
        let lost = unreadable(&zone, &bucket, (0..OBJECTS).map(key));
        wait::until("status to name what is lost", Duration::from_secs(120), || {
            told(&zone).filter(|told| *told == lost)
        });
        lost
    });
    for key in &lost {
        let accept = |more: &[&str]| {
            let args = [&["object", "accept-loss", &bucket, key, "--even-if-they-may-return"], more].concat();
            block_in_place(|| zone.cli(&args)).status.success()
        };
        assert!(!accept(&[]), "only told");
        s3.head(&bucket, key.clone()).expect(200).await;
        assert!(accept(&["--yes"]));
        s3.head(&bucket, key.clone()).expect(404).await;
    }
    // A pass that had looked at one of them before may say so once more.
    block_in_place(|| {
        wait::until("nothing to be told any more", Duration::from_secs(120), || {
            told(&zone).filter(BTreeSet::is_empty)
        });
    });
    let accepted = block_in_place(|| zone.events("zone")).unwrap();
    assert_eq!(accepted.iter().filter(|(code, _)| code == "LOSS_ACCEPTED").count(), lost.len());
    for (number, content) in objects.iter().enumerate().filter(|(number, _)| !lost.contains(&key(*number))) {
        assert!(s3.get(&bucket, key(number)).expect(200).await.body == *content, "{}", key(number));
    }
}
