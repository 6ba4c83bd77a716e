//! Nodes die during a load like `aws s3 sync`: the load completes, every file reads back with the same bytes, and the
//! listing is complete.
//!
//! A few hundred files by default; `HOLDFAST_FULL=10000 cargo test -p holdfast-chaos --test node_death` for the long form.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use holdfast_chaos::cluster::{Node, Options, Zone};
use holdfast_chaos::s3::S3;
use holdfast_chaos::workload::{Sync, Tree, files};
use tokio::sync::Mutex;

const CONCURRENCY: usize = 10;
/// A load that makes no progress for this long has failed.
const STALLED: Duration = Duration::from_secs(120);

/// Two zones at once would measure the machine.
static ONE_ZONE: Mutex<()> = Mutex::const_new(());

/// Loads a tree and calls `break_it` once a third of the files is stored.
async fn load_and_break(s3: &S3, files: usize, break_it: impl FnOnce()) -> Sync {
    let bucket = s3.bucket("sync").await;
    let seed = rand::random();
    eprintln!("tree of {files} files, seed {seed}");
    let sync = Sync::new(s3, &bucket, &Tree::new(files, seed));
    let load = tokio::spawn(sync.clone().upload(CONCURRENCY));
    reach(&sync, files / 3).await;
    tokio::task::block_in_place(break_it);
    load.await.unwrap().unwrap();
    eprintln!("{} attempts were repeated", sync.repeated.load(Ordering::Relaxed));
    sync
}

async fn reach(sync: &Sync, count: usize) {
    let (mut seen, mut at) = (0, Instant::now());
    loop {
        let done = sync.done.load(Ordering::Relaxed);
        if done >= count {
            return;
        }
        if done > seen {
            (seen, at) = (done, Instant::now());
        }
        assert!(at.elapsed() < STALLED, "stuck at {done} files");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A load goes on while a node dies, and reads back without it and with it.
async fn survives(zone: &mut Zone, victim: &Node, what: &str) -> Sync {
    let s3 = zone.s3();
    let sync = load_and_break(&s3, files(250), || zone.kill(victim)).await;
    sync.verify(CONCURRENCY).await.unwrap_or_else(|error| panic!("{what} is down: {error:#}"));
    tokio::task::block_in_place(|| {
        zone.until_missed(victim);
        let gone = ["NODE_SILENT", "TARGET_DOWN"].map(|code| zone.health().unwrap().contains(code));
        assert_eq!(gone, [true, victim.is("data")], "{what} is down");
        zone.revive(victim).unwrap();
        let gone = ["NODE_SILENT", "TARGET_DOWN"].map(|code| zone.health().unwrap().contains(code));
        assert_eq!(gone, [false, false], "{what} is back");
    });
    sync.verify(CONCURRENCY).await.unwrap_or_else(|error| panic!("{what} is back: {error:#}"));
    sync
}

/// A data node that came back takes its part again: with the next one dead, each write needs all that are left. And it is
/// given what it missed: with two others dead, each read needs all that are left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_one_data_node_and_then_another() {
    let _one = ONE_ZONE.lock().await;
    let mut zone = Zone::start(Options::default());
    let (first, second) = (zone.nodes("data").remove(2), zone.nodes("data").remove(4));
    let sync = survives(&mut zone, &first, "a data node").await;

    let count = |zone: &Zone, name| zone.metric_of(&first, name).unwrap();
    let read = count(&zone, "holdfast_data_shards_read_total");
    let written = count(&zone, "holdfast_data_shards_written_total");
    let later = survives(&mut zone, &second, "another data node").await;
    assert!(count(&zone, "holdfast_data_shards_written_total") > written, "the first takes no writes");
    tokio::task::block_in_place(|| zone.until_whole());
    for node in zone.nodes("data").iter().filter(|node| ![first.id, second.id].contains(&node.id)).take(2) {
        zone.kill(node);
    }
    sync.verify(CONCURRENCY).await.unwrap_or_else(|error| panic!("two others are down: {error:#}"));
    later.verify(CONCURRENCY).await.unwrap_or_else(|error| panic!("two others are down: {error:#}"));
    assert!(count(&zone, "holdfast_data_shards_read_total") > read, "the first serves no reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_one_meta_node_the_leader_included() {
    let _one = ONE_ZONE.lock().await;
    let mut zone = Zone::start(Options::default());
    let leader = zone.leader();
    survives(&mut zone, &leader, "the leading meta node").await;
    let now_leading = zone.leader();
    // Not the one that came back, so that the majority that is left needs it.
    let needed = [now_leading.id, leader.id];
    let follower = zone.nodes("meta").into_iter().find(|node| !needed.contains(&node.id)).unwrap();
    survives(&mut zone, &follower, "a following meta node").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_at_once() {
    let _one = ONE_ZONE.lock().await;
    let mut zone = Zone::start(Options::default());
    let s3 = zone.s3();
    let bucket = s3.bucket("sync").await;
    let files = files(250);
    let sync = Sync::new(&s3, &bucket, &Tree::new(files, rand::random()));
    let load = tokio::spawn(sync.clone().upload(CONCURRENCY));
    reach(&sync, files / 2).await;
    tokio::task::block_in_place(|| zone.kill_all());
    load.abort();
    let _ = load.await;

    tokio::task::block_in_place(|| zone.restart());
    let sync = sync.on(&zone.s3());
    sync.verify_acknowledged(CONCURRENCY).await.unwrap();
    sync.clone().upload(CONCURRENCY).await.unwrap();
    sync.verify(CONCURRENCY).await.unwrap();

    // An orderly end keeps it all as well.
    assert!(tokio::task::block_in_place(|| zone.terminate()), "dev ends well on SIGTERM");
    tokio::task::block_in_place(|| zone.restart());
    sync.on(&zone.s3()).verify(CONCURRENCY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_data_node_delays_nobody_for_long() {
    let _one = ONE_ZONE.lock().await;
    let zone = Zone::start(Options::default());
    let s3 = zone.s3();
    let victim = zone.nodes("data").remove(0);
    let sync = load_and_break(&s3, files(150), || zone.stop(&victim)).await;
    sync.verify(CONCURRENCY).await.unwrap();
    zone.resume(&victim);
}
