//! Who is in a group: adding learners, promoting them when they have caught up, removing nodes, handing over the lead.
//! Every step is a committed entry of the group, so a leader that dies between two leaves a valid membership, and the
//! next call continues from there.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use holdfast_proto::error::Fault;
use holdfast_proto::id::NodeId;
use holdfast_proto::v1::FaultKind;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode, RaftMetrics};

use super::group::Group;
use super::raft::{StoredMembership, TypeConfig};

/// One committed step.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// A learner may have to receive a snapshot first.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(120);
const TRANSFER_DEADLINE: Duration = Duration::from_secs(5);
/// A learner this many entries behind the leader's last counts as caught up: it gets the rest while it is promoted.
const CAUGHT_UP_ENTRIES: u64 = 64;

fn unavailable(why: impl fmt::Display) -> Fault {
    Fault::new(FaultKind::FaultUnavailable, why.to_string())
}

pub(super) fn write_fault(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Fault {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            Fault::not_leader(to.leader_id.unwrap_or(0))
        }
        other => unavailable(other),
    }
}

/// Voters and learners of a membership; a node that is in either of two voter sets counts as a voter.
pub(super) fn voters_and_learners(stored: &StoredMembership) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let membership = stored.membership();
    (membership.voter_ids().map(NodeId::new).collect(), membership.learner_ids().map(NodeId::new).collect())
}

fn matched(metrics: &RaftMetrics<TypeConfig>, node: NodeId) -> Option<u64> {
    metrics.replication.as_ref()?.get(&node.get())?.as_ref().map(|log_id| log_id.index())
}

impl Group {
    pub(super) fn members(&self) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        let metrics = self.raft().metrics();
        let stored = metrics.borrow_watched().membership_config.clone();
        voters_and_learners(&stored)
    }

    /// Waits until this node's metrics satisfy `done`.
    async fn wait_for(
        &self,
        deadline: Duration,
        what: &'static str,
        done: impl Fn(&RaftMetrics<TypeConfig>) -> bool + Send,
    ) -> Result<(), Fault> {
        self.raft().wait(Some(deadline)).metrics(done, what).await.map(drop).map_err(unavailable)
    }

    async fn change(&self, change: ChangeMembers<u64, EmptyNode>, retain: bool) -> Result<(), Fault> {
        let step = tokio::time::timeout(STEP_DEADLINE, self.raft().change_membership(change, retain)).await;
        step.map_err(|_| unavailable("the membership change was not committed in time"))?
            .map(drop)
            .map_err(write_fault)
    }

    /// Makes the members exactly these. On the leader. Not cancel-safe in effect: steps done stay done; repeat the call.
    pub(super) async fn set_members(
        &self,
        voters: &BTreeSet<NodeId>,
        learners: &BTreeSet<NodeId>,
    ) -> Result<(), Fault> {
        if voters.is_empty() {
            return Err(Fault::new(FaultKind::Invalid, "a group needs a voter"));
        }
        if !self.is_leader() {
            return Err(Fault::not_leader(self.leader().map_or(0, NodeId::get)));
        }
        // A change that an earlier leader left behind is committed first.
        self.wait_for(STEP_DEADLINE, "the last change is committed", |metrics| {
            metrics.committed_membership_config.log_id() == metrics.membership_config.log_id()
        })
        .await?;
        let (old_voters, old_learners) = self.members();
        let new: Vec<NodeId> = voters
            .union(learners)
            .filter(|node| !old_voters.contains(node) && !old_learners.contains(node))
            .copied()
            .collect();
        if !new.is_empty() {
            let nodes = new.iter().map(|node| (node.get(), EmptyNode::new())).collect();
            self.change(ChangeMembers::AddNodes(nodes), true).await?;
        }
        let promoted: Vec<NodeId> = voters.difference(&old_voters).copied().collect();
        if !promoted.is_empty() {
            self.wait_for(CATCH_UP_DEADLINE, "learners catch up", |metrics| {
                let last = metrics.last_log_index.unwrap_or(0);
                let near =
                    |node: &NodeId| matched(metrics, *node).is_some_and(|at| at + CAUGHT_UP_ENTRIES >= last);
                promoted.iter().all(near)
            })
            .await?;
        }
        if *voters != old_voters {
            let ids = voters.iter().map(|node| node.get()).collect();
            self.change(ChangeMembers::ReplaceAllVoters(ids), true).await?;
        }
        let (now_voters, now_learners) = self.members();
        let gone: BTreeSet<u64> = now_voters
            .union(&now_learners)
            .filter(|node| !voters.contains(node) && !learners.contains(node))
            .map(|node| node.get())
            .collect();
        if gone.is_empty() { Ok(()) } else { self.change(ChangeMembers::RemoveNodes(gone), false).await }
    }

    /// Hands the lead to `to` and waits until it leads, as far as this node hears.
    pub(super) async fn transfer_leader(&self, to: NodeId) -> Result<(), Fault> {
        if self.leader() == Some(to) {
            return Ok(());
        }
        if !self.is_leader() {
            return Err(Fault::not_leader(self.leader().map_or(0, NodeId::get)));
        }
        if !self.members().0.contains(&to) {
            return Err(Fault::new(FaultKind::Invalid, format!("node {to} is no voter of {}", self.id())));
        }
        self.raft().trigger().transfer_leader(to.get()).await.map_err(unavailable)?;
        self.wait_for(TRANSFER_DEADLINE, "the lead moves", |metrics| metrics.current_leader == Some(to.get()))
            .await
    }

    /// Another voter that has nearly all of this leader's log, among those that `fit`: the one heard of last, for one that
    /// has just died had all of an idle log too. It waits for the rest before it asks for votes; under load nobody ever has all.
    pub(super) fn successor(&self, fit: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        if !self.is_leader() {
            return None;
        }
        let (voters, _) = self.members();
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index?;
        let heard = |node: &NodeId| metrics.heartbeat.as_ref()?.get(&node.get())?.as_ref().map(|at| **at);
        let near = |node: &NodeId| matched(&metrics, *node).is_some_and(|at| at + CAUGHT_UP_ENTRIES >= last);
        let others = voters.iter().copied().filter(|node| node.get() != metrics.id);
        others.filter(|node| fit(*node) && near(node)).max_by_key(heard)
    }
}
