//! What a target's callers, its writer and its indexer have in common.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use holdfast_proto::data::{ShardMeta, StoredShard};
use holdfast_proto::error::Fault;
use holdfast_proto::id::ShardId;
use holdfast_proto::v1::FaultKind;
use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::{Mutex, RwLock};

use super::directory::Directory;
use super::index::{IndexHome, ShardIndex, Totals};
use super::overlay::{Changes, Known, Overlay};
use super::read::{Blocks, ReadError, Reader, bad_blocks};
use super::record::{Entry, record_bytes};
use super::scrub::Board;
use super::segment::SegmentHome;
use super::space::SpaceWatch;
use super::target::ShardPage;

/// Shards with bad blocks that are remembered by name, at most; further ones are counted and logged all the same.
const BAD_SHARDS_MAX: usize = 1 << 16;
/// In a set of bad blocks: the record's header.
pub(super) const HEADER_BIT: u32 = 1 << 31;

/// The figures of one process, over all its targets.
#[derive(Debug)]
pub(super) struct Meters {
    pub(super) fsyncs: Counter,
    pub(super) written_bytes: Counter,
    pub(super) shards_written: Counter,
    pub(super) shards_deleted: Counter,
    pub(super) shards_read: Counter,
    pub(super) read_bytes: Counter,
    pub(super) corrupt_blocks: Counter,
    pub(super) index_rebuilds: Counter,
    pub(super) batch_shards: Histogram,
    pub(super) batch_bytes: Histogram,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            fsyncs: counter!("holdfast_data_fsyncs_total"),
            written_bytes: counter!("holdfast_data_written_bytes_total"),
            shards_written: counter!("holdfast_data_shards_written_total"),
            shards_deleted: counter!("holdfast_data_shards_deleted_total"),
            shards_read: counter!("holdfast_data_shards_read_total"),
            read_bytes: counter!("holdfast_data_read_bytes_total"),
            corrupt_blocks: counter!("holdfast_data_corrupt_blocks_total"),
            index_rebuilds: counter!("holdfast_data_index_rebuilds_total"),
            batch_shards: histogram!("holdfast_data_batch_shards"),
            batch_bytes: histogram!("holdfast_data_batch_bytes"),
        }
    }
}

/// Where a shard is, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Here(Entry),
    /// An index that is not whole names this record. A tombstone that the rebuild has not come to yet may kill it: it
    /// can be read, but nothing may be promised because of it.
    Perhaps(Entry),
    Absent,
    /// The index is not whole: it may be here.
    Unknown,
}

/// A place, and the overlay's generation under which it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) place: Place,
    pub(super) generation: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) directory: Directory,
    pub(super) home: SegmentHome,
    pub(super) reader: Reader,
    pub(super) overlay: Overlay,
    pub(super) index_home: Arc<dyn IndexHome>,
    /// None while it is rebuilt from nothing.
    pub(super) index: RwLock<Option<Arc<dyn ShardIndex>>>,
    /// Counts recoveries that began and ended: odd while one runs.
    recoveries: AtomicU64,
    pub(super) totals: Mutex<Totals>,
    pub(super) space: SpaceWatch,
    pub(super) meters: Meters,
    corrupt_blocks: AtomicU64,
    bad: Mutex<HashMap<ShardId, u32>>,
    pub(super) scrub: Board,
    /// Held by who removes a segment, and by who reads a list of them.
    pub(super) removing: Mutex<()>,
    /// Bytes of records that died since this process opened the target, by segment.
    dead: Mutex<HashMap<u64, u64>>,
    fault: Mutex<Option<Fault>>,
}

impl Shared {
    pub(super) fn new(
        directory: Directory,
        home: SegmentHome,
        overlay: Overlay,
        index_home: Arc<dyn IndexHome>,
        space: SpaceWatch,
    ) -> Self {
        let reader = Reader::new(home.dir.clone(), Arc::clone(&home.disk), home.key.clone());
        Self {
            directory,
            home,
            reader,
            overlay,
            index_home,
            index: RwLock::new(None),
            recoveries: AtomicU64::new(0),
            totals: Mutex::default(),
            space,
            meters: Meters::new(),
            corrupt_blocks: AtomicU64::new(0),
            bad: Mutex::default(),
            scrub: Board::default(),
            removing: Mutex::default(),
            dead: Mutex::default(),
            fault: Mutex::new(None),
        }
    }

    pub(super) fn is_recovering(&self) -> bool {
        !self.recoveries.load(Ordering::SeqCst).is_multiple_of(2)
    }

    /// From now on the index is not whole; false when it was not before. Comes before anything is taken from the index.
    fn begin_recovery(&self) -> bool {
        let begin = |count: u64| count.is_multiple_of(2).then_some(count + 1);
        self.recoveries.fetch_update(Ordering::SeqCst, Ordering::SeqCst, begin).is_ok()
    }

