//! Random puts, deletes, restarts, kills and power cuts at random disk operations, against a plain map.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_proto::id::ShardId;
use holdfast_proto::v1::FaultKind;
use proptest::prelude::*;

use super::mem_index::Call;
use super::sim_disk::{On, Trouble};
use super::target::Target;
use super::testing::{Machine, delete, put, queued_together, shard, shard_id, wire};

const NUMBERS: u32 = 24;

#[derive(Debug, Clone)]
enum Step {
    /// All at once.
    Put(Vec<u32>),
    Delete(Vec<u32>),
    /// While the index is rebuilt, so that all of it is queued as it comes: puts (true) and deletes in one batch.
    Together(Vec<(bool, u32)>),
    CleanRestart,
    Kill {
        index_keeps: usize,
    },
    PowerCut {
        seed: u64,
    },
    /// The process dies after so many more disk operations.
    DieAfter(u64),
    /// So many syncs on, one fails.
    FailSync(u64),
    BreakIndex,
    /// Sealed segments of which less than so much is needed, in per cent.
    Compact(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mixed = prop::collection::vec((any::<bool>(), 0..NUMBERS / 3), 2..16);
    let numbers = || prop::collection::vec(0..NUMBERS, 1..6);
    let step = prop_oneof![
        12 => numbers().prop_map(Step::Put),
        6 => numbers().prop_map(Step::Delete),
        6 => mixed.prop_map(Step::Together),
        1 => Just(Step::CleanRestart),
        2 => (0..1001usize).prop_map(|index_keeps| Step::Kill { index_keeps }),
        2 => any::<u64>().prop_map(|seed| Step::PowerCut { seed }),
        2 => (0..12u64).prop_map(Step::DieAfter),
        1 => (0..6u64).prop_map(Step::FailSync),
        1 => Just(Step::BreakIndex),
        4 => prop_oneof![Just(1000), Just(50), Just(1)].prop_map(Step::Compact),
    ];
    prop::collection::vec(step, 1..40)
}

fn length(number: u32) -> usize {
    [10, 4096, 30_000, 0, 70_000, 1000][number as usize % 6]
}

/// `None`: it may be either, until it is looked at after a restart.
type Model = BTreeMap<u32, Option<bool>>;

struct Run {
    machine: Machine,
    target: Arc<Target>,
    model: Model,
    /// What was done so far.
    done: Vec<Step>,
}

impl Run {
    async fn new(index_batch: usize, segment_kib: u64) -> Self {
        let mut machine = Machine::new();
        machine.config.index_batch = index_batch;
        machine.config.segment_bytes = segment_kib << 10;
        let target = machine.open().await;
        let model = (0..NUMBERS).map(|number| (number, Some(false))).collect();
        Self { machine, target, model, done: Vec::new() }
    }

    async fn put(&mut self, numbers: &[u32]) {
        let puts = numbers.iter().map(|number| {
            let (meta, data) = shard(*number, length(*number));
            self.target.put(meta, data)
        });
        let outcomes = futures::future::join_all(puts).await;
        for (number, outcome) in numbers.iter().zip(outcomes) {
            let before = self.model[number];
            let now = if outcome.is_ok() || before == Some(true) { Some(true) } else { None };
            self.model.insert(*number, now);
        }
    }

    async fn delete(&mut self, numbers: &[u32]) {
        let shards: Vec<_> = numbers.iter().map(|number| wire(*number)).collect();
        let outcome = self.target.delete(&shards).await;
        for number in numbers {
            let before = self.model[number];
            let now = if outcome.is_ok() || before == Some(false) { Some(false) } else { None };
            self.model.insert(*number, now);
        }
    }

    async fn together(&mut self, jobs: &[(bool, u32)]) {
        let rebuild = self.machine.index.pause(|call| call == Call::Open);
        self.machine.index.break_it();
        // Whoever asks finds out.
        let _ = self.target.stat(&[wire(0)]);
        let target = &self.target;
        let running = jobs.iter().map(|(is_put, number)| match is_put {
            true => put(target, *number, length(*number)),
            false => delete(target, *number),
        });
        let outcomes = queued_together(&self.machine, running).await;
        drop(rebuild);
        let all_done = outcomes.iter().all(Result::is_ok);
        for (is_put, number) in jobs {
            let one_sided = jobs.iter().all(|(other, same)| same != number || other == is_put);
            let known = if all_done && one_sided { Some(*is_put) } else { None };
            if known.is_some() || self.model[number] != Some(*is_put) || !one_sided {
                self.model.insert(*number, known);
            }
        }
        if all_done {
            // Which came last is not known, but it is settled.
            for (_, number) in jobs {
                let found = is_there(target, *number).await;
                assert_eq!(found, self.model[number].unwrap_or(found), "shard {number} after {jobs:?}");
                self.model.insert(*number, Some(found));
            }
        }
    }

