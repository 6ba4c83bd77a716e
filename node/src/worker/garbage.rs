//! Collects freed bodies: on the node that leads a partition, rows of its garbage queue that have been due for the grace
//! time lose their shards on all targets, then their row. Both steps are idempotent, and in this order, so a crash
//! between them only repeats the first. A row whose targets do not all answer stays for a later round.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::geometry::Geometry;
use holdfast_proto::data::DeleteShards;
use holdfast_proto::data::shards_client::ShardsClient;
use holdfast_proto::id::{GroupId, GroupKind, ShardId, WriteId};
use holdfast_proto::limits::MESSAGE_BYTES_MAX;
use holdfast_proto::meta::{
    Body, ClusterMap, Command, DueGarbage, FreeGarbage, GarbageKey, Query, Refusal, TargetState, answer,
    command, query,
};
use tonic::transport::Channel;

use crate::node::contact::connect_lazy;
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_secs(2);
/// Writes freed in one command.
const PAGE: u32 = 200;
/// Shards named in one call to a target, which takes 10,000.
const SHARDS_PER_CALL: usize = 8_000;
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs until the node stops.
pub(crate) async fn run(head: Arc<ZoneHead>, progress: Progress) -> anyhow::Result<()> {
    let mut collector = Collector { head, channels: HashMap::new(), after: HashMap::new() };
    loop {
        tokio::time::sleep(TICK).await;
        let partitions: Vec<GroupId> = collector
            .head
            .groups
            .hosted()
            .into_iter()
            .filter(|group| group.kind() == GroupKind::Partition && collector.head.groups.is_leader(*group))
            .collect();
        let mut backlog = 0;
        for group in partitions {
            match collector.collect(group, &progress).await {
                Ok(left) => backlog += left,
                Err(error) => progress.trouble(format!("{group}: {error:#}")),
            }
        }
        progress.backlog(backlog);
        metrics::gauge!("holdfast_meta_garbage_due_writes").set(backlog as f64);
    }
}

struct Collector {
    head: Arc<ZoneHead>,
    channels: HashMap<u64, (String, Channel)>,
    /// Where the walk of a partition goes on when rows had to be left behind.
    after: HashMap<GroupId, Bytes>,
}

/// Shards to delete, by target.
type Doomed = BTreeMap<u32, Vec<Bytes>>;

impl Collector {
    /// Frees due rows of one partition until none is left or a page could not be freed. Returns how many were left.
    async fn collect(&mut self, group: GroupId, progress: &Progress) -> anyhow::Result<u64> {
        let grace = self.head.config.garbage_grace.get().as_millis() as u64;
        let due_before = self.head.groups.hlc().minus_ms(grace).get();
        let mut left = 0;
        loop {
            let after = self.after.get(&group).cloned().unwrap_or_default();
            let ask = DueGarbage { due_before, limit: PAGE, after };
            let ask = Query { of: Some(query::Of::DueGarbage(ask)) };
            let answers = self.head.groups.read(group, vec![ask]).await?;
            let Some(answer::Ok::Garbage(page)) = answers.into_iter().next().and_then(|answer| answer.ok)
            else {
                return Ok(left);
            };
            if page.keys.is_empty() {
                self.after.remove(&group);
                return Ok(left);
            }
            let Some(map) = self.head.feed.current() else { return Ok(left) };
            let rows =
                page.keys.into_iter().zip(page.rows.into_iter().map(|row| row.body.unwrap_or_default()));
            let (freed, kept) = self.free(group, &map, rows.collect()).await?;
            progress.done(freed);
            left += kept;
            self.after.insert(group, page.last);
            if kept == 0 {
                progress.well();
            }
        }
    }

