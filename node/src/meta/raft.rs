//! The consensus library's types as this node fills them in: standard Raft terms, node ids as numbers, log entries that
//! hold an encoded batch of commands. Nothing outside `meta` sees them, and none of them is on disk or on the wire:
//! [`super::wire`] converts.

use std::fmt;

use bytes::Bytes;
use holdfast_proto::meta::Outcome;
use openraft::vote::leader_id_std::{CommittedLeaderId, LeaderId};

use super::state::StateMachine;

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = Commands,
        R = Outcomes,
        NodeId = u64,
        Node = openraft::EmptyNode,
        LeaderId = LeaderId<u64, u64>,
);

/// One group's consensus.
pub(super) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(super) type LogId = openraft::LogId<CommittedLeaderId<u64>>;
pub(super) type Vote = openraft::Vote<LeaderId<u64, u64>>;
pub(super) type Membership = openraft::Membership<u64, openraft::EmptyNode>;
pub(super) type StoredMembership =
    openraft::StoredMembership<CommittedLeaderId<u64>, u64, openraft::EmptyNode>;
pub(super) type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub(super) type Payload = openraft::EntryPayload<Commands, u64, openraft::EmptyNode>;
pub(super) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
pub(super) type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub(super) type AppendResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
pub(super) type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
pub(super) type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;

/// A log entry's commands: an encoded `holdfast.meta.v1.CommandBatch`. The leader encodes it once; every replica stores
/// these bytes and decodes them once, when it applies them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Commands(pub(crate) Bytes);

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commands({} bytes)", self.0.len())
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of commands", self.0.len())
    }
}

/// What applying an entry answered: one outcome for each command, in order; none for an entry without commands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcomes(pub(crate) Vec<Outcome>);

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} outcomes", self.0.len())
    }
}
