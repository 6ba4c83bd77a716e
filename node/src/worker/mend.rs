//! Completes bodies that were acknowledged short of full: on the node that leads the zone, shards that a commit recorded
//! as missed are written where they belong, and their row says so.
//!
//! Most shards that are missed when a write is acknowledged land a moment later, so a row is left alone in the walk that
//! sees it first; then the target is asked before anything is written. What is written is rebuilt from other shards, which
//! are immutable: a worker that is killed at any point has written a shard whose row is still there, and the next one
//! finds the shard. A body that lost its owner is the collector's: its row is cleared, and shards that were written
//! while it did are taken back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_client::geometry::Geometry;
use holdfast_client::{Cluster, Error};
use holdfast_proto::id::{GroupId, GroupKind, ShardId, WriteId};
use holdfast_proto::meta::{
    Body, ClearMissed, ClusterMap, Command, ListMissed, MissedRow, MissedRows, MissedShard, OwnerOfWrite,
    Query, Refusal, TargetState, answer, command, query, write_owner::Owner,
};
use tokio::time::Instant;

use super::reach::Reach;
use super::walk::{Left, Said, Walk};
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Progress;

/// Between rounds: the time that a straggler has.
const TICK: Duration = Duration::from_secs(10);
const PAGE: u32 = 200;
/// Pages of one partition in one round: others wait for it no longer than that.
const PAGES_PER_ROUND: u32 = 10;
/// Writes mended at a time. Each holds up to one stripe in memory.
const AT_ONCE: usize = 4;
/// Shards of one write that are written in one walk: a long one takes several.
const SHARDS_AT_ONCE: usize = 64;
/// What was not written by then is found missing again.
const MEND_TIMEOUT: Duration = Duration::from_secs(120);
/// Rows known from the walk before; in a longer queue all are taken to be old.
const KNOWN_MAX: usize = 10_000;
/// A queue in which nothing could be done is left alone this many rounds, at most, unless it or the map changes.
const REST_ROUNDS_MAX: u32 = 12;
/// A target at which this many writes in a row could not be mended is left alone for a while.
const FAILURES_MAX: u32 = 8;
const BACKOFF_MIN: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Runs until the node stops.
pub(crate) async fn run(head: Arc<ZoneHead>, cluster: Cluster, progress: Progress) -> anyhow::Result<()> {
    let mut mender = Mender::new(head, cluster);
    loop {
        tokio::time::sleep(TICK).await;
        mender.round(&progress).await;
    }
}

struct Mender {
    head: Arc<ZoneHead>,
    cluster: Cluster,
    reach: Reach,
    queues: BTreeMap<GroupId, Queue>,
    /// Targets that gave no answer.
    quiet: Quiet<u32>,
    /// Writes that could not be mended: too few of their other shards can be read for now, or the target takes none.
    held: Quiet<Bytes>,
    /// Writes in a row that could not be mended at a target.
    failures: HashMap<u32, u32>,
    said: Said,
}

/// One partition's rows.
#[derive(Debug, Default)]
struct Queue {
    walk: Walk,
    /// Writes of the walk before, and of this one so far.
    known: HashSet<Bytes>,
    seen: HashSet<Bytes>,
    /// Whether this walk did something, or saw rows that were too fresh.
    moved: bool,
    rest: Rest,
    /// Rows in it, as last told.
    total: u64,
}

/// Rounds in which a queue is left alone, longer each time that nothing could be done.
#[derive(Debug, Default)]
struct Rest {
    rounds: u32,
    left: u32,
    /// Map generation and rows at the time.
    at: (u64, u64),
}

impl Rest {
    fn is_due(&mut self, now: (u64, u64)) -> bool {
        if self.left == 0 || self.at != now {
            return true;
        }
        self.left -= 1;
        false
    }

