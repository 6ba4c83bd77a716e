//! An index in memory that survives a killed process as badly as it is allowed to, for tests.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use holdfast_proto::id::ShardId;
use parking_lot::Mutex;

use super::index::{Checkpoint, IndexError, IndexHome, ShardIndex};
use super::record::Entry;

#[derive(Debug, Clone, Copy)]
enum Step {
    Set(ShardId, Option<Entry>),
    Checkpoint(Checkpoint),
}

/// A call of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Open,
    Get,
    /// A `Get` that has its answer.
    Got,
    /// The row becomes this.
    Set(Option<Entry>),
    Page,
}

/// What befalls the first call of a kind, before it has any effect.
struct Plan {
    is_it: Box<dyn Fn(Call) -> bool + Send>,
    reached: mpsc::Sender<()>,
    /// None: it panics.
    go: Option<mpsc::Receiver<()>>,
}

/// A call that waits until this is dropped.
#[derive(Debug)]
pub(super) struct Paused {
    reached: mpsc::Receiver<()>,
    _go: mpsc::Sender<()>,
}

impl Paused {
    /// Waits until the call is there.
    pub(super) fn wait(&self) {
        self.reached.recv_timeout(Duration::from_secs(30)).expect("the call never came");
    }
}

#[derive(Debug, Default)]
struct Memory {
    rows: BTreeMap<ShardId, Entry>,
    checkpoint: Option<Checkpoint>,
    steps: Vec<Step>,
    /// So many of the steps no crash takes back.
    persisted: usize,
    broken: bool,
    for_good: bool,
}

impl Memory {
    fn take(&mut self, step: Step) -> Option<Entry> {
        self.steps.push(step);
        match step {
            Step::Set(shard, Some(entry)) => self.rows.insert(shard, entry),
            Step::Set(shard, None) => self.rows.remove(&shard),
            Step::Checkpoint(checkpoint) => {
                self.checkpoint = Some(checkpoint);
                None
            }
        }
    }
}

/// The home of an index in memory; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct MemHome(Arc<Mutex<Memory>>, Arc<Plans>);

#[derive(Default)]
struct Plans(Mutex<Option<Plan>>);

impl fmt::Debug for Plans {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Plans")
    }
}

impl MemHome {
    /// Forgets a suffix of what was done, as a killed process may. `keep` in thousandths.
    pub(super) fn crash(&self, keep: usize) {
        let mut memory = self.0.lock();
        let steps = std::mem::take(&mut memory.steps);
        let kept = (steps.len() * keep / 1000).max(memory.persisted);
        *memory = Memory::default();
        for step in steps.into_iter().take(kept) {
            memory.take(step);
        }
        memory.persisted = kept;
    }

    /// Every call fails from now on, until the index is wiped.
    pub(super) fn break_it(&self) {
        self.0.lock().broken = true;
    }

    /// Makes the first call from now on that `is_it` wait.
    pub(super) fn pause(&self, is_it: impl Fn(Call) -> bool + Send + 'static) -> Paused {
        let ((reached, is_reached), (may_go, go)) = (mpsc::channel(), mpsc::channel());
        *self.1.0.lock() = Some(Plan { is_it: Box::new(is_it), reached, go: Some(go) });
        Paused { reached: is_reached, _go: may_go }
    }

    /// Makes the first call from now on that `is_it` panic.
    pub(super) fn panic_in(&self, is_it: impl Fn(Call) -> bool + Send + 'static) {
        *self.1.0.lock() = Some(Plan { is_it: Box::new(is_it), reached: mpsc::channel().0, go: None });
    }

    /// From now on, it can neither be used nor opened.
    pub(super) fn break_for_good(&self) {
        let mut memory = self.0.lock();
        (memory.broken, memory.for_good) = (true, true);
    }

    fn pass(&self, call: Call) {
        let plan = {
            let mut plan = self.1.0.lock();
            if plan.as_ref().is_some_and(|plan| (plan.is_it)(call)) { plan.take() } else { None }
        };
        if let Some(plan) = plan {
            // Both fail only when the test no longer minds.
            let _ = plan.reached.send(());
            let go = plan.go.expect("a planned panic inside the index");
            let _ = go.recv();
        }
    }

    /// Loses a row behind everyone's back.
    pub(super) fn point_elsewhere(&self, shard: ShardId) {
        if let Some(entry) = self.0.lock().rows.get_mut(&shard) {
            entry.at.offset += 8;
        }
    }
}

impl IndexHome for MemHome {
    fn open(&self) -> Result<Arc<dyn ShardIndex>, IndexError> {
        self.pass(Call::Open);
        if self.0.lock().broken {
            return Err(IndexError("broken".to_owned()));
        }
        Ok(Arc::new(self.clone()))
    }

    fn wipe(&self) -> io::Result<()> {
        let mut memory = self.0.lock();
        let for_good = memory.for_good;
        *memory = Memory { broken: for_good, for_good, ..Memory::default() };
        Ok(())
    }
}

impl MemHome {
    fn with<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> Result<T, IndexError> {
        let mut memory = self.0.lock();
        if memory.broken { Err(IndexError("broken".to_owned())) } else { Ok(act(&mut memory)) }
    }
}

impl ShardIndex for MemHome {
    fn get(&self, shard: ShardId) -> Result<Option<Entry>, IndexError> {
        self.pass(Call::Get);
        let row = self.with(|memory| memory.rows.get(&shard).copied());
        self.pass(Call::Got);
        row
    }

    fn set(&self, shard: ShardId, entry: Option<Entry>) -> Result<Option<Entry>, IndexError> {
        self.pass(Call::Set(entry));
        self.with(|memory| memory.take(Step::Set(shard, entry)))
    }

    fn page(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<(ShardId, Entry)>, IndexError> {
        self.pass(Call::Page);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.with(|memory| {
            let rows = memory.rows.range((start, Bound::Unbounded)).take(limit);
            rows.map(|(shard, entry)| (*shard, *entry)).collect()
        })
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, IndexError> {
        self.with(|memory| memory.checkpoint)
    }

    fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), IndexError> {
        self.with(|memory| memory.take(Step::Checkpoint(checkpoint))).map(|_| ())
    }

    fn persist(&self) -> Result<(), IndexError> {
        self.with(|memory| memory.persisted = memory.steps.len())
    }
}
