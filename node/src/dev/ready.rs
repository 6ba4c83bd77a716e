//! When a `dev` zone is ready: every node answers `/health/ready`, all groups have their voters and a leader, placement
//! is made and every target is up.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::admin::StatusResponse;
use holdfast_proto::meta::TargetState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::state::DevState;
use crate::node::contact::Contact;

const PATIENCE: Duration = Duration::from_secs(150);
const LOOK: Duration = Duration::from_millis(100);
const HTTP_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until the zone is ready. Returns the nodes' ids by their gRPC address.
///
/// # Errors
/// When it takes too long, with what was still missing.
pub(super) async fn wait(state: &DevState) -> anyhow::Result<BTreeMap<String, u64>> {
    let contact = Contact::new(state.meta_addresses());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let missing = match missing(state, &contact).await {
            Ok(ids) => return Ok(ids),
            Err(missing) => missing,
        };
        if Instant::now() > deadline {
            anyhow::bail!("the zone is not ready after {} s: {missing}", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn missing(state: &DevState, contact: &Contact) -> Result<BTreeMap<String, u64>, String> {
    for node in &state.nodes {
        health(&node.admin()).await.map_err(|reason| format!("{}: {reason}", node.name))?;
    }
    let status = contact.status().await.map_err(|fault| fault.message)?;
    zone(state, &status)
}

fn zone(state: &DevState, status: &StatusResponse) -> Result<BTreeMap<String, u64>, String> {
    let map = status.map.clone().unwrap_or_default();
    let voters = state.meta_addresses().len();
    if map.pgs.is_empty() {
        return Err("no placement yet".to_owned());
    }
    if let Some(group) = status.groups.iter().find(|group| group.leader == 0 || group.voters.len() < voters) {
        return Err(format!("group {} has {} of {voters} voters", group.group, group.voters.len()));
    }
    if let Some(target) = map.targets.iter().find(|target| target.state() != TargetState::TargetUp) {
        return Err(format!("target {} is not up", target.id));
    }
    let ids: BTreeMap<String, u64> = map.nodes.iter().map(|node| (node.addr.clone(), node.id)).collect();
    match state.nodes.iter().find(|node| !ids.contains_key(&node.grpc())) {
        Some(node) => Err(format!("{} has not joined", node.name)),
        None => Ok(ids),
    }
}

/// Asks one node's health over HTTP.
async fn health(address: &str) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: dev\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(64 << 10).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    match tokio::time::timeout(HTTP_TIMEOUT, ask).await {
        Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(Ok(answer)) => {
            let body = answer.split_once("\r\n\r\n").map_or("no answer", |(_, body)| body);
            Err(body.lines().collect::<Vec<_>>().join("; "))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}
