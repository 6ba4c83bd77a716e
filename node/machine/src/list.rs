//! Listings: rows of several slots merged in the byte order of keys, with common prefixes skipped by seeking.
//!
//! `after` that equals a common prefix or lies inside it does not bring that prefix back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;
use holdfast_proto::id::{BucketId, Slot, UploadId, VersionId};
use holdfast_proto::limits::{KEY_BYTES_MAX, LIST_PAGE_MAX};
use holdfast_proto::meta::{
    Bucket, ListObjects, ListObjectsPage, ListUploads, ListUploadsPage, ListVersions, ListVersionsPage,
    Listed, ListedKey, ListedUpload, ListedVersion, Upload, Version,
};

use crate::key::{self, Family};
use crate::kv::{KvRead, Rows};
use crate::row::{self, Step};
use crate::{bucket, version, wire};

/// Rows under a common prefix that are read over before the rest is skipped by a seek.
const NEXT_BEFORE_SEEK: usize = 4;

/// Rows of a family of several slots in the order of what follows the slot: the escaped key, then what is after it.
struct Merge<'k, K> {
    kv: &'k K,
    slots: Vec<SlotRows<'k>>,
    /// (tail, index into `slots`, value), smallest first.
    heads: BinaryHeap<Reverse<(Bytes, usize, Bytes)>>,
    /// Rows whose tail starts with this are passed over.
    skipping: Option<Vec<u8>>,
}

struct SlotRows<'k> {
    /// `family|bucket|slot`.
    head: Vec<u8>,
    end: Vec<u8>,
    rows: Rows<'k>,
}

impl<'k, K: KvRead> Merge<'k, K> {
    /// Rows whose tail is at least `start` and starts with `prefix` (escaped).
    fn new(
        kv: &'k K,
        family: Family,
        id: BucketId,
        slots: &[Slot],
        start: &[u8],
        prefix: &[u8],
    ) -> Step<Self> {
        let mut merge = Self { kv, slots: Vec::new(), heads: BinaryHeap::new(), skipping: None };
        for &slot in slots {
            let head = key::of_slot(family, id, slot);
            let end = key::prefix_end(&[&head, prefix].concat());
            let rows = kv.scan(&[&head, start].concat(), &end);
            merge.slots.push(SlotRows { head, end, rows });
            merge.advance(merge.slots.len() - 1)?;
        }
        Ok(merge)
    }

    /// The next row's tail and value.
    fn next(&mut self) -> Step<Option<(Bytes, Bytes)>> {
        while let Some(Reverse((tail, slot, value))) = self.heads.pop() {
            self.advance(slot)?;
            if !self.skips(&tail) {
                return Ok(Some((tail, value)));
            }
        }
        Ok(None)
    }

    /// Passes over all rows of keys that start with `prefix`.
    fn skip(&mut self, prefix: &[u8]) {
        self.skipping = Some(escaped(prefix));
    }

    fn skips(&self, tail: &[u8]) -> bool {
        self.skipping.as_ref().is_some_and(|prefix| tail.starts_with(prefix))
    }

    fn advance(&mut self, index: usize) -> Step<()> {
        let mut passed = 0;
        loop {
            let slot = &mut self.slots[index];
            let Some(row) = slot.rows.next() else { return Ok(()) };
            let (key, value) = row?;
            let tail = key.slice(slot.head.len()..);
            let Some(prefix) = self.skipping.as_ref().filter(|prefix| tail.starts_with(prefix)) else {
                self.heads.push(Reverse((tail, index, value)));
                return Ok(());
            };
            passed += 1;
            if passed == NEXT_BEFORE_SEEK {
                let past = key::prefix_end(&[slot.head.as_slice(), prefix].concat());
                slot.rows = self.kv.scan(&past, &slot.end);
            }
        }
    }
}

/// What every listing asks.
struct Ask<'q> {
    prefix: &'q [u8],
    delimiter: &'q [u8],
    limit: usize,
}

