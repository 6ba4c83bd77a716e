//! The thread that keeps a target's index: moves acknowledged changes from memory into it, gives back the space of dead
//! payloads, and rebuilds it from the segments when it cannot be trusted.
//!
//! What a crash leaves: an index that covers the log up to its checkpoint, and perhaps a little more. Space is given
//! back before the checkpoint passes the tombstone, so replaying the log from the checkpoint repeats what was missed.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::error::Fault;
use holdfast_proto::v1::FaultKind;
use tokio_util::sync::CancellationToken;

use super::footer::{LogEntry, Seal, read_footer};
use super::index::{Checkpoint, IndexError, ShardIndex, Totals};
use super::overlay::{Changes, Work};
use super::record::{BATCH_ALIGN, Entry, Position};
use super::scan::scan;
use super::segment::segment_number;
use super::shared::Shared;

/// Between attempts to rebuild an index whose directory does not work.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Rows looked at together when counting.
const COUNT_PAGE: usize = 4096;

/// Why a rebuild did not finish.
#[derive(Debug, thiserror::Error)]
enum RebuildError {
    #[error("the target is stopping")]
    Stopping,
    #[error("the index: {0}")]
    Index(#[from] IndexError),
    #[error("removing the old index: {0}")]
    Wipe(io::Error),
    #[error("segment {segment} cannot be read: {source}")]
    Segment { segment: u64, source: io::Error },
}

/// Runs until the target stops. `recount`: the totals are from before the changes that were replayed.
pub(super) fn run(shared: &Shared, cancel: &CancellationToken, recount: bool) {
    let _guard = PanicGuard(shared);
    if recount && !shared.is_recovering() {
        count(shared, cancel);
    }
    loop {
        match shared.overlay.next_work() {
            Work::Move { changes, freed, covered } => move_changes(shared, &changes, &freed, covered),
            Work::Rebuild => rebuild_until_done(shared, cancel),
            Work::Stop => return close_cleanly(shared),
            Work::Abandon => return,
        }
    }
}

/// Without its indexer a target's changes stay in memory: a panic takes it out of writing, and lets a writer go that
/// waits for room. What is acknowledged stays readable.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Fault::new(FaultKind::DiskFailed, "the indexer panicked"));
        }
    }
}

fn move_changes(shared: &Shared, changes: &Changes, freed: &[Entry], covered: Position) {
    give_back(shared, freed);
    let index = shared.index.read().clone();
    let outcome = index.ok_or_else(|| IndexError("it is not open".to_owned())).and_then(|index| {
        let mut totals = *shared.totals.lock();
        let known: HashSet<Position> = freed.iter().map(|entry| entry.at).collect();
        let mut dead = Vec::new();
        for (shard, change) in changes {
            let old = index.set(*shard, *change)?;
            totals.change(old, *change);
            // Nobody knew of it while the index was rebuilt, so nobody freed it.
            dead.extend(
                old.filter(|old| change.is_none_or(|change| change.at > old.at) && !known.contains(&old.at)),
            );
        }
        give_back(shared, &dead);
        index.set_checkpoint(Checkpoint { covered, totals })?;
        *shared.totals.lock() = totals;
        Ok(())
    });
    match outcome {
        Ok(()) => shared.overlay.moved(),
        Err(error) => {
            shared.overlay.move_failed();
            shared.index_failed(&error.to_string());
        }
    }
}

/// Punches dead payloads, whole blocks only: the kernel would zero the edges of others, and they hold live neighbours.
pub(super) fn give_back(shared: &Shared, freed: &[Entry]) {
    shared.count_dead(freed);
    for entry in freed {
        let start = entry.data_offset().next_multiple_of(BATCH_ALIGN);
        let end = (entry.data_offset() + u64::from(entry.length)) / BATCH_ALIGN * BATCH_ALIGN;
        if start >= end {
            continue;
        }
        let outcome = shared.reader.file(entry.at.segment).and_then(|file| file.punch(start, end - start));
        match outcome {
            Ok(()) => {}
            // Then compaction alone gives space back.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            // Its segment was compacted: all of it was given back.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(segment = entry.at.segment, offset = entry.at.offset, %error, "a deleted shard's space was not given back");
            }
        }
    }
}

fn close_cleanly(shared: &Shared) {
    let index = shared.index.write().take();
    let Some(index) = index else { return };
    let outcome = index.persist().map_err(|error| error.to_string());
    drop(index);
    let outcome =
        outcome.and_then(|()| shared.directory.set_index_state(true).map_err(|error| error.to_string()));
    if let Err(error) = outcome {
        tracing::warn!(target_dir = %shared.directory.root.display(), error, "the index was not closed cleanly; it is checked at the next start");
    }
}

/// Counts all rows; the totals of an index left by a killed process may be behind its rows.
fn count(shared: &Shared, cancel: &CancellationToken) {
    let Some(index) = shared.index.read().clone() else { return };
    let mut totals = Totals::default();
    let mut after = None;
    loop {
        if cancel.is_cancelled() || shared.overlay.is_stopping() {
            return;
        }
        match index.page(after, COUNT_PAGE) {
            Ok(rows) => {
                rows.iter().for_each(|(_, entry)| totals.change(None, Some(*entry)));
                if rows.len() < COUNT_PAGE {
                    break;
                }
                after = rows.last().map(|(shard, _)| *shard);
            }
            Err(error) => return shared.index_failed(&error.to_string()),
        }
    }
    *shared.totals.lock() = totals;
}

