//! Row keys (day 1): three letters (two for `gc`) and `|`, then fixed-width big-endian integers and ids, and object keys
//! escaped so that rows sort as S3 sorts keys.
//!
//! Escape: a byte 00 becomes 00 FF, and 00 01 ends the key. A key therefore sorts before its own extensions, and the
//! rows of all keys with a prefix are exactly the rows that start with the escaped prefix.
//! docs/formats/rows.md lists every row.

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{AccountId, BucketId, RequestId, Slot, UploadId, VersionId, WriteId, ZoneId};

/// A row's family: its letters and the bar.
pub(crate) type Family = &'static [u8];

pub(crate) const BKT: Family = b"bkt|";
pub(crate) const DRP: Family = b"drp|";
pub(crate) const CUR: Family = b"cur|";
pub(crate) const VER: Family = b"ver|";
pub(crate) const UPL: Family = b"upl|";
pub(crate) const PRT: Family = b"prt|";
pub(crate) const WRT: Family = b"wrt|";
pub(crate) const GC: Family = b"gc|";
pub(crate) const MIS: Family = b"mis|";
pub(crate) const REQ: Family = b"req|";
pub(crate) const CNT: Family = b"cnt|";
pub(crate) const RLM: Family = b"rlm|";
pub(crate) const ACC: Family = b"acc|";
pub(crate) const KEY: Family = b"key|";
pub(crate) const BKN: Family = b"bkn|";
pub(crate) const BKI: Family = b"bki|";
pub(crate) const BKO: Family = b"bko|";
pub(crate) const ZON: Family = b"zon|";
pub(crate) const NOD: Family = b"nod|";
pub(crate) const TGT: Family = b"tgt|";
pub(crate) const PGS: Family = b"pgs|";
pub(crate) const CLS: Family = b"cls|";
pub(crate) const GRP: Family = b"grp|";
pub(crate) const SLT: Family = b"slt|";
pub(crate) const EVT: Family = b"evt|";

/// Bytes of (bucket, slot) after the letters.
const PLACE_LEN: usize = 18;

/// Where a key of a bucket lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot<'a> {
    pub(crate) bucket: BucketId,
    pub(crate) slot: Slot,
    pub(crate) key: &'a [u8],
}

/// Appends `raw`, escaped, without the terminator.
pub(crate) fn escape(out: &mut Vec<u8>, raw: &[u8]) {
    out.reserve(raw.len() + 2);
    for &byte in raw {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
}

/// Appends `raw`, escaped and terminated.
pub(crate) fn escape_key(out: &mut Vec<u8>, raw: &[u8]) {
    escape(out, raw);
    out.extend_from_slice(&[0, 1]);
}

/// Splits an escaped and terminated key off the front: the raw key and what follows. `None` when it is malformed.
pub(crate) fn unescape_key(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut raw = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        let zero = rest.iter().position(|&byte| byte == 0)?;
        raw.extend_from_slice(&rest[..zero]);
        match rest.get(zero + 1)? {
            0x01 => return Some((raw, &rest[zero + 2..])),
            0xff => raw.push(0),
            _ => return None,
        }
        rest = &rest[zero + 2..];
    }
}

/// The first row key after every key that starts with `prefix`. Families are letters, so there always is one.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// `family|bucket`.
pub(crate) fn of_bucket(family: Family, bucket: BucketId) -> Vec<u8> {
    let mut out = Vec::with_capacity(family.len() + 16);
    out.extend_from_slice(family);
    out.extend_from_slice(bucket.as_bytes());
    out
}

/// `family|bucket|slot`: counters, and the start of every row of a slot.
pub(crate) fn of_slot(family: Family, bucket: BucketId, slot: Slot) -> Vec<u8> {
    let mut out = Vec::with_capacity(family.len() + PLACE_LEN + 48);
    out.extend_from_slice(family);
    out.extend_from_slice(bucket.as_bytes());
    out.extend_from_slice(&slot.to_be_bytes());
    out
}

/// `family|bucket|slot|key`: the `cur` row, and the start of the `ver` and `upl` rows of a key.
pub(crate) fn of_key(family: Family, spot: Spot<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(family.len() + PLACE_LEN + spot.key.len() + 18);
    out.extend_from_slice(family);
    out.extend_from_slice(spot.bucket.as_bytes());
    out.extend_from_slice(&spot.slot.to_be_bytes());
    escape_key(&mut out, spot.key);
    out
}

/// What follows the key in a `ver` row: newest first, and at one instant the lower zone first.
pub(crate) fn version_suffix(version: VersionId) -> [u8; 10] {
    let mut out = [0; 10];
    out[..8].copy_from_slice(&(!version.hlc.get()).to_be_bytes());
    out[8..].copy_from_slice(&version.zone.to_be_bytes());
    out
}

