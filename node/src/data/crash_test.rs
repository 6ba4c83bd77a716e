//! The process or the machine goes down at every single disk operation: nothing acknowledged is lost, nothing deleted
//! comes back, nothing is taken for damage.

use std::collections::BTreeMap;

use holdfast_proto::error::Fault;
use holdfast_proto::v1::FaultKind;

use super::mem_index::Call;
use super::sim_disk::{On, Trouble};
use super::target::Target;
use super::testing::{Machine, delete, put, queued_together, shard, until, wire};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Present,
    Absent,
    Either,
}

fn length(number: u32) -> usize {
    [100, 5000, 70_000, 0][number as usize % 4]
}

/// Puts, deletes, puts again and rolls segments; stops at the first failure. Returns what the target owes.
async fn work(target: &Target) -> BTreeMap<u32, Owed> {
    let mut owed = BTreeMap::new();
    let mut note = |numbers: &[u32], outcome: &Result<(), Fault>, done: Owed| {
        let now = if outcome.is_ok() { done } else { Owed::Either };
        owed.extend(numbers.iter().map(|number| (*number, now)));
        outcome.is_ok()
    };
    let put = async |number| {
        let (meta, data) = shard(number, length(number));
        target.put(meta, data).await
    };
    for round in 0..4 {
        let group: Vec<u32> = (0..6).map(|at| round * 6 + at).collect();
        let outcomes = futures::future::join_all(group.iter().map(|number| put(*number))).await;
        let mut good = true;
        for (number, outcome) in group.iter().zip(&outcomes) {
            good &= note(&[*number], outcome, Owed::Present);
        }
        let dead = [group[1], group[2]];
        good = good && note(&dead, &target.delete(&dead.map(wire)).await, Owed::Absent);
        if !good || !note(&dead[..1], &put(dead[0]).await, Owed::Present) {
            break;
        }
    }
    owed
}

async fn check(target: &Target, owed: &BTreeMap<u32, Owed>, context: &str) {
    for (number, owed) in owed {
        match (target.get(&wire(*number), 0, 0).await, owed) {
            (Ok(found), Owed::Present | Owed::Either) => {
                assert_eq!((found.meta, found.data), shard(*number, length(*number)), "{number}: {context}");
            }
            (Err(fault), Owed::Absent | Owed::Either) if fault.kind == FaultKind::ShardAbsent => {}
            (found, owed) => panic!("shard {number} is {owed:?}, found {found:?}: {context}"),
        }
    }
    assert_eq!(target.report().corrupt_blocks, 0, "{context}");
}

