//! Between the consensus library's types and our own messages, which are what is on the wire and on disk. The library is
//! young and may change its types; these messages do not change (day 1).
//!
//! A log id's leader is its term alone (standard Raft), so `LogId.node` is written as 0 and not read.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::raft as wire;
use openraft::EmptyNode;
use openraft::vote::RaftLeaderId as _;

use super::raft::{
    AppendRequest, AppendResponse, Commands, Entry, LogId, Membership, Payload, StoredMembership, Vote,
    VoteRequest, VoteResponse,
};

/// A message that lacks a field or contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub(crate) struct WireError(pub(crate) &'static str);

pub(super) fn vote_out(vote: &Vote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(super) fn vote_in(vote: &wire::Vote) -> Vote {
    if vote.committed { Vote::new_committed(vote.term, vote.node) } else { Vote::new(vote.term, vote.node) }
}

pub(super) fn log_id_out(log_id: &LogId) -> wire::LogId {
    wire::LogId { term: log_id.committed_leader_id().term, node: 0, index: log_id.index() }
}

pub(super) fn log_id_in(log_id: &wire::LogId) -> LogId {
    LogId::new_term_index(log_id.term, log_id.index)
}

pub(super) fn membership_out(membership: &Membership) -> wire::Membership {
    wire::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|config| wire::NodeSet { nodes: config.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(node, _)| *node).collect(),
    }
}

/// # Errors
/// When a voter is missing among the nodes.
pub(super) fn membership_in(membership: &wire::Membership) -> Result<Membership, WireError> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.iter().map(|set| set.nodes.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, EmptyNode> =
        membership.nodes.iter().map(|node| (*node, EmptyNode::new())).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes)
        .map_err(|_| WireError("a membership whose voters are not among its nodes"))
}

pub(super) fn stored_membership_out(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_out),
        membership: Some(membership_out(stored.membership())),
    }
}

/// # Errors
/// When the membership is missing or malformed.
pub(super) fn stored_membership_in(stored: &wire::StoredMembership) -> Result<StoredMembership, WireError> {
    let membership =
        stored.membership.as_ref().ok_or(WireError("a stored membership without its membership"))?;
    Ok(StoredMembership::new(stored.log_id.as_ref().map(log_id_in), membership_in(membership)?))
}

pub(super) fn entry_out(entry: &Entry) -> wire::Entry {
    wire::Entry {
        log_id: Some(log_id_out(&entry.log_id)),
        payload: Some(match &entry.payload {
            Payload::Blank => wire::entry::Payload::Blank(true),
            Payload::Normal(Commands(bytes)) => wire::entry::Payload::Commands(bytes.clone()),
            Payload::Membership(membership) => wire::entry::Payload::Membership(membership_out(membership)),
        }),
    }
}

/// # Errors
/// When a field is missing or malformed.
pub(super) fn entry_in(entry: wire::Entry) -> Result<Entry, WireError> {
    let log_id = entry.log_id.as_ref().ok_or(WireError("an entry without its log id"))?;
    let payload = match entry.payload.ok_or(WireError("an entry without its payload"))? {
        wire::entry::Payload::Blank(_) => Payload::Blank,
        wire::entry::Payload::Commands(bytes) => Payload::Normal(Commands(bytes)),
        wire::entry::Payload::Membership(membership) => Payload::Membership(membership_in(&membership)?),
    };
    Ok(Entry { log_id: log_id_in(log_id), payload })
}

pub(super) fn append_out(request: &AppendRequest) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(vote_out(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_out),
        entries: request.entries.iter().map(entry_out).collect(),
        leader_commit: request.leader_commit.as_ref().map(log_id_out),
    }
}

/// # Errors
/// When a field is missing or malformed.
pub(super) fn append_in(request: wire::AppendRequest) -> Result<AppendRequest, WireError> {
    Ok(AppendRequest {
        vote: vote_in(request.vote.as_ref().ok_or(WireError("an append without its vote"))?),
        prev_log_id: request.prev.as_ref().map(log_id_in),
        entries: request.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?,
        leader_commit: request.leader_commit.as_ref().map(log_id_in),
    })
}

pub(super) fn append_reply_out(response: &AppendResponse) -> wire::AppendReply {
    use wire::append_reply::Result as Reply;
    let result = match response {
        AppendResponse::Success => Reply::Success(true),
        // Stored nothing beyond what was there: the same as success of an empty append.
        AppendResponse::PartialSuccess(None) => Reply::Partial(wire::LogId::default()),
        AppendResponse::PartialSuccess(Some(log_id)) => Reply::Partial(log_id_out(log_id)),
        AppendResponse::Conflict => Reply::Conflict(true),
        AppendResponse::HigherVote(vote) => Reply::HigherVote(vote_out(vote)),
    };
    wire::AppendReply { result: Some(result) }
}