    /// The index is whole again.
    pub(super) fn end_recovery(&self) {
        let before = self.recoveries.fetch_add(1, Ordering::SeqCst);
        assert!(!before.is_multiple_of(2), "only a recovery that began can end");
    }

    /// Runs `ask`; true with its answer when the index was whole from before it to after it. Asking once is not enough:
    /// whoever pauses in between may be given the empty index that a rebuild begins with, and a recovery that began and
    /// ended since looks like none.
    fn ask_whole_index<T>(&self, ask: impl FnOnce() -> T) -> (T, bool) {
        let before = self.recoveries.load(Ordering::SeqCst);
        let answer = ask();
        let after = self.recoveries.load(Ordering::SeqCst);
        (answer, before == after && before.is_multiple_of(2))
    }

    /// Where `shard` is. May read index pages from disk.
    pub(super) fn look(&self, shard: ShardId) -> Lookup {
        match self.overlay.look(shard) {
            Known::Here(entry) => Lookup { place: Place::Here(entry), generation: 0 },
            Known::Gone => Lookup { place: Place::Absent, generation: 0 },
            Known::AskIndex(generation) => Lookup { place: self.look_in_index(shard), generation },
        }
    }

    /// The same as [`Self::look`] now, given what it said before.
    pub(super) fn look_again(&self, shard: ShardId, before: Lookup) -> Place {
        match self.overlay.look(shard) {
            Known::Here(entry) => Place::Here(entry),
            Known::Gone => Place::Absent,
            Known::AskIndex(generation) if generation == before.generation => before.place,
            Known::AskIndex(_) => self.look_in_index(shard),
        }
    }

    fn look_in_index(&self, shard: ShardId) -> Place {
        let (found, whole) = self.ask_whole_index(|| {
            let index = self.index.read().clone();
            index.map(|index| index.get(shard))
        });
        match found {
            Some(Ok(Some(entry))) if whole => Place::Here(entry),
            Some(Ok(Some(entry))) => Place::Perhaps(entry),
            Some(Ok(None)) if whole => Place::Absent,
            Some(Ok(None)) | None => Place::Unknown,
            Some(Err(error)) => {
                self.index_failed(&error.to_string());
                Place::Unknown
            }
        }
    }

    /// The index is not to be trusted any more: until it is rebuilt, absence is not known.
    pub(super) fn index_failed(&self, why: &str) {
        if self.begin_recovery() {
            tracing::error!(target_dir = %self.directory.root.display(), why, "the shard index failed, rebuilding it");
            self.overlay.ask_rebuild();
        }
    }

    /// There is no index to begin with.
    pub(super) fn index_missing(&self) {
        if self.begin_recovery() {
            self.overlay.ask_rebuild();
        }
    }

    /// Takes the target out of writing for good, loudly and once.
    pub(super) fn fail(&self, fault: Fault) {
        let mut held = self.fault.lock();
        if held.is_none() {
            tracing::error!(
                target_dir = %self.directory.root.display(),
                fault = %fault.message,
                "the target takes no more writes; reads go on"
            );
            metrics::counter!("holdfast_data_targets_failed_total").increment(1);
            *held = Some(fault);
        }
        drop(held);
        self.overlay.let_pass();
    }

