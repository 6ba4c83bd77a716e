//! One group's log as the consensus library sees it: the recent entries in memory, all of them in the node's log engine.
//!
//! raft-engine makes an entry readable only when its write is done, so the tail in memory serves what is still being
//! written; it also keeps replication and apply off the disk. An entry leaves the tail only when it is on disk and the
//! tail is over its budget.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, stream};
use holdfast_proto::raft as wire;
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message;

use super::log::{Change, LogEngine, LogError, LogWrite, LogWriter};
use super::log_record::{LogRecord, RecordKind};
use super::raft::{Commands, Entry, LogId, Payload, TypeConfig, Vote};
use super::wire as convert;

/// Bytes of entries kept in memory for each group.
pub(super) const TAIL_BYTES: u64 = 2 << 20;
/// Bytes of entries read at once, for one append message or one piece of an apply.
const READ_BYTES_MAX: u64 = 1 << 20;
/// Bytes of log between two remembered offsets.
const OFFSET_STRIDE: u64 = 1 << 20;
/// Entries read to judge the size of a log that is opened, at most.
const OFFSET_SAMPLES: u64 = 128;

struct Tail {
    /// Consecutive, up to the last entry of the log; each with its weight in bytes.
    entries: VecDeque<(Entry, u64)>,
    bytes: u64,
    /// Index of the first entry of the log, or of the one that will be.
    first: u64,
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Bytes of entries, those found when the log was opened estimated.
    written: u64,
    /// (index, bytes appended before it), sparse and ascending: how far back a number of bytes lies.
    offsets: VecDeque<(u64, u64)>,
}

struct Shared {
    group: u64,
    writer: Arc<LogWriter>,
    tail: Mutex<Tail>,
    /// Index of the last entry on disk.
    flushed: Arc<AtomicU64>,
    /// Index up to which the group's state is durable; purging beyond it would lose state. `None` in storage tests.
    durable: Option<Arc<AtomicU64>>,
}

/// One group's log. Clones share it.
#[derive(Clone)]
pub(crate) struct GroupLog {
    shared: Arc<Shared>,
}

impl fmt::Debug for GroupLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupLog").field("group", &self.shared.group).finish_non_exhaustive()
    }
}

fn io_error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

fn record_of(entry: &Entry) -> LogRecord {
    let (kind, payload) = match &entry.payload {
        Payload::Blank => (RecordKind::Blank, bytes::Bytes::new()),
        Payload::Normal(Commands(bytes)) => (RecordKind::Commands, bytes.clone()),
        Payload::Membership(membership) => {
            (RecordKind::Membership, convert::membership_out(membership).encode_to_vec().into())
        }
    };
    LogRecord::new(entry.index(), entry.log_id.committed_leader_id().term, kind, payload)
}

fn entry_of(record: LogRecord) -> Result<Entry, LogError> {
    let payload = match record.kind {
        RecordKind::Blank => Payload::Blank,
        RecordKind::Commands => Payload::Normal(Commands(record.payload)),
        RecordKind::Membership => {
            let corrupt = |error: String| LogError(format!("entry {}: {error}", record.index));
            let membership =
                wire::Membership::decode(record.payload).map_err(|error| corrupt(error.to_string()))?;
            Payload::Membership(
                convert::membership_in(&membership).map_err(|error| corrupt(error.to_string()))?,
            )
        }
    };
    Ok(Entry { log_id: LogId::new_term_index(record.term, record.index), payload })
}

impl GroupLog {
    /// Opens a group's log. Blocks for a read of its last entry.
    ///
    /// # Errors
    /// When what is stored does not decode or leaves a hole.
    pub(crate) fn open(
        group: u64,
        writer: Arc<LogWriter>,
        durable: Option<Arc<AtomicU64>>,
    ) -> Result<Self, LogError> {
        let facts = writer.engine().facts(group)?;
        let purged = facts.purged.as_ref().map(convert::log_id_in);
        let mut last = purged;
        if let Some(index) = facts.last {
            let mut records = writer.engine().read(group, index, index + 1, READ_BYTES_MAX)?;
            let record = records.pop().ok_or_else(|| LogError(format!("entry {index} is not there")))?;
            last = Some(LogId::new_term_index(record.term, record.index));
        }
        let first = facts.first.unwrap_or_else(|| last.map_or(0, |last| last.index() + 1));
        let (offsets, written) = match facts.last {
            Some(last) => estimate_offsets(writer.engine().as_ref(), group, first, last)?,
            None => (VecDeque::new(), 0),
        };
        let tail = Tail {
            entries: VecDeque::new(),
            bytes: 0,
            first,
            last,
            purged,
            vote: facts.vote.as_ref().map(convert::vote_in),
            committed: facts.committed.as_ref().map(convert::log_id_in),
            written,
            offsets,
        };
        let flushed = Arc::new(AtomicU64::new(last.map_or(0, |last| last.index())));
        Ok(Self { shared: Arc::new(Shared { group, writer, tail: Mutex::new(tail), flushed, durable }) })
    }