    /// Deletes the shards of these writes, then the rows of those whose targets all answered.
    async fn free(
        &mut self,
        group: GroupId,
        map: &ClusterMap,
        rows: Vec<(GarbageKey, Body)>,
    ) -> anyhow::Result<(u64, u64)> {
        let mut all = Doomed::new();
        let mut needs: Vec<(GarbageKey, Vec<u32>)> = Vec::with_capacity(rows.len());
        for (key, body) in rows {
            let shards = shards_of(map, &body)?;
            needs.push((key, shards.keys().copied().collect()));
            for (target, shards) in shards {
                all.entry(target).or_default().extend(shards);
            }
        }
        let mut silent = Vec::new();
        for (target, shards) in all {
            if let Err(error) = self.delete(map, target, shards).await {
                tracing::debug!(target_id = target, %error, "shards stay until the target answers");
                silent.push(target);
            }
        }
        let count = needs.len() as u64;
        let rows: Vec<GarbageKey> = needs
            .into_iter()
            .filter(|(_, targets)| !targets.iter().any(|target| silent.contains(target)))
            .map(|(key, _)| key)
            .collect();
        let freed = rows.len() as u64;
        if freed > 0 {
            let command = Command {
                request: self.head.request_id(),
                first_attempt_hlc: self.head.groups.hlc().get(),
                op: Some(command::Op::FreeGarbage(FreeGarbage { rows })),
                ..Command::default()
            };
            for outcome in self.head.groups.propose(group, vec![command]).await? {
                if outcome.refusal() != Refusal::None {
                    anyhow::bail!("garbage not freed: {:?} {}", outcome.refusal(), outcome.detail);
                }
            }
            metrics::counter!("holdfast_meta_garbage_freed_writes_total").increment(freed);
        }
        Ok((freed, count - freed))
    }

    async fn delete(&mut self, map: &ClusterMap, target: u32, shards: Vec<Bytes>) -> anyhow::Result<()> {
        let Some(row) = map.targets.iter().find(|row| row.id == target) else {
            // Not in the zone any more, and its shards with it.
            return Ok(());
        };
        if row.state() == TargetState::TargetDown {
            anyhow::bail!("target {target} is down");
        }
        let node = map.nodes.iter().find(|node| node.id == row.node);
        let address = node
            .map(|node| node.addr.clone())
            .ok_or_else(|| anyhow::anyhow!("target {target} has no node"))?;
        let channel = match self.channels.get(&row.node) {
            Some((known, channel)) if *known == address => channel.clone(),
            _ => {
                let channel = connect_lazy(&address)?;
                self.channels.insert(row.node, (address, channel.clone()));
                channel
            }
        };
        let mut client = ShardsClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
        for shards in shards.chunks(SHARDS_PER_CALL) {
            let request = DeleteShards { target, shards: shards.to_vec() };
            tokio::time::timeout(CALL_TIMEOUT, client.delete(request)).await??;
        }
        Ok(())
    }
}

/// Every shard of a body, by target.
fn shards_of(map: &ClusterMap, body: &Body) -> anyhow::Result<Doomed> {
    let mut doomed = Doomed::new();
    for extent in &body.extents {
        let write = WriteId::from_wire(&extent.write)?;
        let scheme = extent.scheme.ok_or_else(|| anyhow::anyhow!("an extent of {write} without a scheme"))?;
        let geometry = Geometry::new(&scheme, body.length)?;
        let Some(pg) = map.pgs.iter().find(|pg| pg.id == extent.pg) else {
            anyhow::bail!("{write} is in placement group {}, which the map does not have", extent.pg);
        };
        for stripe in extent.first_stripe..extent.first_stripe.saturating_add(extent.stripes) {
            for index in 0..geometry.width() {
                let member = geometry.member(&write, index, pg.targets.len());
                let target = pg.targets.get(member).copied();
                let target =
                    target.ok_or_else(|| anyhow::anyhow!("placement group {} is too narrow", pg.id))?;
                let shard = ShardId { write, stripe, index: index as u8 };
                doomed.entry(target).or_default().push(Bytes::copy_from_slice(&shard.to_bytes()));
            }
        }
    }
    Ok(doomed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::{Extent, PlacementGroup};
    use holdfast_proto::v1::{Codec, Scheme};

    #[test]
    fn every_shard_of_every_stripe_is_named_once() {
        let map = ClusterMap {
            pgs: vec![PlacementGroup {
                id: 3,
                targets: vec![11, 12, 13, 14, 15, 16],
                ..PlacementGroup::default()
            }],
            ..ClusterMap::default()
        };
        let body = Body {
            length: 9 << 20,
            extents: vec![Extent {
                write: WriteId::from_bytes([5; 16]).to_wire(),
                pg: 3,
                scheme: Some(Scheme { codec: Codec::RsGf8.into(), data: 4, parity: 2 }),
                first_stripe: 0,
                stripes: 3,
                offset: 0,
                length: 9 << 20,
            }],
            ..Body::default()
        };
        let doomed = shards_of(&map, &body).unwrap();
        assert_eq!(doomed.keys().copied().collect::<Vec<_>>(), [11, 12, 13, 14, 15, 16]);
        assert!(doomed.values().all(|shards| shards.len() == 3));
        assert!(shards_of(&ClusterMap::default(), &body).is_err());
    }
}
