//! The bytes of segment headers and records: pure encoding and decoding (day 1; docs/formats/segment.md).
//!
//! A record says in its own header where it lies, so bytes that survive from elsewhere are never taken for one, and
//! its hash is keyed by the target's uuid, so a stored body cannot contain what a scan would take for a record.

use holdfast_proto::data::ShardMeta;
use holdfast_proto::id::{RealmId, ShardId};
use holdfast_proto::v1::Scheme;

use crate::env::DIRECT_ALIGN;

/// Version of everything described here.
pub(super) const FORMAT: u8 = 1;
/// A segment's first record and every batch begin at a multiple of this many bytes.
pub(super) const BATCH_ALIGN: u64 = DIRECT_ALIGN as u64;
/// Bytes of a record before its meta.
pub(super) const HEADER_BYTES: usize = 72;
/// Records begin at multiples of this within their batch.
pub(super) const RECORD_ALIGN: usize = 8;
/// Longest meta of a shard or tombstone record, bytes: a key, headers and 16 block hashes are far below it.
pub(super) const META_BYTES_MAX: usize = 128 << 10;
/// Longest meta of a footer, bytes.
pub(super) const FOOTER_BYTES_MAX: usize = 64 << 20;
/// Bytes of one tombstone in a tombstone record.
pub(super) const TOMBSTONE_BYTES: usize = ShardId::LEN + 16;

const SEGMENT_MAGIC: [u8; 8] = *b"HFSEGMNT";
const RECORD_MAGIC: [u8; 4] = *b"HFRC";
const SEGMENT_HEADER_HASHED: usize = 64;
const HEADER_HASHED: usize = 40;
const KEY_CONTEXT: &str = "holdfast 2026 segment records v1";

/// A place in a target's log. Later records have greater positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Position {
    /// The segment's number, from 1.
    pub(super) segment: u64,
    /// The byte in the segment.
    pub(super) offset: u64,
}

impl Position {
    pub(super) fn new(segment: u64, offset: u64) -> Self {
        Self { segment, offset }
    }
}

/// Where a shard belongs: its placement group, and how its stripe is spread. A copy of what its record's meta says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Layout {
    pg: u32,
    codec: u8,
    data: u8,
    parity: u8,
}

impl Layout {
    /// Bytes of [`Self::encode`].
    pub(super) const LEN: usize = 7;

    /// Of a shard that is to be stored; `None` when its scheme does not fit.
    pub(super) fn of(meta: &ShardMeta) -> Option<Self> {
        let scheme = meta.scheme.as_ref()?;
        Some(Self {
            pg: meta.pg,
            codec: scheme.codec.try_into().ok()?,
            data: scheme.data.try_into().ok()?,
            parity: scheme.parity.try_into().ok()?,
        })
    }

    /// Of a shard that is stored: a scheme that does not fit is not known, which costs it nothing else.
    pub(super) fn of_stored(meta: &ShardMeta) -> Self {
        Self::of(meta).unwrap_or(Self { pg: meta.pg, ..Self::default() })
    }

    pub(super) fn pg(&self) -> u32 {
        self.pg
    }

    /// `None` when it is not known.
    pub(super) fn scheme(&self) -> Option<Scheme> {
        let (codec, data, parity) = (self.codec.into(), self.data.into(), self.parity.into());
        if self.data == 0 { None } else { Some(Scheme { codec, data, parity }) }
    }

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let [a, b, c, d] = self.pg.to_be_bytes();
        [a, b, c, d, self.codec, self.data, self.parity]
    }

    /// From the first bytes of `bytes`, which the caller has bounded.
    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self { pg: u32_at(bytes, 0), codec: bytes[4], data: bytes[5], parity: bytes[6] }
    }
}

/// Where a shard is, what must be read for it, and where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of the record.
    pub(super) at: Position,
    /// Bytes of the record's meta.
    pub(super) meta_len: u32,
    /// Bytes of the shard's data.
    pub(super) length: u32,
    pub(super) layout: Layout,
}