    fn after_walk(&mut self, moved: bool, now: (u64, u64)) {
        self.rounds = if moved { 0 } else { (2 * self.rounds + 1).min(REST_ROUNDS_MAX) };
        (self.left, self.at) = (self.rounds, now);
    }
}

/// What failed and is left alone for a while, longer each time.
#[derive(Debug)]
struct Quiet<K>(HashMap<K, (Instant, Duration)>);

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Quiet<K> {
    fn is(&self, what: &K, now: Instant) -> bool {
        self.0.get(what).is_some_and(|(until, _)| now < *until)
    }

    fn failed(&mut self, what: K, now: Instant) {
        if self.0.len() >= KNOWN_MAX {
            self.0.retain(|_, (until, _)| now < *until);
        }
        let (until, pause) = self.0.entry(what).or_insert((now, BACKOFF_MIN / 2));
        *pause = (*pause * 2).min(BACKOFF_MAX);
        *until = now + *pause;
    }

    fn well(&mut self, what: &K) {
        self.0.remove(what);
    }
}

/// A missed shard with its name and the target it belongs on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shard {
    missed: MissedShard,
    id: Bytes,
    target: u32,
}

/// What there is to do about a row.
#[derive(Debug)]
struct Job {
    row: MissedRow,
    body: Body,
    shards: Vec<Shard>,
    /// Of these: what is on its target, or need not be any more.
    clear: Vec<MissedShard>,
    /// Nothing can be done about the rest.
    skipped: bool,
}

/// What became of a write whose shards were to be written.
#[derive(Debug)]
enum Mended {
    Written,
    /// Nobody owns it any more; whether shards were written before that was seen.
    Gone {
        written: bool,
    },
    Failed(Error),
}

impl Mender {
    fn new(head: Arc<ZoneHead>, cluster: Cluster) -> Self {
        Self {
            head,
            cluster,
            reach: Reach::default(),
            queues: BTreeMap::new(),
            quiet: Quiet::default(),
            held: Quiet::default(),
            failures: HashMap::new(),
            said: Said::default(),
        }
    }

    /// Walks the queues of all partitions, each to its end or as far as one round goes.
    async fn round(&mut self, progress: &Progress) {
        let map = self.head.feed.current().filter(|_| self.head.leads()).unwrap_or_default();
        let partitions: Vec<GroupId> = map
            .groups
            .iter()
            .filter_map(|group| GroupId::from_u64(group.id).ok())
            .filter(|group| group.kind() == GroupKind::Partition)
            .collect();
        self.queues.retain(|group, _| partitions.contains(group));
        let (mut backlog, mut skipped, mut failed) = (0, 0, false);
        for group in partitions {
            let mut queue = self.queues.remove(&group).unwrap_or_default();
            if let Err(error) = self.mend(group, &map, &mut queue, progress).await {
                progress.trouble(format!("{group}: {error:#}"));
                failed = true;
            }
            backlog += queue.total;
            skipped += queue.walk.left().skipped;
            self.queues.insert(group, queue);
        }
        progress.backlog(backlog);
        metrics::gauge!("holdfast_meta_mend_backlog_writes").set(backlog as f64);
        metrics::gauge!("holdfast_meta_mend_skipped_writes").set(skipped as f64);
        if skipped > 0 {
            progress.trouble(format!("{skipped} writes cannot be completed: the log says why"));
        } else if !failed {
            progress.well();
        }
    }

    async fn mend(
        &mut self,
        group: GroupId,
        map: &ClusterMap,
        queue: &mut Queue,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        for number in 0..PAGES_PER_ROUND {
            let page = self.page(group, queue.walk.after()).await?;
            queue.total = page.total;
            if number == 0
                && queue.walk.after().is_empty()
                && !queue.rest.is_due((map.generation, page.total))
            {
                return Ok(());
            }
            let last = page.last.clone();
            let (cleared, left) = self.mend_page(group, map, queue, page.rows).await?;
            queue.total = queue.total.saturating_sub(cleared);
            progress.done(cleared);
            if queue.walk.passed(last, left) {
                queue.known = std::mem::take(&mut queue.seen);
                queue.rest.after_walk(std::mem::take(&mut queue.moved), (map.generation, queue.total));
                break;
            }
        }
        Ok(())
    }

