//! Bodies that cost the generator nothing and repeat nowhere: slices, at random offsets, of one random buffer.
//!
//! Every object differs in every megabyte, so an endpoint that stores equal blocks once gains nothing.

use bytes::Bytes;
use rand::{Rng, RngCore};

/// How much longer than the largest body the buffer is, bytes: the number of different slices.
const SLACK_BYTES: usize = 1 << 20;

/// The buffer that all bodies are cut from.
#[derive(Clone)]
pub(super) struct Source(Bytes);

impl Source {
    pub(super) fn new(body_bytes_max: u64) -> anyhow::Result<Self> {
        let mut buffer = vec![0; usize::try_from(body_bytes_max)? + SLACK_BYTES];
        rand::rng().fill_bytes(&mut buffer);
        Ok(Self(buffer.into()))
    }

    /// A body of `bytes`, which is at most what the source was made for.
    pub(super) fn cut(&self, bytes: u64) -> Bytes {
        let bytes = (bytes as usize).min(self.0.len());
        let start = rand::rng().random_range(0..=self.0.len() - bytes);
        self.0.slice(start..start + bytes)
    }
}