    /// The vote this node last saved: whom it followed.
    pub(super) fn vote(&self) -> Option<Vote> {
        self.shared.tail.lock().vote
    }

    /// The highest index that lies at least `keep` bytes of log behind `index` and is not purged yet; `None` when nothing
    /// does.
    pub(super) fn purgeable(&self, index: u64, keep: u64) -> Option<u64> {
        let tail = self.shared.tail.lock();
        let at = tail.offsets.iter().rev().find(|(at, _)| *at <= index).map(|(_, bytes)| *bytes)?;
        let limit = at.checked_sub(keep)?;
        let target = tail.offsets.iter().rev().find(|(_, bytes)| *bytes <= limit)?.0.checked_sub(1)?;
        (tail.purged.is_none_or(|purged| purged.index() < target)).then_some(target)
    }

    /// Whether the log has `log_id`, ended its purged part with it, or ends before it.
    pub(super) async fn agrees(&self, log_id: LogId) -> Result<bool, io::Error> {
        let (purged, last) = {
            let tail = self.shared.tail.lock();
            (tail.purged, tail.last)
        };
        if last.is_none_or(|last| last.index() < log_id.index()) {
            return Ok(true);
        }
        if let Some(purged) = purged
            && log_id.index() <= purged.index()
        {
            return Ok(purged == log_id);
        }
        let found = self.read(log_id.index(), log_id.index() + 1).await?;
        Ok(found.first().is_some_and(|entry| entry.log_id == log_id))
    }

    /// Index of the last purged entry; 0 when there is none.
    pub(super) fn purged_index(&self) -> u64 {
        self.shared.tail.lock().purged.map_or(0, |purged| purged.index())
    }

    /// Bytes of all entries, purged ones included; those found when the log was opened are estimated.
    pub(super) fn written(&self) -> u64 {
        self.shared.tail.lock().written
    }

    /// Bytes of the entries that are not purged, nearly.
    pub(super) fn retained(&self) -> u64 {
        let tail = self.shared.tail.lock();
        tail.written - tail.offsets.front().map_or(tail.written, |(_, bytes)| *bytes)
    }

    fn change(&self, change: Change) -> LogWrite {
        LogWrite { group: self.shared.group, change }
    }

    async fn read(&self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let cold = {
            let tail = self.shared.tail.lock();
            let next = tail.last.map_or(tail.first, |last| last.index() + 1);
            let (start, end) = (start.max(tail.first), end.min(next));
            if start >= end {
                return Ok(Vec::new());
            }
            let held = next - tail.entries.len() as u64;
            if start >= held {
                let (from, to) = ((start - held) as usize, (end - held) as usize);
                let mut bytes = 0;
                let entries = tail.entries.range(from..to).take_while(|(_, weight)| {
                    let taken = bytes;
                    bytes += weight;
                    taken == 0 || bytes <= READ_BYTES_MAX
                });
                return Ok(entries.map(|(entry, _)| entry.clone()).collect());
            }
            (start, end.min(held))
        };
        let shared = Arc::clone(&self.shared);
        let read = move || shared.writer.engine().read(shared.group, cold.0, cold.1, READ_BYTES_MAX);
        let records = tokio::task::spawn_blocking(read).await.map_err(io_error)?.map_err(io_error)?;
        records.into_iter().map(|record| entry_of(record).map_err(io_error)).collect()
    }
}

impl Shared {
    /// Drops from the front of the tail what is on disk and over the budget.
    fn trim(&self, tail: &mut Tail) {
        let flushed = self.flushed.load(Ordering::Acquire);
        while tail.bytes > TAIL_BYTES
            && let Some((entry, weight)) = tail.entries.front()
            && entry.index() <= flushed
        {
            tail.bytes -= weight;
            tail.entries.pop_front();
        }
    }
}