    async fn page(&self, group: GroupId, after: Bytes) -> anyhow::Result<MissedRows> {
        let of = query::Of::ListMissed(ListMissed { limit: PAGE, after });
        match self.cluster.query(group, Query { of: Some(of) }).await?.ok {
            Some(answer::Ok::Missed(page)) => Ok(page),
            _ => anyhow::bail!("no page of missed shards"),
        }
    }

    /// How many rows went, and which stay.
    async fn mend_page(
        &mut self,
        group: GroupId,
        map: &ClusterMap,
        queue: &mut Queue,
        rows: Vec<MissedRow>,
    ) -> anyhow::Result<(u64, Left)> {
        let mut left = Left::default();
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            if queue.seen.len() < KNOWN_MAX {
                queue.seen.insert(row.write.clone());
            }
            if !queue.known.contains(&row.write) && queue.known.len() < KNOWN_MAX {
                queue.moved = true;
                left.waiting += 1;
                continue;
            }
            let write = row.write.clone();
            match Job::of(map, row) {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    self.said.skipped("mend", &write, format!("{error:#}"));
                    left.skipped += 1;
                }
            }
        }
        self.find_landed(map, &mut jobs).await;
        let mut done = Vec::with_capacity(jobs.len());
        let mut jobs = jobs.into_iter().peekable();
        while jobs.peek().is_some() {
            let mut at_once: Vec<(Job, Vec<Shard>)> = Vec::with_capacity(AT_ONCE);
            while at_once.len() < AT_ONCE
                && let Some(job) = jobs.next()
            {
                match self.absent(map, &job) {
                    absent if absent.is_empty() => done.push(job),
                    absent => at_once.push((job, absent)),
                }
            }
            let mending = at_once.iter().map(|(job, absent)| mend_one(&self.cluster, group, job, absent));
            let mended = join_all(mending).await;
            for ((mut job, absent), mended) in at_once.into_iter().zip(mended) {
                if let Err(error) = self.settle(map, &mut job, &absent, mended).await {
                    self.said.skipped("mend", &job.row.write, error);
                    left.skipped += 1;
                    job.skipped = true;
                }
                done.push(job);
            }
        }
        let cleared = done.iter().filter(|job| job.is_clear()).count() as u64;
        left.waiting += done.iter().filter(|job| !job.is_clear() && !job.skipped).count() as u64;
        queue.moved |= done.iter().any(|job| !job.clear.is_empty());
        self.clear(group, done).await?;
        Ok((cleared, left))
    }

    /// Asks the targets which shards are there after all.
    async fn find_landed(&mut self, map: &ClusterMap, jobs: &mut [Job]) {
        let mut asked: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
        let now = Instant::now();
        for (at, job) in jobs.iter().enumerate() {
            for (place, shard) in job.shards.iter().enumerate() {
                if is_up(map, shard.target) && !self.quiet.is(&shard.target, now) {
                    asked.entry(shard.target).or_default().push((at, place));
                }
            }
        }
        for (target, places) in asked {
            let ids: Vec<Bytes> =
                places.iter().map(|(at, place)| jobs[*at].shards[*place].id.clone()).collect();
            match self.reach.stat(map, target, &ids).await {
                Ok(present) => {
                    self.quiet.well(&target);
                    let landed = places.into_iter().zip(present).filter(|(_, present)| *present);
                    for ((at, place), _) in landed {
                        let missed = jobs[at].shards[place].missed;
                        jobs[at].clear.push(missed);
                        metrics::counter!("holdfast_meta_mend_landed_shards_total").increment(1);
                    }
                }
                Err(error) => {
                    tracing::debug!(target_id = target, %error, "shards stay missed until the target answers");
                    self.quiet.failed(target, Instant::now());
                }
            }
        }
    }

    /// Shards of a job that can be written now.
    fn absent(&self, map: &ClusterMap, job: &Job) -> Vec<Shard> {
        let now = Instant::now();
        if self.held.is(&job.row.write, now) {
            return Vec::new();
        }
        job.shards
            .iter()
            .filter(|shard| !job.clear.contains(&shard.missed))
            .filter(|shard| is_up(map, shard.target) && !self.quiet.is(&shard.target, now))
            .take(SHARDS_AT_ONCE)
            .cloned()
            .collect()
    }

    /// Takes in what became of a job's absent shards.
    ///
    /// # Errors
    /// Why nothing can be done about it.
    async fn settle(
        &mut self,
        map: &ClusterMap,
        job: &mut Job,
        absent: &[Shard],
        mended: Mended,
    ) -> Result<(), String> {
        match mended {
            Mended::Written => {
                metrics::counter!("holdfast_meta_mend_restored_shards_total").increment(absent.len() as u64);
                job.clear.extend(absent.iter().map(|shard| shard.missed));
                self.held.well(&job.row.write);
                for shard in absent {
                    self.quiet.well(&shard.target);
                    self.failures.remove(&shard.target);
                }
                Ok(())
            }
            Mended::Gone { written } => {
                for shard in absent.iter().filter(|_| written) {
                    let id = std::slice::from_ref(&shard.id);
                    // The collector may have been here before the shard was.
                    if let Err(error) = self.reach.delete(map, shard.target, id).await {
                        let shard = hex::encode(&shard.id);
                        tracing::warn!(shard, %error, "a shard of a freed write may be left over");
                    }
                }
                job.clear = job.shards.iter().map(|shard| shard.missed).collect();
                Ok(())
            }
            Mended::Failed(error) => {
                metrics::counter!("holdfast_meta_mend_failed_writes_total").increment(1);
                if !matches!(error, Error::Unavailable { .. } | Error::Full { .. }) {
                    return Err(error.to_string());
                }
                let now = Instant::now();
                tracing::debug!(%error, "shards stay missed for a later round");
                self.held.failed(job.row.write.clone(), now);
                // One write says nothing about its targets: it may be the others that cannot be read.
                let targets: BTreeSet<u32> = absent.iter().map(|shard| shard.target).collect();
                for target in targets {
                    let failures = self.failures.entry(target).or_default();
                    *failures += 1;
                    if *failures >= FAILURES_MAX {
                        *failures = 0;
                        self.quiet.failed(target, now);
                    }
                }
                Ok(())
            }
        }
    }

    async fn clear(&self, group: GroupId, jobs: Vec<Job>) -> anyhow::Result<()> {
        let commands: Vec<Command> = jobs
            .into_iter()
            .filter(|job| !job.clear.is_empty())
            .map(|job| {
                let MissedRow { bucket, slot, write, .. } = job.row;
                let clear = ClearMissed { bucket, slot, write, shards: job.clear };
                Command { op: Some(command::Op::ClearMissed(clear)), ..Command::default() }
            })
            .collect();
        if commands.is_empty() {
            return Ok(());
        }
        for outcome in self.cluster.propose(group, commands).await? {
            if outcome.refusal() != Refusal::None {
                anyhow::bail!("not cleared: {:?} {}", outcome.refusal(), outcome.detail);
            }
        }
        Ok(())
    }
}