/// The version of [`version_suffix`].
pub(crate) fn parse_version_suffix(suffix: &[u8]) -> Option<VersionId> {
    let [a, b, c, d, e, f, g, h, i, j] = <[u8; 10]>::try_from(suffix).ok()?;
    let hlc = Hlc::from_u64(!u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    Some(VersionId::new(hlc, ZoneId::from_be_bytes([i, j])))
}

/// `ver|bucket|slot|key|!hlc|zone`.
pub(crate) fn version(spot: Spot<'_>, version: VersionId) -> Vec<u8> {
    let mut out = of_key(VER, spot);
    out.extend_from_slice(&version_suffix(version));
    out
}

/// `upl|bucket|slot|key|upload`.
pub(crate) fn upload(spot: Spot<'_>, upload: UploadId) -> Vec<u8> {
    let mut out = of_key(UPL, spot);
    out.extend_from_slice(&upload.to_bytes());
    out
}

/// `prt|bucket|slot|upload`: the start of the rows of an upload's parts.
pub(crate) fn parts(bucket: BucketId, slot: Slot, upload: UploadId) -> Vec<u8> {
    let mut out = of_slot(PRT, bucket, slot);
    out.extend_from_slice(&upload.to_bytes());
    out
}

/// `prt|bucket|slot|upload|part`: the start of the row of a part.
pub(crate) fn part(bucket: BucketId, slot: Slot, upload: UploadId, part: u16) -> Vec<u8> {
    let mut out = parts(bucket, slot, upload);
    out.extend_from_slice(&part.to_be_bytes());
    out
}

/// `prt|bucket|slot|upload|part|attempt`; the attempt is the HLC of its commit.
pub(crate) fn part_attempt(
    bucket: BucketId,
    slot: Slot,
    upload: UploadId,
    number: u16,
    attempt: Hlc,
) -> Vec<u8> {
    let mut out = part(bucket, slot, upload, number);
    out.extend_from_slice(&attempt.to_be_bytes());
    out
}

/// (upload, part, attempt) of a `prt` row key.
pub(crate) fn parse_part(row_key: &[u8]) -> Option<(UploadId, u16, Hlc)> {
    let rest = row_key.get(PRT.len() + PLACE_LEN..)?;
    let (upload, rest) = rest.split_at_checked(16)?;
    let [p, q, a, b, c, d, e, f, g, h] = <[u8; 10]>::try_from(rest).ok()?;
    let attempt = Hlc::from_be_bytes([a, b, c, d, e, f, g, h]);
    Some((UploadId::from_wire(upload).ok()?, u16::from_be_bytes([p, q]), attempt))
}

/// (bucket, slot, the rest) of a row key of `family`.
pub(crate) fn parse_place(family: Family, row_key: &[u8]) -> Option<(BucketId, Slot, &[u8])> {
    let rest = row_key.strip_prefix(family)?;
    let (bucket, rest) = rest.split_at_checked(16)?;
    let (slot, rest) = rest.split_at_checked(2)?;
    Some((BucketId::from_wire(bucket).ok()?, Slot::from_be_bytes(slot.try_into().ok()?), rest))
}

/// `wrt|bucket|slot|write` and `mis|bucket|slot|write`.
pub(crate) fn of_write(family: Family, bucket: BucketId, slot: Slot, write: WriteId) -> Vec<u8> {
    let mut out = of_slot(family, bucket, slot);
    out.extend_from_slice(write.as_bytes());
    out
}

/// `gc|bucket|slot|due|write`.
pub(crate) fn garbage(bucket: BucketId, slot: Slot, due: Hlc, write: WriteId) -> Vec<u8> {
    let mut out = of_slot(GC, bucket, slot);
    out.extend_from_slice(&due.to_be_bytes());
    out.extend_from_slice(write.as_bytes());
    out
}

/// `req|hlc|request id`; the HLC is that of the first attempt.
pub(crate) fn request(first_attempt: Hlc, request: RequestId) -> Vec<u8> {
    let mut out = request_floor(first_attempt);
    out.extend_from_slice(request.as_bytes());
    out
}

/// The start of the `req` rows at `hlc`.
pub(crate) fn request_floor(hlc: Hlc) -> Vec<u8> {
    let mut out = Vec::with_capacity(REQ.len() + 24);
    out.extend_from_slice(REQ);
    out.extend_from_slice(&hlc.to_be_bytes());
    out
}

/// `family|` and a number or an id.
pub(crate) fn of_id(family: Family, id: &[u8]) -> Vec<u8> {
    [family, id].concat()
}

/// `family|text`, escaped and terminated.
pub(crate) fn of_text(family: Family, text: &str) -> Vec<u8> {
    let mut out = family.to_vec();
    escape_key(&mut out, text.as_bytes());
    out
}

/// `bko|owner|name`: the buckets of an account by name.
pub(crate) fn bucket_of_owner(owner: AccountId, name: &str) -> Vec<u8> {
    let mut out = of_id(BKO, owner.as_bytes());
    escape_key(&mut out, name.as_bytes());
    out
}

#[cfg(test)]
#[path = "key_test.rs"]
mod tests;