impl Entry {
    /// Offset of the shard's data in the segment.
    pub(super) fn data_offset(&self) -> u64 {
        self.at.offset + HEADER_BYTES as u64 + u64::from(self.meta_len)
    }
}

/// A deletion: every record of `shard` before `before` is dead. The position is the tombstone's own when it is written
/// and goes with it when compaction copies it, so that a copy never kills what was stored again in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tombstone {
    pub(super) shard: ShardId,
    pub(super) before: Position,
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Meta: a `ShardMeta`. Payload: the shard's data.
    Shard = 1,
    /// Meta: [`Tombstone`]s. No payload.
    Tombstones = 2,
    /// Meta: the segment's entries without their layouts, as they were once written. No payload. Seals the segment, which
    /// has to be scanned.
    BareFooter = 3,
    /// Meta: the segment's entries. No payload. Seals the segment.
    Footer = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Shard),
            2 => Some(Self::Tombstones),
            3 => Some(Self::BareFooter),
            4 => Some(Self::Footer),
            _ => None,
        }
    }

    fn meta_bytes_max(self) -> usize {
        match self {
            Self::Shard | Self::Tombstones => META_BYTES_MAX,
            Self::BareFooter | Self::Footer => FOOTER_BYTES_MAX,
        }
    }

    /// Whether a segment ends with it.
    pub(super) fn seals(self) -> bool {
        matches!(self, Self::BareFooter | Self::Footer)
    }
}

/// Hashes headers of one target.
#[derive(Debug, Clone)]
pub(super) struct RecordKey([u8; 32]);

impl RecordKey {
    pub(super) fn of_target(uuid: &[u8; 16]) -> Self {
        Self(blake3::derive_key(KEY_CONTEXT, uuid))
    }

    pub(super) fn hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }
}