impl Job {
    fn of(map: &ClusterMap, mut row: MissedRow) -> anyhow::Result<Self> {
        let missed = row.row.take().unwrap_or_default();
        let body = missed.body.unwrap_or_default();
        let shards =
            missed.shards.iter().map(|shard| place(map, &body, *shard)).collect::<anyhow::Result<_>>()?;
        Ok(Self { row, body, shards, clear: Vec::new(), skipped: false })
    }

    /// Whether the row can go.
    fn is_clear(&self) -> bool {
        self.shards.iter().all(|shard| self.clear.contains(&shard.missed))
    }
}

/// Writes shards of one body, unless nobody owns it.
async fn mend_one(cluster: &Cluster, group: GroupId, job: &Job, absent: &[Shard]) -> Mended {
    match is_owned(cluster, group, &job.row).await {
        Ok(true) => {}
        Ok(false) => return Mended::Gone { written: false },
        Err(error) => return Mended::Failed(error),
    }
    let shards: Vec<MissedShard> = absent.iter().map(|shard| shard.missed).collect();
    let restored = tokio::time::timeout(MEND_TIMEOUT, cluster.restore_shards(&job.body, &shards)).await;
    // Also after a failure: some shards may have been written.
    let owned = is_owned(cluster, group, &job.row).await;
    match (restored, owned) {
        (_, Ok(false)) => Mended::Gone { written: true },
        (Ok(Ok(())), Ok(true)) => Mended::Written,
        (Ok(Err(error)), _) | (Ok(Ok(())), Err(error)) => Mended::Failed(error),
        (Err(_), _) => Mended::Failed(Error::Unavailable {
            retry_after_ms: 0,
            unknown: false,
            detail: format!("not written in {MEND_TIMEOUT:?}"),
        }),
    }
}

