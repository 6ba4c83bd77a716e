//! `Membership`: joins and heartbeats, answered by the zone's leader; other meta nodes send them on to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::error::Fault;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::meta::membership_client::MembershipClient;
use holdfast_proto::meta::membership_server::Membership;
use holdfast_proto::meta::{
    ClusterMap, HeartbeatRequest, HeartbeatResponse, JoinRequest, JoinResponse, Node, Outcome, PutNode,
    PutTarget, Refusal, Target, TargetFree, TargetState, command, outcome,
};
use holdfast_proto::v1::FaultKind;
use tonic::{Request, Response, Status};

use super::zone_head::ZoneHead;
use crate::node::contact::{FORWARDED, MAP_BYTES_MAX, forwarded};

const FORWARD_TIMEOUT: Duration = Duration::from_secs(4);

/// The service over one zone head.
#[derive(Debug, Clone)]
pub(crate) struct MembershipService(pub(crate) Arc<ZoneHead>);

#[tonic::async_trait]
impl Membership for MembershipService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let request = request.into_inner();
        if self.0.leads() {
            return Ok(Response::new(self.join_here(request).await?));
        }
        let channel = self.forward_to(sent_on)?;
        let mut client = MembershipClient::new(channel).max_decoding_message_size(MAP_BYTES_MAX);
        in_time(client.join(forwarded(request))).await
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let request = request.into_inner();
        if self.0.leads() {
            return Ok(Response::new(self.heartbeat_here(request)?));
        }
        let channel = self.forward_to(sent_on)?;
        let response = in_time(MembershipClient::new(channel).heartbeat(forwarded(request))).await?;
        let oldest = Hlc::from_u64(response.get_ref().oldest_read);
        self.0.reads.heard(Some(oldest).filter(|at| *at != Hlc::ZERO), self.0.now());
        if !response.get_ref().free.is_empty() {
            self.0.free.write().clone_from(&response.get_ref().free);
        }
        Ok(response)
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(FORWARD_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Fault::new(FaultKind::FaultUnavailable, "the zone's leader gave no answer").into()),
    }
}

impl MembershipService {
    fn forward_to(&self, sent_on: bool) -> Result<tonic::transport::Channel, Fault> {
        if sent_on {
            let leader = self.0.groups.leader(self.0.zone_group());
            return Err(Fault::not_leader(leader.map_or(0, holdfast_proto::id::NodeId::get)));
        }
        self.0.leader_channel()
    }

    async fn join_here(&self, request: JoinRequest) -> Result<JoinResponse, Fault> {
        let head = &self.0;
        let identity = &head.identity;
        let foreign = |message: &str| Err(Fault::new(FaultKind::Foreign, message));
        if !request.realm.is_empty() && request.realm != identity.realm.to_wire() {
            return foreign("its directory belongs to another realm");
        }
        if aws_lc_rs::constant_time::verify_slices_are_equal(
            request.token.as_bytes(),
            identity.join_token.bytes(),
        )
        .is_err()
        {
            return foreign("wrong join token");
        }
        if !request.zone_name.is_empty() && request.zone_name != identity.zone_name {
            let (ours, theirs) = (&identity.zone_name, &request.zone_name);
            return foreign(&format!("the seeds belong to zone {ours:?}; node.zone says {theirs:?}"));
        }
        let node = request.node.ok_or_else(|| Fault::new(FaultKind::Invalid, "a join without a node"))?;
        // Before the zone is made its group has a leader, but no rows to put a node into.
        let map = head.read_map().await?;
        let level = request.feature_level.max(holdfast_machine::FEATURE_LEVEL_FIRST);
        if level < map.feature_level {
            return foreign(&format!(
                "the zone is at feature level {} and this node knows {level}: install the version that the other nodes run",
                map.feature_level
            ));
        }
        let id = self.put_node(node, request.nonce).await?;
        let mut targets = Vec::with_capacity(request.targets.len());
        for target in request.targets {
            targets.push(self.put_target(Target { node: id, ..target }).await?);
        }
        let map = head.read_map().await?;
        Ok(JoinResponse {
            realm: identity.realm.to_wire(),
            zone: u32::from(identity.zone),
            node: id,
            targets,
            realm_key: Bytes::copy_from_slice(identity.realm_key.bytes()),
            map: Some(map),
        })
    }

    /// Adds or updates a node. A first join is known again by its nonce, which the row keeps: the answer may be lost, and
    /// the node asks again at another time and perhaps of another leader.
    async fn put_node(&self, mut node: Node, nonce: Bytes) -> Result<u64, Fault> {
        let head = &self.0;
        let new = node.id == 0;
        if new {
            if nonce.len() != 16 {
                return Err(Fault::new(FaultKind::Invalid, "a first join carries 16 random bytes"));
            }
            node.nonce = nonce;
        }
        let (id, host, roles) = (node.id, node.host.clone(), node.roles.join(","));
        let outcome =
            head.propose(head.request_id(), command::Op::PutNode(PutNode { node: Some(node) })).await?;
        match outcome {
            Outcome { refusal: 0, ok: Some(outcome::Ok::Node(id)), .. } => {
                if new {
                    tracing::info!(node = %holdfast_proto::id::NodeId::new(id), host, roles, "node joined");
                }
                Ok(id)
            }
            Outcome { refusal: 0, .. } => Ok(id),
            refused => Err(refused_node(&refused)),
        }
    }