    /// Why the target takes no more writes, if so.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.lock().clone()
    }

    pub(super) fn corrupt_blocks(&self) -> u64 {
        self.corrupt_blocks.load(Ordering::Relaxed)
    }

    /// Counts damage that belongs to no shard by name.
    pub(super) fn count_damage(&self, places: u64) {
        self.corrupt_blocks.fetch_add(places, Ordering::Relaxed);
        self.meters.corrupt_blocks.increment(places);
    }

    /// Notes bad blocks of a shard, a bit each; every one is counted and logged once.
    pub(super) fn note_bad(&self, shard: ShardId, entry: Entry, blocks: u32) {
        let mut bad = self.bad.lock();
        let known = bad.get(&shard).copied().unwrap_or(0);
        let new = blocks & !known;
        if new == 0 {
            return;
        }
        if known != 0 || bad.len() < BAD_SHARDS_MAX {
            bad.insert(shard, known | new);
        }
        drop(bad);
        self.count_damage(u64::from(new.count_ones()));
        tracing::error!(
            target_dir = %self.directory.root.display(),
            %shard,
            segment = entry.at.segment,
            offset = entry.at.offset,
            blocks = %format_args!("{new:#x}"),
            "stored bytes do not match their checksums"
        );
    }

    /// Counts records that nobody needs any more.
    pub(super) fn count_dead(&self, freed: &[Entry]) {
        let mut dead = self.dead.lock();
        for entry in freed {
            let bytes = record_bytes(entry.meta_len as usize, entry.length as usize) as u64;
            *dead.entry(entry.at.segment).or_default() += bytes;
        }
    }

    pub(super) fn dead_bytes(&self, segment: u64) -> u64 {
        self.dead.lock().get(&segment).copied().unwrap_or(0)
    }

    pub(super) fn forget_dead(&self, segment: u64) {
        self.dead.lock().remove(&segment);
    }

    /// A shard that was found bad in an earlier life: counted then.
    pub(super) fn remember_bad(&self, shard: ShardId) {
        self.bad.lock().entry(shard).or_insert(0);
    }

    /// What is known to be bad now.
    pub(super) fn bad_shards(&self) -> Vec<ShardId> {
        self.bad.lock().keys().copied().collect()
    }

    pub(super) fn bad_count(&self) -> u64 {
        self.bad.lock().len() as u64
    }

    pub(super) fn is_bad(&self, shard: ShardId) -> bool {
        self.bad.lock().contains_key(&shard)
    }

    /// The shard was stored again or removed.
    pub(super) fn forget_bad(&self, shard: ShardId) {
        self.bad.lock().remove(&shard);
    }

    /// Whether what is stored at `entry`, a [`Place::Here`], is what `meta` describes. A record that cannot be read is
    /// not.
    ///
    /// # Errors
    /// When another content is stored under the same id: ids are never reused, so the caller is wrong.
    pub(super) fn holds(&self, shard: ShardId, entry: Entry, meta: &ShardMeta) -> Result<bool, Fault> {
        if self.is_bad(shard) {
            return Ok(false);
        }
        match self.reader.meta(shard, entry) {
            Ok(stored) if stored.block_hashes == meta.block_hashes && stored.length == meta.length => {
                Ok(true)
            }
            Ok(_) => Err(Fault::new(
                FaultKind::Invalid,
                format!("shard {shard} is stored here with another content"),
            )),
            // Deleted or moved under our hands.
            Err(_) if self.look(shard).place != Place::Here(entry) => Ok(false),
            Err(_) => {
                self.note_bad(shard, entry, HEADER_BIT);
                Ok(false)
            }
        }
    }

    /// The outcome of a read after its checksums: the blocks, or which of them are bad.
    pub(super) fn check(&self, outcome: Result<Blocks, ReadError>) -> Result<Blocks, BadBlocks> {
        let blocks = outcome.map_err(|error| BadBlocks { blocks: HEADER_BIT, why: error.to_string() })?;
        match bad_blocks(&blocks.meta.block_hashes, blocks.offset, &blocks.data) {
            0 => Ok(blocks),
            bad => {
                Err(BadBlocks { blocks: bad, why: format!("blocks {bad:#x} do not match their checksums") })
            }
        }
    }

    /// One page of what is stored, as the index knows it; `None` when the index is not whole.
    pub(super) fn page(&self, after: Option<ShardId>, limit: usize) -> Option<ShardPage> {
        let limit = limit.max(1);
        let (changes, changes_upto) = self.overlay.page(after, limit);
        let (rows, whole) = self.ask_whole_index(|| {
            let index = self.index.read().clone();
            index.map(|index| index.page(after, limit))
        });
        let rows = match rows? {
            Ok(_) if !whole => return None,
            Ok(rows) => rows,
            Err(error) => {
                self.index_failed(&error.to_string());
                return None;
            }
        };
        let rows_upto = if rows.len() == limit { rows.last().map(|(shard, _)| *shard) } else { None };
        // Both sources are complete up to here.
        let upto = changes_upto.into_iter().chain(rows_upto).min();
        let mut merged: Changes = rows.into_iter().map(|(shard, entry)| (shard, Some(entry))).collect();
        merged.extend(changes);
        let mut page = ShardPage { shards: Vec::new(), more: upto.is_some(), last: None };
        for (shard, entry) in merged.into_iter().filter(|(shard, _)| upto.is_none_or(|upto| *shard <= upto)) {
            if page.shards.len() == limit {
                page.more = true;
                break;
            }
            page.last = Some(shard);
            page.shards.extend(entry.map(|entry| StoredShard {
                shard: Bytes::copy_from_slice(&shard.to_bytes()),
                pg: entry.layout.pg(),
                scheme: entry.layout.scheme(),
                length: entry.length,
                bad: self.is_bad(shard),
            }));
        }
        Some(page)
    }
}

/// What a read found wrong: a bit for each block, and [`HEADER_BIT`].
#[derive(Debug)]
pub(super) struct BadBlocks {
    pub(super) blocks: u32,
    pub(super) why: String,
}