    /// Replaces the target by one that does not yet run, drops the old one, and opens again.
    async fn restart(mut self, crash: impl FnOnce(&Machine)) -> Self {
        let Self { machine, target, model, done } = self;
        drop(target);
        crash(&machine);
        self = Self { target: machine.open().await, machine, model, done };
        for (number, state) in &mut self.model {
            let found = is_there(&self.target, *number).await;
            assert_eq!(
                found,
                state.unwrap_or(found),
                "shard {number} after a restart, having done {:?}",
                self.done
            );
            *state = Some(found);
        }
        self
    }

    async fn check(&self) {
        if self.machine.disk.is_dead() {
            return;
        }
        super::testing::recovered(&self.target).await;
        if !self.model.values().all(Option::is_some) {
            return;
        }
        for (number, state) in &self.model {
            assert_eq!(is_there(&self.target, *number).await, *state == Some(true), "shard {number}");
        }
        let page = self.target.list(None, 1000).await.unwrap();
        let mut listed = Vec::new();
        for row in page.shards {
            assert_eq!((row.pg, row.scheme), (7, shard(0, 0).0.scheme));
            listed.push(ShardId::from_slice(&row.shard).unwrap());
        }
        let mut expected: Vec<_> = self
            .model
            .iter()
            .filter(|(_, state)| **state == Some(true))
            .map(|(number, _)| shard_id(*number))
            .collect();
        expected.sort_unstable();
        assert_eq!(listed, expected);
        assert_eq!(self.target.report().corrupt_blocks, 0);
    }
}

async fn is_there(target: &Target, number: u32) -> bool {
    let mut outcome = target.get(&wire(number), 0, 0).await;
    while outcome.as_ref().is_err_and(|fault| fault.kind == FaultKind::ShardUnknown) {
        super::testing::recovered(target).await;
        outcome = target.get(&wire(number), 0, 0).await;
    }
    match outcome {
        Ok(found) => {
            assert_eq!((found.meta, found.data), shard(number, length(number)));
            true
        }
        Err(fault) => {
            assert_eq!(fault.kind, FaultKind::ShardAbsent, "shard {number}: {fault}");
            false
        }
    }
}

async fn run(steps: Vec<Step>, index_batch: usize, segment_kib: u64) {
    let mut run = Run::new(index_batch, segment_kib).await;
    for step in steps {
        run.done.push(step.clone());
        match step {
            Step::Put(numbers) => run.put(&numbers).await,
            Step::Delete(numbers) => run.delete(&numbers).await,
            Step::Together(jobs) => run.together(&jobs).await,
            Step::CleanRestart => {
                run.target.shutdown().await;
                run = run.restart(|machine| machine.disk.kill()).await;
            }
            Step::Kill { index_keeps } => {
                run = run
                    .restart(|machine| {
                        machine.disk.kill();
                        machine.index.crash(index_keeps);
                    })
                    .await;
            }
            Step::PowerCut { seed } => run = run.restart(|machine| machine.disk.power_cut(seed)).await,
            Step::DieAfter(operations) => run.machine.disk.plan(On::Any, operations, Trouble::Die),
            Step::FailSync(syncs) => run.machine.disk.plan(On::Sync, syncs, Trouble::Fail(5)),
            Step::BreakIndex => run.machine.index.break_it(),
            Step::Compact(below) => drop(run.target.compact(below).await),
        }
        run.check().await;
    }
    run.restart(|machine| machine.disk.power_cut(0)).await.check().await;
}

/// More of them: `PROPTEST_CASES=5000`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn a_target_is_a_map_that_forgets_nothing_acknowledged(
        steps in steps(),
        index_batch in prop_oneof![Just(1usize), Just(8)],
        segment_kib in prop_oneof![Just(100u64), Just(256)],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(steps, index_batch, segment_kib));
    }
}
