//! The one thread that writes to a target, committing in groups: whatever is queued becomes one batch, one write and
//! one fdatasync; only then is it published and everyone in it answered.
//!
//! Invariant: nothing is acknowledged, or visible to readers, that is not durable. After the first failed write or sync
//! nothing is written any more: what the device holds is not known, and a sync that is repeated may lie.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::data::ShardMeta;
use holdfast_proto::error::Fault;
use holdfast_proto::id::ShardId;
use holdfast_proto::v1::FaultKind;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::record::{Entry, Layout, TOMBSTONE_BYTES, Tombstone, record_bytes};
use super::segment::{ActiveSegment, Batch};
use super::shared::{Lookup, Place, Shared};

/// Tombstones in one record, at most.
const TOMBSTONES_PER_RECORD: usize = 1024;

/// One shard to be stored; its content has been verified.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) shard: ShardId,
    pub(super) layout: Layout,
    pub(super) meta: ShardMeta,
    pub(super) meta_bytes: Vec<u8>,
    pub(super) data: Bytes,
    pub(super) before: Lookup,
}

/// Shards to be removed, and where they were when it was asked.
#[derive(Debug)]
pub(super) struct Removal {
    pub(super) shards: Vec<(ShardId, Lookup)>,
}

/// A record that is appended again so that its segment can go; its content has been verified.
#[derive(Debug)]
pub(super) struct Move {
    shard: ShardId,
    from: Entry,
    meta: ShardMeta,
    meta_bytes: Vec<u8>,
    data: Bytes,
}

impl Move {
    pub(super) fn new(shard: ShardId, from: Entry, meta: ShardMeta, data: Bytes) -> Self {
        let meta_bytes = meta.encode_to_vec();
        Self { shard, from, meta, meta_bytes, data }
    }
}

#[derive(Debug)]
pub(super) enum Job {
    Put(Box<Put>),
    Remove(Removal),
    Move(Box<Move>),
    /// Tombstones on their way out of a segment that goes.
    Bury(Vec<Tombstone>),
}

impl Job {
    /// Bytes of its records.
    pub(super) fn record_bytes(&self) -> usize {
        match self {
            Self::Put(put) => record_bytes(put.meta_bytes.len(), put.data.len()),
            Self::Remove(removal) => removal
                .shards
                .chunks(TOMBSTONES_PER_RECORD)
                .map(|chunk| record_bytes(chunk.len() * TOMBSTONE_BYTES, 0))
                .sum(),
            Self::Move(one) => record_bytes(one.meta_bytes.len(), one.data.len()),
            Self::Bury(tombstones) => tombstones
                .chunks(TOMBSTONES_PER_RECORD)
                .map(|chunk| record_bytes(chunk.len() * TOMBSTONE_BYTES, 0))
                .sum(),
        }
    }

    fn entries(&self) -> usize {
        match self {
            Self::Put(_) => 1,
            Self::Remove(removal) => removal.shards.len(),
            Self::Move(_) => 1,
            Self::Bury(tombstones) => tombstones.len(),
        }
    }
}

/// A job in the queue.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) job: Job,
    pub(super) done: oneshot::Sender<Result<(), Fault>>,
    /// Its share of the queue.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// What the records of one batch do, until they are durable.
