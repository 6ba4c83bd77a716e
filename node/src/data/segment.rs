//! The active segment: appends batches of records and seals itself with a footer.
//!
//! Every batch begins at a multiple of 4 KiB and is padded to one, so no block that holds an acknowledged byte is ever
//! in a write again: a torn write can only hurt what nobody was told is stored. The padding costs no more bytes written
//! than rewriting a half-full tail block would (that block would be written again whole); it costs space, half a block
//! per batch on average, which compaction gets back.
//!
//! What a crash leaves: an unsealed last segment whose last batch (the footer is one, too) may be torn; or a last
//! segment without a proven first block and without records, which opening removes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_proto::id::{RealmId, ShardId};

use super::aligned::{AlignedBuf, align_up};
use super::footer::{ENTRIES_MAX, LogEntry, TRAILER_BYTES, encode_entries, encode_trailer};
use super::record::{
    BATCH_ALIGN, Entry, HEADER_BYTES, Header, Kind, Layout, Position, RECORD_ALIGN, RecordKey, Tombstone,
    encode_segment_header, encode_tombstones,
};
use crate::env::{Access, Disk, DiskFile};

/// The file of segment `number` in the directory of segments.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.seg"))
}

/// The number in a segment's file name.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok().filter(|number| *number > 0) } else { None }
}

/// What every segment of a target shares.
#[derive(Debug, Clone)]
pub(super) struct SegmentHome {
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) uuid: [u8; 16],
    pub(super) realm: RealmId,
    pub(super) key: RecordKey,
    /// Try to write past the page cache.
    pub(super) direct: bool,
}

impl SegmentHome {
    /// Opens a segment for writing, past the page cache where the file system has that. Some accept the flag and
    /// refuse the write, so the first block is written once more as it is.
    fn open_for_writing(&self, path: &Path, first_block: &AlignedBuf) -> io::Result<Arc<dyn DiskFile>> {
        if self.direct {
            let file = self.disk.open(path, Access::Direct);
            let probed = file.and_then(|file| file.write_at(first_block.as_slice(), 0).map(|()| file));
            match probed {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                outcome => return outcome,
            }
        }
        self.disk.open(path, Access::Buffered)
    }

    fn first_block(&self, number: u64) -> AlignedBuf {
        let mut block = AlignedBuf::new(BATCH_ALIGN as usize);
        block.extend(&encode_segment_header(&self.key, &self.uuid, self.realm, number));
        block
    }
}

/// The segment that takes writes.
#[derive(Debug)]
pub(super) struct ActiveSegment {
    file: Arc<dyn DiskFile>,
    number: u64,
    end: u64,
    entries: Vec<LogEntry>,
}

impl ActiveSegment {
    /// Creates segment `number`; durable on return.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn create(home: &SegmentHome, number: u64) -> io::Result<Self> {
        let path = segment_path(&home.dir, number);
        let block = home.first_block(number);
        let file = home.disk.create(&path, Access::Buffered)?;
        file.write_at(block.as_slice(), 0)?;
        file.sync()?;
        home.disk.sync_dir(&home.dir)?;
        drop(file);
        Ok(Self {
            file: home.open_for_writing(&path, &block)?,
            number,
            end: BATCH_ALIGN,
            entries: Vec::new(),
        })
    }

    /// Goes on with an unsealed segment whose next batch belongs at `end`, where it is cut.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn resume(
        home: &SegmentHome,
        number: u64,
        end: u64,
        entries: Vec<LogEntry>,
    ) -> io::Result<Self> {
        let file = home.open_for_writing(&segment_path(&home.dir, number), &home.first_block(number))?;
        if file.len()? != end {
            file.set_len(end)?;
            file.sync()?;
        }
        Ok(Self { file, number, end, entries })
    }

    /// Where the next batch will begin; everything before it is durable.
    pub(super) fn end(&self) -> Position {
        Position::new(self.number, self.end)
    }

    /// Whether a batch of `bytes` with `entries` entries belongs into the next segment.
    pub(super) fn is_full_for(&self, bytes: usize, entries: usize, segment_bytes: u64) -> bool {
        self.end > BATCH_ALIGN
            && (self.end + bytes as u64 > segment_bytes || self.entries.len() + entries > ENTRIES_MAX)
    }

    /// Writes `batch` and makes it durable. After an error nothing more may be written to this target: what the device
    /// holds is not known.
    ///
    /// # Errors
    /// When the write or the sync fails.
    pub(super) fn commit(&mut self, batch: &mut Batch, key: &RecordKey) -> io::Result<()> {
        batch.finish(key);
        assert_eq!(batch.start, self.end(), "a batch goes where it was built for");
        self.file.write_at(batch.buf.as_slice(), self.end)?;
        self.file.sync()?;
        self.end += batch.buf.len() as u64;
        self.entries.append(&mut batch.entries);
        Ok(())
    }

    /// Writes the footer and starts the next segment.
    ///
    /// # Errors
    /// When the disk refuses; as with [`Self::commit`], nothing more may be written then.
    pub(super) fn roll(self, home: &SegmentHome) -> io::Result<Self> {
        let entries = encode_entries(&self.entries);
        let meta_len = u32::try_from(entries.len()).expect("a footer is bounded by ENTRIES_MAX");
        let at = self.end();
        let header = Header {
            kind: Kind::Footer,
            last_of_batch: true,
            at,
            batch: at.offset,
            meta_len,
            payload_len: 0,
        };
        let mut buf = AlignedBuf::new(HEADER_BYTES + entries.len() + TRAILER_BYTES);
        buf.extend(&header.encode(&home.key, &entries));
        buf.extend(&entries);
        buf.extend(&vec![0; buf.capacity() - buf.len() - TRAILER_BYTES]);
        buf.extend(&encode_trailer(&home.key, at, meta_len));
        self.file.write_at(buf.as_slice(), self.end)?;
        self.file.sync()?;
        Self::create(home, self.number + 1)
    }
}

