//! Gives back the space that punching holes cannot: headers, edges, small shards and old tombstones of sealed segments.
//!
//! A sealed segment of which less than a part is still needed is emptied: what is live in it is read, proven, and appended to the
//! active segment by the writer, which leaves it out when it was deleted or replaced meanwhile; tombstones of which an older segment
//! has a record go along with the position from which they kill. Then the file is removed.
//!
//! Invariant: a segment is removed only when everything it is needed for is durable elsewhere in the log, and the index on disk
//! covers the log up to there: neither a rebuild nor a replay from any checkpoint that can be found misses it. What is bad in it
//! is not moved (a record that does not match its hashes would pass for a torn batch), and keeps the segment.
//!
//! A crash leaves a segment all or part of which is dead: the next look finds it so. `removing` keeps a rebuild of the index, which
//! lists segments and then reads them, and a removal apart.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use holdfast_proto::error::Fault;
use holdfast_proto::id::ShardId;
use holdfast_proto::v1::FaultKind;
use tokio::time::Instant;

use super::footer::{self, LogEntry, Seal, read_footer};
use super::record::{Entry, Position, TOMBSTONE_BYTES, Tombstone, record_bytes};
use super::scan::scan;
use super::segment::{segment_number, segment_path};
use super::shared::{Place, Shared};
use super::target::Target;
use super::writer::{Job, Move};
use crate::supervisor::Progress;

/// Between two looks at all segments.
const TICK: Duration = Duration::from_secs(10);
/// Records moved together: one batch, most often.
const MOVES_AT_ONCE: usize = 32;
/// A segment is counted anew when so much of it died since, in per cent of its length.
const COUNT_AGAIN_PER_CENT: u64 = 5;
/// How long the index may take to cover what was moved.
const INDEX_PATIENCE: Duration = Duration::from_secs(60);
const INDEX_POLL: Duration = Duration::from_millis(20);

/// When segments are emptied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompactConfig {
    /// Those of which less than this is needed, in per cent of the space they take.
    pub(crate) below_per_cent: u64,
    /// Records are moved no faster, bytes per second.
    pub(crate) bytes_per_second: u64,
}

/// What a look at all segments did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Compacted {
    pub(crate) segments: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) freed_bytes: u64,
}

/// What is known of a segment from the last time it was counted.
#[derive(Debug, Clone, Copy)]
struct Counted {
    needed_bytes: u64,
    dead_then: u64,
}

