//! Reading a segment that has no footer, record by record: the active one when a target opens, and any whose footer is
//! damaged.
//!
//! What a crash leaves: batches are fsynced one after the other, so only the last may be torn, in any of its blocks.
//! A torn batch was never acknowledged and is cut off whole. An unreadable place *before* the last batch is damage, not
//! a torn write: it is counted, and the scan goes on at the next record, which proves itself by its keyed hash and by
//! saying where it lies.

use std::collections::HashMap;
use std::io;

use holdfast_proto::data::ShardMeta;
use holdfast_proto::id::ShardId;
use prost::Message;

use super::footer::{LogEntry, read_trailer};
use super::read::bad_blocks;
use super::record::{
    BATCH_ALIGN, HEADER_BYTES, Header, Kind, Layout, Position, RECORD_ALIGN, RecordKey, decode_tombstones,
};
use crate::env::DiskFile;

/// Bytes read at once; payloads longer than this are skipped without reading them.
const WINDOW_BYTES: usize = 64 << 10;

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// What the segment says, in log order.
    pub(super) entries: Vec<LogEntry>,
    /// Where the next batch belongs: a multiple of [`BATCH_ALIGN`]. Bytes from here on are of a torn batch.
    pub(super) end: u64,
    /// Unreadable places before the last batch.
    pub(super) damaged: u64,
    /// The segment has a proven footer record and takes no more.
    pub(super) sealed: bool,
}

/// Scans segment `number`. Everything below `synced` is known to have been fsynced, so what is wrong there is damage;
/// with `u64::MAX` nothing is taken for torn.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn scan(file: &dyn DiskFile, number: u64, key: &RecordKey, synced: u64) -> io::Result<Scanned> {
    let len = file.len()?;
    let mut window = Window { file, len, start: 0, bytes: Vec::new() };
    let mut found: Vec<Found> = Vec::new();
    let mut gaps: Vec<u64> = Vec::new();
    let mut sealed = false;
    let mut at = BATCH_ALIGN;
    while at < len {
        if let Some(record) = window.record(Position::new(number, at), key)? {
            at = record.header.next();
            sealed = record.header.kind.seals();
            found.push(record);
            if sealed {
                break;
            }
            continue;
        }
        gaps.push(found.last().map_or(BATCH_ALIGN, |last| match last.header.last_of_batch {
            true => last.header.next(),
            false => last.header.batch,
        }));
        match window.find_record(at + RECORD_ALIGN as u64, number, key)? {
            Some(next) => at = next,
            None => break,
        }
    }

    let mut end = len.max(BATCH_ALIGN).next_multiple_of(BATCH_ALIGN);
    let sealed_whole = sealed && read_trailer(file, number, key)?.is_some();
    if let Some(torn) = torn_batch(file, &found, &gaps, sealed_whole)?.filter(|torn| *torn >= synced) {
        found.retain(|record| record.header.batch < torn);
        gaps.retain(|gap| *gap < torn);
        end = torn;
        sealed = false;
    }
    let entries = found.into_iter().flat_map(|record| record.entries).collect();
    Ok(Scanned { entries, end, damaged: gaps.len() as u64, sealed })
}

/// The start of the last batch, when it is not whole: a gap in it, no record that ends it, a footer without its trailer,
/// or a payload that does not match its hashes. The payload of a shard that the batch itself makes dead is not looked at: once the batch was
/// acknowledged its space may have been given back, and before that nobody misses it.
fn torn_batch(
    file: &dyn DiskFile,
    found: &[Found],
    gaps: &[u64],
    sealed_whole: bool,
) -> io::Result<Option<u64>> {
    let last = found.last();
    let newest = last.map(|record| record.header.batch).into_iter().chain(gaps.iter().copied()).max();
    let Some(newest) = newest else { return Ok(None) };
    let ended = sealed_whole
        || last.is_some_and(|record| {
            !record.header.kind.seals() && record.header.last_of_batch && record.header.batch == newest
        });
    if gaps.contains(&newest) || !ended {
        return Ok(Some(newest));
    }
    // From the last record on, so that what kills a record has been seen before it.
    let mut dead_before: HashMap<ShardId, Position> = HashMap::new();
    for record in found.iter().rev().take_while(|record| record.header.batch == newest) {
        let at = record.header.at;
        let is_dead = record
            .entries
            .iter()
            .all(|entry| dead_before.get(&entry.shard()).is_some_and(|before| at < *before));
        if !is_dead && !record.payload_is_whole(file)? {
            return Ok(Some(newest));
        }
        for entry in &record.entries {
            let before = match entry {
                LogEntry::Live(_, entry) => entry.at,
                LogEntry::Dead(tombstone) => tombstone.before,
            };
            let known = dead_before.entry(entry.shard()).or_default();
            *known = before.max(*known);
        }
    }
    Ok(None)
}

