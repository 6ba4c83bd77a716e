//! One contract for every index, and what a target makes of an index that breaks it.

use std::sync::Arc;

use holdfast_proto::v1::FaultKind;

use super::index::{
    Checkpoint, IndexHome, Totals, decode_checkpoint, decode_entry, encode_checkpoint, encode_entry,
};
use super::mem_index::{Call, MemHome};
use super::record::{Entry, Layout, Position};
use super::sim_disk::{On, Trouble};
use super::sled_index::SledHome;
use super::target::{Target, TargetConfig};
use super::testing::{Machine, REALM, open_real, recovered, shard, shard_id, until, wire};
use crate::env::Disk;

fn entry(offset: u64) -> Entry {
    let layout = Layout::of_stored(&shard(1, 0).0);
    Entry { at: Position::new(3, offset), meta_len: 200, length: 4096, layout }
}

fn contract(home: &dyn IndexHome) {
    let index = home.open().unwrap();
    assert_eq!(index.checkpoint().unwrap(), None);
    assert_eq!(index.get(shard_id(1)).unwrap(), None);
    for number in 0..100 {
        assert_eq!(index.set(shard_id(number), Some(entry(number.into()))).unwrap(), None);
    }
    assert_eq!(index.set(shard_id(5), Some(entry(999))).unwrap(), Some(entry(5)));
    assert_eq!(index.set(shard_id(6), None).unwrap(), Some(entry(6)));
    assert_eq!(index.set(shard_id(6), None).unwrap(), None);
    assert_eq!(index.get(shard_id(5)).unwrap(), Some(entry(999)));
    assert_eq!(index.get(shard_id(6)).unwrap(), None);
    let checkpoint = Checkpoint { covered: Position::new(4, 8192), totals: Totals { shards: 99, bytes: 5 } };
    index.set_checkpoint(checkpoint).unwrap();
    let mut expected: Vec<_> = (0..100).filter(|number| *number != 6).map(shard_id).collect();
    expected.sort_unstable();
    let all: Vec<_> = index.page(None, 1000).unwrap().into_iter().map(|(shard, _)| shard).collect();
    assert_eq!(all, expected, "in order, and the checkpoint is no row");
    let some: Vec<_> =
        index.page(Some(expected[49]), 10).unwrap().into_iter().map(|(shard, _)| shard).collect();
    assert_eq!(some, expected[50..60]);
    index.persist().unwrap();
    drop(index);
    let index = home.open().unwrap();
    assert_eq!(index.checkpoint().unwrap(), Some(checkpoint));
    assert_eq!(index.page(None, 1000).unwrap().len(), 99);
    drop(index);
    home.wipe().unwrap();
    home.wipe().unwrap();
    let index = home.open().unwrap();
    assert_eq!((index.checkpoint().unwrap(), index.get(shard_id(1)).unwrap()), (None, None));
}

#[test]
fn every_index_keeps_the_contract() {
    contract(&MemHome::default());
    let dir = tempfile::tempdir().unwrap();
    contract(&SledHome { dir: dir.path().join("index"), cache_bytes: 1 << 20 });
}

#[test]
fn rows_of_the_index_read_back_and_others_are_refused() {
    let checkpoint = Checkpoint { covered: Position::new(9, 1), totals: Totals { shards: 2, bytes: 3 } };
    assert_eq!(decode_entry(&encode_entry(&entry(7))).unwrap(), entry(7));
    assert_eq!(decode_checkpoint(&encode_checkpoint(&checkpoint)).unwrap(), checkpoint);
    assert!(decode_entry(b"short").is_err());
    assert!(decode_checkpoint(b"short").is_err());
    // As they once were.
    assert!(decode_entry(&encode_entry(&entry(7))[..24]).is_err());
    assert!(decode_checkpoint(&encode_checkpoint(&checkpoint)[..32]).is_err());
}

