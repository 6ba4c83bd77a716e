//! What compaction gives back, what it leaves, and what it must not lose.

use super::super::sim_disk::{On, Trouble};
use super::super::testing::{Machine, shard, until, wire};
use super::*;

async fn put(target: &Target, number: u32, length: usize) {
    let (meta, data) = shard(number, length);
    target.put(meta, data).await.unwrap();
}

async fn reads(target: &Target, number: u32, length: usize) {
    let found = target.get(&wire(number), 0, 0).await.unwrap();
    assert_eq!((found.meta, found.data), shard(number, length), "shard {number}");
}

async fn is_absent(target: &Target, number: u32) -> bool {
    target.stat(&[wire(number)]).unwrap() == [false]
}

fn length(machine: &Machine) -> u64 {
    let mut length = 0;
    for path in machine.segments() {
        machine.disk.damage(&path, |content| length += content.len() as u64);
    }
    length
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_shards_that_were_deleted_give_their_space_back() {
    let machine = Machine::new();
    let target = machine.open().await;
    // Too small for a hole: without compaction nothing of them ever goes.
    for number in 0..300 {
        put(&target, number, 3000).await;
    }
    let before = (machine.segments().len(), length(&machine));
    let dead: Vec<_> = (0..300).filter(|number| number % 10 != 0).map(wire).collect();
    target.delete(&dead).await.unwrap();
    let compacted = target.compact(50).await;
    let after = (machine.segments().len(), length(&machine));
    assert!(compacted.segments as usize >= before.0 - 1, "{compacted:?} of {} segments", before.0);
    assert!(after.1 * 3 < before.1, "{} bytes became {}", before.1, after.1);
    // What the first look appended is sealed by now and may go as well; then what is left is needed.
    let mut looks = 0;
    while target.compact(50).await.segments > 0 {
        looks += 1;
        assert!(looks < 5, "the same is moved again and again");
    }
    for number in 0..300 {
        if number % 10 == 0 {
            reads(&target, number, 3000).await;
        } else {
            assert!(is_absent(&target, number).await, "shard {number}");
        }
    }
    // Also for whoever knows the segments alone.
    drop(target);
    machine.disk.power_cut(1);
    let target = machine.open().await;
    let listed = target.list(None, 1000).await.unwrap().shards.len();
    assert_eq!((listed, target.report().corrupt_blocks), (30, 0));
    reads(&target, 290, 3000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_lives_while_what_it_kills_may_be_there() {
    let machine = Machine::new();
    let target = machine.open().await;
    // Shard 1 is in the first segment among others that stay; its tombstone in a later one, among what goes.
    put(&target, 1, 9000).await;
    for number in 100..130 {
        put(&target, number, 9000).await;
    }
    target.delete(&[wire(1)]).await.unwrap();
    for number in 200..260 {
        put(&target, number, 9000).await;
    }
    let dead: Vec<_> = (200..260).map(wire).collect();
    target.delete(&dead).await.unwrap();
    for number in 300..330 {
        put(&target, number, 9000).await;
    }
    let before = machine.segments();
    assert!(target.compact(30).await.segments > 0);
    let after = machine.segments();
    assert_eq!(after[0], before[0], "the oldest segment is full of what is needed");
    assert!(after.len() < before.len());
    drop(target);
    machine.disk.power_cut(2);
    let target = machine.open().await;
    assert!(is_absent(&target, 1).await, "it does not come back with a rebuilt index");
    reads(&target, 129, 9000).await;
    reads(&target, 329, 9000).await;

    // When the oldest goes as well, so do the tombstones.
    let dead: Vec<_> = (100..130).chain(300..330).map(wire).collect();
    target.delete(&dead).await.unwrap();
    until("everything is emptied", || futures::executor::block_on(target.compact(1000)).segments == 0).await;
    drop(target);
    machine.disk.power_cut(3);
    let target = machine.open().await;
    assert!(target.list(None, 1000).await.unwrap().shards.is_empty());
    assert_eq!(target.report().corrupt_blocks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_bad_keeps_its_segment_until_it_is_stored_again() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..60 {
        put(&target, number, 9000).await;
    }
    let first = machine.segments().remove(0);
    let (_, data) = shard(1, 9000);
    machine.disk.damage(&first, |content| {
        let at = content.windows(512).position(|window| *window == data[..512]).unwrap();
        content[at + 700] ^= 1;
    });
    target.compact(1000).await;
    assert_eq!(machine.segments().first(), Some(&first), "it may be all there is");
    assert_eq!(target.report().bad_shards, 1);
    put(&target, 1, 9000).await;
    target.compact(1000).await;
    assert_ne!(machine.segments().first(), Some(&first));
    for number in 0..60 {
        reads(&target, number, 9000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_writers_go_on_while_segments_go() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..200 {
        put(&target, number, 5000).await;
    }
    let compacting = {
        let target = Arc::clone(&target);
        tokio::spawn(async move {
            for _ in 0..5 {
                target.compact(1000).await;
            }
        })
    };
    for round in 0..3 {
        for number in 0..200 {
            if number % 7 == round {
                target.delete(&[wire(number)]).await.unwrap();
                put(&target, number, 5000).await;
            }
            reads(&target, number, 5000).await;
        }
    }
    compacting.await.unwrap();
    for number in 0..200 {
        reads(&target, number, 5000).await;
    }
    assert_eq!((target.report().corrupt_blocks, target.report().shards), (0, 200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tombstones_that_nothing_needs_go_though_the_oldest_segment_stays() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..40 {
        put(&target, number, 9000).await;
    }
    let first = machine.segments().remove(0);
    // More tombstones than a segment holds, of shards that were never in the first one.
    for round in 1..=8_u32 {
        let numbers: Vec<u32> = (0..1000).map(|number| round * 1000 + number).collect();
        join_all(numbers.iter().map(|number| put(&target, *number, 0))).await;
        target.delete(&numbers.iter().map(|number| wire(*number)).collect::<Vec<_>>()).await.unwrap();
    }
    let mut looks = 0;
    while target.compact(50).await.segments > 0 {
        looks += 1;
        assert!(looks < 6, "the same is moved again and again");
    }
    assert_eq!(machine.segments()[0], first);
    // Those 40, and the segment that is written; the tombstones alone would be 680,000 bytes more.
    assert!(length(&machine) < 900_000, "{} bytes are left", length(&machine));
    machine.disk.power_cut(1);
    drop(target);
    assert_eq!(machine.open().await.list(None, 10_000).await.unwrap().shards.len(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_is_not_synced_ends_writing() {
    let machine = Machine::new();
    let target = machine.open().await;
    for number in 0..60 {
        put(&target, number, 9000).await;
    }
    target.delete(&(0..60).map(wire).collect::<Vec<_>>()).await.unwrap();
    until("the index has all", || target.report().shards == 0).await;
    machine.disk.plan(On::Sync, 0, Trouble::Fail(5));
    target.compact(50).await;
    assert!(
        !target.report().writable,
        "a tombstone may be dropped next whose record is back after a power cut"
    );
}
