//! Collects freed bodies: on the node that leads a partition, rows of its garbage queue that have been due for the grace
//! time, and that no backup holds, lose their shards on all targets, then their row. Both steps are idempotent, and in this order, so a crash
//! between them only repeats the first.
//!
//! A row whose targets do not all answer stays for a later round, as does one that makes no sense: neither holds up the
//! rows behind it, and a target that gave no answer is not asked again in the same round.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::geometry::Geometry;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, GroupKind, ShardId, WriteId};
use holdfast_proto::limits::BACKUP_HOLD_MS_MAX;
use holdfast_proto::meta::{
    Body, ClusterMap, Command, DueGarbage, DueGarbageRows, FreeGarbage, GarbageKey, Query, Refusal,
    TargetState, answer, command, query,
};

use super::reach::Reach;
use super::walk::{Left, Said, Walk};
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_secs(2);
/// Between rounds that freed nothing of what is due: its targets are down.
const TICK_MAX: Duration = Duration::from_secs(60);
/// Writes freed in one command.
const PAGE: u32 = 200;
/// Pages of one partition in one round: others wait for it no longer than that.
const PAGES_PER_ROUND: u32 = 100;

/// What became garbage this long before a backup was begun may have been stamped after its rows were read: clocks of leaders
/// differ by less.
const BACKUP_MARGIN_MS: u64 = 10_000;

/// A read counts for so long.
const READ_MS_MAX: u64 = 24 * 3600 * 1000;
/// A reader's clock and that of a partition differ by less.
const READ_MARGIN_MS: u64 = 2_000;

/// What became garbage before this instant may be freed: readers have had `grace`, no read through a gateway began before it
/// did, as far as is known, and no backup that counts owns it.
fn due_before(now: Hlc, grace_ms: u64, oldest_read: Option<Hlc>, held: Hlc) -> Hlc {
    let mut due = now.minus_ms(grace_ms);
    if let Some(oldest) = oldest_read.filter(|oldest| *oldest > now.minus_ms(READ_MS_MAX)) {
        due = due.min(oldest.minus_ms(READ_MARGIN_MS));
    }
    if held == Hlc::ZERO || held < now.minus_ms(BACKUP_HOLD_MS_MAX) {
        return due;
    }
    due.min(held.minus_ms(BACKUP_MARGIN_MS))
}

/// Runs until the node stops.
pub(crate) async fn run(head: Arc<ZoneHead>, progress: Progress) -> anyhow::Result<()> {
    let mut collector = Collector::new(head);
    let mut pause = TICK;
    loop {
        tokio::time::sleep(pause).await;
        let in_vain = collector.round(&progress).await;
        pause = if in_vain { (pause * 2).min(TICK_MAX) } else { TICK };
    }
}

struct Collector {
    head: Arc<ZoneHead>,
    reach: Reach,
    walks: BTreeMap<GroupId, Walk>,
    /// Targets that gave no answer in this round.
    silent: HashSet<u32>,
    said: Said,
}

/// Shards to delete, by target.
type Doomed = BTreeMap<u32, Vec<Bytes>>;

impl Collector {
    fn new(head: Arc<ZoneHead>) -> Self {
        Self {
            head,
            reach: Reach::default(),
            walks: BTreeMap::new(),
            silent: HashSet::new(),
            said: Said::default(),
        }
    }

    /// Walks the queues of the partitions that this node leads, each to its end or as far as one round goes. Whether
    /// there was something to free and none of it could be.
    async fn round(&mut self, progress: &Progress) -> bool {
        let groups = &self.head.groups;
        let partitions: Vec<GroupId> = groups
            .hosted()
            .into_iter()
            .filter(|group| group.kind() == GroupKind::Partition && groups.is_leader(*group))
            .collect();
        self.walks.retain(|group, _| partitions.contains(group));
        self.silent.clear();
        let (mut left, mut failed, mut freed) = (Left::default(), false, 0);
        for group in partitions {
            let mut walk = self.walks.remove(&group).unwrap_or_default();
            match self.collect(group, &mut walk, progress).await {
                Ok(count) => freed += count,
                Err(error) => {
                    progress.trouble(format!("{group}: {error:#}"));
                    failed = true;
                }
            }
            left += walk.left();
            self.walks.insert(group, walk);
        }
        progress.backlog(left.rows());
        metrics::gauge!("holdfast_meta_garbage_due_writes").set(left.rows() as f64);
        metrics::gauge!("holdfast_meta_garbage_skipped_writes").set(left.skipped as f64);
        if left.skipped > 0 {
            progress.trouble(format!("{} writes cannot be freed: the log says why", left.skipped));
        } else if !failed {
            progress.well();
        }
        freed == 0 && left.rows() > 0
    }