/// How far back bytes lie in the entries from `first` to `last`, judged by a few of them: the engine does not say how long
/// an entry is without reading it. An error here moves a purge by a part of what is kept, and no promise depends on it.
fn estimate_offsets(
    engine: &dyn LogEngine,
    group: u64,
    first: u64,
    last: u64,
) -> Result<(VecDeque<(u64, u64)>, u64), LogError> {
    let stride = (last - first + 1).div_ceil(OFFSET_SAMPLES);
    let (mut offsets, mut bytes, mut index) = (VecDeque::new(), 0, first);
    while index <= last {
        let records = engine.read(group, index, index + 1, READ_BYTES_MAX)?;
        offsets.push_back((index, bytes));
        bytes += records.iter().map(LogRecord::weight).sum::<u64>() * stride.min(last - index + 1);
        index += stride;
    }
    Ok((offsets, bytes))
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        // Who applies takes what comes for all of it, so less than all of it is a fault. The library's own suite, which has
        // no state to keep, asks for more than there is.
        let whole = self.shared.durable.is_some() && end != u64::MAX;
        // Piece by piece: a restart may have to re-apply more log than fits in memory.
        let pieces = stream::unfold((self.clone(), start), move |(log, next)| async move {
            if next >= end {
                return None;
            }
            let piece = match log.read(next, end).await {
                Ok(entries) if whole && entries.first().is_none_or(|first| first.index() != next) => {
                    Err(io_error(LogError(format!("entry {next} of those up to {end} is not there"))))
                }
                piece => piece,
            };
            match piece {
                Ok(entries) => {
                    let after = entries.last()?.index() + 1;
                    Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), (log, after)))
                }
                Err(error) => Some((vec![Err(error)], (log, end))),
            }
        });
        Box::pin(futures::StreamExt::flat_map(pieces, stream::iter))
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (mut start, end) = bounds(&range);
        let mut all = Vec::new();
        loop {
            let entries = self.read(start, end).await?;
            let Some(last) = entries.last() else { return Ok(all) };
            start = last.index() + 1;
            all.extend(entries);
        }
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        // Entries that do not follow the one before `start` must not be sent as if they did.
        if start < self.shared.tail.lock().first {
            return Ok(Vec::new());
        }
        let entries = self.read(start, end).await?;
        // Purged meanwhile.
        let follows = entries.first().is_none_or(|first| first.index() == start);
        Ok(if follows { entries } else { Vec::new() })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.tail.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let tail = self.shared.tail.lock();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.shared
            .writer
            .write(self.change(Change::Vote(convert::vote_out(vote))))
            .await
            .map_err(io_error)?;
        self.shared.tail.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(log_id) = committed {
            self.shared.tail.lock().committed = committed;
            self.shared.writer.committed(self.shared.group, convert::log_id_out(&log_id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        // A commit point that was written while its entries' fsync was lost names entries that are not there.
        let tail = self.shared.tail.lock();
        Ok(tail.committed.min(tail.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut tail = self.shared.tail.lock();
            for entry in entries {
                match &tail.last {
                    None => tail.first = entry.index(),
                    Some(last) if entry.index() == last.index() + 1 => {}
                    Some(last) => {
                        let hole = format!("entry {} does not follow {}", entry.index(), last.index());
                        return Err(io_error(LogError(hole)));
                    }
                }
                let record = record_of(&entry);
                let weight = record.weight();
                if tail.offsets.back().is_none_or(|(_, bytes)| tail.written - bytes >= OFFSET_STRIDE) {
                    let offset = (entry.index(), tail.written);
                    tail.offsets.push_back(offset);
                }
                tail.written += weight;
                tail.bytes += weight;
                tail.last = Some(entry.log_id);
                tail.entries.push_back((entry, weight));
                records.push(record);
            }
            self.shared.trim(&mut tail);
        }
        let Some(last) = records.last().map(|record| record.index) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        // Not all of the log: its last owner must not be the writer's own thread.
        let flushed = Arc::clone(&self.shared.flushed);
        self.shared.writer.submit(
            self.change(Change::Append(records)),
            Box::new(move |result| {
                if result.is_ok() {
                    flushed.store(last, Ordering::Release);
                }
                callback.io_completed(result.map_err(io_error));
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let next = last_log_id.map_or(0, |last| last.index() + 1);
        {
            let mut tail = self.shared.tail.lock();
            if tail.last <= last_log_id {
                return Ok(());
            }
            while tail.entries.back().is_some_and(|(entry, _)| entry.index() >= next) {
                let weight = tail.entries.pop_back().map_or(0, |(_, weight)| weight);
                tail.bytes -= weight;
            }
            while tail.offsets.back().is_some_and(|(index, _)| *index >= next) {
                tail.offsets.pop_back();
            }
            tail.last = last_log_id.max(tail.purged);
        }
        self.shared.writer.write(self.change(Change::Truncate { next })).await.map_err(io_error)?;
        self.shared.flushed.fetch_min(next.saturating_sub(1), Ordering::AcqRel);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        if let Some(durable) = &self.shared.durable {
            let durable = durable.load(Ordering::Acquire);
            assert!(
                log_id.index() <= durable,
                "purging the log up to {} while the state is durable up to {durable} would lose state",
                log_id.index()
            );
        }
        {
            let mut tail = self.shared.tail.lock();
            // By index: an entry of a later term may lie before the last one.
            if tail.purged.is_some_and(|purged| purged.index() >= log_id.index()) {
                return Ok(());
            }
            tail.purged = Some(log_id);
            tail.first = tail.first.max(log_id.index() + 1);
            if tail.last.is_none_or(|last| last.index() < log_id.index()) {
                tail.last = Some(log_id);
                tail.entries.clear();
                tail.bytes = 0;
            }
            while tail.entries.front().is_some_and(|(entry, _)| entry.index() <= log_id.index()) {
                let weight = tail.entries.pop_front().map_or(0, |(_, weight)| weight);
                tail.bytes -= weight;
            }
            while tail.offsets.len() > 1
                && tail.offsets.get(1).is_some_and(|(index, _)| *index <= log_id.index())
            {
                tail.offsets.pop_front();
            }
        }
        let upto = convert::log_id_out(&log_id);
        self.shared.writer.write(self.change(Change::Purge { upto })).await.map_err(io_error)
    }
}