    async fn put_target(&self, target: Target) -> Result<u32, Fault> {
        let head = &self.0;
        let map = head.read_map().await?;
        // A target that is known keeps its state: heartbeats bring it up.
        if let Some(known) = map.targets.iter().find(|known| known.uuid == target.uuid) {
            let same = known.node == target.node
                && known.media == target.media
                && known.capacity_bytes == target.capacity_bytes;
            if same {
                return Ok(known.id);
            }
        }
        let state = map
            .targets
            .iter()
            .find(|known| known.uuid == target.uuid)
            .map_or(TargetState::TargetUp, Target::state)
            .into();
        let op = command::Op::PutTarget(PutTarget { target: Some(Target { state, ..target }) });
        let outcome = head.propose(head.request_id(), op).await?;
        match outcome.ok {
            Some(outcome::Ok::Target(id)) if outcome.refusal == 0 => Ok(id),
            _ => Err(Fault::new(
                FaultKind::Invalid,
                format!("target refused: {:?} {}", outcome.refusal(), outcome.detail),
            )),
        }
    }

    fn heartbeat_here(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Fault> {
        let head = &self.0;
        let reported: Vec<u32> = request.targets.iter().map(|report| report.target).collect();
        let mut liveness = head.liveness.lock();
        // The keeper may not have noticed yet that this node leads.
        liveness.lead(true, head.now());
        if !liveness.beat(request.node, request.incarnation, request.targets, head.now()) {
            return Err(Fault::new(FaultKind::Invalid, "a younger incarnation of this node is alive"));
        }
        liveness.knows(request.node, request.feature_level);
        liveness.scrubbed(request.node, request.group_scrubs);
        if request.leaving {
            liveness.left(request.node);
        }
        liveness.reading(request.node, Hlc::from_u64(request.oldest_read));
        let map = head.feed.current();
        let oldest_read = map.as_ref().and_then(|map| liveness.oldest_read(map, head.now()));
        let is_meta = map.as_ref().is_some_and(|map| {
            map.nodes.iter().any(|node| node.id == request.node && crate::node::contact::is_meta(node))
        });
        let free: Vec<TargetFree> = if is_meta {
            liveness
                .all_reports()
                .map(|report| TargetFree { target: report.target, free_bytes: report.free_bytes })
                .collect()
        } else {
            Vec::new()
        };
        drop(liveness);
        head.reads.heard(oldest_read, head.now());
        if is_meta && request.node == head.me().get() {
            head.free.write().clone_from(&free);
        }
        Ok(HeartbeatResponse {
            hlc: head.groups.hlc().get(),
            unknown: map.as_ref().is_some_and(|map| is_unknown(map, request.node, &reported)),
            map_generation: map.map_or(0, |map| map.generation),
            free,
            oldest_read: oldest_read.map_or(0, Hlc::get),
        })
    }
}

/// Whether a node, or a target of it, comes from metadata that was lost.
fn is_unknown(map: &ClusterMap, node: u64, targets: &[u32]) -> bool {
    let lost = map.lost.clone().unwrap_or_default();
    let is_lost = |id: &&u32| {
        (lost.first_target..lost.end_target).contains(*id)
            && !lost.gone_targets.contains(*id)
            && !map.targets.iter().any(|row| row.id == **id)
    };
    !map.nodes.iter().any(|row| row.id == node) || targets.iter().any(|id| is_lost(&id))
}

fn refused_node(outcome: &Outcome) -> Fault {
    match outcome.refusal() {
        Refusal::StaleIncarnation => Fault::new(
            FaultKind::Invalid,
            "its directory went back in time (an older copy was restored): give it a new directory, it will join as a \
             new node",
        ),
        refusal => Fault::new(FaultKind::Invalid, format!("{refusal:?} {}", outcome.detail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::small_zone::{SmallZone, copies};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_join_that_is_asked_again_makes_no_second_node() {
        let zone = SmallZone::start(1, copies(1), &[&[1]]).await;
        let service = MembershipService(zone.head.clone());
        let join = |nonce: u8| JoinRequest {
            token: "token".into(),
            node: Some(Node { addr: "127.0.0.1:1".into(), ..Node::default() }),
            nonce: vec![nonce; 16].into(),
            zone_name: zone.head.identity.zone_name.clone(),
            feature_level: holdfast_machine::FEATURE_LEVEL,
            ..JoinRequest::default()
        };
        let first = service.join(Request::new(join(1))).await.unwrap().into_inner();
        let again = service.join(Request::new(join(1))).await.unwrap().into_inner();
        assert_eq!((again.node, again.map.unwrap().nodes.len()), (first.node, 2));
        let other = service.join(Request::new(join(2))).await.unwrap().into_inner();
        assert_ne!(other.node, first.node);
        let older = JoinRequest { feature_level: holdfast_machine::FEATURE_LEVEL - 1, ..join(3) };
        let refused = service.join(Request::new(older)).await.unwrap_err();
        assert!(refused.message().contains("feature level"), "{refused}");
        zone.stop().await;
    }
}
