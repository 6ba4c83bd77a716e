//! Stripes into shards and back: systematic codes over equal-length shards.
//!
//! Law of a [`Codec`] with k data and m parity shards: shard `i < k` is the data itself, and any k of the k+m shards
//! give back every other, byte for byte at the same offsets. So any byte range of a shard needs only that range of k
//! others. The bytes are fixed for ever by `docs/formats/codec.md` and `tests/golden/codec.txt`.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, LazyLock};

use holdfast_proto::limits::STRIPE_WIDTH_MAX;
use holdfast_proto::v1::{self, Scheme};
use parking_lot::RwLock;
use reed_solomon_erasure::galois_8::{self, ReedSolomon};

/// A scheme or shards that no codec takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The scheme cannot be.
    #[error("no codec for a scheme of {codec} with {data} data and {parity} parity shards")]
    Scheme {
        /// The codec's number.
        codec: i32,
        /// Data shards.
        data: u32,
        /// Parity shards.
        parity: u32,
    },
    /// Shards of unequal length, too few, twice the same, or out of range.
    #[error("shards do not fit the code: {0}")]
    Shards(&'static str),
}

/// See the module's law.
pub trait Codec: Send + Sync + Debug {
    /// Data shards of a stripe.
    fn data(&self) -> usize;

    /// Parity shards of a stripe.
    fn parity(&self) -> usize;

    /// Fills the parity shards from the data shards; all have one length.
    ///
    /// # Errors
    /// [`CodecError::Shards`] when numbers or lengths do not fit.
    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError>;

    /// The shards `wanted`, in order, from at least k others given as (index, bytes) of one length.
    ///
    /// # Errors
    /// [`CodecError::Shards`] when there are too few or they do not fit.
    fn reconstruct(&self, present: &[(usize, &[u8])], wanted: &[usize]) -> Result<Vec<Vec<u8>>, CodecError>;
}

/// Codecs by (codec number, data, parity).
type Made = RwLock<HashMap<(i32, u32, u32), Arc<dyn Codec>>>;

/// The codec of a scheme. Codecs are made once and shared.
///
/// # Errors
/// [`CodecError::Scheme`].
pub fn codec_for(scheme: &Scheme) -> Result<Arc<dyn Codec>, CodecError> {
    static MADE: LazyLock<Made> = LazyLock::new(RwLock::default);
    let name = (scheme.codec, scheme.data, scheme.parity);
    if let Some(codec) = MADE.read().get(&name) {
        return Ok(codec.clone());
    }
    let codec = make(scheme)?;
    MADE.write().insert(name, codec.clone());
    Ok(codec)
}

fn make(scheme: &Scheme) -> Result<Arc<dyn Codec>, CodecError> {
    let fault = || CodecError::Scheme { codec: scheme.codec, data: scheme.data, parity: scheme.parity };
    let (data, parity) = (scheme.data as usize, scheme.parity as usize);
    if data == 0 || data.saturating_add(parity) > STRIPE_WIDTH_MAX {
        return Err(fault());
    }
    match scheme.codec() {
        v1::Codec::Copies if data == 1 => Ok(Arc::new(Copies { parity })),
        v1::Codec::RsGf8 if parity > 0 => Ok(Arc::new(RsGf8::new(data, parity).map_err(|_| fault())?)),
        _ => Err(fault()),
    }
}

/// The first k of the present shards, checked against each other and the scheme; their common length.
fn check_present(present: &[(usize, &[u8])], width: usize, data: usize) -> Result<usize, CodecError> {
    let first = present.first().ok_or(CodecError::Shards("none is present"))?;
    let length = first.1.len();
    let mut seen = [false; STRIPE_WIDTH_MAX];
    for (index, bytes) in present {
        if *index >= width {
            return Err(CodecError::Shards("an index beyond the stripe"));
        }
        if std::mem::replace(&mut seen[*index], true) {
            return Err(CodecError::Shards("one shard twice"));
        }
        if bytes.len() != length {
            return Err(CodecError::Shards("unequal lengths"));
        }
    }
    if present.len() < data {
        return Err(CodecError::Shards("too few"));
    }
    Ok(length)
}

/// Every shard is the data.
#[derive(Debug)]
struct Copies {
    parity: usize,
}

impl Codec for Copies {
    fn data(&self) -> usize {
        1
    }

    fn parity(&self) -> usize {
        self.parity
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let [data] = data else { return Err(CodecError::Shards("copies have one data shard")) };
        if parity.len() != self.parity || parity.iter().any(|copy| copy.len() != data.len()) {
            return Err(CodecError::Shards("parity of another shape"));
        }
        parity.iter_mut().for_each(|copy| copy.copy_from_slice(data));
        Ok(())
    }

    fn reconstruct(&self, present: &[(usize, &[u8])], wanted: &[usize]) -> Result<Vec<Vec<u8>>, CodecError> {
        check_present(present, 1 + self.parity, 1)?;
        if wanted.iter().any(|index| *index > self.parity) {
            return Err(CodecError::Shards("an index beyond the stripe"));
        }
        Ok(wanted.iter().map(|_| present[0].1.to_vec()).collect())
    }
}