async fn crash_at_every_point(power: bool, compacts: bool) {
    for point in 0.. {
        let machine = Machine::new();
        machine.disk.plan(On::Any, point, Trouble::Die);
        let mut owed = BTreeMap::new();
        if let Ok(target) = machine.try_open().await {
            super::testing::recovered(&target).await;
            owed = work(&target).await;
            if compacts {
                // Whatever is sealed, needed or not.
                target.compact(1000).await;
            }
            drop(target);
        }
        let died = machine.disk.is_dead();
        for again in 0..2 {
            let context = format!("died at operation {point}, power cut {power}, restart {again}");
            if power {
                machine.disk.power_cut(point * 2 + again);
            } else {
                machine.disk.kill();
                machine.index.crash((point as usize * 37) % 1001);
            }
            let target = machine.open().await;
            check(&target, &owed, &context).await;
            if compacts {
                target.compact(1000).await;
                check(&target, &owed, &context).await;
            }
            // It goes on from there, also across what a torn batch left.
            let number = 1000 + again as u32 * 2;
            let (meta, data) = shard(number, length(number));
            target.put(meta, data).await.unwrap();
            owed.insert(number, Owed::Present);
            check(&target, &owed, &context).await;
        }
        if !died {
            assert!(point > 30, "the work takes many operations");
            break;
        }
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_acknowledged() {
    crash_at_every_point(false, false).await;
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged() {
    crash_at_every_point(true, false).await;
}

#[tokio::test]
async fn a_process_killed_while_it_compacts_loses_nothing_acknowledged() {
    crash_at_every_point(false, true).await;
}

#[tokio::test]
async fn a_power_cut_while_it_compacts_loses_nothing_acknowledged() {
    crash_at_every_point(true, true).await;
}

/// What is stored, removed and stored again in one batch, while the index is rebuilt; then it is punched.
async fn work_in_one_batch(machine: &Machine, target: &Target) -> BTreeMap<u32, Owed> {
    let jobs = [
        (true, 10),
        (true, 2),
        (true, 6),
        (true, 5),
        (false, 2),
        (false, 1),
        (true, 1),
        (false, 6),
        (true, 6),
        (false, 3),
        (true, 9),
    ];
    let rebuild = machine.index.pause(|call| call == Call::Open);
    machine.index.break_it();
    assert!(target.stat(&[wire(1)]).is_err());
    let running = jobs.iter().map(|(is_put, number)| match is_put {
        true => put(target, *number, length(*number)),
        false => delete(target, *number),
    });
    let outcomes = queued_together(machine, running).await;
    drop(rebuild);
    let mut owed = BTreeMap::new();
    for ((is_put, number), outcome) in jobs.iter().zip(outcomes) {
        let done = if *is_put { Owed::Present } else { Owed::Absent };
        let before = owed.insert(*number, if outcome.is_ok() { done } else { Owed::Either });
        if before == Some(Owed::Either) {
            owed.insert(*number, Owed::Either);
        }
    }
    // Shards 2 and 6 are dead once, and of shard 1 the old record.
    until("all is punched", || machine.disk.is_dead() || machine.disk.punched() > 120_000).await;
    owed
}

#[tokio::test]
async fn a_batch_that_stores_and_removes_the_same_shards_survives_a_crash_at_every_point() {
    for (power, index_keeps) in [(true, 0), (false, 0), (false, 500), (false, 1000)] {
        for point in 0.. {
            let mut machine = Machine::new();
            machine.config.index_batch = 1;
            machine.config.segment_bytes = 1 << 20;
            let target = machine.open().await;
            put(&target, 1, length(1)).await.unwrap();
            until("the index has it", || target.report().shards == 1).await;
            machine.disk.plan(On::Any, point, Trouble::Die);
            let mut owed = work_in_one_batch(&machine, &target).await;
            let died = machine.disk.is_dead();
            drop(target);
            for again in 0..2 {
                let context = format!("died at {point}, power cut {power}, {index_keeps}, restart {again}");
                if power {
                    machine.disk.power_cut(point * 2 + again);
                } else {
                    machine.disk.kill();
                    machine.index.crash(index_keeps);
                }
                let target = machine.open().await;
                check(&target, &owed, &context).await;
                let number = 1000 + again as u32;
                put(&target, number, length(number)).await.unwrap();
                owed.insert(number, Owed::Present);
            }
            if !died {
                assert!(point > 3, "a write, a sync and punching");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
    for cut in (1..24_000).step_by(977) {
        let machine = Machine::new();
        let target = machine.open().await;
        for number in 0..3 {
            let (meta, data) = shard(number, 5000);
            target.put(meta, data).await.unwrap();
        }
        drop(target);
        machine.disk.power_cut(1);
        let path = machine.disk.paths().into_iter().rfind(|path| path.extension().is_some()).unwrap();
        let segment =
            machine.disk.paths().into_iter().find(|path| path.extension().is_some_and(|end| end == "seg"));
        let path = segment.unwrap_or(path);
        let mut kept = 0;
        machine.disk.damage(&path, |content| {
            content.truncate(content.len() - cut);
            kept = content.len();
        });
        let target = machine.open().await;
        // A batch of one is a record of 5 KiB and its padding: 8 KiB.
        let whole = (kept.max(4096) - 4096) / 8192;
        for number in 0..3 {
            let found = target.get(&wire(number), 0, 0).await;
            if (number as usize) < whole {
                assert_eq!(found.unwrap().data, shard(number, 5000).1);
            } else if let Ok(found) = found {
                // Only padding was torn off.
                assert_eq!(found.data, shard(number, 5000).1);
            }
        }
        let (meta, data) = shard(7, 5000);
        target.put(meta, data).await.unwrap();
        drop(target);
        machine.disk.power_cut(2);
        assert_eq!(machine.open().await.get(&wire(7), 0, 0).await.unwrap().data, shard(7, 5000).1);
    }
}
