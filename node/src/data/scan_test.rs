//! A last batch that stores a shard and removes it again: torn wherever what counts is missing, and whole when only the
//! dead payload is.

use std::sync::Arc;

use holdfast_proto::v1::FaultKind;

use super::footer::LogEntry;
use super::mem_index::Call;
use super::record::{BATCH_ALIGN, Layout, Position, RecordKey};
use super::scan::scan;
use super::segment::{ActiveSegment, Batch, SegmentHome, segment_path};
use super::sim_disk::SimDisk;
use super::testing::{Machine, REALM, all_at_once, delete, put, recovered, shard, shard_id, until, wire};
use crate::env::{Access, Disk};

#[test]
fn a_torn_batch_is_torn_unless_only_a_dead_payload_is_missing() {
    let disk = SimDisk::new();
    let home = SegmentHome {
        dir: "/segments".into(),
        disk: Arc::new(disk.clone()),
        uuid: [1; 16],
        realm: REALM,
        key: RecordKey::of_target(&[1; 16]),
        direct: false,
    };
    let mut segment = ActiveSegment::create(&home, 1).unwrap();
    let mut batch = Batch::new(1 << 20);
    let push = |batch: &mut Batch, number: u32, length: usize| {
        let (meta, data) = shard(number, length);
        let bytes = prost::Message::encode_to_vec(&meta);
        batch.push_shard(&home.key, shard_id(number), Layout::of_stored(&meta), &bytes, &data)
    };
    batch.restart(segment.end());
    push(&mut batch, 9, 5000);
    segment.commit(&mut batch, &home.key).unwrap();
    let start = segment.end();
    batch.restart(start);
    let dead = push(&mut batch, 1, 30_000);
    push(&mut batch, 2, 9000);
    batch.push_tombstones(&home.key, &[shard_id(1)]);
    let again = push(&mut batch, 1, 30_000);
    push(&mut batch, 3, 10);
    let entries = batch.entries().to_vec();
    segment.commit(&mut batch, &home.key).unwrap();

    let path = segment_path(&home.dir, 1);
    let file = disk.open(&path, Access::Buffered).unwrap();
    let good = disk.read(&path).unwrap();
    let (mut torn, mut whole) = (0, 0);
    for block in start.offset / BATCH_ALIGN..segment.end().offset / BATCH_ALIGN {
        let lost = block * BATCH_ALIGN..(block + 1) * BATCH_ALIGN;
        disk.damage(&path, |content| content[lost.start as usize..lost.end as usize].fill(0));
        let scanned = scan(&*file, 1, &home.key, 0).unwrap();
        assert_eq!((scanned.damaged, scanned.sealed), (0, false), "block {block}");
        if dead.data_offset() <= lost.start && lost.end <= dead.data_offset() + u64::from(dead.length) {
            whole += 1;
            assert_eq!(Position::new(1, scanned.end), segment.end(), "block {block}");
            assert_eq!(scanned.entries[1..], entries, "block {block}");
        } else {
            torn += 1;
            assert_eq!(Position::new(1, scanned.end), start, "block {block}");
            assert!(matches!(scanned.entries[..], [LogEntry::Live(shard, _)] if shard == shard_id(9)));
        }
        disk.damage(&path, |content| content.clone_from(&good));
    }
    assert!(whole >= 6 && torn >= 10, "{whole} blocks may be missing and {torn} not; {again:?} counts");
}

/// While the index is rebuilt, whatever is asked goes through the queue: one batch stores 1 and 2 and removes 1.
async fn punched_in_the_last_batch() -> Machine {
    let mut machine = Machine::new();
    machine.config.index_batch = 1;
    let target = machine.open().await;
    {
        let _rebuild = machine.index.pause(|call| call == Call::Open);
        machine.index.break_it();
        assert_eq!(target.stat(&[wire(1)]).unwrap_err().kind, FaultKind::ShardUnknown);
        let jobs = [put(&target, 0, 10), put(&target, 1, 70_000), put(&target, 2, 5000), delete(&target, 1)];
        let syncs = machine.disk.syncs();
        for outcome in all_at_once(&machine, jobs).await {
            outcome.unwrap();
        }
        assert!(machine.disk.syncs() - syncs <= 2, "the first may be alone, the others are not");
    }
    recovered(&target).await;
    until("the payload is punched", || machine.disk.punched() > 60_000).await;
    machine
}

#[tokio::test]
async fn a_batch_whose_dead_payload_was_punched_is_not_torn() {
    for seed in 0..8 {
        let machine = punched_in_the_last_batch().await;
        if seed % 2 == 0 {
            machine.disk.power_cut(seed);
        } else {
            machine.disk.kill();
            machine.index.crash(0);
        }
        let target = machine.open().await;
        let found = target.get(&wire(2), 0, 0).await.expect("it was acknowledged");
        assert_eq!(found.data, shard(2, 5000).1);
        assert_eq!(target.get(&wire(1), 0, 0).await.unwrap_err().kind, FaultKind::ShardAbsent);
        assert_eq!(target.report().corrupt_blocks, 0);
    }
}

#[tokio::test]
async fn a_footer_whose_trailer_was_torn_off_is_a_torn_batch() {
    let machine = Machine::new();
    let target = machine.open().await;
    put(&target, 1, 200_000).await.unwrap();
    put(&target, 2, 100_000).await.unwrap();
    drop(target);
    // As if the machine had gone down in the middle of the footer: its trailer and what came after are not there.
    let segments = machine.disk.paths().into_iter();
    let segments: Vec<_> = segments.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
    assert_eq!(segments.len(), 2);
    machine.disk.damage(&segments[0], |content| {
        let trailer = content.len() - 64;
        content[trailer..].fill(0);
    });
    machine.disk.remove(&segments[1]).unwrap();
    machine.disk.power_cut(1);
    for _ in 0..2 {
        let target = machine.open().await;
        assert_eq!(target.get(&wire(1), 0, 0).await.unwrap().data, shard(1, 200_000).1);
        assert_eq!(target.report().corrupt_blocks, 0);
        // It is sealed again.
        put(&target, 2, 100_000).await.unwrap();
        drop(target);
        machine.disk.power_cut(1);
    }
}