/// Reed-Solomon over GF(2^8): the Vandermonde matrix made systematic.
struct RsGf8 {
    code: ReedSolomon,
    /// Row j: the coefficients of parity shard j over the data shards.
    parity_rows: Vec<Vec<u8>>,
}

impl Debug for RsGf8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RsGf8({}+{})", self.code.data_shard_count(), self.code.parity_shard_count())
    }
}

impl RsGf8 {
    /// Bytes of each shard worked on at a time: all of a stripe's pieces stay in the cache.
    const PIECE_BYTES: usize = 32 << 10;

    fn new(data: usize, parity: usize) -> Result<Self, reed_solomon_erasure::Error> {
        let code = ReedSolomon::new(data, parity)?;
        // Encoding the identity gives the parity rows of the library's own matrix.
        let identity: Vec<Vec<u8>> =
            (0..data).map(|row| (0..data).map(|column| u8::from(row == column)).collect()).collect();
        let mut parity_rows = vec![vec![0; data]; parity];
        code.encode_sep(&identity, &mut parity_rows)?;
        Ok(Self { code, parity_rows })
    }

    /// Coefficients of shard `index` over the data shards.
    fn row(&self, index: usize) -> Vec<u8> {
        let data = self.code.data_shard_count();
        match index.checked_sub(data) {
            Some(parity) => self.parity_rows[parity].clone(),
            None => (0..data).map(|column| u8::from(column == index)).collect(),
        }
    }
}

impl Codec for RsGf8 {
    fn data(&self) -> usize {
        self.code.data_shard_count()
    }

    fn parity(&self) -> usize {
        self.code.parity_shard_count()
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let length = data.first().map_or(0, |shard| shard.len());
        if data.len() != self.data() || parity.len() != self.parity() {
            return Err(CodecError::Shards("a stripe of another width"));
        }
        if data.iter().any(|shard| shard.len() != length) || parity.iter().any(|shard| shard.len() != length)
        {
            return Err(CodecError::Shards("unequal lengths"));
        }
        for from in (0..length).step_by(Self::PIECE_BYTES) {
            let to = length.min(from + Self::PIECE_BYTES);
            let pieces: Vec<&[u8]> = data.iter().map(|shard| &shard[from..to]).collect();
            let mut coded: Vec<&mut [u8]> = parity.iter_mut().map(|shard| &mut shard[from..to]).collect();
            self.code
                .encode_sep(&pieces, &mut coded)
                .map_err(|_| CodecError::Shards("the library refused the stripe"))?;
        }
        Ok(())
    }

    fn reconstruct(&self, present: &[(usize, &[u8])], wanted: &[usize]) -> Result<Vec<Vec<u8>>, CodecError> {
        let (data, width) = (self.data(), self.data() + self.parity());
        let length = check_present(present, width, data)?;
        if wanted.iter().any(|index| *index >= width) {
            return Err(CodecError::Shards("an index beyond the stripe"));
        }
        let used = &present[..data];
        let inverse = invert(used.iter().map(|(index, _)| self.row(*index)).collect())
            .ok_or(CodecError::Shards("the matrix has no inverse"))?;
        let rows: Vec<Vec<u8>> = wanted.iter().map(|index| times(&self.row(*index), &inverse)).collect();
        let mut rebuilt = vec![vec![0; length]; wanted.len()];
        for from in (0..length).step_by(Self::PIECE_BYTES) {
            let to = length.min(from + Self::PIECE_BYTES);
            for (row, out) in rows.iter().zip(&mut rebuilt) {
                for (factor, (_, bytes)) in row.iter().zip(used) {
                    galois_8::mul_slice_xor(*factor, &bytes[from..to], &mut out[from..to]);
                }
            }
        }
        Ok(rebuilt)
    }
}

/// `row` times `matrix`, over GF(2^8).
fn times(row: &[u8], matrix: &[Vec<u8>]) -> Vec<u8> {
    (0..matrix.len())
        .map(|column| {
            row.iter().zip(matrix).fold(0, |sum, (factor, line)| sum ^ galois_8::mul(*factor, line[column]))
        })
        .collect()
}

/// The inverse of a square matrix over GF(2^8) by Gauss-Jordan elimination; `None` when it has none.
fn invert(mut matrix: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let size = matrix.len();
    for (at, line) in matrix.iter_mut().enumerate() {
        line.extend((0..size).map(|column| u8::from(column == at)));
    }
    for at in 0..size {
        let pivot = (at..size).find(|row| matrix[*row][at] != 0)?;
        matrix.swap(at, pivot);
        let scale = galois_8::div(1, matrix[at][at]);
        matrix[at].iter_mut().for_each(|value| *value = galois_8::mul(*value, scale));
        let line = matrix[at].clone();
        for row in (0..size).filter(|row| *row != at) {
            let factor = matrix[row][at];
            for (value, pivot) in matrix[row].iter_mut().zip(&line) {
                *value ^= galois_8::mul(factor, *pivot);
            }
        }
    }
    Some(matrix.into_iter().map(|line| line[size..].to_vec()).collect())
}

#[cfg(test)]
#[path = "codec_test.rs"]
mod tests;
