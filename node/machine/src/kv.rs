//! The store under the state machine: ordered rows, read views, one atomic batch per apply.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// The store below failed. The node ends: state that cannot be read or written is not guessed.
#[derive(Debug, thiserror::Error)]
#[error("metadata store: {0}")]
pub struct KvError(pub String);

/// One row.
pub type Row = (Bytes, Bytes);
/// Rows in ascending key order.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row, KvError>> + 'a>;

/// A consistent view of rows in byte order. Laws: two reads of one view agree; `scan` gives each row with
/// `start <= key < end` exactly once, ascending, and sees what `get` sees.
pub trait KvRead {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the store fails.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError>;

    /// Rows from `start` (inclusive) to `end` (exclusive), ascending and lazy.
    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_>;
}

/// A view that also takes writes, and reads its own. Nothing is kept until the owner of the view commits it.
pub trait Kv: KvRead {
    /// Sets a row.
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>);
    /// Removes a row; one that is not there is fine.
    fn delete(&mut self, key: &[u8]);
}

/// Writes collected over a read view: what `apply` runs on. The batch is then committed by the store in one piece.
#[derive(Debug)]
pub struct Overlay<R> {
    base: R,
    writes: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl<R: KvRead> Overlay<R> {
    /// An overlay without writes.
    pub fn new(base: R) -> Self {
        Self { base, writes: BTreeMap::new() }
    }

    /// The collected writes in key order: a value to set, or `None` to remove.
    pub fn into_writes(self) -> BTreeMap<Vec<u8>, Option<Bytes>> {
        self.writes
    }
}

impl<R: KvRead> KvRead for Overlay<R> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let range = (Bound::Included(start), Bound::Excluded(end));
        let mut ours = self.writes.range::<[u8], _>(range).peekable();
        let mut theirs = self.base.scan(start, end).peekable();
        Box::new(std::iter::from_fn(move || {
            loop {
                let take_ours = match (ours.peek(), theirs.peek()) {
                    (None, _) => false,
                    (Some(_), None | Some(Err(_))) => theirs.peek().is_none(),
                    (Some((mine, _)), Some(Ok((base, _)))) => {
                        if mine.as_slice() == base.as_ref() {
                            theirs.next();
                            true
                        } else {
                            mine.as_slice() < base.as_ref()
                        }
                    }
                };
                if !take_ours {
                    return theirs.next();
                }
                if let Some((key, Some(value))) = ours.next() {
                    return Some(Ok((Bytes::copy_from_slice(key), value.clone())));
                }
            }
        }))
    }
}

impl<R: KvRead> Kv for Overlay<R> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert(key, Some(value.into()));
    }
    fn delete(&mut self, key: &[u8]) {
        self.writes.insert(key.to_vec(), None);
    }
}

/// Rows in memory: the base of the machine's own tests and of simulation.
impl KvRead for BTreeMap<Vec<u8>, Bytes> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.get(key).cloned())
    }
    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_> {
        if start >= end {
            return Box::new(std::iter::empty());
        }
        let range = (Bound::Included(start), Bound::Excluded(end));
        Box::new(
            self.range::<[u8], _>(range).map(|(key, value)| Ok((Bytes::copy_from_slice(key), value.clone()))),
        )
    }
}

impl<R: KvRead + ?Sized> KvRead for &R {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        (**self).get(key)
    }
    fn scan(&self, start: &[u8], end: &[u8]) -> Rows<'_> {
        (**self).scan(start, end)
    }
}
