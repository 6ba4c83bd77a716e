//! `status` and the listings.

use std::collections::BTreeMap;

use holdfast_proto::admin::{LostStripe, RepairStatus, StatusResponse};
use holdfast_proto::id::{AccountId, BucketId, GroupId, NodeId, RealmId};
use holdfast_proto::meta::{BucketState, ClusterMap, TargetReport, TargetState, Versioning};
use holdfast_proto::v1::{Codec, Scheme};
use serde_json::{Value, json};

use super::output;
use super::target_zone::ZoneArgs;

pub(super) async fn ask(zone: &ZoneArgs) -> anyhow::Result<(StatusResponse, ClusterMap)> {
    let mut status = zone.contact()?.status().await.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    let map = status.map.take().unwrap_or_default();
    Ok((status, map))
}

/// `holdfast status`
pub(super) async fn status(zone: &ZoneArgs) -> anyhow::Result<()> {
    let (status, map) = ask(zone).await?;
    if zone.json {
        return output::json(&json!({
            "realm": realm(&map),
            "zone": map.zone_name,
            "zone_id": map.zone,
            "generation": map.generation,
            "feature_level": map.feature_level,
            "health": health_json(&status),
            "nodes": nodes_json(&status, &map),
            "targets": targets_json(&status, &map),
            "groups": groups_json(&status),
            "classes": classes_json(&map),
            "pgs": map.pgs.len(),
            "missed_writes": status.missed_writes,
            "garbage_writes": status.garbage_writes,
            "repair": repair_json(status.repair.as_ref()),
            "corrupt_blocks": reports(&status).values().map(|report| report.corrupt_blocks).sum::<u64>(),
        }));
    }
    let mut text =
        format!("zone {} of realm {}, map generation {}\n\n", map.zone_name, realm(&map), map.generation);
    if status.health.is_empty() {
        text += "health: good\n";
    }
    for code in &status.health {
        text += &format!("{}: {}: {}; {}\n", code.severity, code.code, code.summary, code.next_step);
    }
    text += &format!("\n{}\n\n{}\n\n", nodes_table(&status, &map), targets_table(&status, &map));
    let rows: Vec<Vec<String>> = status
        .groups
        .iter()
        .map(|group| {
            let nodes =
                |ids: &[u64]| ids.iter().map(|id| NodeId::new(*id).to_string()).collect::<Vec<_>>().join(" ");
            vec![
                group_name(group.group),
                node_name(group.leader),
                nodes(&group.voters),
                nodes(&group.learners),
            ]
        })
        .collect();
    text += &output::table(&["GROUP", "LEADER", "VOTERS", "LEARNERS"], &rows);
    let classes: Vec<String> =
        map.classes.iter().map(|class| format!("{} {}", class.name, scheme(class.scheme))).collect();
    text += &format!(
        "\n\nclasses: {}; {} placement groups; {} write(s) with missing shards; {} write(s) to collect",
        if classes.is_empty() { "none yet".to_owned() } else { classes.join(", ") },
        map.pgs.len(),
        status.missed_writes,
        status.garbage_writes,
    );
    text += &repair_text(status.repair.as_ref());
    output::line(&text)
}

fn repair_json(repair: Option<&RepairStatus>) -> Value {
    let Some(repair) = repair else { return Value::Null };
    let lost = |lost: &LostStripe| {
        json!({
            "bucket": lost.bucket,
            "key": String::from_utf8_lossy(&lost.key),
            "write": hex::encode(&lost.write),
            "stripe": lost.stripe,
            "alive": lost.alive,
            "needed": lost.needed,
        })
    };
    json!({
        "running": repair.running,
        "seconds_left": repair.seconds_left,
        "settled": repair.settled,
        "shards_seen": repair.shards_seen,
        "shards_total": repair.shards_total,
        "brought_shards": repair.brought_shards,
        "brought_bytes": repair.brought_bytes,
        "waiting_stripes": repair.waiting_stripes,
        "trouble": repair.trouble,
        "lost": repair.lost.iter().map(lost).collect::<Vec<_>>(),
    })
}

/// Keys of which something is lost, shown on the screen; `--json` has more.
const LOST_SHOWN: usize = 10;

fn repair_text(repair: Option<&RepairStatus>) -> String {
    let Some(repair) = repair else { return String::new() };
    let mut text = format!(
        "\nrepair: {}; {} of {} shards looked at; {} shard(s), {} brought",
        match (repair.running, repair.settled) {
            (true, _) => "running",
            (false, true) => "everything is in its place",
            (false, false) => "resting",
        },
        repair.shards_seen,
        repair.shards_total.max(repair.shards_seen),
        repair.brought_shards,
        output::bytes(repair.brought_bytes),
    );
    if let Some(seconds) = repair.seconds_left {
        let left = humantime::format_duration(std::time::Duration::from_secs(seconds));
        text += &format!("; about {left} left");
    }
    if repair.waiting_stripes > 0 {
        text += &format!("; {} stripe(s) wait", repair.waiting_stripes);
    }
    for lost in repair.lost.iter().take(LOST_SHOWN) {
        text += &format!(
            "\nlost: {}/{}: {} of {} shards that stripe {} needs",
            lost.bucket,
            lost.key.escape_ascii(),
            lost.alive,
            lost.needed,
            lost.stripe,
        );
    }
    if repair.lost.len() > LOST_SHOWN {
        text += &format!("\nand {} more", repair.lost.len() - LOST_SHOWN);
    }
    text
}

