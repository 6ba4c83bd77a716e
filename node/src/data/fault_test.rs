//! What a target does when the disk fails, fills up, or gives back other bytes than it was given.

use holdfast_proto::v1::FaultKind;

use super::mem_index::Call;
use super::sim_disk::{On, Trouble};
use super::target::Target;
use super::testing::{Machine, shard, until, wire};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

async fn put(target: &Target, number: u32, length: usize) -> Result<(), FaultKind> {
    let (meta, data) = shard(number, length);
    target.put(meta, data).await.map_err(|fault| fault.kind)
}

async fn get(target: &Target, number: u32) -> Result<bytes::Bytes, FaultKind> {
    target.get(&wire(number), 0, 0).await.map(|found| found.data).map_err(|fault| fault.kind)
}

#[tokio::test]
async fn a_failed_write_or_sync_ends_writing_and_loses_nothing_acknowledged() {
    for (on, code, kind) in [
        (On::Sync, EIO, FaultKind::DiskFailed),
        (On::Write, EIO, FaultKind::DiskFailed),
        (On::Write, ENOSPC, FaultKind::Full),
        (On::Sync, ENOSPC, FaultKind::Full),
    ] {
        let machine = Machine::new();
        let target = machine.open().await;
        for number in 0..10 {
            put(&target, number, 3000).await.unwrap();
        }
        assert!(target.report().writable);
        machine.disk.plan(on, 0, Trouble::Fail(code));
        let outcomes = futures::future::join_all((20..30).map(|number| put(&target, number, 3000))).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Err(kind)), "{outcomes:?}");
        let syncs = machine.disk.syncs();
        assert_eq!(put(&target, 30, 3000).await, Err(kind));
        assert_eq!(target.delete(&[wire(1)]).await.unwrap_err().kind, kind);
        assert_eq!(machine.disk.syncs(), syncs, "a sync is never tried again");
        let report = target.report();
        assert!(!report.writable && !report.fault.is_empty(), "{report:?}");
        for number in 0..10 {
            assert_eq!(get(&target, number).await, Ok(shard(number, 3000).1), "reads go on");
        }
        assert_eq!(
            get(&target, 20).await,
            Err(FaultKind::ShardAbsent),
            "what was not acknowledged is not served"
        );
        drop(target);
        // A new process must not believe what the failed sync left in memory: it would be gone after the power cut.
        machine.disk.kill();
        let target = machine.open().await;
        assert!(target.report().writable);
        let mut seen = Vec::new();
        for number in 20..30 {
            seen.push(get(&target, number).await);
        }
        drop(target);
        machine.disk.power_cut(1);
        let target = machine.open().await;
        for number in 0..10 {
            assert_eq!(get(&target, number).await, Ok(shard(number, 3000).1));
        }
        for (number, seen) in (20..30).zip(seen) {
            assert_eq!(get(&target, number).await, seen);
        }
    }
}

#[tokio::test]
async fn a_segment_that_cannot_be_started_ends_writing() {
    let machine = Machine::new();
    let target = machine.open().await;
    put(&target, 0, 200_000).await.unwrap();
    // The footer is written and synced; the next segment's first block is not.
    machine.disk.plan(On::Write, 1, Trouble::Fail(ENOSPC));
    assert_eq!(put(&target, 1, 200_000).await, Err(FaultKind::Full));
    assert!(!target.report().writable);
    assert_eq!(get(&target, 0).await, Ok(shard(0, 200_000).1));
    drop(target);
    machine.disk.kill();
    let target = machine.open().await;
    put(&target, 1, 200_000).await.unwrap();
    assert_eq!(get(&target, 0).await, Ok(shard(0, 200_000).1));
}

#[tokio::test]
async fn a_full_disk_takes_no_puts_and_a_fuller_one_no_deletes() {
    let machine = Machine::new();
    let target = machine.open().await;
    put(&target, 0, 10).await.unwrap();
    put(&target, 1, 10).await.unwrap();
    machine.disk.set_free(100);
    assert_eq!(put(&target, 2, 10).await, Err(FaultKind::Full));
    put(&target, 0, 10).await.expect("what is there needs no space");
    assert!(!target.report().writable);
    target.delete(&[wire(1)]).await.unwrap();
    machine.disk.set_free(30);
    assert_eq!(target.delete(&[wire(0)]).await.unwrap_err().kind, FaultKind::Full);
    assert_eq!(get(&target, 0).await, Ok(shard(0, 10).1));
    machine.disk.set_free(900);
    put(&target, 2, 10).await.unwrap();
    assert!(target.report().writable);
}

/// Flips a byte of the file of a segment.
fn flip(machine: &Machine, segment: usize, find: impl FnOnce(&[u8]) -> usize) {
    let mut segments = machine.disk.paths();
    segments.retain(|path| path.extension().is_some_and(|end| end == "seg"));
    machine.disk.damage(&segments[segment], |content| {
        let at = find(content);
        content[at] ^= 0x40;
    });
}

/// Where `needle` is.
fn position(content: &[u8], needle: &[u8]) -> usize {
    content.windows(needle.len()).position(|window| window == needle).expect("it was written there")
}

