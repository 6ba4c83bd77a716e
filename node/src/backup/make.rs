//! Makes a backup of a running zone.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_proto::admin::admin_client::AdminClient;
use holdfast_proto::admin::{ChangeRequest, ReadGroupRequest, change_request};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, GroupKind, RealmId};
use holdfast_proto::meta::ClusterMap;
use holdfast_proto::raft::SnapshotPart;
use holdfast_proto::raft::snapshot_part::Part;
use holdfast_proto::v1::FaultKind;
use tokio::time::Instant;
use tonic::Streaming;

use super::depot::Depot;
use super::manifest::{self, GroupRows, Manifest};
use super::rows::Writer;
use crate::env::Env;
use crate::node::contact::{Contact, MAP_BYTES_MAX, connect_lazy, meta_addresses};

/// How long a group may be without a leader.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(500);
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Rows that do not come for this long come no more.
const STALL_DEADLINE: Duration = Duration::from_secs(60);
/// A group whose rows were broken off is read again so often.
const ATTEMPTS: u32 = 5;

/// Backs the metadata of a zone up, and answers what was made.
///
/// # Errors
/// When there is a backup already, a group's rows do not come, or the depot fails: no backup was made then.
pub(crate) async fn make(
    contact: &Contact,
    depot: &mut Depot,
    env: &Env,
    told: impl Fn(&str),
) -> anyhow::Result<Manifest> {
    ensure!(
        depot.get(manifest::NAME).await?.is_none(),
        "a backup is here already: give each one a place of its own"
    );
    let begun = change(contact, change_request::What::BeginBackup(true)).await?;
    let begun_ms = env.now_ms();
    let map = contact.status().await.map_err(|fault| anyhow::anyhow!("{}", fault.message))?.map;
    let map = map.context("the zone has no map")?;
    let mut ids =
        map.groups.iter().map(|group| GroupId::from_u64(group.id)).collect::<Result<Vec<_>, _>>()?;
    ids.sort_by_key(|id| match id.kind() {
        GroupKind::Realm => (0, *id),
        GroupKind::Partition => (1, *id),
        GroupKind::Zone => (2, *id),
    });
    let mut groups = Vec::with_capacity(ids.len());
    for id in ids {
        let group = group(&map, depot, id, begun).await.with_context(|| format!("group {id}"))?;
        told(&format!("group {id}: {} rows", group.rows));
        groups.push(group);
    }
    let manifest = Manifest {
        version: Manifest::VERSION,
        realm: RealmId::from_wire(&map.realm)?.to_string(),
        zone: u16::try_from(map.zone)?,
        zone_name: map.zone_name.clone(),
        feature_level: map.feature_level,
        begun_ms,
        finished_ms: env.now_ms(),
        groups,
    };
    depot.put(manifest::NAME, manifest.encode()?).await?;
    // It is whole from here on: what is left is that the zone lets go of what only older ones need.
    change(contact, change_request::What::FinishBackup(begun))
        .await
        .context("the backup is whole, but the zone was not told and keeps garbage for the one before")?;
    Ok(manifest)
}

async fn change(contact: &Contact, what: change_request::What) -> anyhow::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match contact.change(ChangeRequest { what: Some(what) }).await {
            Ok(changed) => return Ok(changed.generation),
            Err(fault) if fault.is_retryable() && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await
            }
            Err(fault) => bail!("{}", fault.message),
        }
    }
}

async fn group(map: &ClusterMap, depot: &mut Depot, id: GroupId, begun: u64) -> anyhow::Result<GroupRows> {
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        // What an attempt before has put is under other names, and no manifest names it.
        let stem = format!("{:016x}-{attempt}", id.get());
        let parts = find(map, id, begun).await?;
        match take(parts, Writer::new(depot, stem), id).await {
            Ok(rows) => return Ok(rows),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(last.context("no attempt was made")?)
}

/// Asks meta nodes until one of them gives the rows: the one that leads.
async fn find(map: &ClusterMap, id: GroupId, begun: u64) -> anyhow::Result<Streaming<SnapshotPart>> {
    let deadline = Instant::now() + PATIENCE;
    let request = ReadGroupRequest { group: id.get(), map_generation: begun };
    let mut last = Fault::new(FaultKind::FaultUnavailable, "no meta node is known");
    let mut leader = None;
    loop {
        for address in leader.take().into_iter().chain(meta_addresses(map)) {
            let channel = connect_lazy(&address)?;
            let mut client = AdminClient::new(channel).max_decoding_message_size(MAP_BYTES_MAX);
            match tokio::time::timeout(CALL_DEADLINE, client.read_group(request)).await {
                Ok(Ok(parts)) => return Ok(parts.into_inner()),
                Ok(Err(status)) => last = Fault::from_status(&status),
                Err(_) => last.message = format!("{address} gave no answer"),
            }
            let named = map.nodes.iter().find(|node| last.leader != 0 && node.id == last.leader);
            leader = named.map(|node| node.addr.clone());
        }
        ensure!(Instant::now() < deadline, "nobody gives its rows: {}", last.message);
        tokio::time::sleep(PAUSE).await;
    }
}

async fn next(parts: &mut Streaming<SnapshotPart>) -> anyhow::Result<Part> {
    let part = tokio::time::timeout(STALL_DEADLINE, parts.message()).await.context("rows have stalled")??;
    part.and_then(|part| part.part).context("rows were broken off")
}

async fn take(
    mut parts: Streaming<SnapshotPart>,
    mut writer: Writer<'_>,
    id: GroupId,
) -> anyhow::Result<GroupRows> {
    let Part::Head(head) = next(&mut parts).await? else { bail!("rows without a head") };
    ensure!(head.group == id.get(), "rows of another group");
    let at = head.last_log_id.unwrap_or_default();
    let tail = loop {
        match next(&mut parts).await? {
            Part::Rows(rows) => {
                for row in rows.rows {
                    writer.row(&row.key, &row.value).await?;
                }
            }
            Part::Tail(tail) => break tail,
            Part::Head(_) => bail!("two heads"),
        }
    };
    let (pieces, rows, blake3) = writer.finish().await?;
    ensure!(rows == tail.rows && blake3 == hex::encode(&tail.blake3), "what came is not what was sent");
    Ok(GroupRows { group: id.get(), term: at.term, index: at.index, hlc: head.hlc, rows, blake3, pieces })
}