/// The first block of a segment.
pub(super) fn encode_segment_header(
    key: &RecordKey,
    uuid: &[u8; 16],
    realm: RealmId,
    number: u64,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(DIRECT_ALIGN);
    out.extend_from_slice(&SEGMENT_MAGIC);
    out.extend_from_slice(&u32::from(FORMAT).to_be_bytes());
    out.extend_from_slice(&(DIRECT_ALIGN as u32).to_be_bytes());
    out.extend_from_slice(uuid);
    out.extend_from_slice(realm.as_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    out.resize(SEGMENT_HEADER_HASHED, 0);
    let hash = key.hash(&[&out]);
    out.extend_from_slice(&hash);
    out.resize(DIRECT_ALIGN, 0);
    out
}

/// Whether `block` is the first block of segment `number` of the target that `key` belongs to.
pub(super) fn is_segment_header(key: &RecordKey, number: u64, block: &[u8]) -> bool {
    let (Some(hashed), Some(hash)) =
        (block.get(..SEGMENT_HEADER_HASHED), block.get(SEGMENT_HEADER_HASHED..96))
    else {
        return false;
    };
    hashed.starts_with(&SEGMENT_MAGIC)
        && u32_at(hashed, 8) == u32::from(FORMAT)
        && u64_at(hashed, 48) == number
        && key.hash(&[hashed]) == hash
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// No record of the same batch follows.
    pub(super) last_of_batch: bool,
    pub(super) at: Position,
    /// Offset in the segment at which the record's batch begins.
    pub(super) batch: u64,
    pub(super) meta_len: u32,
    pub(super) payload_len: u32,
}

impl Header {
    /// The header's bytes, hash included, over `meta`.
    pub(super) fn encode(&self, key: &RecordKey, meta: &[u8]) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[4] = FORMAT;
        out[5] = self.kind as u8;
        out[6] = u8::from(self.last_of_batch);
        out[8..16].copy_from_slice(&self.at.segment.to_be_bytes());
        out[16..24].copy_from_slice(&self.at.offset.to_be_bytes());
        out[24..32].copy_from_slice(&self.batch.to_be_bytes());
        out[32..36].copy_from_slice(&self.meta_len.to_be_bytes());
        out[36..40].copy_from_slice(&self.payload_len.to_be_bytes());
        let hash = key.hash(&[&out[..HEADER_HASHED], meta]);
        out[HEADER_HASHED..].copy_from_slice(&hash);
        out
    }

    /// Reads the fields of a header that claims to lie at `at`; `None` when it does not look like one. What it says is
    /// true only once [`Self::is_proven`].
    pub(super) fn parse(bytes: &[u8], at: Position) -> Option<Self> {
        if bytes.len() < HEADER_BYTES
            || !bytes.starts_with(&RECORD_MAGIC)
            || bytes[4] != FORMAT
            || bytes[6] > 1
        {
            return None;
        }
        let header = Self {
            kind: Kind::from_byte(bytes[5])?,
            last_of_batch: bytes[6] == 1,
            at: Position::new(u64_at(bytes, 8), u64_at(bytes, 16)),
            batch: u64_at(bytes, 24),
            meta_len: u32_at(bytes, 32),
            payload_len: u32_at(bytes, 36),
        };
        let fits = header.at == at
            && header.batch <= at.offset
            && header.batch.is_multiple_of(BATCH_ALIGN)
            && header.meta_len as usize <= header.kind.meta_bytes_max()
            && header.payload_len as usize <= holdfast_proto::limits::SHARD_BYTES_MAX;
        fits.then_some(header)
    }

    /// Whether `bytes` (the header) and `meta` match the header's hash.
    pub(super) fn is_proven(bytes: &[u8], meta: &[u8], key: &RecordKey) -> bool {
        key.hash(&[&bytes[..HEADER_HASHED], meta]) == bytes[HEADER_HASHED..HEADER_BYTES]
    }

    /// Offset in the segment of the first byte after the record and its padding.
    pub(super) fn end(&self) -> u64 {
        self.at.offset + record_bytes(self.meta_len as usize, self.payload_len as usize) as u64
    }

    /// Where the next record must begin.
    pub(super) fn next(&self) -> u64 {
        if self.last_of_batch { self.end().next_multiple_of(BATCH_ALIGN) } else { self.end() }
    }

    /// Of the record of a shard with this layout.
    pub(super) fn entry(&self, layout: Layout) -> Entry {
        Entry { at: self.at, meta_len: self.meta_len, length: self.payload_len, layout }
    }

    /// Whether this is the record that `entry` names.
    pub(super) fn is_of(&self, entry: &Entry) -> bool {
        self.kind == Kind::Shard && *entry == self.entry(entry.layout)
    }
}

/// Bytes of a record with its padding.
pub(super) fn record_bytes(meta_len: usize, payload_len: usize) -> usize {
    (HEADER_BYTES + meta_len + payload_len).next_multiple_of(RECORD_ALIGN)
}

/// The meta of a tombstone record.
pub(super) fn encode_tombstones(tombstones: &[Tombstone]) -> Vec<u8> {
    let mut out = Vec::with_capacity(tombstones.len() * TOMBSTONE_BYTES);
    for tombstone in tombstones {
        out.extend_from_slice(&tombstone.shard.to_bytes());
        out.extend_from_slice(&tombstone.before.segment.to_be_bytes());
        out.extend_from_slice(&tombstone.before.offset.to_be_bytes());
    }
    out
}

/// The tombstones of a proven record; `None` when the meta is not whole tombstones.
pub(super) fn decode_tombstones(meta: &[u8]) -> Option<Vec<Tombstone>> {
    if !meta.len().is_multiple_of(TOMBSTONE_BYTES) {
        return None;
    }
    meta.chunks_exact(TOMBSTONE_BYTES)
        .map(|chunk| {
            let shard = ShardId::from_slice(&chunk[..ShardId::LEN]).ok()?;
            let before = Position::new(u64_at(chunk, ShardId::LEN), u64_at(chunk, ShardId::LEN + 8));
            Some(Tombstone { shard, before })
        })
        .collect()
}

/// The big-endian u32 at `at`, which the caller has bounded.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(raw)
}

/// The big-endian u64 at `at`, which the caller has bounded.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(raw)
}

const _: () = assert!(DIRECT_ALIGN.is_multiple_of(RECORD_ALIGN), "a batch begins where a record may");