impl Ask<'_> {
    /// The common prefix that `key` rolls up into.
    fn common_prefix<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        if self.delimiter.is_empty() {
            return None;
        }
        let rest = key.strip_prefix(self.prefix)?;
        let at = rest.windows(self.delimiter.len()).position(|window| window == self.delimiter)?;
        Some(&key[..self.prefix.len() + at + self.delimiter.len()])
    }

    /// The first tail of a listing that goes on after `marker`; `within` is the tail to start from when the marker is
    /// not inside a common prefix.
    fn start(&self, marker: &[u8], within: Vec<u8>) -> Vec<u8> {
        let start = escaped(self.prefix);
        if marker.is_empty() {
            return start;
        }
        let after = match self.common_prefix(marker) {
            Some(common) => {
                let end = key::prefix_end(&escaped(common));
                // Nothing sorts after a prefix of FF alone, except what is longer than any key.
                if end.is_empty() { vec![0xff; KEY_BYTES_MAX + 1] } else { end }
            }
            None => within,
        };
        start.max(after)
    }

    /// Walks the merged rows: each either rolls up into a common prefix or is given to `take` with its key and what
    /// follows it. Whether there is more than the limit.
    fn walk<K: KvRead>(
        &self,
        mut merge: Merge<'_, K>,
        mut take: impl FnMut(Vec<u8>, &[u8], Bytes) -> Step<()>,
        common_prefixes: &mut Vec<Bytes>,
    ) -> Step<bool> {
        let mut count = 0;
        if self.limit == 0 {
            return Ok(false);
        }
        while let Some((tail, value)) = merge.next()? {
            if count == self.limit {
                return Ok(true);
            }
            count += 1;
            let Some((key, suffix)) = key::unescape_key(&tail) else {
                return Err(row::corrupt(&tail, "no key").into());
            };
            match self.common_prefix(&key) {
                Some(common) => {
                    merge.skip(common);
                    common_prefixes.push(Bytes::copy_from_slice(common));
                }
                None => take(key, suffix, value)?,
            }
        }
        Ok(false)
    }
}

fn slots_of(bucket: &Bucket, asked: &[u32]) -> Step<Vec<Slot>> {
    let all = wire::slots(bucket)?;
    if asked.is_empty() {
        return Ok((0..all).map(Slot::new).collect());
    }
    let mut slots: Vec<Slot> = asked.iter().map(|&raw| wire::slot(raw)).collect::<Step<_>>()?;
    slots.sort_unstable();
    slots.dedup();
    Ok(slots)
}

fn escaped(prefix: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    key::escape(&mut out, prefix);
    out
}

/// The escaped key, then `suffix`, then the next possible row.
fn after_row(key: &[u8], suffix: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    key::escape_key(&mut out, key);
    out.extend_from_slice(suffix);
    out.push(0);
    out
}

/// Past every row of a key.
fn after_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    key::escape_key(&mut out, key);
    key::prefix_end(&out)
}

pub(crate) fn objects(kv: &impl KvRead, query: &ListObjects) -> Step<ListObjectsPage> {
    let id: BucketId = wire::id(&query.bucket)?;
    let bucket = bucket::find(kv, id)?;
    let slots = slots_of(&bucket, &query.slots)?;
    let limit = (query.limit as usize).min(LIST_PAGE_MAX);
    let ask = Ask { prefix: &query.prefix, delimiter: &query.delimiter, limit };
    let start = ask.start(&query.after, after_row(&query.after, &[]));
    let merge = Merge::new(kv, key::CUR, id, &slots, &start, &escaped(&query.prefix))?;
    let mut page = ListObjectsPage::default();
    let mut keys = Vec::with_capacity(limit.min(64));
    page.more = ask.walk(
        merge,
        |key, _, value| {
            let row: Listed = row::decode(&key, value)?;
            keys.push(ListedKey { key: key.into(), row: Some(row) });
            Ok(())
        },
        &mut page.common_prefixes,
    )?;
    page.keys = keys;
    let last_key = page.keys.last().map(|listed| listed.key.clone());
    page.last = last_key.max(page.common_prefixes.last().cloned()).unwrap_or_default();
    Ok(page)
}

