//! A zone of two versions at once: it serves as ever, does nothing that the older ones would not know, and takes up what is new
//! when the last node has been upgraded.
//!
//! The older version is this one, held at the feature level before; or, with `HOLDFAST_PREVIOUS_BIN`, a binary that was built
//! from an earlier commit.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::path::PathBuf;
use std::time::Duration;

use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::wait;
use holdfast_chaos::workload::{Sync, Tree, files};
use tokio::task::block_in_place;

const CONCURRENCY: usize = 8;
/// At the first level nothing leaves its place.
const LEVEL_BEFORE: u64 = 1;

fn older() -> Options {
    let down = ("HOLDFAST_META_DOWN_AFTER", "3s");
    match std::env::var_os("HOLDFAST_PREVIOUS_BIN") {
        Some(binary) => Options {
            nodes: Some(8),
            env: vec![down],
            binary: Some(PathBuf::from(binary)),
            ..Options::default()
        },
        None => {
            let env = vec![down, ("HOLDFAST_META_OUT_AFTER", "5s"), ("HOLDFAST_NODE_FEATURE_LEVEL_MAX", "1")];
            Options { nodes: Some(8), env, ..Options::default() }
        }
    }
}

fn newer() -> Options {
    let env = vec![("HOLDFAST_META_DOWN_AFTER", "3s"), ("HOLDFAST_META_OUT_AFTER", "5s")];
    Options { nodes: Some(8), env, ..Options::default() }
}

fn level(zone: &Zone) -> Option<u64> {
    // A version that does not say is of the first level.
    Some(zone.status().ok()?["feature_level"].as_u64().unwrap_or(LEVEL_BEFORE).max(LEVEL_BEFORE))
}

async fn stored(zone: &Zone, name: &str, count: usize) -> Sync {
    let s3 = zone.s3();
    let sync = Sync::new(&s3, &s3.bucket(name).await, &Tree::new(files(count), rand::random()));
    sync.clone().upload(CONCURRENCY).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    sync
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_is_upgraded_node_by_node_and_serves_all_the_while() {
    let mut zone = block_in_place(|| Zone::start(older()));
    let mut all = vec![stored(&zone, "before", 40).await];
    assert_eq!(level(&zone), Some(LEVEL_BEFORE));

    // Nothing goes out while an older node would not know where else to look.
    let lost = zone.nodes("data").remove(3);
    block_in_place(|| {
        zone.kill(&lost);
        zone.until_missed(&lost);
    });
    all.push(stored(&zone, "one-down", 30).await);
    zone.reconfigure(newer());
    block_in_place(|| zone.revive(&lost)).unwrap();

    let drained = zone.nodes("data").remove(0);
    let drained_name = format!("{}.{}", drained.id >> 48, drained.id & 0xffff_ffff_ffff);
    let rest = zone.zone().nodes.iter().filter(|node| node.id != lost.id).cloned().collect::<Vec<_>>();
    for (at, node) in rest.iter().enumerate() {
        assert_eq!(level(&zone), Some(LEVEL_BEFORE), "{} of {} are upgraded", at + 1, rest.len() + 1);
        block_in_place(|| {
            zone.kill(node);
            zone.revive(node).unwrap();
        });
        if at == 2 {
            // All meta nodes are of the newer version, data nodes and gateway are not.
            assert!(!zone.cli(&["node", "drain", &drained_name]).status.success(), "nothing moves yet");
            wait::until("status to say what it waits for", Duration::from_secs(30), || {
                zone.health().ok().filter(|codes| codes.contains("FEATURE_LEVEL_HELD"))
            });
            all.push(stored(&zone, "mixed", 30).await);
        }
    }
    block_in_place(|| {
        wait::until("the zone to take up what is new", Duration::from_secs(60), || {
            level(&zone).filter(|level| *level > LEVEL_BEFORE)
        });
        zone.until_settled();
        assert!(zone.cli(&["node", "drain", &drained_name]).status.success());
        wait::until("a drained node to be empty", Duration::from_secs(120), || {
            let status = zone.status().ok()?;
            let own =
                status["targets"].as_array()?.iter().find(|target| target["node"] == drained.id)?.clone();
            (own["shards"] == 0).then_some(())
        });
        zone.until_settled();
        assert!(!zone.health().unwrap().contains("FEATURE_LEVEL_HELD"));
    });
    for sync in &all {
        sync.verify(CONCURRENCY).await.unwrap();
    }
}
