//! Where the bytes of a write are: which stripe, which shard, which blocks (day 1).
//!
//! Stripe `s` of a write of `length` bytes holds the bytes from `s * k * 1 MiB`, at most `k * 1 MiB` of them. With `rest`
//! bytes from there to the end of the write, its shards are L = min(1 MiB, ceil(rest / k)) long; data shard `i` holds
//! [iL, (i+1)L) of the stripe, zero-filled to L. Copies are the same with k = 1, so they hold the exact bytes.

use std::ops::Range;

use holdfast_proto::limits::{BLOCK_BYTES, SHARD_BYTES_MAX, STRIPES_MAX};
use holdfast_proto::v1::{Codec, Scheme};

use crate::error::Error;

/// The geometry of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    data: u64,
    width: u64,
    copies: bool,
    length: u64,
}

/// Bytes of a data shard that a read wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRange {
    /// The data shard's index in its stripe.
    pub index: usize,
    /// Bytes in the shard.
    pub bytes: Range<u32>,
}

impl Geometry {
    /// Of a write of `length` bytes under `scheme`.
    ///
    /// # Errors
    /// [`Error::Internal`] for a scheme that cannot be, or more stripes than can be numbered.
    pub fn new(scheme: &Scheme, length: u64) -> Result<Self, Error> {
        crate::codec::codec_for(scheme).map_err(|bad| Error::internal(bad.to_string()))?;
        let (data, parity) = (u64::from(scheme.data), u64::from(scheme.parity));
        let this = Self { data, width: data + parity, copies: scheme.codec() == Codec::Copies, length };
        if length.div_ceil(this.stripe_bytes_max()) > STRIPES_MAX {
            return Err(Error::internal(format!("a write of {length} bytes has too many stripes")));
        }
        Ok(this)
    }

    /// Data shards of a stripe.
    pub fn data(&self) -> usize {
        self.data as usize
    }

    /// All shards of a stripe.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// Whether every shard is a copy.
    pub fn is_copies(&self) -> bool {
        self.copies
    }

    /// Bytes of the write.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Shards that make a stripe durable enough to acknowledge: k + max(1, m - 1); of n copies n - 1, at least 2. Never
    /// more than there are.
    pub fn acknowledge(&self) -> usize {
        let parity = self.width - self.data;
        let wanted = if self.copies {
            (self.width.saturating_sub(1)).max(2)
        } else {
            self.data + parity.saturating_sub(1).max(1)
        };
        wanted.min(self.width) as usize
    }

    fn stripe_bytes_max(&self) -> u64 {
        self.data * SHARD_BYTES_MAX as u64
    }

    /// Number of stripes; none for an empty write.
    pub fn stripes(&self) -> u32 {
        self.length.div_ceil(self.stripe_bytes_max()) as u32
    }

    /// Where stripe `stripe` begins in the write.
    pub fn stripe_offset(&self, stripe: u32) -> u64 {
        u64::from(stripe) * self.stripe_bytes_max()
    }

    /// Bytes of the write in stripe `stripe`; 0 past the end.
    pub fn stripe_bytes(&self, stripe: u32) -> u64 {
        self.length.saturating_sub(self.stripe_offset(stripe)).min(self.stripe_bytes_max())
    }

    /// L: the length of every shard of stripe `stripe`.
    pub fn shard_bytes(&self, stripe: u32) -> u32 {
        let rest = self.length.saturating_sub(self.stripe_offset(stripe));
        rest.div_ceil(self.data).min(SHARD_BYTES_MAX as u64) as u32
    }

    /// The stripes that hold `range` of the write, each with the range's bytes in it.
    pub fn stripes_of(&self, range: Range<u64>) -> impl Iterator<Item = (u32, Range<u64>)> + use<> {
        let this = *self;
        let end = range.end.min(self.length);
        let each = self.stripe_bytes_max();
        let stripes =
            if range.start < end { (range.start / each) as u32..end.div_ceil(each) as u32 } else { 0..0 };
        stripes.map(move |stripe| {
            let offset = this.stripe_offset(stripe);
            (stripe, range.start.max(offset) - offset..end.min(offset + each) - offset)
        })
    }

    /// The data shards that hold `range` (bytes in stripe `stripe`), in order.
    pub fn shards_of(&self, stripe: u32, range: Range<u64>) -> Vec<ShardRange> {
        let each = u64::from(self.shard_bytes(stripe));
        let end = range.end.min(self.stripe_bytes(stripe));
        if range.start >= end {
            return Vec::new();
        }
        (range.start / each..end.div_ceil(each))
            .map(|index| {
                let offset = index * each;
                let bytes =
                    (range.start.max(offset) - offset) as u32..(end.min(offset + each) - offset) as u32;
                ShardRange { index: index as usize, bytes }
            })
            .collect()
    }

    /// The member of a placement group of `members` targets that has shard `index`: coded shards are in the group's order,
    /// copies go round from a member given by the write id.
    pub fn member(&self, write: &holdfast_proto::id::WriteId, index: usize, members: usize) -> usize {
        if self.copies {
            let first = xxhash_rust::xxh3::xxh3_64(write.as_bytes()) % members.max(1) as u64;
            (first as usize + index) % members.max(1)
        } else {
            index
        }
    }
}

/// The least range of whole blocks that holds `bytes` of a shard of `shard_bytes`; the last block may be short.
pub fn whole_blocks(bytes: &Range<u32>, shard_bytes: u32) -> Range<u32> {
    let block = BLOCK_BYTES as u32;
    let start = bytes.start / block * block;
    let end = bytes.end.div_ceil(block).saturating_mul(block).min(shard_bytes);
    start..end
}

#[cfg(test)]
#[path = "geometry_test.rs"]
mod tests;