/// Whether a version or a part still has this body.
async fn is_owned(cluster: &Cluster, group: GroupId, row: &MissedRow) -> Result<bool, Error> {
    let of = OwnerOfWrite { bucket: row.bucket.clone(), slot: row.slot, write: row.write.clone() };
    let answer = cluster.query(group, Query { of: Some(query::Of::OwnerOfWrite(of)) }).await?;
    match answer.ok {
        Some(answer::Ok::Owner(owner)) => Ok(matches!(owner.owner, Some(Owner::Key(_) | Owner::Part(_)))),
        _ => Err(Error::Internal { detail: format!("no owner was told: {}", answer.detail) }),
    }
}

/// Whether a target takes writes.
fn is_up(map: &ClusterMap, target: u32) -> bool {
    map.targets.iter().any(|row| row.id == target && row.state() == TargetState::TargetUp)
}

/// Where a missed shard of a body belongs.
fn place(map: &ClusterMap, body: &Body, missed: MissedShard) -> anyhow::Result<Shard> {
    let write = WriteId::from_wire(&body.write)?;
    let runs = |extent: &&holdfast_proto::meta::Extent| {
        (extent.first_stripe..extent.first_stripe.saturating_add(extent.stripes)).contains(&missed.stripe)
    };
    let extent = body.extents.iter().find(runs);
    let extent = extent.ok_or_else(|| anyhow::anyhow!("{write} has no stripe {}", missed.stripe))?;
    let scheme = extent.scheme.ok_or_else(|| anyhow::anyhow!("an extent of {write} without a scheme"))?;
    let geometry = Geometry::new(&scheme, body.length)?;
    let index = u8::try_from(missed.index).ok().filter(|index| usize::from(*index) < geometry.width());
    let index = index.ok_or_else(|| anyhow::anyhow!("{write} has no shard {}", missed.index))?;
    let Some(pg) = map.pgs.iter().find(|pg| pg.id == extent.pg) else {
        anyhow::bail!("{write} is in placement group {}, which the map does not have", extent.pg);
    };
    let member = geometry.member(&write, usize::from(index), pg.targets.len());
    let target = pg.targets.get(member).copied();
    let target = target.ok_or_else(|| anyhow::anyhow!("placement group {} is too narrow", pg.id))?;
    let id = ShardId { write, stripe: missed.stripe, index };
    Ok(Shard { missed, id: Bytes::copy_from_slice(&id.to_bytes()), target })
}

#[cfg(test)]
#[path = "mend_test.rs"]
mod tests;