/// Why a segment stays for now.
#[derive(Debug, thiserror::Error)]
enum Stays {
    #[error("{0}")]
    Fault(Fault),
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The index is not whole, or something in the segment is bad.
    #[error("{0}")]
    NotNow(&'static str),
}

impl From<Fault> for Stays {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Empties segments for as long as the node runs.
pub(crate) async fn run(
    target: Arc<Target>,
    config: CompactConfig,
    progress: Progress,
) -> anyhow::Result<()> {
    let mut known = HashMap::new();
    loop {
        tokio::time::sleep(TICK).await;
        let compacted = look(&target, config, &mut known).await;
        progress.done(compacted.segments);
    }
}

impl Target {
    /// One look at all sealed segments.
    #[cfg(test)]
    pub(super) async fn compact(self: &Arc<Self>, below_per_cent: u64) -> Compacted {
        let config = CompactConfig { below_per_cent, bytes_per_second: u64::MAX };
        look(self, config, &mut HashMap::new()).await
    }
}

async fn look(target: &Arc<Target>, config: CompactConfig, known: &mut HashMap<u64, Counted>) -> Compacted {
    let mut compacted = Compacted::default();
    let shared = target.shared();
    let active = shared.overlay.published().segment;
    let Ok(numbers) = numbers(shared).await else { return compacted };
    known.retain(|number, _| numbers.contains(number));
    for number in numbers.iter().copied().filter(|number| *number < active) {
        if shared.fault().is_some() || shared.is_recovering() {
            break;
        }
        let outcome = one(target, config, number, &numbers, known, &mut compacted).await;
        if let Err(stays) = outcome {
            tracing::debug!(segment = number, %stays, "a segment is not compacted now");
        }
    }
    compacted
}

/// Numbers of the segments that there are, ascending.
async fn numbers(shared: &Arc<Shared>) -> io::Result<Vec<u64>> {
    let shared = Arc::clone(shared);
    blocking(move || {
        let names = shared.home.disk.list(&shared.home.dir)?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    })
    .await
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(call).await.map_err(io::Error::other)?
}

async fn one(
    target: &Arc<Target>,
    config: CompactConfig,
    number: u64,
    numbers: &[u64],
    known: &mut HashMap<u64, Counted>,
    compacted: &mut Compacted,
) -> Result<(), Stays> {
    let shared = target.shared();
    let dead = shared.dead_bytes(number);
    let (length, allocated) = {
        let shared = Arc::clone(shared);
        blocking(move || {
            let file = shared.reader.file(number)?;
            Ok((file.len()?, file.allocated()?))
        })
        .await?
    };
    let is_candidate = |counted: &Counted| counted.needed_bytes * 100 < allocated * config.below_per_cent;
    if let Some(counted) = known.get(&number) {
        let died = dead.saturating_sub(counted.dead_then);
        if !is_candidate(counted) && died * 100 < length * COUNT_AGAIN_PER_CENT {
            return Ok(());
        }
    }
    let older: Vec<u64> = numbers.iter().copied().filter(|older| *older < number).collect();
    let needed = {
        let shared = Arc::clone(shared);
        blocking(move || Ok(needed(&shared, number, &older))).await??
    };
    let counted = Counted { needed_bytes: needed.bytes(), dead_then: dead };
    known.insert(number, counted);
    if !is_candidate(&counted) {
        return Ok(());
    }
    for moves in needed.live.chunks(MOVES_AT_ONCE) {
        let begun = Instant::now();
        let moved = join_all(moves.iter().map(|(shard, entry)| move_one(target, *shard, *entry))).await;
        let mut bytes = 0;
        for one in moved {
            bytes += one?;
        }
        compacted.moved_bytes += bytes;
        let least = Duration::from_secs_f64(bytes as f64 / config.bytes_per_second as f64);
        tokio::time::sleep(least.saturating_sub(begun.elapsed())).await;
    }
    for tombstones in needed.tombstones.chunks(MOVES_AT_ONCE * MOVES_AT_ONCE) {
        if !shared.space.allows_delete()? {
            return Err(Stays::NotNow("the disk is too full"));
        }
        target.submit(Job::Bury(tombstones.to_vec())).await?;
    }
    cover(shared).await?;
    remove(shared, number).await?;
    known.remove(&number);
    compacted.segments += 1;
    compacted.freed_bytes += allocated;
    metrics::counter!("holdfast_data_compacted_segments_total").increment(1);
    metrics::counter!("holdfast_data_compacted_freed_bytes_total").increment(allocated);
    tracing::info!(
        segment = number,
        freed_bytes = allocated,
        moved = needed.live.len(),
        "a segment was compacted"
    );
    Ok(())
}

/// What a segment is needed for.
struct Needed {
    live: Vec<(ShardId, Entry)>,
    tombstones: Vec<Tombstone>,
}

impl Needed {
    fn bytes(&self) -> u64 {
        let of_one = |entry: &Entry| record_bytes(entry.meta_len as usize, entry.length as usize) as u64;
        let live: u64 = self.live.iter().map(|(_, entry)| of_one(entry)).sum();
        // With their entries in the footer: a segment of nothing but tombstones that are needed is full.
        let entries = (self.live.len() + self.tombstones.len()) * footer::ENTRY_BYTES;
        live + (self.tombstones.len() * TOMBSTONE_BYTES + entries) as u64
    }
}

/// What a sealed segment says; `None` when there is damage, so that it may say more.
fn sealed_entries(shared: &Shared, number: u64) -> io::Result<Option<Vec<LogEntry>>> {
    let file = shared.reader.file(number)?;
    Ok(match read_footer(&*file, number, &shared.home.key)? {
        Seal::Listed(entries) => Some(entries),
        Seal::Bare => {
            let scanned = scan(&*file, number, &shared.home.key, u64::MAX)?;
            (scanned.damaged == 0).then_some(scanned.entries)
        }
        Seal::Unproven => None,
    })
}

/// Looks at everything in a segment, and for what its tombstones kill in the `older` ones. Blocks.
fn needed(shared: &Shared, number: u64, older: &[u64]) -> Result<Needed, Stays> {
    let entries = sealed_entries(shared, number)?.ok_or(Stays::NotNow("its footer is damaged"))?;
    let mut live = Vec::new();
    let mut tombstones: HashMap<ShardId, Position> = HashMap::new();
    for entry in entries {
        let place = shared.look(entry.shard()).place;
        match (entry, place) {
            (_, Place::Perhaps(_) | Place::Unknown) => return Err(Stays::NotNow("the index is not whole")),
            (LogEntry::Live(shard, entry), Place::Here(here)) if here.at == entry.at => {
                live.push((shard, here))
            }
            (LogEntry::Live(..), _) => {}
            // A record that is newer than what it kills makes that dead as well.
            (LogEntry::Dead(_), Place::Here(_)) => {}
            // The last one kills what the others do.
            (LogEntry::Dead(tombstone), Place::Absent) => {
                let before = tombstones.entry(tombstone.shard).or_default();
                *before = tombstone.before.max(*before);
            }
        }
    }
    Ok(Needed { live, tombstones: killing(shared, tombstones, older) })
}

/// Those tombstones of which an older segment has a record that they kill, or may have one. No younger one has: a move takes
/// only what is alive.
fn killing(shared: &Shared, mut tombstones: HashMap<ShardId, Position>, older: &[u64]) -> Vec<Tombstone> {
    let mut killing = Vec::new();
    for number in older {
        if tombstones.is_empty() {
            break;
        }
        match sealed_entries(shared, *number) {
            Ok(Some(entries)) => {
                for said in entries {
                    if let LogEntry::Live(shard, entry) = said
                        && let Some(before) = tombstones.get(&shard).copied()
                        && entry.at < before
                    {
                        tombstones.remove(&shard);
                        killing.push(Tombstone { shard, before });
                    }
                }
            }
            // Removed by this look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // It may hold anything.
            Ok(None) | Err(_) => {
                let start = Position::new(*number, 0);
                let may_kill = tombstones.extract_if(|_, before| *before > start);
                killing.extend(may_kill.map(|(shard, before)| Tombstone { shard, before }));
            }
        }
    }
    killing
}

/// Has a record appended again, unless it is dead by then. Returns its bytes.
async fn move_one(target: &Arc<Target>, shard: ShardId, entry: Entry) -> Result<u64, Stays> {
    let shared = Arc::clone(target.shared());
    if !shared.space.allows_delete()? {
        return Err(Stays::NotNow("the disk is too full"));
    }
    let outcome = {
        let shared = Arc::clone(&shared);
        blocking(move || Ok(shared.check(shared.reader.read(shard, entry, 0..u32::MAX)))).await?
    };
    let blocks = match outcome {
        Ok(blocks) => blocks,
        Err(_) if shared.look(shard).place != Place::Here(entry) => return Ok(0),
        Err(bad) => {
            shared.note_bad(shard, entry, bad.blocks);
            return Err(Stays::NotNow("it holds something bad"));
        }
    };
    if shared.is_bad(shard) {
        return Err(Stays::NotNow("it holds something bad"));
    }
    let bytes = record_bytes(entry.meta_len as usize, entry.length as usize) as u64;
    target.submit(Job::Move(Box::new(Move::new(shard, entry, blocks.meta, blocks.data)))).await?;
    Ok(bytes)
}

/// Waits until the index on disk covers everything that has been published by now.
async fn cover(shared: &Arc<Shared>) -> Result<(), Stays> {
    let until: Position = shared.overlay.published();
    let deadline = Instant::now() + INDEX_PATIENCE;
    loop {
        shared.overlay.ask_move();
        let shared = Arc::clone(shared);
        let covered = blocking(move || {
            let index = shared.index.read().clone();
            let Some(index) = index.filter(|_| !shared.is_recovering()) else { return Ok(false) };
            let checkpoint = index.checkpoint().map_err(io::Error::other)?.unwrap_or_default();
            if checkpoint.covered < until {
                return Ok(false);
            }
            index.persist().map_err(io::Error::other)?;
            Ok(true)
        });
        if covered.await? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Stays::NotNow("the index does not keep up"));
        }
        tokio::time::sleep(INDEX_POLL).await;
    }
}

