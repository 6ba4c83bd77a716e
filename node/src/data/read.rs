//! Reading shards: whole blocks that cover a range, the record's header proven, and the checksums of blocks.
//!
//! Reads go through the page cache on descriptors of their own, whatever the writer uses. What is acknowledged is on
//! disk and never rewritten, so a reader needs no lock against the writer.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::data::ShardMeta;
use holdfast_proto::id::ShardId;
use holdfast_proto::limits::{BLOCK_BYTES, SHARD_BYTES_MAX};
use prost::Message;

use super::record::{Entry, HEADER_BYTES, Header, RecordKey};
use super::segment::segment_path;
use crate::env::{Access, Disk, DiskFile};

/// Open descriptors for reading, at most.
const OPEN_FILES_MAX: usize = 256;

/// Why a shard that the index knows could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The header does not prove itself, or is of another shard.
    #[error("the record at segment {} offset {} is not this shard", .0.at.segment, .0.at.offset)]
    Header(Entry),
    /// The device gave an error.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
}

/// Blocks as they were read, not verified.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) meta: ShardMeta,
    /// Offset of `data` in the shard: a multiple of the block size.
    pub(super) offset: u32,
    pub(super) data: Bytes,
}

/// Reads records of one target.
#[derive(Debug)]
pub(super) struct Reader {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    key: RecordKey,
    files: quick_cache::sync::Cache<u64, Arc<dyn DiskFile>>,
}

impl Reader {
    /// Over the segments in `dir`.
    pub(super) fn new(dir: PathBuf, disk: Arc<dyn Disk>, key: RecordKey) -> Self {
        Self { dir, disk, key, files: quick_cache::sync::Cache::new(OPEN_FILES_MAX) }
    }

    pub(super) fn file(&self, segment: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.files.get_or_insert_with(&segment, || {
            self.disk.open(&segment_path(&self.dir, segment), Access::Buffered)
        })
    }

    /// The blocks of a shard that cover `range`, when all of them are in memory; `None` when the device must be asked.
    pub(super) fn read_cached(
        &self,
        shard: ShardId,
        entry: Entry,
        range: Range<u32>,
    ) -> Result<Option<Blocks>, ReadError> {
        let file = self.file(entry.at.segment)?;
        self.assemble(shard, entry, range, |out, len, offset| file.read_cached(out, len, offset))
    }

    /// The blocks of a shard that cover `range`. Waits for the device.
    pub(super) fn read(&self, shard: ShardId, entry: Entry, range: Range<u32>) -> Result<Blocks, ReadError> {
        let file = self.file(entry.at.segment)?;
        let blocks =
            self.assemble(shard, entry, range, |out, len, offset| file.read_at(out, len, offset).map(Some))?;
        blocks.ok_or(ReadError::Header(entry))
    }

    /// The segment's file is gone, and its space goes with the last descriptor.
    pub(super) fn forget(&self, segment: u64) {
        self.files.remove(&segment);
    }

    /// Has the next read of a record ask the device. Where that cannot be had, it reads what memory says.
    pub(super) fn drop_cache(&self, entry: Entry) {
        let end = entry.data_offset() + u64::from(entry.length);
        if let Ok(file) = self.file(entry.at.segment)
            && let Err(error) = file.drop_cache(entry.at.offset..end)
        {
            tracing::debug!(segment = entry.at.segment, %error, "pages stay in the cache");
        }
    }

    /// What the header of a shard says. Waits for the device.
    pub(super) fn meta(&self, shard: ShardId, entry: Entry) -> Result<ShardMeta, ReadError> {
        Ok(self.read(shard, entry, 0..0)?.meta)
    }

    fn assemble(
        &self,
        shard: ShardId,
        entry: Entry,
        range: Range<u32>,
        mut read: impl FnMut(&mut Vec<u8>, usize, u64) -> io::Result<Option<usize>>,
    ) -> Result<Option<Blocks>, ReadError> {
        let blocks = covering_blocks(range, entry.length);
        let head = HEADER_BYTES + entry.meta_len as usize;
        let wanted = blocks.len();
        let mut bytes = Vec::new();
        // From the start of the shard, its header and data are one read.
        let first = if blocks.start == 0 { head + wanted } else { head };
        let mut complete = true;
        let mut fetch = |bytes: &mut Vec<u8>, len: usize, offset: u64| -> Result<bool, ReadError> {
            match read(bytes, len, offset)? {
                Some(count) => complete &= count == len,
                None => return Ok(false),
            }
            Ok(true)
        };
        if !fetch(&mut bytes, first, entry.at.offset)? {
            return Ok(None);
        }
        if first < head + wanted && !fetch(&mut bytes, wanted, entry.data_offset() + u64::from(blocks.start))?
        {
            return Ok(None);
        }
        if !complete {
            return Err(ReadError::Header(entry));
        }
        let meta = self.prove(shard, entry, &bytes[..head])?;
        let data = Bytes::from(bytes).slice(head..);
        Ok(Some(Blocks { meta, offset: blocks.start, data }))
    }

    fn prove(&self, shard: ShardId, entry: Entry, head: &[u8]) -> Result<ShardMeta, ReadError> {
        let (fixed, meta) = head.split_at(HEADER_BYTES);
        let proven = Header::parse(fixed, entry.at)
            .is_some_and(|header| header.is_of(&entry) && Header::is_proven(fixed, meta, &self.key));
        if !proven {
            return Err(ReadError::Header(entry));
        }
        let meta = ShardMeta::decode(meta).map_err(|_| ReadError::Header(entry))?;
        if meta.shard[..] != shard.to_bytes() {
            return Err(ReadError::Header(entry));
        }
        Ok(meta)
    }
}

/// The range of bytes of whole blocks that covers `range` of a shard of `length` bytes.
fn covering_blocks(range: Range<u32>, length: u32) -> Range<u32> {
    let end = range.end.min(length);
    if range.start >= end {
        return 0..0;
    }
    let block = BLOCK_BYTES as u32;
    range.start / block * block..end.next_multiple_of(block).min(length)
}

/// The blocks of `data` that do not match their hashes, a bit each, counted from the start of the shard. `offset` is
/// where `data` begins in the shard, a multiple of the block size; `hashes` are those of the whole shard.
pub(super) fn bad_blocks(hashes: &[u8], offset: u32, data: &[u8]) -> u32 {
    let first = offset as usize / BLOCK_BYTES;
    data.chunks(BLOCK_BYTES).zip(first..).fold(0, |bad, (block, index)| {
        let hash = hashes.get(index * 32..(index + 1) * 32);
        let good = hash.is_some_and(|hash| blake3::hash(block).as_bytes() == hash);
        if good { bad } else { bad | 1 << index }
    })
}

const _: () =
    assert!(SHARD_BYTES_MAX / BLOCK_BYTES < 31, "the blocks of a shard and its header are bits of a u32");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_whole_blocks() {
        let block = BLOCK_BYTES as u32;
        assert_eq!(covering_blocks(0..1, 10), 0..10);
        assert_eq!(covering_blocks(block..block + 1, 3 * block), block..2 * block);
        assert_eq!(covering_blocks(block - 1..block + 1, 2 * block - 5), 0..2 * block - 5);
        assert_eq!(covering_blocks(5..5, 10), 0..0);
        assert_eq!(covering_blocks(10..20, 10), 0..0);
        assert_eq!(covering_blocks(0..u32::MAX, 0), 0..0);
    }
}