#[derive(Debug)]
struct Found {
    header: Header,
    entries: Vec<LogEntry>,
}

impl Found {
    fn payload_is_whole(&self, file: &dyn DiskFile) -> io::Result<bool> {
        if self.header.kind != Kind::Shard {
            return Ok(true);
        }
        let (meta_len, length) = (self.header.meta_len as usize, self.header.payload_len as usize);
        let mut bytes = Vec::new();
        let start = self.header.at.offset + HEADER_BYTES as u64;
        if file.read_at(&mut bytes, meta_len + length, start)? != meta_len + length {
            return Ok(false);
        }
        let (meta, data) = bytes.split_at(meta_len);
        Ok(ShardMeta::decode(meta).is_ok_and(|meta| bad_blocks(&meta.block_hashes, 0, data) == 0))
    }
}

/// A read-ahead over the file.
struct Window<'a> {
    file: &'a dyn DiskFile,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `len` bytes at `at`; fewer at the end of the file.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let have = self.start..self.start + self.bytes.len() as u64;
        let want_end = (at + len as u64).min(self.len);
        if at < have.start || want_end > have.end {
            self.bytes.clear();
            self.start = at;
            self.file.read_at(&mut self.bytes, len.max(WINDOW_BYTES), at)?;
        }
        let from = ((at - self.start) as usize).min(self.bytes.len());
        let to = (from + len).min(self.bytes.len());
        Ok(&self.bytes[from..to])
    }

    /// The proven record at `at`, if there is one.
    fn record(&mut self, at: Position, key: &RecordKey) -> io::Result<Option<Found>> {
        let Some(header) = Header::parse(self.bytes(at.offset, HEADER_BYTES)?, at) else { return Ok(None) };
        let size = HEADER_BYTES + header.meta_len as usize;
        if at.offset + (size as u64) + u64::from(header.payload_len) > self.len {
            return Ok(None);
        }
        let bytes = self.bytes(at.offset, size)?;
        if bytes.len() < size {
            return Ok(None);
        }
        let (fixed, meta) = bytes.split_at(HEADER_BYTES);
        if !Header::is_proven(fixed, meta, key) {
            return Ok(None);
        }
        Ok(entries_of(&header, meta).map(|entries| Found { header, entries }))
    }

    /// The first proven record at or after `from`.
    fn find_record(&mut self, from: u64, number: u64, key: &RecordKey) -> io::Result<Option<u64>> {
        let mut at = from;
        while at + (HEADER_BYTES as u64) <= self.len {
            let looks_like_one =
                Header::parse(self.bytes(at, HEADER_BYTES)?, Position::new(number, at)).is_some();
            if looks_like_one && self.record(Position::new(number, at), key)?.is_some() {
                return Ok(Some(at));
            }
            at += RECORD_ALIGN as u64;
        }
        Ok(None)
    }
}

/// What a proven record says; `None` when its meta does not decode.
fn entries_of(header: &Header, meta: &[u8]) -> Option<Vec<LogEntry>> {
    match header.kind {
        Kind::Shard => {
            let meta = ShardMeta::decode(meta).ok()?;
            let entry = header.entry(Layout::of_stored(&meta));
            Some(vec![LogEntry::Live(ShardId::from_slice(&meta.shard).ok()?, entry)])
        }
        Kind::Tombstones => Some(decode_tombstones(meta)?.into_iter().map(LogEntry::Dead).collect()),
        Kind::BareFooter | Kind::Footer => Some(Vec::new()),
    }
}
