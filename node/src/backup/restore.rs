//! Makes a meta node of a backup: the only one of its zone, in a new directory. Others join it as to a new zone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use holdfast_client::Map;
use holdfast_machine::kv::KvError;
use holdfast_machine::{FEATURE_LEVEL, NODES_SKIPPED, bucket_copies, next_node, realm_buckets};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, GroupKind, NodeId};
use holdfast_proto::meta::{GetMap, Query, RecoverZone, answer, command::Op, query};
use tokio::sync::mpsc;

use super::buckets::{self, Settled};
use super::depot::Depot;
use super::manifest::{GroupRows, Manifest};
use super::rows::{piece, split_row};
use crate::config::Config;
use crate::env::Env;
use crate::formation::join::{SelfDescription, node_row};
use crate::meta::{Alone, Generation};
use crate::node::directory::{Identity, NodeDirectory};

/// Pieces that wait for the store.
const PIECES_QUEUED: usize = 2;

/// What was made.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) manifest: Manifest,
    pub(crate) node: NodeId,
    /// Buckets that could not be brought back.
    pub(crate) left: Vec<String>,
}

/// Reads a whole backup and proves it.
///
/// # Errors
/// What is missing or damaged.
pub(crate) async fn verify(depot: &mut Depot, told: impl Fn(&str)) -> anyhow::Result<Manifest> {
    let manifest = Manifest::read(depot).await?;
    for group in &manifest.groups {
        let id = GroupId::from_u64(group.group)?;
        super::rows::prove(depot, group).await.with_context(|| format!("group {id}"))?;
        told(&format!("group {id}: {} rows", group.rows));
    }
    Ok(manifest)
}

/// Restores a backup into the configured directory, which must be new. `identity` is that of any node of the zone: it has the
/// realm's key, which no backup has. A crash leaves a directory that no node starts on: remove it and begin again.
///
/// # Errors
/// When something does not fit, is damaged, or cannot be written.
pub(crate) async fn restore(
    config: &Config,
    env: &Env,
    depot: &mut Depot,
    identity: &Path,
    told: impl Fn(&str),
) -> anyhow::Result<Restored> {
    ensure!(config.meta.is_some(), "a backup is restored on a meta node: add [meta] to its configuration");
    let manifest = Manifest::read(depot).await?;
    ensure!(
        manifest.feature_level <= FEATURE_LEVEL,
        "the zone was at feature level {}, this version knows {FEATURE_LEVEL}: install the newer version",
        manifest.feature_level
    );
    let known = Identity::read(identity)?;
    ensure!(
        known.realm.to_string() == manifest.realm && known.zone == manifest.zone,
        "{} is of another zone than the backup: {} of realm {}, not {} of {}",
        identity.display(),
        known.zone,
        known.realm,
        manifest.zone,
        manifest.realm
    );
    ensure!(
        config.node.zone == manifest.zone_name,
        "the configuration is for zone {:?}, the backup of {:?}",
        config.node.zone,
        manifest.zone_name
    );
    let directory = NodeDirectory::open(&config.node.data_dir)?;
    let dir = config.node.data_dir.display();
    ensure!(directory.identity()?.is_none(), "{dir} belongs to a node already: restore into a new directory");

    let (meta, disk) = (directory.meta_path(), Arc::clone(env.disk()));
    let alone = tokio::task::spawn_blocking(move || Alone::open(&meta, &disk)).await??;
    let alone = Arc::new(alone);
    let zone_group = GroupId::zone_group(known.zone_id());
    // The zone's rows say which number is free: they come first, and are the smallest.
    let mut order: Vec<&GroupRows> = manifest.groups.iter().collect();
    order.sort_by_key(|group| group.group != zone_group.get());
    let mut node = None;
    let mut generations: BTreeMap<GroupId, Generation> = BTreeMap::new();
    for group in order {
        let id = GroupId::from_u64(group.group)?;
        // Rows name no member but in Raft's own row, which is this node's once its number is known.
        let member = node.unwrap_or(known.node);
        let mut generation =
            bring(&alone, depot, group, member).await.with_context(|| format!("group {id}"))?;
        if id == zone_group {
            let number = next_node(&generation)? + NODES_SKIPPED;
            let own = NodeId::in_zone(known.zone_id(), number).context("node numbers are used up")?;
            node = Some(own);
            generation = bring(&alone, depot, group, own).await?;
        }
        told(&format!("group {id}: {} rows", group.rows));
        generations.insert(id, generation);
    }
    let node = node.context("the backup has no rows of the zone")?;

    let Settled { mut say, left } = settle_buckets(&generations, zone_group)?;
    let from = format!("a backup of {}", humantime::format_rfc3339_seconds(time_of(manifest.begun_ms)));
    let place = SelfDescription {
        addr: if config.node.advertise.is_empty() { &config.node.listen } else { &config.node.advertise }
            .clone(),
        s3_addr: String::new(),
        admin_addr: config.node.admin_listen.clone(),
    };
    let row = node_row(config, node.get(), 0, &place);
    say.entry(zone_group).or_default().push(Op::RecoverZone(RecoverZone { node: Some(row), from }));
    let now = Hlc::from_ms(env.now_ms());
    tokio::task::spawn_blocking(move || {
        alone.install(&generations)?;
        alone.go_on(node, now, say)
    })
    .await??;
    directory.save(&Identity {
        node,
        incarnation: 0,
        meta_opened: true,
        targets: BTreeMap::new(),
        founding: None,
        ..known
    })?;
    Ok(Restored { manifest, node, left })
}