/// Records on their way into one write.
#[derive(Debug)]
pub(super) struct Batch {
    buf: AlignedBuf,
    start: Position,
    entries: Vec<LogEntry>,
    last: Option<(usize, Header)>,
}

impl Batch {
    /// An empty batch with room for `capacity` bytes, padding included.
    pub(super) fn new(capacity: usize) -> Self {
        Self { buf: AlignedBuf::new(capacity), start: Position::default(), entries: Vec::new(), last: None }
    }

    /// Empties it; the next record will lie at `start`.
    pub(super) fn restart(&mut self, start: Position) {
        self.buf.clear();
        self.entries.clear();
        self.last = None;
        self.start = start;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Bytes so far, without padding.
    pub(super) fn len(&self) -> usize {
        self.buf.len()
    }

    /// Entries so far.
    pub(super) fn entries(&self) -> &[LogEntry] {
        &self.entries
    }

    /// Whether `bytes` more bytes of whole records fit.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        align_up(self.buf.len() + bytes) <= self.buf.capacity()
    }

    /// Appends a shard; returns where it will be.
    pub(super) fn push_shard(
        &mut self,
        key: &RecordKey,
        shard: ShardId,
        layout: Layout,
        meta: &[u8],
        data: &[u8],
    ) -> Entry {
        let entry = self.push(key, Kind::Shard, meta, data).entry(layout);
        self.entries.push(LogEntry::Live(shard, entry));
        entry
    }

    /// Appends one record that kills everything these shards have before it.
    pub(super) fn push_tombstones(&mut self, key: &RecordKey, shards: &[ShardId]) {
        let before = self.next();
        let tombstones: Vec<_> = shards.iter().map(|shard| Tombstone { shard: *shard, before }).collect();
        self.push(key, Kind::Tombstones, &encode_tombstones(&tombstones), &[]);
        self.entries.extend(tombstones.into_iter().map(LogEntry::Dead));
    }

    /// Appends tombstones that were elsewhere before, with the positions from which they kill.
    pub(super) fn push_old_tombstones(&mut self, key: &RecordKey, tombstones: &[Tombstone]) {
        self.push(key, Kind::Tombstones, &encode_tombstones(tombstones), &[]);
        self.entries.extend(tombstones.iter().copied().map(LogEntry::Dead));
    }

    fn next(&self) -> Position {
        Position::new(self.start.segment, self.start.offset + self.buf.len() as u64)
    }

    fn push(&mut self, key: &RecordKey, kind: Kind, meta: &[u8], payload: &[u8]) -> Header {
        let header = Header {
            kind,
            last_of_batch: false,
            at: self.next(),
            batch: self.start.offset,
            meta_len: u32::try_from(meta.len()).expect("the caller bounds meta by META_BYTES_MAX"),
            payload_len: u32::try_from(payload.len()).expect("the caller bounds data by SHARD_BYTES_MAX"),
        };
        self.last = Some((self.buf.len(), header));
        self.buf.extend(&header.encode(key, meta));
        self.buf.extend(meta);
        self.buf.extend(payload);
        self.buf.pad_to(RECORD_ALIGN);
        header
    }

    /// Marks the last record as such and pads to whole blocks.
    fn finish(&mut self, key: &RecordKey) {
        let Some((at, mut header)) = self.last else { return };
        header.last_of_batch = true;
        let (fixed, rest) = self.buf.as_mut_slice()[at..].split_at_mut(HEADER_BYTES);
        fixed.copy_from_slice(&header.encode(key, &rest[..header.meta_len as usize]));
        self.buf.pad_to(BATCH_ALIGN as usize);
    }
}
