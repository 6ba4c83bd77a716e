//! What a target sent is believed only after this: that it is the shard that was asked for, with the geometry that the
//! manifest says, and that every block matches its checksum.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;
use holdfast_proto::data::{ObjectRef, ShardBlocks};
use holdfast_proto::id::{ShardId, TargetId};
use holdfast_proto::limits::BLOCK_BYTES;
use holdfast_proto::v1::Scheme;
use parking_lot::Mutex;

/// What a shard must be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) id: ShardId,
    pub(crate) scheme: Scheme,
    pub(crate) shard_bytes: u32,
    pub(crate) stripe_offset: u64,
    pub(crate) declared_length: u64,
    /// Whole blocks.
    pub(crate) blocks: Range<u32>,
}

/// Why an answer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Disbelief {
    #[error("it is not the shard that was asked for: {0}")]
    Identity(&'static str),
    #[error("block {0} does not match its checksum")]
    Block(u32),
}

/// The bytes of the blocks that were asked for, proven, and what the shard's header knows of the object.
pub(crate) fn verified(expected: &Expected, answer: ShardBlocks) -> Result<(Bytes, ObjectRef), Disbelief> {
    let wrong = |what| Err(Disbelief::Identity(what));
    let Some(meta) = answer.meta else { return wrong("no header") };
    if meta.shard.as_ref() != expected.id.to_bytes() {
        return wrong("id");
    }
    if meta.scheme != Some(expected.scheme) || meta.length != expected.shard_bytes {
        return wrong("geometry");
    }
    let Some(object) = meta.object else { return wrong("no object") };
    if object.offset != expected.stripe_offset || object.declared_length != expected.declared_length {
        return wrong("place in the write");
    }
    if meta.block_hashes.len() != 32 * (meta.length as usize).div_ceil(BLOCK_BYTES) {
        return wrong("number of checksums");
    }
    // A target may send more blocks than were asked for.
    let (from, to) = (answer.offset, u64::from(answer.offset) + answer.data.len() as u64);
    if from > expected.blocks.start || to < u64::from(expected.blocks.end) {
        return wrong("range");
    }
    let start = (expected.blocks.start - from) as usize;
    let data = answer.data.slice(start..start + (expected.blocks.end - expected.blocks.start) as usize);
    let first = expected.blocks.start as usize / BLOCK_BYTES;
    for (block, bytes) in (first..).zip(data.chunks(BLOCK_BYTES)) {
        if blake3::hash(bytes).as_bytes()[..] != meta.block_hashes[block * 32..][..32] {
            return Err(Disbelief::Block(block as u32));
        }
    }
    Ok((data, object))
}

/// Shards found bad: each is told of once.
#[derive(Debug, Default)]
pub(crate) struct BadShards {
    told: Mutex<HashSet<(TargetId, ShardId)>>,
}

/// Above this many the memory of what was told is dropped.
const TOLD_MAX: usize = 10_000;

impl BadShards {
    /// Counts a bad shard, and logs it the first time.
    pub(crate) fn report(&self, target: TargetId, shard: ShardId, what: &str) {
        metrics::counter!("holdfast_client_bad_blocks_total").increment(1);
        let mut told = self.told.lock();
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        if told.insert((target, shard)) {
            tracing::warn!(%target, %shard, what, "bad shard: read from others");
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::data::ShardMeta;
    use holdfast_proto::id::WriteId;
    use holdfast_proto::v1::Codec;

    use super::*;

    const SCHEME: Scheme = Scheme { codec: Codec::RsGf8 as i32, data: 4, parity: 2 };
    const LENGTH: u32 = 150_000;

    fn pair() -> (Expected, ShardBlocks) {
        let id = ShardId { write: WriteId::from_bytes([3; 16]), stripe: 2, index: 1 };
        let data: Vec<u8> = (0..LENGTH).map(|at| ((at * 7) >> 3) as u8).collect();
        let block_hashes: Vec<u8> =
            data.chunks(BLOCK_BYTES).flat_map(|block| *blake3::hash(block).as_bytes()).collect();
        let meta = ShardMeta {
            shard: Bytes::copy_from_slice(&id.to_bytes()),
            pg: 1,
            scheme: Some(SCHEME),
            length: LENGTH,
            object: Some(ObjectRef { offset: 8 << 20, declared_length: 9 << 20, ..Default::default() }),
            block_hashes: block_hashes.into(),
        };
        let expected = Expected {
            id,
            scheme: SCHEME,
            shard_bytes: LENGTH,
            stripe_offset: 8 << 20,
            declared_length: 9 << 20,
            blocks: BLOCK_BYTES as u32..LENGTH,
        };
        let answer = ShardBlocks {
            meta: Some(meta),
            offset: BLOCK_BYTES as u32,
            data: Bytes::from(data).slice(BLOCK_BYTES..),
        };
        (expected, answer)
    }

    #[test]
    fn a_true_answer_is_believed() {
        let (expected, answer) = pair();
        let data = |expected: &Expected| verified(expected, answer.clone()).map(|(data, _)| data);
        assert_eq!(data(&expected), Ok(answer.data.clone()));
        let narrower = Expected { blocks: 131_072..LENGTH, ..expected };
        assert_eq!(data(&narrower), Ok(answer.data.slice(BLOCK_BYTES..)));
    }

    #[test]
    fn any_flipped_byte_is_found() {
        let (expected, answer) = pair();
        for at in [0, 1, 65_535, 65_536, answer.data.len() - 1] {
            let mut data = answer.data.to_vec();
            data[at] ^= 1;
            let bad = ShardBlocks { data: data.into(), ..answer.clone() };
            assert_eq!(verified(&expected, bad), Err(Disbelief::Block(1 + (at / BLOCK_BYTES) as u32)));
        }
    }

    #[test]
    fn another_shard_is_not_believed() {
        let (expected, answer) = pair();
        let with = |change: fn(&mut ShardMeta)| {
            let mut answer = answer.clone();
            change(answer.meta.as_mut().unwrap());
            verified(&expected, answer)
        };
        assert_eq!(with(|meta| meta.shard = Bytes::from_static(&[0; 21])), Err(Disbelief::Identity("id")));
        assert_eq!(with(|meta| meta.length += 1), Err(Disbelief::Identity("geometry")));
        assert_eq!(with(|meta| meta.scheme = None), Err(Disbelief::Identity("geometry")));
        assert_eq!(with(|meta| meta.object = None), Err(Disbelief::Identity("no object")));
        assert_eq!(
            with(|meta| meta.object.as_mut().unwrap().offset = 0),
            Err(Disbelief::Identity("place in the write"))
        );
        assert_eq!(
            with(|meta| meta.block_hashes = Bytes::new()),
            Err(Disbelief::Identity("number of checksums"))
        );
        assert!(verified(&expected, ShardBlocks { meta: None, ..answer.clone() }).is_err());
        assert!(
            verified(&expected, ShardBlocks { data: answer.data.slice(..70_000), ..answer.clone() }).is_err()
        );
    }
}
