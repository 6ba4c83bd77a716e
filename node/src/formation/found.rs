//! Makes the realm, the zone and their groups, on the node that `zone init` marked.
//!
//! Every group begins with this node as its only voter. The commands have fixed request ids (derived from the realm's
//! id), and what already exists is a success: a crash between any two steps is repeated from the start.

use std::time::Duration;

use bytes::Bytes;
use holdfast_machine::{NODES_SKIPPED, TARGETS_SKIPPED};
use holdfast_proto::error::Fault;
use holdfast_proto::id::GroupId;
use holdfast_proto::limits::SLOT_TABLE_LEN;
use holdfast_proto::meta::{
    AccessKey, Account, Command, Group, InitRealm, InitZone, Node, Outcome, RaiseFeatureLevel, Refusal,
    command,
};

use crate::meta::Groups;
use crate::node::directory::{Founding, Identity};

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Makes what is missing of the new zone.
///
/// # Errors
/// When a group does not come up or refuses.
pub(crate) async fn found(
    groups: &Groups,
    identity: &Identity,
    founding: &Founding,
    node: Node,
    partitions: u32,
    feature_level: u32,
) -> anyhow::Result<()> {
    let zone = identity.zone_id();
    let zone_group = GroupId::zone_group(zone);
    let mut ids = vec![GroupId::REALM, zone_group];
    ids.extend((0..partitions).map(|number| GroupId::partition(zone, number)));
    for group in &ids {
        groups.bootstrap(*group).await?;
    }
    // The zone's group last: what the map says of the level is then true of all.
    ids.sort_by_key(|id| *id == zone_group);
    if founding.of_old_data {
        // What leaves numbers out is a command of this level.
        raise(groups, identity, &ids, feature_level).await?;
    }
    let realm = command::Op::InitRealm(InitRealm {
        realm: identity.realm.to_wire(),
        root: Some(Account {
            id: founding.root_account.to_wire(),
            name: "root".to_owned(),
            created_ms: founding.created_ms,
            root: true,
        }),
        root_key: Some(AccessKey {
            id: founding.root_access_key.clone(),
            account: founding.root_account.to_wire(),
            sealed_secret: Bytes::copy_from_slice(founding.root_sealed_secret.bytes()),
            disabled: false,
            created_ms: founding.created_ms,
        }),
    });
    propose(groups, identity, GroupId::REALM, realm).await?;
    let init = command::Op::InitZone(InitZone {
        realm: identity.realm.to_wire(),
        zone: u32::from(identity.zone),
        name: identity.zone_name.clone(),
        partitions,
        slot_table: (0..SLOT_TABLE_LEN as u32).map(|entry| entry % partitions).collect(),
        classes: Vec::new(),
        groups: ids
            .iter()
            .map(|id| Group { id: id.get(), voters: vec![node.id], learners: Vec::new(), generation: 1 })
            .collect(),
        first_node: Some(node),
        first_node_number: if founding.of_old_data { NODES_SKIPPED } else { 0 },
        first_target_number: if founding.of_old_data { TARGETS_SKIPPED } else { 0 },
    });
    propose(groups, identity, zone_group, init).await?;
    raise(groups, identity, &ids, feature_level).await
}

async fn raise(groups: &Groups, identity: &Identity, ids: &[GroupId], level: u32) -> anyhow::Result<()> {
    for group in ids {
        let raise = command::Op::RaiseFeatureLevel(RaiseFeatureLevel { level });
        propose(groups, identity, *group, raise).await?;
    }
    Ok(())
}

/// Proposes until the new group has a leader and answers.
async fn propose(
    groups: &Groups,
    identity: &Identity,
    group: GroupId,
    op: command::Op,
) -> anyhow::Result<()> {
    let request = blake3::hash(&[identity.realm.as_bytes().as_slice(), &group.get().to_be_bytes()].concat());
    let command = Command {
        request: Bytes::copy_from_slice(&request.as_bytes()[..16]),
        first_attempt_hlc: groups.hlc().get(),
        op: Some(op),
        ..Command::default()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match groups.propose(group, vec![command.clone()]).await {
            Ok(outcomes) => return accept(group, outcomes.into_iter().next()),
            Err(fault) if fault.is_retryable() && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(fault) => return Err(failed(group, fault)),
        }
    }
}

fn failed(group: GroupId, fault: Fault) -> anyhow::Error {
    anyhow::Error::new(fault).context(format!("making group {group}"))
}

fn accept(group: GroupId, outcome: Option<Outcome>) -> anyhow::Result<()> {
    let outcome = outcome.ok_or_else(|| anyhow::anyhow!("group {group} gave no outcome"))?;
    match outcome.refusal() {
        Refusal::None | Refusal::AlreadyExists => Ok(()),
        refusal => anyhow::bail!("group {group} refused: {refusal:?} {}", outcome.detail),
    }
}