#[tokio::test]
async fn an_index_that_breaks_while_running_is_rebuilt_and_nothing_is_forgotten() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..16 {
        let (meta, data) = shard(number, 20_000);
        target.put(meta, data).await.unwrap();
    }
    target.delete(&[wire(4)]).await.unwrap();
    until("the index has them", || target.report().shards == 15).await;
    machine.index.break_it();
    let fault = target.get(&wire(0), 0, 0).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::ShardUnknown, "absence is not known");
    let (meta, data) = shard(50, 10);
    target.put(meta, data).await.unwrap();
    recovered(&target).await;
    for number in (0..16).filter(|number| *number != 4) {
        assert_eq!(target.get(&wire(number), 0, 0).await.unwrap().data, shard(number, 20_000).1);
    }
    assert_eq!(target.get(&wire(4), 0, 0).await.unwrap_err().kind, FaultKind::ShardAbsent);
    until("all are counted", || target.report().shards == 16).await;
    target.shutdown().await;
}

/// Shard 1 is in the first segment, its tombstone in a later one, and the index has it all.
async fn stored_and_removed() -> (Machine, Arc<Target>) {
    let mut machine = Machine::new();
    machine.config.index_batch = 1;
    let target = machine.open().await;
    for number in 1..6 {
        let (meta, data) = shard(number, 70_000);
        target.put(meta, data).await.unwrap();
    }
    until("the index has them", || target.report().shards == 5).await;
    target.delete(&[wire(1)]).await.unwrap();
    until("the index has it all", || target.report().shards == 4).await;
    (machine, target)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_during_a_rebuild_is_not_taken_for_done_by_a_record_that_the_rebuild_then_removes() {
    let (machine, target) = stored_and_removed().await;
    let rebuild = machine.index.pause(|call| call == Call::Set(None));
    machine.index.break_it();
    assert_eq!(target.stat(&[wire(1)]).unwrap_err().kind, FaultKind::ShardUnknown);
    rebuild.wait();
    assert_eq!(target.stat(&[wire(1)]).unwrap_err().kind, FaultKind::ShardUnknown, "named, but dead");
    let (meta, data) = shard(1, 70_000);
    target.put(meta.clone(), data.clone()).await.unwrap();
    let syncs = machine.disk.syncs();
    target.put(meta, data.clone()).await.unwrap();
    assert_eq!(machine.disk.syncs(), syncs, "what was stored during the rebuild is known to be here");
    drop(rebuild);
    recovered(&target).await;
    for _ in 0..2 {
        assert_eq!(target.get(&wire(1), 0, 0).await.expect("it was acknowledged").data, data);
        until("all are counted", || target.report().shards == 5).await;
    }
    assert_eq!(target.report().corrupt_blocks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn absence_is_not_read_from_an_index_that_a_rebuild_emptied_meanwhile() {
    for (kind, rebuild_ends_first) in [(Call::Get, false), (Call::Get, true), (Call::Page, false)] {
        let (machine, target) = stored_and_removed().await;
        // A reader sees that the index is whole, and stops there.
        let reader = machine.index.pause(move |call| call == kind);
        let answer = tokio::spawn({
            let target = Arc::clone(&target);
            async move {
                match kind {
                    Call::Page => target.list(None, 100).await.map(|page| page.shards.len() == 4),
                    _ => target.get(&wire(2), 0, 0).await.map(|found| found.data == shard(2, 70_000).1),
                }
            }
        });
        reader.wait();
        // The index fails and is wiped; its rebuild stops before the first row.
        let rebuild = machine.index.pause(|call| matches!(call, Call::Set(Some(_))));
        machine.index.break_it();
        assert_eq!(target.stat(&[wire(1)]).unwrap_err().kind, FaultKind::ShardUnknown);
        rebuild.wait();
        if rebuild_ends_first {
            let asked = machine.index.pause(|call| call == Call::Got);
            drop(reader);
            asked.wait();
            drop(rebuild);
            recovered(&target).await;
            drop(asked);
            let fault = answer.await.unwrap().unwrap_err();
            assert_eq!(fault.kind, FaultKind::ShardUnknown, "{kind:?}: {fault}");
        } else {
            drop(reader);
            let fault = answer.await.unwrap().unwrap_err();
            assert_eq!(fault.kind, FaultKind::ShardUnknown, "{kind:?}: {fault}");
            drop(rebuild);
            recovered(&target).await;
        }
        assert_eq!(target.get(&wire(2), 0, 0).await.unwrap().data, shard(2, 70_000).1);
    }
}

/// For tests that hold the disk meanwhile and must not await.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 30, "waited too long until {what}");
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rebuild_believes_no_tombstone_that_is_still_being_written() {
    let (machine, target) = stored_and_removed().await;
    let segment =
        machine.disk.paths().into_iter().rfind(|path| path.extension().is_some_and(|end| end == "seg"));
    let length = || machine.disk.read(segment.as_ref().unwrap()).unwrap().len();
    let rebuild = machine.index.pause(|call| call == Call::Open);
    machine.index.break_it();
    assert_eq!(target.stat(&[wire(1)]).unwrap_err().kind, FaultKind::ShardUnknown);
    rebuild.wait();
    let deleted = {
        let _held = machine.disk.hold_syncs();
        let before = length();
        let deleted = tokio::spawn({
            let target = Arc::clone(&target);
            async move { target.delete(&[wire(2)]).await }
        });
        wait_until("the tombstone is written", || length() > before);
        drop(rebuild);
        wait_until("the index is rebuilt", || !target.report().recovering);
        machine.disk.plan(On::Sync, 0, Trouble::Fail(5));
        deleted
    };
    assert_eq!(deleted.await.unwrap().unwrap_err().kind, FaultKind::DiskFailed);
    let is_here = async |target: &Target| target.get(&wire(2), 0, 0).await.is_ok();
    assert!(is_here(&target).await, "nothing removed it");
    drop(target);
    // The index is trusted, and the failed sync left no tombstone.
    machine.disk.kill();
    let target = machine.open().await;
    assert!(is_here(&target).await, "the index says what the segments say");
    drop(target);
    machine.disk.power_cut(1);
    assert!(is_here(&*machine.open().await).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_segment_that_is_sealed_while_a_rebuild_reads_it_is_not_damaged() {
    let mut machine = Machine::new();
    machine.config.index_batch = 1;
    let target = machine.open().await;
    target.put(shard(1, 200_000).0, shard(1, 200_000).1).await.unwrap();
    until("the index has it", || target.report().shards == 1).await;
    let rebuild = machine.index.pause(|call| call == Call::Open);
    machine.index.break_it();
    assert_eq!(target.stat(&[wire(1)]).unwrap_err().kind, FaultKind::ShardUnknown);
    rebuild.wait();
    {
        let _held = machine.disk.hold_reads();
        let reads = machine.disk.reads();
        drop(rebuild);
        wait_until("the rebuild looks for a footer", || machine.disk.reads() > reads);
        let put = tokio::spawn({
            let target = Arc::clone(&target);
            async move { target.put(shard(2, 200_000).0, shard(2, 200_000).1).await }
        });
        wait_until("the segment is sealed, and the next has a shard", || put.is_finished());
    }
    recovered(&target).await;
    assert_eq!(target.report().corrupt_blocks, 0);
    assert_eq!(target.stat(&[wire(1), wire(2)]).unwrap(), [true, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_deleted_or_stored_again_during_a_rebuild_gives_its_space_back() {
    let (machine, target) = stored_and_removed().await;
    until("shard 1 is punched", || machine.disk.punched() > 60_000).await;
    let before = machine.disk.punched();
    let rebuild = machine.index.pause(|call| call == Call::Open);
    machine.index.break_it();
    assert_eq!(target.stat(&[wire(1)]).unwrap_err().kind, FaultKind::ShardUnknown);
    rebuild.wait();
    target.delete(&[wire(2)]).await.unwrap();
    target.put(shard(3, 70_000).0, shard(3, 70_000).1).await.unwrap();
    drop(rebuild);
    recovered(&target).await;
    until("both are punched", || machine.disk.punched() - before > 120_000).await;
    until("they are counted", || target.report().shards == 3).await;
    for number in [3, 4, 5] {
        assert_eq!(target.get(&wire(number), 0, 0).await.unwrap().data, shard(number, 70_000).1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stat_and_list_say_nothing_until_the_index_is_whole() {
    let (machine, target) = stored_and_removed().await;
    let asked = [wire(1), wire(2), wire(77)];
    for call in [Call::Open, Call::Set(None)] {
        let rebuild = machine.index.pause(move |now| now == call);
        machine.index.break_it();
        assert_eq!(target.stat(&asked).unwrap_err().kind, FaultKind::ShardUnknown);
        rebuild.wait();
        // Neither absent nor here, whether the rebuild has come to it or not, alone or in company.
        for shards in [&asked[..], &asked[..1], &asked[1..2], &asked[2..]] {
            assert_eq!(target.stat(shards).unwrap_err().kind, FaultKind::ShardUnknown, "{call:?}");
        }
        assert_eq!(target.list(None, 10).await.unwrap_err().kind, FaultKind::ShardUnknown);
        drop(rebuild);
        recovered(&target).await;
        assert_eq!(target.stat(&asked).unwrap(), [false, true, false]);
        assert_eq!(target.list(None, 10).await.unwrap().shards.len(), 4);
    }
}

#[tokio::test]
async fn shards_can_be_deleted_before_the_index_knows_them() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..16 {
        let (meta, data) = shard(number, 20_000);
        target.put(meta, data).await.unwrap();
    }
    drop(target);
    machine.disk.power_cut(1);
    let target = machine.try_open().await.unwrap();
    // Whether or not the rebuild is through by now.
    target.delete(&[wire(2), wire(3)]).await.unwrap();
    recovered(&target).await;
    for round in 0..2 {
        for number in 0..16 {
            let found = target.get(&wire(number), 0, 0).await;
            assert_eq!(found.is_ok(), ![2, 3].contains(&number), "shard {number}, round {round}");
        }
        until("the rest is counted", || target.report().shards == 14).await;
    }
}

#[tokio::test]
async fn a_damaged_sled_directory_costs_a_rebuild_and_nothing_else() {
    for damage in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let config =
            TargetConfig { segment_bytes: 1 << 20, index_batch: 16, ..TargetConfig::new(dir.path(), REALM) };
        let target = open_real(&config).await;
        for number in 0..64 {
            let (meta, data) = shard(number, 30_000);
            target.put(meta, data).await.unwrap();
        }
        target.shutdown().await;
        drop(target);
        let db = dir.path().join("index/db");
        match damage {
            0 => std::fs::write(&db, b"not sled").unwrap(),
            1 => {
                let mut content = std::fs::read(&db).unwrap();
                content.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55);
                std::fs::write(&db, content).unwrap();
            }
            2 => std::fs::remove_file(dir.path().join("index/conf")).unwrap(),
            _ => std::fs::remove_file(&db).unwrap(),
        }
        let target = open_real(&config).await;
        for number in 0..64 {
            assert_eq!(
                target.get(&wire(number), 0, 0).await.unwrap().data,
                shard(number, 30_000).1,
                "damage {damage}"
            );
        }
        target.shutdown().await;
    }
}

#[tokio::test]
async fn a_clean_end_needs_no_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let config = TargetConfig { index_batch: 4, ..TargetConfig::new(dir.path(), REALM) };
    let target = open_real(&config).await;
    for number in 0..20 {
        let (meta, data) = shard(number, 100);
        target.put(meta, data).await.unwrap();
    }
    target.shutdown().await;
    drop(target);
    let home = SledHome { dir: dir.path().join("index"), cache_bytes: 1 << 20 };
    let index = home.open().unwrap();
    assert_eq!(index.checkpoint().unwrap().unwrap().totals.shards, 20);
    // What only the index knows shows that it was not built anew.
    index.set(shard_id(77), Some(entry(1))).unwrap();
    index.persist().unwrap();
    drop(index);
    let target = open_real(&config).await;
    assert_eq!(target.stat(&[wire(77), wire(78)]).unwrap(), [true, false]);
    let shared: Arc<_> = target;
    shared.shutdown().await;
}
