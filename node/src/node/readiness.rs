//! What a node still waits for. `/health/ready` shows it; an empty list is "ready".

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Named conditions, all unmet at first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    unmet: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Conditions {
    /// Something that has to happen before the node is ready.
    pub(super) fn need(&self, name: &'static str, waiting: impl Into<String>) {
        self.unmet.lock().insert(name, waiting.into());
    }
    /// It has happened.
    pub(super) fn met(&self, name: &'static str) {
        self.unmet.lock().remove(name);
    }
    /// What has not happened yet, in words.
    pub(super) fn waiting(&self) -> Vec<String> {
        self.unmet.lock().values().cloned().collect()
    }
}
