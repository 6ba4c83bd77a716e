//! Shards that are missing or bad, made whole again on a zone of fake targets.
#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fake::{FakeTarget, FakeZone, body, copies, eventually, put, rs};
use holdfast_client::{Error, StoredBody};
use holdfast_proto::meta::{ClusterMap, MissedShard};
use holdfast_proto::v1::FaultKind;

const MIB: usize = 1 << 20;

/// One group, in which target i has shard i; a body of three stripes, and what every target holds of it.
async fn zone_with_a_body() -> (FakeZone, StoredBody, Vec<Vec<Bytes>>) {
    let shape = |map: &mut ClusterMap| map.pgs.truncate(1);
    let zone = FakeZone::start_shaped(6, 6, rs(4, 2), copies(3), shape, |config| {
        config.read_deadline = Duration::from_secs(1);
    })
    .await;
    let stored = put(&zone, &body(9 * MIB + 77)).await.unwrap();
    eventually("all its shards have landed", || zone.shards() == 18).await;
    let held = held(&zone);
    (zone, stored, held)
}

fn held(zone: &FakeZone) -> Vec<Vec<Bytes>> {
    let of = |target: &Arc<FakeTarget>| target.shards.lock().values().map(|put| put.data.clone()).collect();
    zone.targets.iter().map(of).collect()
}

/// How many shards each target has stored since the last time.
fn puts(zone: &FakeZone) -> Vec<usize> {
    let count = |target: &Arc<FakeTarget>| target.puts.swap(0, Ordering::SeqCst);
    zone.targets.iter().map(count).collect()
}

fn shards_on(targets: std::ops::Range<u32>) -> Vec<MissedShard> {
    (0..3).flat_map(|stripe| targets.clone().map(move |index| MissedShard { stripe, index })).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_shards_that_are_not_whole_are_restored() {
    let (zone, stored, before) = zone_with_a_body().await;
    puts(&zone);
    zone.targets[3].shards.lock().clear();
    for put in zone.targets[5].shards.lock().values_mut() {
        let mut data = put.data.to_vec();
        data[70_000] ^= 1;
        put.data = data.into();
    }
    // All are asked for: what is whole is not written, and is what the others are rebuilt from.
    zone.cluster.restore_shards(&stored.body, &shards_on(0..6)).await.unwrap();
    assert_eq!(puts(&zone), [0, 0, 0, 3, 0, 3]);
    assert!(held(&zone) == before, "every byte is as it was");
    let restored = zone.targets[3].shards.lock().values().next().unwrap().meta.clone().unwrap();
    let first = zone.targets[0].shards.lock().values().next().unwrap().meta.clone().unwrap();
    assert_eq!((restored.object, restored.pg), (first.object, first.pg));
    zone.cluster.restore_shards(&stored.body, &shards_on(0..6)).await.unwrap();
    assert_eq!(puts(&zone), [0; 6], "again changes nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_rebuilt_from_proven_bytes_only() {
    let (zone, stored, before) = zone_with_a_body().await;
    zone.targets[3].shards.lock().clear();
    zone.faults(1, |faults| faults.flip_at = Some(70_000));
    zone.cluster.restore_shards(&stored.body, &shards_on(3..4)).await.unwrap();
    assert!(held(&zone)[3] == before[3]);
    // What is stored reads back otherwise: it is not restored.
    zone.targets[3].shards.lock().clear();
    zone.faults(3, |faults| faults.flip_at = Some(5));
    let error = zone.cluster.restore_shards(&stored.body, &shards_on(3..4)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_takes_nothing_holds_up_no_other() {
    let (zone, stored, before) = zone_with_a_body().await;
    for lost in [1, 2] {
        zone.targets[lost].shards.lock().clear();
    }
    zone.faults(1, |faults| faults.put_fault = Some(FaultKind::Full));
    let error = zone.cluster.restore_shards(&stored.body, &shards_on(1..3)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(held(&zone)[2] == before[2], "the other target's are restored");
    zone.faults(1, |faults| faults.put_fault = None);
    zone.cluster.restore_shards(&stored.body, &shards_on(1..3)).await.unwrap();
    assert!(held(&zone) == before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_of_targets_that_cannot_be_asked_are_not_taken_for_lost() {
    let (zone, stored, _) = zone_with_a_body().await;
    for down in 0..3 {
        zone.faults(down, |faults| faults.get_fault = Some(FaultKind::FaultUnavailable));
    }
    let error = zone.cluster.restore_shards(&stored.body, &shards_on(0..3)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    for lost in 0..3 {
        zone.faults(lost, |faults| faults.get_fault = None);
        zone.targets[lost].shards.lock().clear();
    }
    let error = zone.cluster.restore_shards(&stored.body, &shards_on(0..3)).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restoring_goes_on_where_it_was_stopped() {
    let (zone, stored, before) = zone_with_a_body().await;
    zone.targets[3].shards.lock().clear();
    puts(&zone);
    zone.faults(3, |faults| faults.put_delay = Duration::from_millis(200));
    let missing = shards_on(3..4);
    tokio::select! {
        _ = zone.cluster.restore_shards(&stored.body, &missing) => panic!("it was to be stopped"),
        () = eventually("the first is there", || zone.shards() == 16) => {}
    }
    zone.faults(3, |faults| faults.put_delay = Duration::ZERO);
    zone.cluster.restore_shards(&stored.body, &missing).await.unwrap();
    assert!(held(&zone) == before);
    assert!(puts(&zone)[3] <= 4, "the first is not written again; the second may have been under way");
}