/// # Errors
/// When the result is missing.
pub(super) fn append_reply_in(reply: &wire::AppendReply) -> Result<AppendResponse, WireError> {
    use wire::append_reply::Result as Reply;
    Ok(match reply.result.as_ref().ok_or(WireError("an append reply without its result"))? {
        Reply::Success(_) => AppendResponse::Success,
        Reply::Partial(log_id) if *log_id == wire::LogId::default() => AppendResponse::PartialSuccess(None),
        Reply::Partial(log_id) => AppendResponse::PartialSuccess(Some(log_id_in(log_id))),
        Reply::Conflict(_) => AppendResponse::Conflict,
        Reply::HigherVote(vote) => AppendResponse::HigherVote(vote_in(vote)),
    })
}

pub(super) fn vote_request_out(request: &VoteRequest) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote_out(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

/// # Errors
/// When the vote is missing.
pub(super) fn vote_request_in(request: &wire::VoteRequest) -> Result<VoteRequest, WireError> {
    let vote = vote_in(request.vote.as_ref().ok_or(WireError("a vote request without its vote"))?);
    let mut out = VoteRequest::new(vote, request.last_log_id.as_ref().map(log_id_in));
    out.leadership_transfer = request.leadership_transfer;
    Ok(out)
}

pub(super) fn vote_reply_out(response: &VoteResponse) -> wire::VoteReply {
    wire::VoteReply {
        vote: Some(vote_out(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_out),
    }
}

/// # Errors
/// When the vote is missing.
pub(super) fn vote_reply_in(reply: &wire::VoteReply) -> Result<VoteResponse, WireError> {
    let vote = vote_in(reply.vote.as_ref().ok_or(WireError("a vote reply without its vote"))?);
    Ok(VoteResponse::new(vote, reply.last_log_id.as_ref().map(log_id_in), reply.granted))
}

/// The node a vote is for.
pub(super) fn voted_for(vote: &Vote) -> u64 {
    *vote.leader_id.node_id()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message;

    fn entry(index: u64, payload: Payload) -> Entry {
        Entry { log_id: LogId::new_term_index(3, index), payload }
    }

    #[test]
    fn entries_survive_the_wire() {
        let configs = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        let nodes: BTreeMap<u64, EmptyNode> = (1..=5).map(|node| (node, EmptyNode::new())).collect();
        let membership = Membership::new(configs, nodes).unwrap();
        for payload in [
            Payload::Blank,
            Payload::Normal(Commands(Bytes::from_static(b"batch"))),
            Payload::Membership(membership),
        ] {
            let before = entry(7, payload);
            let wire = wire::Entry::decode(entry_out(&before).encode_to_vec().as_slice()).unwrap();
            assert_eq!(entry_in(wire).unwrap(), before);
        }
    }

    #[test]
    fn votes_and_replies_survive_the_wire() {
        for vote in [Vote::new(4, 9), Vote::new_committed(4, 9)] {
            assert_eq!(vote_in(&vote_out(&vote)), vote);
            assert_eq!(voted_for(&vote), 9);
            for reply in [
                AppendResponse::Success,
                AppendResponse::Conflict,
                AppendResponse::PartialSuccess(None),
                AppendResponse::PartialSuccess(Some(LogId::new_term_index(1, 2))),
                AppendResponse::HigherVote(vote),
            ] {
                assert_eq!(append_reply_in(&append_reply_out(&reply)).unwrap(), reply);
            }
        }
    }

    #[test]
    fn what_lacks_a_field_is_an_error() {
        assert!(entry_in(wire::Entry::default()).is_err());
        assert!(append_in(wire::AppendRequest::default()).is_err());
        assert!(vote_request_in(&wire::VoteRequest::default()).is_err());
        let voter_without_node =
            wire::Membership { configs: vec![wire::NodeSet { nodes: vec![1] }], nodes: vec![2] };
        assert!(membership_in(&voter_without_node).is_err());
    }

    /// These bytes are in every log on disk: they never change.
    #[test]
    fn golden_entry() {
        let bytes =
            entry_out(&entry(300, Payload::Normal(Commands(Bytes::from_static(b"ab"))))).encode_to_vec();
        assert_eq!(hex::encode(bytes), "0a05080318ac021a026162");
    }
}