fn rebuild_until_done(shared: &Shared, cancel: &CancellationToken) {
    shared.meters.index_rebuilds.increment(1);
    let dir = shared.directory.root.display();
    match rebuild(shared, cancel) {
        Ok(checkpoint) => {
            *shared.totals.lock() = checkpoint.totals;
            shared.end_recovery();
            tracing::info!(target_dir = %dir, shards = checkpoint.totals.shards, "the shard index was rebuilt");
            return;
        }
        Err(RebuildError::Stopping) => {}
        Err(error @ RebuildError::Segment { .. }) => {
            // What that segment holds is not known, so neither is what is absent.
            shared.fail(Fault::new(FaultKind::DiskFailed, error.to_string()));
            shared.overlay.pause(RETRY_AFTER);
        }
        Err(error) => {
            tracing::error!(target_dir = %dir, %error, "the shard index could not be rebuilt, trying again");
            if shared.overlay.is_full() {
                // Nobody waits for an index that may never come.
                let text =
                    format!("too many changes wait for the shard index, and it cannot be rebuilt: {error}");
                shared.fail(Fault::new(FaultKind::DiskFailed, text));
            }
            shared.overlay.pause(RETRY_AFTER);
        }
    }
    shared.overlay.ask_rebuild();
}

/// Builds a new index of everything published so far. What is published meanwhile stays in the overlay.
fn rebuild(shared: &Shared, cancel: &CancellationToken) -> Result<Checkpoint, RebuildError> {
    // What is listed below must be there when it is read.
    let _apart = shared.removing.lock();
    let until = shared.overlay.published();
    *shared.index.write() = None;
    shared.index_home.wipe().map_err(RebuildError::Wipe)?;
    let index = shared.index_home.open()?;
    *shared.index.write() = Some(Arc::clone(&index));
    let names = shared.home.disk.list(&shared.home.dir);
    let names = names.map_err(|source| RebuildError::Segment { segment: 0, source })?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let mut totals = Totals::default();
    for number in numbers.into_iter().filter(|number| *number <= until.segment) {
        let mut entries = segment_entries(shared, number, until.segment)
            .map_err(|source| RebuildError::Segment { segment: number, source })?;
        // In key order the index touches each of its pages once; what is said of one shard stays in log order.
        entries.sort_by_key(LogEntry::shard);
        for entry in entries {
            if cancel.is_cancelled() || shared.overlay.is_stopping() {
                return Err(RebuildError::Stopping);
            }
            apply(&*index, &entry, until, &mut totals)?;
        }
    }
    let checkpoint = Checkpoint { covered: until, totals };
    index.set_checkpoint(checkpoint)?;
    Ok(checkpoint)
}

/// All that a segment says, from its footer if it has one. `active` is one that had no footer when this began: it may be
/// sealed meanwhile.
pub(super) fn segment_entries(shared: &Shared, number: u64, active: u64) -> io::Result<Vec<LogEntry>> {
    let file = shared.reader.file(number)?;
    let seal = read_footer(&*file, number, &shared.home.key)?;
    if let Seal::Listed(entries) = seal {
        return Ok(entries);
    }
    let scanned = scan(&*file, number, &shared.home.key, u64::MAX)?;
    if seal == Seal::Bare {
        shared.count_damage(scanned.damaged);
    // What is wrong with the active one was counted when it was opened.
    } else if number < active {
        tracing::error!(
            segment = number,
            holes = scanned.damaged,
            "a sealed segment's footer is damaged, it is scanned"
        );
        shared.count_damage(scanned.damaged + 1);
    }
    Ok(scanned.entries)
}

/// Puts one entry of the log before `until` into an index that holds everything before it, and perhaps some of what
/// comes after. Returns the payload that is dead by it.
pub(super) fn apply(
    index: &dyn ShardIndex,
    entry: &LogEntry,
    until: Position,
    totals: &mut Totals,
) -> Result<Option<Entry>, IndexError> {
    match entry {
        LogEntry::Live(_, entry) if entry.at >= until => Ok(None),
        LogEntry::Live(shard, entry) => {
            let old = index.get(*shard)?;
            if let Some(old) = old.filter(|old| old.at >= entry.at) {
                return Ok((old.at > entry.at).then_some(*entry));
            }
            index.set(*shard, Some(*entry))?;
            totals.change(old, Some(*entry));
            Ok(old)
        }
        // Seen while it was being written: it may yet fail, or be cut off, and the index would know of no shard that the
        // segments hold.
        LogEntry::Dead(tombstone) if tombstone.before >= until => Ok(None),
        LogEntry::Dead(tombstone) => match index.get(tombstone.shard)? {
            Some(entry) if entry.at < tombstone.before => {
                index.set(tombstone.shard, None)?;
                totals.change(Some(entry), None);
                Ok(Some(entry))
            }
            _ => Ok(None),
        },
    }
}