#[derive(Debug, Default)]
struct Staged {
    changes: HashMap<ShardId, Option<Entry>>,
    /// Of shards put by this batch.
    metas: HashMap<ShardId, ShardMeta>,
    freed: Vec<Entry>,
    waiting: Vec<oneshot::Sender<Result<(), Fault>>>,
    puts: u64,
    removals: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Queued>,
    /// None once the target has failed.
    segment: Option<ActiveSegment>,
    batch: Batch,
    segment_bytes: u64,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        queue: mpsc::Receiver<Queued>,
        segment: Option<ActiveSegment>,
        batch_bytes: usize,
        segment_bytes: u64,
    ) -> Self {
        Self { shared, queue, segment, batch: Batch::new(batch_bytes), segment_bytes }
    }

    /// Runs until every sender of the queue is gone and the queue is empty.
    pub(super) fn run(mut self) {
        let mut next = self.queue.blocking_recv();
        while let Some(first) = next {
            next = self.commit_group(first);
            if next.is_none() {
                next = self.queue.blocking_recv();
            }
        }
    }

    /// Writes `first` and whatever else is queued and fits; returns a job that did not fit.
    fn commit_group(&mut self, first: Queued) -> Option<Queued> {
        if let Some(fault) = self.shared.fault() {
            // Whoever found it; nothing may be written any more.
            self.segment = None;
            // The asker may be gone; it then has no use for the answer.
            let _ = first.done.send(Err(fault));
            return None;
        }
        let Some(mut segment) = self.segment.take() else {
            let _ = first.done.send(Err(Fault::new(FaultKind::DiskFailed, "not writable")));
            return None;
        };
        if segment.is_full_for(first.job.record_bytes(), first.job.entries(), self.segment_bytes) {
            match segment.roll(&self.shared.home) {
                Ok(rolled) => segment = rolled,
                Err(error) => {
                    let _ = first.done.send(Err(self.fail("starting a segment", &error)));
                    return None;
                }
            }
        }
        self.batch.restart(segment.end());
        let mut staged = Staged::default();
        let mut left = None;
        let mut next = Some(first);
        while let Some(queued) = next.take() {
            let (bytes, entries) = (queued.job.record_bytes(), queued.job.entries());
            let fits = self.batch.is_empty()
                || self.batch.fits(bytes)
                    && !segment.is_full_for(
                        self.batch.len() + bytes,
                        self.batch.entries().len() + entries,
                        self.segment_bytes,
                    );
            if !fits {
                left = Some(queued);
                break;
            }
            self.stage(queued, &mut staged);
            next = self.queue.try_recv().ok();
        }
        if self.batch.is_empty() {
            staged.answer(&Ok(()));
            self.segment = Some(segment);
            return left;
        }
        let outcome = segment.commit(&mut self.batch, &self.shared.home.key);
        match outcome {
            Ok(()) => {
                self.publish(staged, &segment);
                self.segment = Some(segment);
            }
            Err(error) => staged.answer(&Err(self.fail("writing a batch", &error))),
        }
        left
    }

    /// Puts a job's records into the batch, unless what it asks for is so already.
    fn stage(&mut self, queued: Queued, staged: &mut Staged) {
        let Queued { job, done, _permit } = queued;
        let outcome = match job {
            Job::Put(put) => self.stage_put(put, staged),
            Job::Remove(removal) => {
                self.stage_removal(removal, staged);
                Ok(())
            }
            Job::Move(one) => {
                self.stage_move(*one, staged);
                Ok(())
            }
            Job::Bury(tombstones) => {
                for chunk in tombstones.chunks(TOMBSTONES_PER_RECORD) {
                    self.batch.push_old_tombstones(&self.shared.home.key, chunk);
                }
                Ok(())
            }
        };
        match outcome {
            Ok(()) => staged.waiting.push(done),
            Err(fault) => {
                let _ = done.send(Err(fault));
            }
        }
    }

    fn stage_put(&mut self, put: Box<Put>, staged: &mut Staged) -> Result<(), Fault> {
        match staged.changes.get(&put.shard) {
            Some(Some(_)) => {
                let same = staged.metas.get(&put.shard).is_some_and(|meta| {
                    meta.block_hashes == put.meta.block_hashes && meta.length == put.meta.length
                });
                return if same {
                    Ok(())
                } else {
                    let text = format!("shard {} is being stored with another content", put.shard);
                    Err(Fault::new(FaultKind::Invalid, text))
                };
            }
            Some(None) => {}
            None => match self.shared.look_again(put.shard, put.before) {
                Place::Here(entry) => {
                    // The asker looked, too; this is about what was stored in between, or what is to be replaced.
                    if self.shared.holds(put.shard, entry, &put.meta)? {
                        return Ok(());
                    }
                    staged.freed.push(entry);
                }
                // Dead once this is stored, if it is not yet.
                Place::Perhaps(entry) => staged.freed.push(entry),
                Place::Absent | Place::Unknown => {}
            },
        }
        let key = &self.shared.home.key;
        let entry = self.batch.push_shard(key, put.shard, put.layout, &put.meta_bytes, &put.data);
        staged.changes.insert(put.shard, Some(entry));
        staged.metas.insert(put.shard, put.meta);
        staged.puts += 1;
        Ok(())
    }

    fn stage_removal(&mut self, removal: Removal, staged: &mut Staged) {
        let mut dead = Vec::with_capacity(removal.shards.len());
        for (shard, before) in removal.shards {
            let place = match staged.changes.get(&shard) {
                Some(Some(entry)) => Place::Here(*entry),
                Some(None) => Place::Absent,
                None => self.shared.look_again(shard, before),
            };
            match place {
                Place::Here(entry) | Place::Perhaps(entry) => staged.freed.push(entry),
                Place::Absent => continue,
                // Whatever the segments hold of it dies by the tombstone; its space is found when the index is.
                Place::Unknown => {}
            }
            staged.changes.insert(shard, None);
            dead.push(shard);
        }
        for chunk in dead.chunks(TOMBSTONES_PER_RECORD) {
            self.batch.push_tombstones(&self.shared.home.key, chunk);
        }
        staged.removals += dead.len() as u64;
    }

    /// Only what is still the shard is appended: a deletion or another record since then wins.
    fn stage_move(&mut self, one: Move, staged: &mut Staged) {
        let place = match staged.changes.get(&one.shard) {
            Some(Some(entry)) => Place::Here(*entry),
            Some(None) => Place::Absent,
            None => self.shared.look(one.shard).place,
        };
        if place != Place::Here(one.from) || self.shared.is_bad(one.shard) {
            return;
        }
        let (key, layout) = (&self.shared.home.key, one.from.layout);
        let entry = self.batch.push_shard(key, one.shard, layout, &one.meta_bytes, &one.data);
        staged.changes.insert(one.shard, Some(entry));
        staged.metas.insert(one.shard, one.meta);
        staged.freed.push(one.from);
    }

    fn publish(&mut self, mut staged: Staged, segment: &ActiveSegment) {
        let meters = &self.shared.meters;
        let bytes = self.batch.len() as u64;
        meters.fsyncs.increment(1);
        meters.written_bytes.increment(bytes);
        meters.shards_written.increment(staged.puts);
        meters.shards_deleted.increment(staged.removals);
        meters.batch_shards.record((staged.puts + staged.removals) as f64);
        meters.batch_bytes.record(bytes as f64);
        self.shared.space.wrote(bytes);
        staged.changes.keys().for_each(|shard| self.shared.forget_bad(*shard));
        let changes = std::mem::take(&mut staged.changes);
        self.shared.overlay.publish(changes, &mut staged.freed, segment.end());
        staged.answer(&Ok(()));
    }

    fn fail(&self, doing: &str, error: &io::Error) -> Fault {
        let kind = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FaultKind::Full,
            _ => FaultKind::DiskFailed,
        };
        let fault = Fault::new(kind, format!("{doing} failed: {error}"));
        self.shared.fail(fault.clone());
        fault
    }
}

impl Staged {
    fn answer(self, outcome: &Result<(), Fault>) {
        for done in self.waiting {
            // Who no longer waits has no use for the answer.
            let _ = done.send(outcome.clone());
        }
    }
}

impl Drop for Writer {
    /// Also on a panic: what would be queued from now on must not wait for ever.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(Fault::new(FaultKind::DiskFailed, "the writer panicked"));
        }
    }
}
