//! A byte buffer whose first byte sits at a multiple of [`DIRECT_ALIGN`] in memory, as direct writes ask.

use crate::env::DIRECT_ALIGN;

/// Fixed room for one batch. Over-allocates by one alignment and starts at the first aligned byte, so that no unsafe
/// allocation is needed; it never grows, since moving could lose the alignment.
#[derive(Debug)]
pub(super) struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    capacity: usize,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer with room for `capacity` bytes, rounded up to whole alignments.
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = align_up(capacity);
        let memory = vec![0; capacity + DIRECT_ALIGN];
        let start = memory.as_ptr().align_offset(DIRECT_ALIGN);
        assert!(start < DIRECT_ALIGN, "bytes can be aligned to any power of two");
        Self { memory, start, capacity, len: 0 }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    /// When they do not fit: the caller sizes batches by [`Self::capacity`].
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let at = self.start + self.len;
        assert!(self.len + bytes.len() <= self.capacity, "a batch fits its buffer");
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends zeros up to the next multiple of `align` bytes.
    pub(super) fn pad_to(&mut self, align: usize) {
        let to = self.len.next_multiple_of(align);
        assert!(to <= self.capacity, "padding fits, the capacity being whole alignments");
        let at = self.start + self.len;
        self.memory[at..self.start + to].fill(0);
        self.len = to;
    }
}

/// `bytes` rounded up to whole alignments.
pub(super) fn align_up(bytes: usize) -> usize {
    bytes.next_multiple_of(DIRECT_ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_aligned_and_pads_with_zeros_after_reuse() {
        let mut buf = AlignedBuf::new(5000);
        assert_eq!(buf.capacity(), 8192);
        buf.extend(&[7; 8000]);
        buf.clear();
        buf.extend(b"abc");
        buf.pad_to(8);
        assert_eq!(buf.as_slice(), b"abc\0\0\0\0\0");
        buf.pad_to(DIRECT_ALIGN);
        assert_eq!(buf.len(), DIRECT_ALIGN);
        assert_eq!(buf.as_slice().as_ptr().align_offset(DIRECT_ALIGN), 0);
        assert!(buf.as_slice()[3..].iter().all(|byte| *byte == 0));
    }
}
