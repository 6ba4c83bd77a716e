//! What a target does while nothing fails, on the real disk and index where it matters.

use bytes::Bytes;
use holdfast_proto::id::RealmId;
use holdfast_proto::limits::BLOCK_BYTES;
use holdfast_proto::v1::FaultKind;
use tokio_util::sync::CancellationToken;

use super::target::{DirectIo, Target, TargetConfig, TargetError};
use super::testing::{
    Machine, REALM, all_at_once, describe, open_real, recovered, shard, shard_id, until, wire,
};
use crate::env::Env;

#[tokio::test]
async fn shards_round_trip_on_the_real_disk_and_survive_a_restart() {
    for direct_io in [DirectIo::Auto, DirectIo::Off] {
        let dir = tempfile::tempdir().unwrap();
        let config =
            TargetConfig { direct_io, segment_bytes: 4 << 20, ..TargetConfig::new(dir.path(), REALM) };
        let target = open_real(&config).await;
        let uuid = target.uuid();
        let sizes = [0, 1, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 300_000, 1 << 20];
        for round in 0..3 {
            for (at, size) in (0u32..).zip(sizes) {
                let (meta, data) = shard(round * 100 + at, size);
                target.put(meta, data).await.unwrap();
            }
        }
        target.delete(&[wire(1), wire(106), wire(9999)]).await.unwrap();
        let check = async |target: &Target| {
            for round in 0..3 {
                for (at, size) in (0u32..).zip(sizes) {
                    let number = round * 100 + at;
                    let found = target.get(&wire(number), 0, 0).await;
                    if [1, 106].contains(&number) {
                        assert_eq!(found.unwrap_err().kind, FaultKind::ShardAbsent);
                        continue;
                    }
                    let found = found.unwrap();
                    assert_eq!((found.meta, found.data), shard(number, size));
                }
            }
        };
        check(&target).await;
        target.shutdown().await;
        drop(target);
        let target = open_real(&config).await;
        assert_eq!(target.uuid(), uuid);
        check(&target).await;
        assert_eq!(target.report().shards, 19);
        drop(target);
        // Without its index, and without a clean end.
        std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        let target = open_real(&config).await;
        check(&target).await;
        until("all are counted", || target.report().shards == 19).await;
        target.shutdown().await;
    }
}

#[tokio::test]
async fn a_range_brings_the_blocks_that_cover_it() {
    let target = Machine::new().open().await;
    let (meta, data) = shard(1, 3 * BLOCK_BYTES + 5);
    target.put(meta, data.clone()).await.unwrap();
    let block = BLOCK_BYTES as u32;
    let found = target.get(&wire(1), block + 3, 10).await.unwrap();
    assert_eq!((found.offset, found.data), (block, data.slice(BLOCK_BYTES..2 * BLOCK_BYTES)));
    let found = target.get(&wire(1), block - 1, 2).await.unwrap();
    assert_eq!((found.offset, found.data), (0, data.slice(..2 * BLOCK_BYTES)));
    let found = target.get(&wire(1), 3 * block, 0).await.unwrap();
    assert_eq!((found.offset, found.data), (3 * block, data.slice(3 * BLOCK_BYTES..)));
}

#[tokio::test]
async fn the_same_shard_again_is_a_success_and_another_content_is_refused() {
    let machine = Machine::new();
    let target = machine.open().await;
    let (meta, data) = shard(1, 5000);
    target.put(meta.clone(), data.clone()).await.unwrap();
    let syncs = machine.disk.syncs();
    target.put(meta.clone(), data.clone()).await.unwrap();
    assert_eq!(machine.disk.syncs(), syncs, "what is there is not written again");
    let other = Bytes::from_static(b"other");
    let fault = target.put(describe(1, &other), other).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Invalid);
    // All at once: one record.
    let (meta, data) = shard(2, 5000);
    let puts: Vec<_> = (0..8).map(|_| target.put(meta.clone(), data.clone())).collect();
    for outcome in futures::future::join_all(puts).await {
        outcome.unwrap();
    }
    until("both are counted", || target.report().shards == 2).await;
    assert_eq!(target.report().used_bytes, 10_000);
}

#[tokio::test]
async fn what_does_not_match_its_description_is_refused() {
    let target = Machine::new().open().await;
    let (meta, data) = shard(1, 70_000);
    let mut flipped = data.to_vec();
    flipped[69_999] ^= 1;
    let short = data.slice(1..);
    let unnamed = holdfast_proto::data::ShardMeta { shard: Bytes::from_static(b"short"), ..meta.clone() };
    for (meta, data) in [(meta.clone(), flipped.into()), (meta, short), (unnamed, data)] {
        assert_eq!(target.put(meta, data).await.unwrap_err().kind, FaultKind::Invalid);
    }
    assert_eq!(target.get(&wire(1), 0, 0).await.unwrap_err().kind, FaultKind::ShardAbsent);
}

