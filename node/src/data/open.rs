//! Opening a target: from whatever the last process left to a state in which every acknowledged shard is readable, or
//! known not to be known yet.
//!
//! 1. The directory is locked and proves whose it is.
//! 2. The last segment is synced, so that what is found in it stays. Unless it is sealed it is scanned, and what a crash
//!    tore is cut off.
//! 3. The index is trusted as far as its checkpoint if it was closed cleanly or its process was killed without the
//!    machine going down; the log from there on is replayed into it. Otherwise it is rebuilt in the background, and
//!    until then absence is not known.
//!
//! Nothing here is undone by a crash in the middle: every step can be repeated.

use std::sync::Arc;

use holdfast_proto::error::Fault;
use holdfast_proto::v1::FaultKind;

use super::directory::Directory;
use super::footer::{LogEntry, Seal, read_footer};
use super::index::{Checkpoint, IndexError, IndexHome, ShardIndex};
use super::indexer::{apply, give_back, segment_entries};
use super::overlay::Overlay;
use super::record::{BATCH_ALIGN, Position, RecordKey, is_segment_header};
use super::scan::scan;
use super::segment::{ActiveSegment, SegmentHome, segment_number, segment_path};
use super::shared::Shared;
use super::space::SpaceWatch;
use super::target::{DirectIo, TargetConfig, TargetError};
use crate::env::{Access, Env};

/// A target ready to run.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) shared: Shared,
    /// None when none could be opened for writing; the target's fault says why.
    pub(super) segment: Option<ActiveSegment>,
    /// The index's totals may be behind its rows.
    pub(super) recount: bool,
}

/// See the module.
pub(super) fn open(
    config: &TargetConfig,
    env: Env,
    index_home: Arc<dyn IndexHome>,
) -> Result<Opened, TargetError> {
    let directory = Directory::open(&config.dir, config.realm, &env)?;
    let home = SegmentHome {
        dir: directory.segments(),
        disk: Arc::clone(env.disk()),
        uuid: directory.uuid,
        realm: config.realm,
        key: RecordKey::of_target(&directory.uuid),
        direct: config.direct_io == DirectIo::Auto,
    };
    let io_error = |what| move |source| TargetError::io(what, &config.dir, source);
    let (clean, trusted) = directory.index_state().map_err(io_error("reading index.json"))?;
    if !trusted {
        // Before the state says otherwise: a process killed in between must not leave the old one trusted.
        index_home.wipe().map_err(io_error("removing the old index"))?;
    }
    directory.set_index_state(false).map_err(io_error("writing index.json"))?;
    let segments = list_segments(&home).map_err(io_error("listing segments"))?;

    let mut index = None;
    if trusted || segments.is_empty() {
        index = open_index(&*index_home, &segments);
    }
    let covered = index.as_ref().map(|(_, checkpoint)| checkpoint.covered).unwrap_or_default();
    let tail = Tail::open(&home, &segments, covered).map_err(io_error("scanning the last segment"))?;
    // An index ahead of the log describes another one.
    let index = index.filter(|_| covered <= tail.end);

    let space = SpaceWatch::new(config.dir.clone(), env, config.thresholds);
    let overlay = Overlay::new(tail.end, config.index_batch, config.index_lag_max);
    let shared = Shared::new(directory, home, overlay, index_home, space);
    shared.count_damage(tail.damaged);
    let segment = match tail.resume(&shared.home) {
        Ok(segment) => Some(segment),
        Err(error) => {
            shared.fail(Fault::new(
                FaultKind::DiskFailed,
                format!("opening a segment for writing failed: {error}"),
            ));
            None
        }
    };
    let replayed = index.map(|(index, checkpoint)| {
        let outcome = replay(&shared, &*index, checkpoint, &segments, &tail);
        *shared.index.write() = Some(index);
        outcome
    });
    match replayed {
        Some(Ok(())) => {}
        Some(Err(error)) => shared.index_failed(&error.to_string()),
        None => shared.index_missing(),
    }
    Ok(Opened { shared, segment, recount: !clean })
}

/// Numbers of the segments, ascending. A last one that a crash left without a first block is removed: it has no records.
fn list_segments(home: &SegmentHome) -> std::io::Result<Vec<u64>> {
    let names = home.disk.list(&home.dir)?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    if let Some(last) = numbers.last().copied() {
        let path = segment_path(&home.dir, last);
        let file = home.disk.open(&path, Access::Buffered)?;
        let mut block = Vec::new();
        file.read_at(&mut block, BATCH_ALIGN as usize, 0)?;
        if file.len()? <= BATCH_ALIGN && !is_segment_header(&home.key, last, &block) {
            home.disk.remove(&path)?;
            home.disk.sync_dir(&home.dir)?;
            numbers.pop();
        }
    }
    Ok(numbers)
}