/// Removes a segment, unless something in it is needed after all.
async fn remove(shared: &Arc<Shared>, number: u64) -> Result<(), Stays> {
    let shared = Arc::clone(shared);
    let removed = blocking(move || {
        let _apart = shared.removing.lock();
        if shared.is_recovering() || shared.fault().is_some() {
            return Ok(Err(Stays::NotNow("the index is not whole")));
        }
        // Nothing comes to life in a sealed segment: what is needed now was not moved.
        let left = match needed(&shared, number, &[]) {
            Ok(left) => left,
            Err(stays) => return Ok(Err(stays)),
        };
        if !left.live.is_empty() {
            return Ok(Err(Stays::NotNow("not all of it was moved")));
        }
        let (disk, dir) = (&shared.home.disk, &shared.home.dir);
        if let Err(error) = disk.remove(&segment_path(dir, number)).and_then(|()| disk.sync_dir(dir)) {
            // It may be back after a power cut: nothing may count on its absence, least of all a tombstone of what it holds.
            let text = format!("removing segment {number} failed: {error}");
            shared.fail(Fault::new(FaultKind::DiskFailed, text));
            return Err(error);
        }
        shared.reader.forget(number);
        shared.forget_dead(number);
        Ok(Ok(()))
    });
    removed.await?
}

#[cfg(test)]
#[path = "compact_test.rs"]
mod tests;