/// `holdfast node list`
pub(super) async fn nodes(zone: &ZoneArgs) -> anyhow::Result<()> {
    let (status, map) = ask(zone).await?;
    if zone.json {
        output::json(&nodes_json(&status, &map))
    } else {
        output::line(&nodes_table(&status, &map))
    }
}

/// `holdfast target list`
pub(super) async fn targets(zone: &ZoneArgs) -> anyhow::Result<()> {
    let (status, map) = ask(zone).await?;
    if zone.json {
        output::json(&targets_json(&status, &map))
    } else {
        output::line(&targets_table(&status, &map))
    }
}

/// `holdfast pg list`
pub(super) async fn pgs(zone: &ZoneArgs) -> anyhow::Result<()> {
    let (_, map) = ask(zone).await?;
    let up = |id: &u32| {
        map.targets.iter().any(|target| target.id == *id && target.state() == TargetState::TargetUp)
    };
    if zone.json {
        let rows: Vec<Value> = map
            .pgs
            .iter()
            .map(|pg| {
                let up: Vec<u32> = pg.targets.iter().copied().filter(|id| up(id)).collect();
                json!({
                    "id": pg.id, "epoch": pg.epoch, "class": pg.class, "targets": pg.targets, "up": up,
                    "moving": pg.moving.iter().map(|at| json!({"place": at.place, "from": at.from})).collect::<Vec<_>>(),
                })
            })
            .collect();
        return output::json(&Value::Array(rows));
    }
    let rows: Vec<Vec<String>> = map
        .pgs
        .iter()
        .map(|pg| {
            let targets: Vec<String> = pg.targets.iter().map(u32::to_string).collect();
            let alive = pg.targets.iter().filter(|id| up(id)).count();
            let of = format!("{alive}/{}", pg.targets.len());
            vec![pg.id.to_string(), pg.epoch.to_string(), pg.class.clone(), of, targets.join(" ")]
        })
        .collect();
    output::line(&output::table(&["PG", "EPOCH", "CLASS", "UP", "TARGETS"], &rows))
}

/// `holdfast bucket list`
pub(super) async fn buckets(zone: &ZoneArgs) -> anyhow::Result<()> {
    let answer = zone.contact()?.buckets().await.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    let rows = answer
        .buckets
        .into_iter()
        .map(|row| (row.bucket.unwrap_or_default(), row.counters.unwrap_or_default()));
    let state = |state: BucketState| match state {
        BucketState::BucketCreating => "creating",
        BucketState::BucketDeleting => "deleting",
        BucketState::BucketActive | BucketState::Unspecified => "active",
    };
    if zone.json {
        let rows: Vec<Value> = rows
            .map(|(bucket, count)| {
                json!({
                    "name": bucket.name,
                    "id": BucketId::from_wire(&bucket.id).map(|id| id.to_string()).unwrap_or_default(),
                    "owner": AccountId::from_wire(&bucket.owner).map(|id| id.to_string()).unwrap_or_default(),
                    "state": state(bucket.state()),
                    "versioning": match bucket.versioning() {
                        Versioning::Off => "off",
                        Versioning::Enabled => "enabled",
                        Versioning::Suspended => "suspended",
                    },
                    "slots": bucket.slots,
                    "created_ms": bucket.created_ms,
                    "objects": count.objects,
                    "versions": count.versions,
                    "markers": count.markers,
                    "bytes": count.bytes,
                    "uploads": count.uploads,
                    "part_bytes": count.part_bytes,
                })
            })
            .collect();
        return output::json(&Value::Array(rows));
    }
    let rows: Vec<Vec<String>> = rows
        .map(|(bucket, count)| {
            vec![
                bucket.name.clone(),
                state(bucket.state()).to_owned(),
                count.objects.to_string(),
                count.versions.to_string(),
                output::bytes(count.bytes),
                count.uploads.to_string(),
            ]
        })
        .collect();
    output::line(&output::table(&["BUCKET", "STATE", "OBJECTS", "VERSIONS", "BYTES", "UPLOADS"], &rows))
}

fn realm(map: &ClusterMap) -> String {
    RealmId::from_wire(&map.realm).map(|id| id.to_string()).unwrap_or_default()
}

pub(super) fn group_name(id: u64) -> String {
    GroupId::from_u64(id).map_or_else(|_| id.to_string(), |id| id.to_string())
}

fn node_name(id: u64) -> String {
    if id == 0 { "none".to_owned() } else { NodeId::new(id).to_string() }
}

