//! A worker's walk through one partition's queue, page by page and over several rounds, and the rows it could do nothing
//! about.
//!
//! A row that stays where it is must neither stop the rows behind it nor be asked for again without a pause: a walk
//! always goes on to the end of the queue, and the next one begins in a later round.

use std::collections::HashSet;
use std::fmt::Display;

use bytes::Bytes;

/// Rows that are remembered as said, at most.
const SAID_MAX: usize = 10_000;

/// Rows that a walk left where they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Something has to come back first: a target, most often.
    pub(crate) waiting: u64,
    /// Nothing can be done about them as they are.
    pub(crate) skipped: u64,
}

impl Left {
    /// All of them.
    pub(crate) fn rows(self) -> u64 {
        self.waiting + self.skipped
    }
}

impl std::ops::AddAssign for Left {
    fn add_assign(&mut self, other: Self) {
        self.waiting += other.waiting;
        self.skipped += other.skipped;
    }
}

/// Where a walk stands.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    after: Bytes,
    so_far: Left,
    before: Left,
}

impl Walk {
    /// What the next page is asked after; empty at the beginning.
    pub(crate) fn after(&self) -> Bytes {
        self.after.clone()
    }

    /// A page is done: `last` as the page had it, empty at the end of the queue. Whether the walk has ended; the next
    /// page is the first one then, and belongs to a later round.
    pub(crate) fn passed(&mut self, last: Bytes, left: Left) -> bool {
        self.so_far += left;
        self.after = last;
        if !self.after.is_empty() {
            return false;
        }
        self.before = std::mem::take(&mut self.so_far);
        true
    }

    /// What is left, as far as seen: what the last whole walk left, or this one when it has already found more.
    pub(crate) fn left(&self) -> Left {
        if self.so_far.rows() > self.before.rows() { self.so_far } else { self.before }
    }
}

/// Says of each row once why it is skipped.
#[derive(Debug, Default)]
pub(crate) struct Said(HashSet<Bytes>);

impl Said {
    /// A row that `worker` skips, by the write it is about.
    pub(crate) fn skipped(&mut self, worker: &str, write: &Bytes, error: impl Display) {
        if self.0.len() < SAID_MAX && self.0.insert(write.clone()) {
            let write = hex::encode(write);
            tracing::warn!(worker, write, %error, "a row is skipped: nothing can be done about it as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_ends_with_the_queue_and_begins_again() {
        let left = |waiting| Left { waiting, skipped: 1 };
        let mut walk = Walk::default();
        assert!(!walk.passed("k1".into(), left(3)));
        assert_eq!((walk.after(), walk.left()), ("k1".into(), left(3)));
        assert!(walk.passed(Bytes::new(), left(2)));
        assert_eq!((walk.after(), walk.left()), (Bytes::new(), Left { waiting: 5, skipped: 2 }));
        assert!(!walk.passed("k1".into(), left(1)));
        assert_eq!(walk.left().rows(), 7, "what the walk before left, until this one knows better");
        assert!(walk.passed(Bytes::new(), Left::default()));
        assert_eq!(walk.left(), left(1));
    }
}