fn time_of(ms: u64) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms)
}

/// Brings the rows of a group, proven, into a generation that is not live.
async fn bring(
    alone: &Arc<Alone>,
    depot: &mut Depot,
    group: &GroupRows,
    node: NodeId,
) -> anyhow::Result<Generation> {
    let id = GroupId::from_u64(group.group)?;
    let (queue, mut arrived) = mpsc::channel::<Bytes>(PIECES_QUEUED);
    let (alone, hlc) = (Arc::clone(alone), Hlc::from_u64(group.hlc));
    let filling = tokio::task::spawn_blocking(move || {
        let mut piece = Bytes::new();
        let rows = std::iter::from_fn(|| {
            while piece.is_empty() {
                piece = arrived.blocking_recv()?;
            }
            let row = split_row(&mut piece);
            if row.is_err() {
                piece = Bytes::new();
            }
            Some(row.map_err(|error| KvError(error.to_owned())))
        });
        alone.ingest(id, node, hlc, rows)
    });
    let mut digest = blake3::Hasher::new();
    for named in &group.pieces {
        let bytes = piece(depot, named).await?;
        digest.update(&bytes);
        if queue.send(bytes).await.is_err() {
            // It says why.
            break;
        }
    }
    drop(queue);
    let generation = filling.await??;
    ensure!(digest.finalize().to_hex().as_str() == group.blake3, "the rows do not match their digest");
    Ok(generation)
}

/// See [`buckets`].
fn settle_buckets(
    generations: &BTreeMap<GroupId, Generation>,
    zone_group: GroupId,
) -> anyhow::Result<Settled> {
    let rows = |id: &GroupId| generations.get(id).with_context(|| format!("the backup has no rows of {id}"));
    let ask = Query { of: Some(query::Of::GetMap(GetMap::default())) };
    let answer = holdfast_machine::query(rows(&zone_group)?, zone_group, &ask)?;
    let Some(answer::Ok::Map(map)) = answer.ok else { anyhow::bail!("the backup's zone has no map") };
    for group in &map.groups {
        rows(&GroupId::from_u64(group.id)?)?;
    }
    let realm = realm_buckets(rows(&GroupId::REALM)?)?;
    let mut partitions = BTreeMap::new();
    for (id, rows) in generations.iter().filter(|(id, _)| id.kind() == GroupKind::Partition) {
        partitions.insert(*id, bucket_copies(rows)?);
    }
    buckets::settle(&Map::parse(map)?, &realm, &partitions)
}
