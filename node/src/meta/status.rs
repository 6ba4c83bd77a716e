//! How the groups of a node stand, for operators and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use holdfast_proto::id::{GroupId, NodeId};
use openraft::async_runtime::watch::WatchReceiver as _;

use super::group::Group;

/// How a group stands on this node.
#[derive(Debug, Clone)]
pub(crate) struct GroupStatus {
    /// The group.
    pub(crate) group: GroupId,
    /// Who leads, as this node believes.
    pub(crate) leader: Option<NodeId>,
    /// Whether this node does.
    pub(crate) is_leader: bool,
    /// Raft's term.
    pub(crate) term: u64,
    /// Index of the last entry.
    pub(crate) last_log: u64,
    /// Index of the last committed entry known here.
    pub(crate) committed: u64,
    /// Index of the last applied entry.
    pub(crate) applied: u64,
    /// Index up to which rows survive a power cut.
    pub(crate) durable: u64,
    /// Index of the last purged entry.
    pub(crate) purged: u64,
    /// Who votes.
    pub(crate) voters: BTreeSet<NodeId>,
    /// Who only follows.
    pub(crate) learners: BTreeSet<NodeId>,
    /// On the leader: up to which index each other member has the log.
    pub(crate) matched: BTreeMap<NodeId, u64>,
}

pub(super) fn status_of(group: &Group) -> GroupStatus {
    let (voters, learners) = group.members();
    let metrics = group.raft().metrics();
    let metrics = metrics.borrow_watched();
    let matched = metrics.replication.iter().flatten();
    GroupStatus {
        group: group.id(),
        leader: metrics.current_leader.map(NodeId::new),
        is_leader: group.is_leader(),
        term: metrics.current_term,
        last_log: metrics.last_log_index.unwrap_or(0),
        committed: metrics.local_committed.map_or(0, |log_id| log_id.index()),
        applied: group.state().applied_index(),
        durable: group.state().durable().load(Ordering::Acquire),
        purged: metrics.purged.map_or(0, |log_id| log_id.index()),
        voters,
        learners,
        matched: matched
            .map(|(node, log_id)| (NodeId::new(*node), log_id.as_ref().map_or(0, |log_id| log_id.index())))
            .collect(),
    }
}
