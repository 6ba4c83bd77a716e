//! Rows of the realm that every request needs: buckets by name and access keys by id.
//!
//! A row is believed without asking while the watch is fresh and has told of no change of the realm since before the row
//! was read. What is not known is always asked for; that nothing was found is never remembered.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_proto::meta::{AccessKey, Bucket};
use parking_lot::RwLock;

/// Rows of one kind; above this many all are dropped.
const ROWS_MAX: usize = 20_000;

#[derive(Debug, Default)]
pub(crate) struct RealmCache {
    pub(crate) buckets: Rows<Bucket>,
    pub(crate) keys: Rows<AccessKey>,
}

#[derive(Debug)]
pub(crate) struct Rows<V> {
    rows: RwLock<HashMap<String, (u64, Arc<V>)>>,
}

impl<V> Default for Rows<V> {
    fn default() -> Self {
        Self { rows: RwLock::default() }
    }
}

impl<V> Rows<V> {
    /// The row, when nothing in the realm changed since it was read. `now` is the count of changes, `None` when the watch
    /// is silent.
    pub(crate) fn get(&self, name: &str, now: Option<u64>) -> Option<Arc<V>> {
        let now = now?;
        self.rows.read().get(name).filter(|(seen, _)| *seen == now).map(|(_, row)| row.clone())
    }

    /// Keeps a row that was read after the count of changes was `before`.
    pub(crate) fn keep(&self, name: &str, before: Option<u64>, row: &Arc<V>) {
        let Some(before) = before else { return };
        let mut rows = self.rows.write();
        if rows.len() >= ROWS_MAX {
            rows.clear();
        }
        rows.insert(name.to_owned(), (before, row.clone()));
    }

    pub(crate) fn forget(&self, name: &str) {
        self.rows.write().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_lives_until_the_realm_changes_or_the_watch_is_silent() {
        let rows = Rows::default();
        rows.keep("b", Some(3), &Arc::new(1));
        assert_eq!(rows.get("b", Some(3)).as_deref(), Some(&1));
        assert_eq!(rows.get("b", Some(4)), None);
        assert_eq!(rows.get("b", None), None);
        assert_eq!(rows.get("c", Some(3)), None);
        rows.forget("b");
        assert_eq!(rows.get("b", Some(3)), None);
    }

    #[test]
    fn what_was_read_under_a_silent_watch_is_not_kept() {
        let rows = Rows::default();
        rows.keep("b", None, &Arc::new(1));
        assert_eq!(rows.get("b", Some(0)), None);
    }
}