    /// Frees due rows of one partition, so many. What stays is left to a later round.
    async fn collect(&mut self, group: GroupId, walk: &mut Walk, progress: &Progress) -> anyhow::Result<u64> {
        let mut all = 0;
        let grace = self.head.config.garbage_grace.get().as_millis() as u64;
        for _ in 0..PAGES_PER_ROUND {
            // With each page: a backup that is begun holds what comes after it.
            let Some(map) = self.head.feed.current() else { return Ok(all) };
            let (now, held) = (self.head.groups.hlc(), Hlc::from_u64(map.garbage_held));
            let reads = self.head.reads.oldest(self.head.now());
            let due_before = due_before(now, grace, reads, held).get();
            let ask = DueGarbage { due_before, limit: PAGE, after: walk.after() };
            let ask = Query { of: Some(query::Of::DueGarbage(ask)) };
            let answers = self.head.groups.read(group, vec![ask]).await?;
            let Some(answer::Ok::Garbage(page)) = answers.into_iter().next().and_then(|answer| answer.ok)
            else {
                anyhow::bail!("no page of the queue");
            };
            let last = page.last.clone();
            let (freed, left) = self.free(group, &map, page).await?;
            progress.done(freed);
            all += freed;
            if walk.passed(last, left) {
                break;
            }
        }
        Ok(all)
    }

    /// Deletes the shards of these writes, then the rows of those whose targets all answered. How many rows went, and
    /// which stay.
    async fn free(
        &mut self,
        group: GroupId,
        map: &ClusterMap,
        page: DueGarbageRows,
    ) -> anyhow::Result<(u64, Left)> {
        let mut left = Left::default();
        let mut all = Doomed::new();
        let mut needs: Vec<(GarbageKey, Vec<u32>)> = Vec::with_capacity(page.keys.len());
        for (key, row) in page.keys.into_iter().zip(page.rows) {
            let shards = match shards_of(map, &row.body.unwrap_or_default()) {
                Ok(shards) => shards,
                Err(error) => {
                    self.said.skipped("garbage", &key.write, format!("{error:#}"));
                    left.skipped += 1;
                    continue;
                }
            };
            needs.push((key, shards.keys().copied().collect()));
            for (target, shards) in shards {
                all.entry(target).or_default().extend(shards);
            }
        }
        for (target, shards) in all {
            if self.silent.contains(&target) {
                continue;
            }
            if let Err(error) = self.delete(map, target, &shards).await {
                tracing::debug!(target_id = target, %error, "shards stay until the target answers");
                self.silent.insert(target);
            }
        }
        let count = needs.len() as u64;
        let rows: Vec<GarbageKey> = needs
            .into_iter()
            .filter(|(_, targets)| !targets.iter().any(|target| self.silent.contains(target)))
            .map(|(key, _)| key)
            .collect();
        let freed = rows.len() as u64;
        left.waiting = count - freed;
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
        Ok((freed, left))
    }

    async fn delete(&mut self, map: &ClusterMap, target: u32, shards: &[Bytes]) -> anyhow::Result<()> {
        let Some(row) = map.targets.iter().find(|row| row.id == target) else {
            // Not in the zone any more, and its shards with it.
            return Ok(());
        };
        match row.state() {
            TargetState::TargetDown => anyhow::bail!("target {target} is down"),
            // What it held is held elsewhere. Should it come back, repair drops what nobody owns.
            TargetState::TargetOut => return Ok(()),
            _ => {}
        }
        self.reach.delete(map, target, shards).await
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
                let moving = pg.moving.iter().find(|moving| moving.place as usize == member);
                for target in moving.iter().flat_map(|moving| &moving.from).chain([&target]) {
                    doomed.entry(*target).or_default().push(Bytes::copy_from_slice(&shard.to_bytes()));
                }
            }
        }
    }
    Ok(doomed)
}

#[cfg(test)]
#[path = "garbage_test.rs"]
mod tests;
