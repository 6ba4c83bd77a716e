//! A node's way into a zone, and its word at every later start: who it is, where it is, which targets it has.
//!
//! A new node repeats its first request under one nonce until it is let in, so it gets one id however often the answer
//! was lost. Later requests carry the id; they update the address and the incarnation.

use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::error::Fault;
use holdfast_proto::id::{NodeId, RealmId, ZoneId};
use holdfast_proto::meta::{ClusterMap, JoinRequest, JoinResponse, Node, NodeState, Target};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::env::Env;
use crate::node::contact::Contact;
use crate::node::directory::{Identity, NodeDirectory, Secret};

const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// A node that is not let in says so this often.
const COMPLAIN: Duration = Duration::from_secs(10);

/// What the node tells of itself; the same at every request of one start.
#[derive(Debug, Clone)]
pub(crate) struct SelfDescription {
    pub(crate) addr: String,
    pub(crate) s3_addr: String,
    pub(crate) admin_addr: String,
}

/// This node as a row of the map.
pub(crate) fn node_row(config: &Config, id: u64, incarnation: u64, place: &SelfDescription) -> Node {
    Node {
        id,
        addr: place.addr.clone(),
        roles: config.roles(),
        host: config.node.host.clone(),
        rack: config.node.rack.clone(),
        incarnation,
        state: NodeState::NodeActive.into(),
        s3_addr: place.s3_addr.clone(),
        admin_addr: place.admin_addr.clone(),
        nonce: Bytes::new(),
    }
}

/// Asks to be let in until somebody does, then writes the identity.
///
/// # Errors
/// When the zone refuses this node, or `cancel` is cancelled.
pub(crate) async fn first_join(
    config: &Config,
    directory: &NodeDirectory,
    env: &Env,
    contact: &Contact,
    place: &SelfDescription,
    cancel: &CancellationToken,
) -> anyhow::Result<(Identity, ClusterMap)> {
    if config.node.seeds.is_empty() || config.node.join_token.is_empty() {
        anyhow::bail!(
            "{} is a new directory: run `holdfast zone init` for the first node of a zone, or set node.seeds and \
             node.join_token to join one",
            directory.path().display()
        );
    }
    let nonce = directory.join_nonce(env)?;
    let request = JoinRequest {
        token: config.node.join_token.clone(),
        node: Some(node_row(config, 0, 0, place)),
        targets: Vec::new(),
        nonce: Bytes::copy_from_slice(&nonce),
        realm: Bytes::new(),
        zone_name: config.node.zone.clone(),
        feature_level: config.node.feature_level(),
    };
    let answer = ask_until(contact, request, cancel).await?;
    let identity = Identity {
        version: Identity::VERSION,
        realm: RealmId::from_wire(&answer.realm)?,
        zone: u16::try_from(answer.zone)?,
        zone_name: config.node.zone.clone(),
        node: NodeId::new(answer.node),
        incarnation: 0,
        realm_key: Secret::new(answer.realm_key.to_vec()),
        join_token: Secret::new(config.node.join_token.clone().into_bytes()),
        meta_opened: false,
        targets: std::collections::BTreeMap::new(),
        founding: None,
    };
    let map = answer.map.unwrap_or_default();
    if identity.realm_key_array().is_none() || identity.node.zone() != ZoneId::new(identity.zone) {
        anyhow::bail!("the zone's answer makes no sense: node {} of zone {}", identity.node, identity.zone);
    }
    directory.save(&identity)?;
    Ok((identity, map))
}

/// Tells the zone that this node has started. Returns its answer.
///
/// # Errors
/// When the zone refuses this node, or `cancel` is cancelled.
pub(crate) async fn register(
    contact: &Contact,
    identity: &Identity,
    node: Node,
    targets: Vec<Target>,
    feature_level: u32,
    cancel: &CancellationToken,
) -> anyhow::Result<JoinResponse> {
    let request = JoinRequest {
        token: String::from_utf8_lossy(identity.join_token.bytes()).into_owned(),
        node: Some(node),
        targets,
        nonce: Bytes::new(),
        realm: identity.realm.to_wire(),
        zone_name: identity.zone_name.clone(),
        feature_level,
    };
    ask_until(contact, request, cancel).await
}

async fn ask_until(
    contact: &Contact,
    request: JoinRequest,
    cancel: &CancellationToken,
) -> anyhow::Result<JoinResponse> {
    let mut pause = PAUSE_MIN;
    let mut complain_at = tokio::time::Instant::now() + COMPLAIN;
    loop {
        let fault = tokio::select! {
            answer = contact.join(request.clone()) => match answer {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            },
            () = cancel.cancelled() => anyhow::bail!("stopped before the zone let this node in"),
        };
        if !fault.is_retryable() {
            return Err(refused(fault));
        }
        if tokio::time::Instant::now() >= complain_at {
            tracing::warn!(seeds = ?contact.addresses(), error = %fault, "the zone has not let this node in yet");
            complain_at += COMPLAIN;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => anyhow::bail!("stopped before the zone let this node in"),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn refused(fault: Fault) -> anyhow::Error {
    anyhow::anyhow!("the zone refuses this node: {}", fault.message)
}
