//! The seam under the index of a target: shard id -> where its record is.
//!
//! The index is a cache over the segments. It says up to which position of the log it is complete, and a target never
//! trusts it further than that, nor at all after a power cut: implementations need not survive one.

use std::fmt;
use std::io;
use std::sync::Arc;

use holdfast_proto::id::ShardId;

use super::record::{Entry, Layout, Position, u32_at, u64_at};

/// The index failed, or panicked inside. It is rebuilt from the segments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct IndexError(pub(super) String);

/// How many shards an index holds, and the bytes of their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    pub(super) shards: u64,
    pub(super) bytes: u64,
}

impl Totals {
    /// Accounts for one row going from `old` to `new`.
    pub(super) fn change(&mut self, old: Option<Entry>, new: Option<Entry>) {
        if let Some(old) = old {
            self.shards = self.shards.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(u64::from(old.length));
        }
        if let Some(new) = new {
            self.shards += 1;
            self.bytes += u64::from(new.length);
        }
    }
}

/// What an index says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Checkpoint {
    /// Everything in the log before this is in the index.
    pub(super) covered: Position,
    pub(super) totals: Totals,
}

/// An open index.
///
/// To ensure correctness: after the process is killed, a checkpoint is never found without every `set` that came before
/// it. After a power cut anything may be found, unless `persist` was the last call.
pub(super) trait ShardIndex: Send + Sync + fmt::Debug {
    /// Where a shard is.
    fn get(&self, shard: ShardId) -> Result<Option<Entry>, IndexError>;
    /// Stores or removes a row; returns what was there.
    fn set(&self, shard: ShardId, entry: Option<Entry>) -> Result<Option<Entry>, IndexError>;
    /// Up to `limit` rows after `after`, in id order.
    fn page(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<(ShardId, Entry)>, IndexError>;
    /// The newest checkpoint.
    fn checkpoint(&self) -> Result<Option<Checkpoint>, IndexError>;
    /// Stores a checkpoint.
    fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), IndexError>;
    /// Makes everything so far survive the end of the process, and a power cut as far as the engine can.
    fn persist(&self) -> Result<(), IndexError>;
}

/// Where a target's index lives.
pub(super) trait IndexHome: Send + Sync + fmt::Debug {
    /// Opens it, empty if there was none.
    fn open(&self) -> Result<Arc<dyn ShardIndex>, IndexError>;
    /// Removes it. The index must not be open.
    fn wipe(&self) -> io::Result<()>;
}

const LAYOUT_AT: usize = 24;
const ENTRY_BYTES: usize = LAYOUT_AT + Layout::LEN;
const CHECKPOINT_BYTES: usize = 33;
/// Of the rows, told by the checkpoint: an index with rows of another form is rebuilt when the target opens.
const FORMAT: u8 = 2;

/// A row's value.
pub(super) fn encode_entry(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    out[..8].copy_from_slice(&entry.at.segment.to_be_bytes());
    out[8..16].copy_from_slice(&entry.at.offset.to_be_bytes());
    out[16..20].copy_from_slice(&entry.meta_len.to_be_bytes());
    out[20..24].copy_from_slice(&entry.length.to_be_bytes());
    out[LAYOUT_AT..].copy_from_slice(&entry.layout.encode());
    out
}

/// From a row's value.
pub(super) fn decode_entry(bytes: &[u8]) -> Result<Entry, IndexError> {
    if bytes.len() != ENTRY_BYTES {
        return Err(IndexError(format!("a row of {} bytes", bytes.len())));
    }
    let at = Position::new(u64_at(bytes, 0), u64_at(bytes, 8));
    let layout = Layout::decode(&bytes[LAYOUT_AT..]);
    Ok(Entry { at, meta_len: u32_at(bytes, 16), length: u32_at(bytes, 20), layout })
}

/// A checkpoint's value.
pub(super) fn encode_checkpoint(checkpoint: &Checkpoint) -> [u8; CHECKPOINT_BYTES] {
    let mut out = [0; CHECKPOINT_BYTES];
    out[..8].copy_from_slice(&checkpoint.covered.segment.to_be_bytes());
    out[8..16].copy_from_slice(&checkpoint.covered.offset.to_be_bytes());
    out[16..24].copy_from_slice(&checkpoint.totals.shards.to_be_bytes());
    out[24..32].copy_from_slice(&checkpoint.totals.bytes.to_be_bytes());
    out[32] = FORMAT;
    out
}

/// From a checkpoint's value.
pub(super) fn decode_checkpoint(bytes: &[u8]) -> Result<Checkpoint, IndexError> {
    if bytes.len() != CHECKPOINT_BYTES || bytes[32] != FORMAT {
        return Err(IndexError(format!("a checkpoint of {} bytes", bytes.len())));
    }
    Ok(Checkpoint {
        covered: Position::new(u64_at(bytes, 0), u64_at(bytes, 8)),
        totals: Totals { shards: u64_at(bytes, 16), bytes: u64_at(bytes, 24) },
    })
}