pub(crate) fn versions(kv: &impl KvRead, query: &ListVersions) -> Step<ListVersionsPage> {
    let id: BucketId = wire::id(&query.bucket)?;
    let bucket = bucket::find(kv, id)?;
    let slots = slots_of(&bucket, &query.slots)?;
    let limit = (query.limit as usize).min(LIST_PAGE_MAX);
    let ask = Ask { prefix: &query.prefix, delimiter: &query.delimiter, limit };
    // A marker inside a key's versions: the newest of them was on an earlier page, unless it is younger than that page.
    let mut latest_of: Option<(&[u8], Option<VersionId>)> = None;
    let marker = &query.key_marker;
    let within = if marker.is_empty() || (query.version_marker.is_empty() && !query.version_marker_null) {
        after_key(marker)
    } else {
        let spot = wire::spot(id, &bucket, marker)?;
        let version = if query.version_marker_null {
            version::null(kv, &bucket, spot)?.map(|(id, _)| id)
        } else {
            Some(wire::id(&query.version_marker)?)
        };
        latest_of = Some((marker, version::newest(kv, spot)?.map(|(id, _)| id)));
        match version {
            Some(version) => after_row(marker, &key::version_suffix(version)),
            None => after_key(marker),
        }
    };
    let merge = Merge::new(kv, key::VER, id, &slots, &ask.start(marker, within), &escaped(&query.prefix))?;
    let mut page = ListVersionsPage::default();
    let mut listed: Vec<ListedVersion> = Vec::new();
    page.more = ask.walk(
        merge,
        |key, suffix, value| {
            let version_id =
                key::parse_version_suffix(suffix).ok_or_else(|| row::corrupt(&key, "no version id"))?;
            let row: Version = row::decode(&key, value)?;
            let latest = match latest_of {
                Some((of, newest)) if of == key => newest == Some(version_id),
                _ => listed.last().is_none_or(|before| before.key != key),
            };
            listed.push(ListedVersion {
                row: Some(version::listed(version_id, &row)),
                delete_marker: row.delete_marker,
                latest,
                key: key.into(),
            });
            Ok(())
        },
        &mut page.common_prefixes,
    )?;
    page.versions = listed;
    Ok(page)
}

pub(crate) fn uploads(kv: &impl KvRead, query: &ListUploads) -> Step<ListUploadsPage> {
    let id: BucketId = wire::id(&query.bucket)?;
    let bucket = bucket::find(kv, id)?;
    let slots = slots_of(&bucket, &query.slots)?;
    let limit = (query.limit as usize).min(LIST_PAGE_MAX);
    let ask = Ask { prefix: &query.prefix, delimiter: &query.delimiter, limit };
    let marker = &query.key_marker;
    let within = if query.upload_marker.is_empty() {
        after_key(marker)
    } else {
        let upload: UploadId = wire::id(&query.upload_marker)?;
        after_row(marker, &upload.to_bytes())
    };
    let merge = Merge::new(kv, key::UPL, id, &slots, &ask.start(marker, within), &escaped(&query.prefix))?;
    let mut page = ListUploadsPage::default();
    let mut listed = Vec::new();
    page.more = ask.walk(
        merge,
        |key, suffix, value| {
            let row: Upload = row::decode(&key, value)?;
            listed.push(ListedUpload {
                key: key.into(),
                upload: Bytes::copy_from_slice(suffix),
                row: Some(row),
            });
            Ok(())
        },
        &mut page.common_prefixes,
    )?;
    page.uploads = listed;
    Ok(page)
}