#[tokio::test]
async fn a_flipped_byte_is_found_counted_once_and_healed_by_storing_the_shard_again() {
    let machine = Machine::new();
    let target = machine.open().await;
    put(&target, 1, 150_000).await.unwrap();
    let data = shard(1, 150_000).1;
    flip(&machine, 0, |content| position(content, &data[..64]) + 65_536 + 10);
    for _ in 0..2 {
        assert_eq!(get(&target, 1).await, Err(FaultKind::Corrupt));
        assert_eq!(target.report().corrupt_blocks, 1);
    }
    let found = target.get(&wire(1), 0, 100).await.unwrap();
    assert_eq!(found.data, data.slice(..65_536), "other blocks are served");
    put(&target, 1, 150_000).await.unwrap();
    assert_eq!(get(&target, 1).await, Ok(data.clone()));
    drop(target);
    machine.disk.power_cut(3);
    let target = machine.open().await;
    assert_eq!(get(&target, 1).await, Ok(data));
    assert_eq!(target.report().corrupt_blocks, 0);
}

#[tokio::test]
async fn a_flipped_byte_in_a_header_is_damage_and_hides_no_neighbour() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..20 {
        put(&target, number, 40_000).await.unwrap();
    }
    flip(&machine, 0, |content| position(content, b"photos/2.jpg"));
    flip(&machine, 1, |content| position(content, b"photos/7.jpg"));
    assert_eq!(get(&target, 2).await, Err(FaultKind::Corrupt));
    assert_eq!(target.report().corrupt_blocks, 1);
    drop(target);
    // The footers still name them; with the first segment's footer gone, it is scanned and the shard is lost.
    flip(&machine, 0, |content| content.len() - 70);
    flip(&machine, 0, |content| content.len() - 1);
    machine.disk.power_cut(1);
    let target = machine.open().await;
    for number in 0..20 {
        let expected = match number {
            2 => Err(FaultKind::ShardAbsent),
            7 => Err(FaultKind::Corrupt),
            _ => Ok(shard(number, 40_000).1),
        };
        assert_eq!(get(&target, number).await, expected, "shard {number}");
    }
    assert!(target.report().corrupt_blocks >= 2, "the hole and the header: {:?}", target.report());
}

#[tokio::test]
async fn damage_below_what_the_index_covers_is_not_taken_for_a_torn_tail() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..3 {
        put(&target, number, 5000).await.unwrap();
    }
    target.shutdown().await;
    drop(target);
    flip(&machine, 0, |content| position(content, b"photos/2.jpg"));
    machine.disk.kill();
    let target = machine.open().await;
    assert_eq!(target.report().corrupt_blocks, 1);
    put(&target, 5, 5000).await.unwrap();
    for number in [0, 1, 5] {
        assert_eq!(get(&target, number).await, Ok(shard(number, 5000).1));
    }
    assert_eq!(get(&target, 2).await, Err(FaultKind::Corrupt));
}

#[tokio::test]
async fn an_index_that_names_another_place_never_serves_other_bytes() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..16 {
        put(&target, number, 100).await.unwrap();
    }
    until("the index has them", || target.report().shards == 16).await;
    machine.index.point_elsewhere(super::testing::shard_id(3));
    assert_eq!(get(&target, 3).await, Err(FaultKind::Corrupt));
    assert_eq!(get(&target, 4).await, Ok(shard(4, 100).1));
}

async fn in_time<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(30), call).await.expect("it waits for ever")
}

#[tokio::test]
async fn an_indexer_that_panics_ends_writing_and_keeps_nobody_waiting() {
    let mut machine = Machine::new();
    machine.config.index_lag_max = 8;
    let target = machine.open().await;
    machine.index.panic_in(|call| matches!(call, Call::Set(_)));
    let mut stored = 0;
    while in_time(put(&target, stored, 100)).await.is_ok() {
        stored += 1;
        assert!(stored < 100_000, "nobody noticed");
    }
    assert_eq!(put(&target, stored, 100).await, Err(FaultKind::DiskFailed));
    let report = target.report();
    assert!(!report.writable && report.fault.contains("indexer"), "{report:?}");
    for number in 0..stored {
        assert_eq!(get(&target, number).await, Ok(shard(number, 100).1), "reads go on");
    }
    target.shutdown().await;
    drop(target);
    machine.disk.kill();
    let target = machine.open().await;
    for number in 0..stored {
        assert_eq!(get(&target, number).await, Ok(shard(number, 100).1));
    }
}

#[tokio::test]
async fn an_index_that_cannot_be_rebuilt_ends_writing_once_too_much_waits_for_it() {
    let mut machine = Machine::new();
    machine.config.index_lag_max = 8;
    let target = machine.open().await;
    put(&target, 0, 100).await.unwrap();
    machine.index.break_for_good();
    let mut stored = 1;
    while in_time(put(&target, stored, 100)).await.is_ok() {
        stored += 1;
        assert!(stored < 100_000, "nobody noticed");
    }
    assert!(stored > 8, "it goes on without an index for a while");
    assert!(!target.report().writable);
    for number in 1..stored {
        assert_eq!(get(&target, number).await, Ok(shard(number, 100).1), "reads go on");
    }
}