pub(super) fn scheme(scheme: Option<Scheme>) -> String {
    match scheme {
        Some(scheme) if scheme.codec() == Codec::Copies => format!("{} copies", scheme.data + scheme.parity),
        Some(scheme) => format!("{}+{}", scheme.data, scheme.parity),
        None => "unset".to_owned(),
    }
}

fn target_state(state: TargetState) -> &'static str {
    match state {
        TargetState::Unspecified => "unknown",
        TargetState::TargetUp => "up",
        TargetState::TargetDown => "down",
        TargetState::TargetOut => "out",
        TargetState::TargetDraining => "draining",
    }
}

pub(super) fn reports(status: &StatusResponse) -> BTreeMap<u32, &TargetReport> {
    status.nodes.iter().flat_map(|node| &node.targets).map(|report| (report.target, report)).collect()
}

fn health_json(status: &StatusResponse) -> Value {
    status
        .health
        .iter()
        .map(|code| {
            json!({
                "code": code.code, "severity": code.severity, "summary": code.summary, "next_step": code.next_step,
            })
        })
        .collect()
}

fn nodes_json(status: &StatusResponse, map: &ClusterMap) -> Value {
    map.nodes
        .iter()
        .map(|node| {
            let heard = status.nodes.iter().find(|heard| heard.node == node.id);
            json!({
                "id": node.id,
                "name": NodeId::new(node.id).to_string(),
                "addr": node.addr,
                "roles": node.roles,
                "host": node.host,
                "rack": node.rack,
                "incarnation": node.incarnation,
                "alive": heard.map(|heard| heard.alive),
                "silent_ms": heard.map(|heard| heard.silent_ms),
                "s3": node.s3_addr,
                "admin": node.admin_addr,
            })
        })
        .collect()
}

fn nodes_table(status: &StatusResponse, map: &ClusterMap) -> String {
    let rows: Vec<Vec<String>> = map
        .nodes
        .iter()
        .map(|node| {
            let state = match status.nodes.iter().find(|heard| heard.node == node.id) {
                Some(heard) if heard.alive => "alive".to_owned(),
                Some(heard) => format!("silent {} s", heard.silent_ms / 1000),
                None => "unknown".to_owned(),
            };
            vec![
                NodeId::new(node.id).to_string(),
                node.roles.join(","),
                state,
                node.host.clone(),
                node.addr.clone(),
            ]
        })
        .collect();
    output::table(&["NODE", "ROLES", "STATE", "HOST", "ADDRESS"], &rows)
}

fn targets_json(status: &StatusResponse, map: &ClusterMap) -> Value {
    let reports = reports(status);
    map.targets
        .iter()
        .map(|target| {
            let report = reports.get(&target.id);
            json!({
                "id": target.id,
                "node": target.node,
                "node_name": NodeId::new(target.node).to_string(),
                "uuid": hex::encode(&target.uuid),
                "media": target.media,
                "state": target_state(target.state()),
                "capacity_bytes": target.capacity_bytes,
                "used_bytes": report.map(|report| report.used_bytes),
                "free_bytes": report.map(|report| report.free_bytes),
                "shards": report.map(|report| report.shards),
                "writable": report.map(|report| report.writable),
                "fault": report.map(|report| report.fault.clone()),
                "recovering": report.map(|report| report.recovering),
                "corrupt_blocks": report.map(|report| report.corrupt_blocks),
            })
        })
        .collect()
}

fn targets_table(status: &StatusResponse, map: &ClusterMap) -> String {
    let reports = reports(status);
    let rows: Vec<Vec<String>> = map
        .targets
        .iter()
        .map(|target| {
            let report = reports.get(&target.id);
            let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            vec![
                target.id.to_string(),
                NodeId::new(target.node).to_string(),
                target_state(target.state()).to_owned(),
                target.media.clone(),
                shown(report.map(|report| output::bytes(report.used_bytes))),
                shown(report.map(|report| output::bytes(report.free_bytes))),
                shown(report.map(|report| report.shards.to_string())),
                shown(report.map(|report| report.corrupt_blocks.to_string())),
                report.map(|report| report.fault.clone()).unwrap_or_default(),
            ]
        })
        .collect();
    output::table(&["TARGET", "NODE", "STATE", "MEDIA", "USED", "FREE", "SHARDS", "CORRUPT", "FAULT"], &rows)
}

fn groups_json(status: &StatusResponse) -> Value {
    status
        .groups
        .iter()
        .map(|group| {
            json!({
                "group": group_name(group.group),
                "id": group.group,
                "leader": group.leader,
                "term": group.term,
                "applied": group.applied,
                "voters": group.voters,
                "learners": group.learners,
            })
        })
        .collect()
}

fn classes_json(map: &ClusterMap) -> Value {
    map.classes
        .iter()
        .map(|class| {
            json!({"name": class.name, "scheme": scheme(class.scheme), "small": scheme(class.small), "media": class.media})
        })
        .collect()
}