/// The index and its checkpoint; `None` when it does not open or covers what is not there.
fn open_index(home: &dyn IndexHome, segments: &[u64]) -> Option<(Arc<dyn ShardIndex>, Checkpoint)> {
    if segments.is_empty() {
        // Whatever index is there is of other segments.
        home.wipe().ok()?;
        return home.open().ok().map(|index| (index, Checkpoint::default()));
    }
    let index = home.open().map_err(|error| tracing::warn!(%error, "the shard index does not open")).ok()?;
    let checkpoint = index.checkpoint().ok().flatten()?;
    Some((index, checkpoint))
}

/// The end of the log.
#[derive(Debug)]
struct Tail {
    /// Where the next batch goes.
    end: Position,
    /// What the unsealed last segment says.
    entries: Vec<LogEntry>,
    /// The segment at `end` has to be created.
    fresh: bool,
    damaged: u64,
}

impl Tail {
    fn open(home: &SegmentHome, segments: &[u64], covered: Position) -> std::io::Result<Self> {
        let fresh = |number| Self {
            end: Position::new(number, BATCH_ALIGN),
            entries: Vec::new(),
            fresh: true,
            damaged: 0,
        };
        let Some(last) = segments.last().copied() else { return Ok(fresh(1)) };
        let file = home.disk.open(&segment_path(&home.dir, last), Access::Buffered)?;
        // A process that was killed before its sync left bytes that read back whole and are not on disk. What is found
        // from here on is; and what an earlier failed sync gave up is not found.
        file.sync()?;
        file.drop_cache(0..u64::MAX)?;
        home.disk.sync_dir(&home.dir)?;
        if read_footer(&*file, last, &home.key)? != Seal::Unproven {
            return Ok(fresh(last + 1));
        }
        let synced = if covered.segment == last { covered.offset } else { 0 };
        let scanned = scan(&*file, last, &home.key, synced)?;
        let file_len = file.len()?;
        if scanned.end < file_len {
            tracing::warn!(
                segment = last,
                offset = scanned.end,
                bytes = file_len - scanned.end,
                "a batch that was torn before it was acknowledged is cut off"
            );
        }
        if scanned.sealed {
            return Ok(Self { damaged: scanned.damaged + 1, ..fresh(last + 1) });
        }
        let end = Position::new(last, scanned.end);
        Ok(Self { end, entries: scanned.entries, fresh: false, damaged: scanned.damaged })
    }

    fn resume(&self, home: &SegmentHome) -> std::io::Result<ActiveSegment> {
        if self.fresh {
            ActiveSegment::create(home, self.end.segment)
        } else {
            ActiveSegment::resume(home, self.end.segment, self.end.offset, self.entries.clone())
        }
    }
}

/// Puts what the log holds from the checkpoint on into the index.
fn replay(
    shared: &Shared,
    index: &dyn ShardIndex,
    checkpoint: Checkpoint,
    segments: &[u64],
    tail: &Tail,
) -> Result<(), IndexError> {
    let mut totals = checkpoint.totals;
    let mut freed = Vec::new();
    let mut replay_entries = |segment: u64, entries: &[LogEntry]| -> Result<(), IndexError> {
        let floor = if segment == checkpoint.covered.segment { checkpoint.covered.offset } else { 0 };
        for entry in entries {
            let at = match entry {
                LogEntry::Live(_, entry) => entry.at.offset,
                // A tombstone that compaction brought here has an older position; applying it twice changes nothing.
                LogEntry::Dead(_) => u64::MAX,
            };
            if at >= floor {
                freed.extend(apply(index, entry, tail.end, &mut totals)?);
            }
        }
        Ok(())
    };
    for segment in segments.iter().filter(|segment| **segment >= checkpoint.covered.segment) {
        if *segment == tail.end.segment {
            replay_entries(*segment, &tail.entries)?;
        } else {
            let entries = segment_entries(shared, *segment, tail.end.segment)
                .map_err(|error| IndexError(format!("segment {segment} cannot be read: {error}")))?;
            replay_entries(*segment, &entries)?;
        }
    }
    index.set_checkpoint(Checkpoint { covered: tail.end, totals })?;
    *shared.totals.lock() = totals;
    give_back(shared, &freed);
    Ok(())
}