#[tokio::test]
async fn what_is_queued_together_is_synced_together() {
    let machine = Machine::new();
    let target = machine.open().await;
    let before = machine.disk.syncs();
    let puts: Vec<_> = (0..64).map(|number| shard(number, 1000)).collect();
    let puts = puts.into_iter().map(|(meta, data)| target.put(meta, data));
    for outcome in all_at_once(&machine, puts).await {
        outcome.unwrap();
    }
    let syncs = machine.disk.syncs() - before;
    assert!(syncs <= 8, "64 puts at once took {syncs} syncs");
    for number in 0..64 {
        assert_eq!(target.get(&wire(number), 0, 0).await.unwrap().data, shard(number, 1000).1);
    }
}

#[tokio::test]
async fn small_shards_of_a_batch_are_packed() {
    let machine = Machine::new();
    let target = machine.open().await;
    let puts: Vec<_> = (0..32).map(|number| shard(number, 4096)).collect();
    let puts = puts.into_iter().map(|(meta, data)| target.put(meta, data));
    for outcome in all_at_once(&machine, puts).await {
        outcome.unwrap();
    }
    let mut stored = 0;
    for path in machine.disk.paths() {
        machine.disk.damage(&path, |content| stored += content.len());
    }
    assert!(stored < 32 * 6000, "{stored} bytes for 32 shards of 4 KiB");
}

#[tokio::test]
async fn deleted_shards_give_their_space_back_and_can_be_stored_again() {
    let machine = Machine::new();
    let target = machine.open().await;
    let (meta, data) = shard(1, 200_000);
    target.put(meta.clone(), data.clone()).await.unwrap();
    target.delete(&[wire(1)]).await.unwrap();
    until("the payload is punched", || machine.disk.punched() > 190_000).await;
    let syncs = machine.disk.syncs();
    target.delete(&[wire(1)]).await.unwrap();
    assert_eq!(machine.disk.syncs(), syncs, "what is absent needs no tombstone");
    target.put(meta, data.clone()).await.unwrap();
    drop(target);
    machine.disk.power_cut(1);
    let target = machine.open().await;
    assert_eq!(target.get(&wire(1), 0, 0).await.unwrap().data, data);
    assert_eq!(target.report().corrupt_blocks, 0);
}

#[tokio::test]
async fn stat_and_list_see_the_overlay_and_the_index() {
    let machine = Machine::new();
    let target = machine.open().await;
    let mut expected = Vec::new();
    for number in 0..40 {
        let (meta, data) = shard(number, 10);
        target.put(meta, data).await.unwrap();
        if number == 20 {
            until("the index has them", || target.report().shards == 21).await;
        }
        expected.push(shard_id(number));
    }
    target.delete(&[wire(3), wire(30)]).await.unwrap();
    expected.retain(|id| ![shard_id(3), shard_id(30)].contains(id));
    expected.sort_unstable();
    assert_eq!(
        target.stat(&[wire(2), wire(3), wire(39), wire(30), wire(40)]).unwrap(),
        [true, false, true, false, false]
    );
    for limit in [1, 7, 1000] {
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let page = target.list(after, limit).await.unwrap();
            listed.extend(
                page.shards.iter().map(|meta| holdfast_proto::id::ShardId::from_slice(&meta.shard).unwrap()),
            );
            after = page.last;
            if !page.more {
                break;
            }
        }
        assert_eq!(listed, expected, "pages of {limit}");
    }
}

#[tokio::test]
async fn segments_roll_and_their_footers_rebuild_the_index() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..60 {
        let (meta, data) = shard(number, 30_000);
        target.put(meta, data).await.unwrap();
    }
    target.delete(&[wire(0), wire(59)]).await.unwrap();
    drop(target);
    let segments =
        machine.disk.paths().iter().filter(|path| path.extension().is_some_and(|end| end == "seg")).count();
    assert!(segments > 5, "{segments} segments");
    machine.disk.power_cut(1);
    let target = machine.open().await;
    for number in 0..60 {
        let found = target.get(&wire(number), 0, 0).await;
        match number {
            0 | 59 => assert_eq!(found.unwrap_err().kind, FaultKind::ShardAbsent),
            _ => assert_eq!(found.unwrap().data, shard(number, 30_000).1),
        }
    }
}

#[tokio::test]
async fn a_directory_serves_one_process_and_one_realm() {
    let dir = tempfile::tempdir().unwrap();
    let config = TargetConfig::new(dir.path(), REALM);
    let target = open_real(&config).await;
    let second = Target::open(config.clone(), Env::real(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(second, TargetError::InUse { .. }), "{second}");
    target.shutdown().await;
    drop(target);
    let foreign = TargetConfig { realm: RealmId::from_bytes([9; 16]), ..config.clone() };
    let error = Target::open(foreign, Env::real(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, TargetError::Foreign { .. }), "{error}");
    assert!(!error.to_string().contains('\n'));
    recovered(&*open_real(&config).await).await;
    std::fs::remove_file(dir.path().join("target.json")).unwrap();
    let error = Target::open(config, Env::real(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, TargetError::Damaged { .. }), "{error}");
}
