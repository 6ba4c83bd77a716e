//! The index at the end of a sealed segment: a footer record with one entry for each shard and tombstone, in log order,
//! and a trailer in the segment's last bytes that says where it is. Both are hashed; a segment without a proven trailer
//! and footer is scanned instead, and so is one whose footer is of the kind that named no layouts.

use std::io;

use holdfast_proto::id::ShardId;

use super::record::{
    Entry, FOOTER_BYTES_MAX, HEADER_BYTES, Header, Kind, Layout, Position, RecordKey, Tombstone, u32_at,
    u64_at,
};
use crate::env::DiskFile;

/// Bytes of one entry.
pub(super) const ENTRY_BYTES: usize = LAYOUT_AT + Layout::LEN;
/// Bytes of the trailer: the last of the segment.
pub(super) const TRAILER_BYTES: usize = 64;
/// Entries after which a segment is sealed however small it is: bounds the footer and the memory that collects it.
pub(super) const ENTRIES_MAX: usize = 1 << 18;

/// Where in an entry the layout is.
const LAYOUT_AT: usize = 1 + ShardId::LEN + 16;
const TRAILER_MAGIC: [u8; 8] = *b"HFSEGEND";
const TRAILER_HASHED: usize = 32;

/// One thing a segment says about a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogEntry {
    /// It is here.
    Live(ShardId, Entry),
    /// It was deleted.
    Dead(Tombstone),
}

impl LogEntry {
    /// Whom it is about.
    pub(super) fn shard(&self) -> ShardId {
        match self {
            Self::Live(shard, _) => *shard,
            Self::Dead(tombstone) => tombstone.shard,
        }
    }
}

/// The meta of a footer record.
pub(super) fn encode_entries(entries: &[LogEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for entry in entries {
        match entry {
            LogEntry::Live(shard, entry) => {
                out.push(Kind::Shard as u8);
                out.extend_from_slice(&shard.to_bytes());
                out.extend_from_slice(&entry.at.offset.to_be_bytes());
                out.extend_from_slice(&entry.meta_len.to_be_bytes());
                out.extend_from_slice(&entry.length.to_be_bytes());
                out.extend_from_slice(&entry.layout.encode());
            }
            LogEntry::Dead(tombstone) => {
                out.push(Kind::Tombstones as u8);
                out.extend_from_slice(&tombstone.shard.to_bytes());
                out.extend_from_slice(&tombstone.before.segment.to_be_bytes());
                out.extend_from_slice(&tombstone.before.offset.to_be_bytes());
                out.extend_from_slice(&[0; Layout::LEN]);
            }
        }
    }
    out
}

fn decode_entries(meta: &[u8], segment: u64) -> Option<Vec<LogEntry>> {
    if !meta.len().is_multiple_of(ENTRY_BYTES) {
        return None;
    }
    meta.chunks_exact(ENTRY_BYTES)
        .map(|chunk| {
            let shard = ShardId::from_slice(&chunk[1..=ShardId::LEN]).ok()?;
            let rest = &chunk[1 + ShardId::LEN..];
            match chunk[0] {
                kind if kind == Kind::Shard as u8 => {
                    let entry = Entry {
                        at: Position::new(segment, u64_at(rest, 0)),
                        meta_len: u32_at(rest, 8),
                        length: u32_at(rest, 12),
                        layout: Layout::decode(&chunk[LAYOUT_AT..]),
                    };
                    Some(LogEntry::Live(shard, entry))
                }
                kind if kind == Kind::Tombstones as u8 => Some(LogEntry::Dead(Tombstone {
                    shard,
                    before: Position::new(u64_at(rest, 0), u64_at(rest, 8)),
                })),
                _ => None,
            }
        })
        .collect()
}

/// The trailer of a footer record at `footer` with `meta_len` bytes of entries.
pub(super) fn encode_trailer(key: &RecordKey, footer: Position, meta_len: u32) -> [u8; TRAILER_BYTES] {
    let mut out = [0; TRAILER_BYTES];
    out[..8].copy_from_slice(&TRAILER_MAGIC);
    out[8..16].copy_from_slice(&footer.segment.to_be_bytes());
    out[16..24].copy_from_slice(&footer.offset.to_be_bytes());
    out[24..28].copy_from_slice(&meta_len.to_be_bytes());
    let hash = key.hash(&[&out[..TRAILER_HASHED]]);
    out[TRAILER_HASHED..].copy_from_slice(&hash);
    out
}

/// What the end of a segment says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// The segment is sealed, and this is all that it says.
    Listed(Vec<LogEntry>),
    /// It is sealed with a whole footer of the old kind: a scan finds what it says.
    Bare,
    /// It is not sealed, or its footer is damaged.
    Unproven,
}

/// The end of segment `number`.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read_footer(file: &dyn DiskFile, number: u64, key: &RecordKey) -> io::Result<Seal> {
    let Some((at, meta_len)) = read_trailer(file, number, key)? else { return Ok(Seal::Unproven) };
    let mut bytes = Vec::new();
    let want = HEADER_BYTES + meta_len as usize;
    if file.read_at(&mut bytes, want, at.offset)? != want {
        return Ok(Seal::Unproven);
    }
    let (header, meta) = bytes.split_at(HEADER_BYTES);
    let kind = Header::parse(header, at)
        .filter(|parsed| parsed.meta_len == meta_len && Header::is_proven(header, meta, key))
        .map(|parsed| parsed.kind);
    Ok(match kind {
        Some(Kind::Footer) => decode_entries(meta, number).map_or(Seal::Unproven, Seal::Listed),
        Some(Kind::BareFooter) => Seal::Bare,
        _ => Seal::Unproven,
    })
}

/// Where the footer of segment `number` is and how long its meta; `None` when the segment has no proven trailer.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read_trailer(
    file: &dyn DiskFile,
    number: u64,
    key: &RecordKey,
) -> io::Result<Option<(Position, u32)>> {
    let Some(start) = file.len()?.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut trailer = Vec::new();
    if file.read_at(&mut trailer, TRAILER_BYTES, start)? != TRAILER_BYTES {
        return Ok(None);
    }
    let (at, meta_len) = (Position::new(u64_at(&trailer, 8), u64_at(&trailer, 16)), u32_at(&trailer, 24));
    let proven = trailer.starts_with(&TRAILER_MAGIC)
        && at.segment == number
        && meta_len as usize <= FOOTER_BYTES_MAX
        && key.hash(&[&trailer[..TRAILER_HASHED]]) == trailer[TRAILER_HASHED..];
    Ok(proven.then_some((at, meta_len)))
}

const _: () = assert!(ENTRIES_MAX * ENTRY_BYTES <= FOOTER_BYTES_MAX, "a full footer fits its record");
