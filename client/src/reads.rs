//! Reads of bodies that are under way: what is being read may have been deleted since, and is not freed before they end.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_proto::hlc::Hlc;
use parking_lot::Mutex;

/// How many reads began at each instant.
#[derive(Debug, Default)]
pub(crate) struct OpenReads(Mutex<BTreeMap<Hlc, u64>>);

/// A read that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenRead {
    reads: Arc<OpenReads>,
    since: Hlc,
}

impl OpenReads {
    /// A read begins.
    pub(crate) fn begin(self: &Arc<Self>, now: Hlc) -> OpenRead {
        *self.0.lock().entry(now).or_default() += 1;
        OpenRead { reads: Arc::clone(self), since: now }
    }

    /// When the oldest one began.
    pub(crate) fn oldest(&self) -> Option<Hlc> {
        self.0.lock().first_key_value().map(|(since, _)| *since)
    }
}

impl Drop for OpenRead {
    fn drop(&mut self) {
        let mut open = self.reads.0.lock();
        if let Some(count) = open.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.since);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_read_that_is_open_is_known() {
        let reads = Arc::new(OpenReads::default());
        assert_eq!(reads.oldest(), None);
        let at = Hlc::from_ms;
        let (first, again, second) = (reads.begin(at(5)), reads.begin(at(5)), reads.begin(at(9)));
        drop(first);
        assert_eq!(reads.oldest(), Some(at(5)));
        drop(again);
        assert_eq!(reads.oldest(), Some(at(9)));
        drop(second);
        assert_eq!(reads.oldest(), None);
    }
}
