//! Where the other nodes are. Addresses come from zone state, not from Raft's membership: a node may move.

use std::collections::HashMap;

use holdfast_proto::id::NodeId;
use parking_lot::RwLock;

/// `host:port` of each known node, in memory; who uses it keeps it current.
#[derive(Debug, Default)]
pub(crate) struct AddressBook {
    addresses: RwLock<HashMap<NodeId, String>>,
}

impl AddressBook {
    /// An empty book.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Sets where `node` is. Connections made so far stay until they break.
    pub(crate) fn set(&self, node: NodeId, address: impl Into<String>) {
        self.addresses.write().insert(node, address.into());
    }

    /// Where `node` is, if known.
    pub(crate) fn get(&self, node: NodeId) -> Option<String> {
        self.addresses.read().get(&node).cloned()
    }
}
