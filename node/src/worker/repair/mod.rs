//! Makes every shard exist where it belongs: after a target was lost, added, drained or came back, these are one operation.
//!
//! On the node that leads the zone. A pass walks what all targets hold (`inventory`), compares each stripe with its placement
//! group (`verdict`), and brings what is not in its place: copied from where it is, rebuilt from any k others when it is nowhere,
//! stored, fsynced, read back (`holdfast_client::found`). What is whole loses its surplus copies. When a pass has found everything
//! of a placement group in place, the group forgets where its shards were before (`moving`).
//!
//! Nothing is remembered between passes but the result: shards are immutable and a pass starts from what is there, so a
//! worker that is killed at any point has only brought shards that the next one finds. A pass runs when placement or the set of
//! targets that are up has changed, again until one finds nothing to do, and every [`PASS_EVERY`] besides.
//!
//! A stripe that nobody owns is moved but not rebuilt: if it is still being written, its commit records what it missed.

mod inventory;
mod orphans;
mod owners;
pub(crate) mod salvage;
mod verdict;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_client::{Cluster, Error};
use holdfast_proto::data::ObjectRef;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{ShardId, TargetId};
use holdfast_proto::meta::{ClusterMap, PlacementGroup, PutPlacement, Refusal, TargetState, command};
use tokio::time::Instant;

use self::inventory::Inventory;
use self::orphans::Collector;
use self::owners::Owners;
use self::verdict::{Places, Surplus, Verdict};
use super::reach::Reach;
use crate::placement::keeper::may_move;
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_secs(1);
/// Without a reason, what is where is looked at this often.
const PASS_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Writes that nobody owns are looked for this often, or once in the time after which they are old.
const ORPHANS_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Between passes that left something undone, longer each time.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Stripes brought at a time. Each holds up to one stripe in memory.
const AT_ONCE: usize = 6;
/// A stripe that took longer is left to the next pass.
const STRIPE_TIMEOUT: Duration = Duration::from_secs(120);
/// Stripes beyond repair that are told by name.
const LOST_TOLD_MAX: usize = 1000;
/// Surplus shards deleted in one call.
const SURPLUS_AT_ONCE: usize = 1000;

/// What `status` shows of repair. In the memory of the node that leads the zone.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RepairState {
    /// A pass is under way.
    pub(crate) running: bool,
    /// Passes that ended, well or not, since this node began to lead.
    pub(crate) passes: u64,
    /// When the pass that runs, or ran last, began.
    pub(crate) began: Option<Instant>,
    /// What the zone looked like to the newest pass, if that found nothing out of its place.
    settled: Option<Shape>,
    /// Shards seen by this pass or the last one, and how many there were to see.
    pub(crate) shards_seen: u64,
    pub(crate) shards_total: u64,
    /// Since this node began to lead.
    pub(crate) brought_shards: u64,
    pub(crate) brought_bytes: u64,
    /// Of the last whole pass: stripes with shards that cannot be brought at the moment, and why the last of them could not.
    pub(crate) waiting_stripes: u64,
    pub(crate) trouble: String,
    /// Of the last whole pass.
    pub(crate) lost: Vec<LostStripe>,
}

impl RepairState {
    /// How long the pass that runs is going to take, by how fast it has been; `None` when none runs or it has only begun.
    pub(crate) fn left(&self) -> Option<Duration> {
        let began = self.began.filter(|_| self.running && self.shards_seen > 0)?;
        let to_see = self.shards_total.saturating_sub(self.shards_seen) as f64;
        Some(began.elapsed().mul_f64(to_see / self.shards_seen as f64))
    }

    /// Whether everything is known to be where it belongs by this map.
    pub(crate) fn is_settled(&self, map: &ClusterMap) -> bool {
        !self.running && self.settled.as_ref().is_some_and(|settled| *settled == shape(map))
    }
}

/// A stripe of which fewer shards are left than its code needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostStripe {
    pub(crate) bucket: Bytes,
    pub(crate) key: Bytes,
    pub(crate) write: Bytes,
    pub(crate) stripe: u32,
    /// Shards that are there, and how many are needed.
    pub(crate) alive: usize,
    pub(crate) needed: usize,
}

/// Runs until the node stops.
pub(crate) async fn run(head: Arc<ZoneHead>, cluster: Cluster, progress: Progress) -> anyhow::Result<()> {
    let mut repair = Repair::new(head, cluster);
    loop {
        tokio::time::sleep(TICK).await;
        repair.tick(&progress).await;
    }
}

/// What makes another pass worth its while: the groups' members, and who is there to be asked.
type Shape = (Vec<(u32, u64)>, BTreeSet<u32>);

fn shape(map: &ClusterMap) -> Shape {
    (map.pgs.iter().map(|pg| (pg.id, pg.epoch)).collect(), listable(map))
}

/// Targets that say what they hold.
fn listable(map: &ClusterMap) -> BTreeSet<u32> {
    let lists = |state| matches!(state, TargetState::TargetUp | TargetState::TargetDraining);
    map.targets.iter().filter(|row| lists(row.state())).map(|row| row.id).collect()
}

/// When the next pass is due.
#[derive(Debug, Default)]
struct Schedule {
    /// The map's generation and shape at the last pass.
    generation: u64,
    /// Bad shards that targets spoke of then.
    bad: u64,
    seen: Option<Shape>,
    next: Option<Instant>,
    pause: Duration,
}

impl Schedule {
    fn is_due(&mut self, map: &ClusterMap, bad: u64, now: Instant) -> bool {
        let more_is_bad = bad > std::mem::replace(&mut self.bad, bad);
        if more_is_bad || self.next.is_none_or(|next| now >= next) {
            return true;
        }
        if self.generation == map.generation {
            return false;
        }
        self.generation = map.generation;
        self.seen.as_ref() != Some(&shape(map))
    }

    fn passed(&mut self, generation: u64, shape: Shape, undone: bool, now: Instant) {
        self.generation = generation;
        self.pause = if undone { (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX) } else { Duration::ZERO };
        self.next = Some(now + if undone { self.pause } else { PASS_EVERY });
        self.seen = Some(shape);
    }
}

struct Repair {
    head: Arc<ZoneHead>,
    cluster: Cluster,
    reach: Reach,
    schedule: Schedule,
    owners: Owners,
    orphans_next: Option<Instant>,
}

/// What one pass has seen and done.
#[derive(Debug, Default)]
struct Pass {
    /// Placement groups of which something is not in its place, and epochs of all when the pass began.
    unfinished: HashSet<u32>,
    epochs: HashMap<u32, u64>,
    shards: u64,
    brought: u64,
    dropped: u64,
    waiting: u64,
    failed: u64,
    trouble: String,
    lost: Vec<LostStripe>,
}

/// What became of a stripe.
enum Done {
    /// What could be brought was, and what need not be was not.
    Brought {
        shards: u64,
        bytes: u64,
    },
    Lost(LostStripe),
    Failed(Error),
}

impl Repair {
    fn new(head: Arc<ZoneHead>, cluster: Cluster) -> Self {
        let (reach, schedule, owners) = (Reach::default(), Schedule::default(), Owners::default());
        Self { head, cluster, reach, schedule, owners, orphans_next: None }
    }

    async fn tick(&mut self, progress: &Progress) {
        let may = |map: &ClusterMap| self.head.leads() && !map.pgs.is_empty() && may_move(map);
        let map = self.head.feed.current().filter(|map| may(map));
        let Some(map) = map else {
            (self.schedule, self.orphans_next) = (Schedule::default(), None);
            *self.head.repair.lock() = RepairState::default();
            return;
        };
        let bad = self.head.liveness.lock().all_reports().map(|report| report.bad_shards).sum();
        let is_wanted = self.head.repair_wanted.swap(false, Ordering::SeqCst);
        if !self.schedule.is_due(&map, bad, Instant::now()) && !is_wanted {
            self.collect_orphans(&map, progress).await;
            return;
        }
        let shape = shape(&map);
        let undone = match self.pass(&map, progress).await {
            Ok(pass) => {
                progress.backlog(pass.waiting + pass.failed + pass.lost.len() as u64);
                match pass.trouble.as_str() {
                    "" => progress.well(),
                    trouble => progress.trouble(trouble),
                }
                let undone = pass.brought > 0 || pass.dropped > 0 || pass.failed > 0;
                let settled = !undone && pass.waiting == 0 && pass.lost.is_empty();
                self.head.repair.lock().settled = settled.then(|| shape.clone());
                undone
            }
            Err(_) if !self.head.leads() => return,
            Err(error) => {
                progress.trouble(format!("{error:#}"));
                true
            }
        };
        {
            let mut state = self.head.repair.lock();
            (state.running, state.passes) = (false, state.passes + 1);
        }
        self.schedule.passed(map.generation, shape, undone, Instant::now());
    }

    /// One walk over everything; two when stripes may have lost more than one shard: those first.
    async fn pass(&mut self, map: &ClusterMap, progress: &Progress) -> anyhow::Result<Pass> {
        self.owners.forget();
        {
            let mut state = self.head.repair.lock();
            (state.running, state.settled, state.shards_seen) = (true, None, 0);
            state.began = Some(Instant::now());
            state.shards_total = self.head.liveness.lock().all_reports().map(|report| report.shards).sum();
        }
        if may_have_lost_two(map) {
            self.walk(map, 2, progress).await?;
        }
        let pass = self.walk(map, 1, progress).await?;
        self.forget_moves(&pass).await?;
        let mut state = self.head.repair.lock();
        state.waiting_stripes = pass.waiting + pass.failed;
        state.trouble.clone_from(&pass.trouble);
        state.lost.clone_from(&pass.lost);
        metrics::gauge!("holdfast_meta_repair_waiting_stripes").set((pass.waiting + pass.failed) as f64);
        metrics::gauge!("holdfast_meta_repair_lost_stripes").set(pass.lost.len() as f64);
        Ok(pass)
    }

    /// Walks over all stripes and brings what those miss that lack at least so many shards.
    async fn walk(&mut self, map: &ClusterMap, lacking: usize, progress: &Progress) -> anyhow::Result<Pass> {
        let listed = listable(map);
        let mut pass =
            Pass { epochs: map.pgs.iter().map(|pg| (pg.id, pg.epoch)).collect(), ..Pass::default() };
        let mut inventory = Inventory::over(listed.iter().copied());
        let mut places = Places::new(map, listed.clone());
        let mut at_once: Vec<Verdict> = Vec::with_capacity(AT_ONCE);
        let mut surplus: HashMap<u32, Vec<Surplus>> = HashMap::new();
        let mut broken = 0;
        loop {
            let stripe = inventory.next(&mut self.reach, map).await;
            if inventory.broken.len() > broken {
                broken = inventory.broken.len();
                places = Places::new(
                    map,
                    listed.iter().copied().filter(|id| !inventory.broken.contains(id)).collect(),
                );
            }
            let ended = stripe.is_none();
            if let Some(stripe) = stripe {
                pass.shards += stripe.shards.len() as u64;
                match places.judge(&stripe) {
                    Ok(verdict) if verdict.is_well() => {}
                    Ok(verdict) if verdict.is_whole() => {
                        for one in verdict.surplus {
                            surplus.entry(one.target).or_default().push(one);
                        }
                    }
                    Ok(verdict) => {
                        pass.waiting += u64::from(verdict.waiting > 0);
                        let lacks = verdict.found.holders.len() - verdict.alive;
                        if verdict.bring.is_empty() && verdict.spare() >= 0 {
                            pass.unfinished.insert(verdict.found.pg.get());
                        } else if lacks >= lacking || lacking == 1 {
                            at_once.push(verdict);
                        }
                    }
                    Err(why) => {
                        pass.failed += 1;
                        pass.trouble = format!("stripe {} of write {}: {why}", stripe.number, stripe.write);
                        tracing::warn!(write = %stripe.write, stripe = stripe.number, why, "a stripe makes no sense");
                    }
                }
            }
            if at_once.len() == AT_ONCE || (ended && !at_once.is_empty()) {
                if !self.head.leads() {
                    anyhow::bail!("another node leads the zone");
                }
                self.bring(map, std::mem::take(&mut at_once), &mut pass, progress).await;
                self.head.repair.lock().shards_seen = pass.shards;
            }
            for (target, shards) in &mut surplus {
                if shards.len() >= SURPLUS_AT_ONCE || ended {
                    self.drop_surplus(map, *target, std::mem::take(shards), &mut pass).await;
                }
            }
            if ended {
                break;
            }
        }
        for target in &inventory.broken {
            pass.failed += 1;
            pass.trouble = format!("target {target} did not say what it holds");
            let has = |pg: &&PlacementGroup| pg.targets.contains(target);
            pass.unfinished.extend(map.pgs.iter().filter(has).map(|pg| pg.id));
        }
        self.head.repair.lock().shards_seen = pass.shards;
        Ok(pass)
    }

    async fn bring(
        &mut self,
        map: &ClusterMap,
        verdicts: Vec<Verdict>,
        pass: &mut Pass,
        progress: &Progress,
    ) {
        let begun = Instant::now();
        let mut jobs = Vec::with_capacity(verdicts.len());
        for verdict in verdicts {
            match self.still_missing(map, &verdict).await {
                Ok(bring) if bring.is_empty() && verdict.spare() >= 0 => {
                    if verdict.waiting > 0 {
                        pass.unfinished.insert(verdict.found.pg.get());
                    }
                }
                Ok(bring) => jobs.push(Verdict { bring, ..verdict }),
                Err(error) => {
                    pass.unfinished.insert(verdict.found.pg.get());
                    pass.failed += 1;
                    pass.trouble = format!("{error:#}");
                }
            }
        }
        let this = &*self;
        let all = join_all(jobs.iter().map(|job| this.bring_one(job))).await;
        let mut bytes = 0;
        for (job, done) in jobs.iter().zip(all) {
            let pg = job.found.pg.get();
            match done {
                Done::Brought { shards, bytes: some } => {
                    bytes += some;
                    pass.brought += shards;
                    progress.done(shards);
                    metrics::counter!("holdfast_meta_repair_brought_shards_total").increment(shards);
                    metrics::counter!("holdfast_meta_repair_brought_bytes_total").increment(some);
                    let mut state = self.head.repair.lock();
                    state.brought_shards += shards;
                    state.brought_bytes += some;
                    if job.waiting > 0 {
                        pass.unfinished.insert(pg);
                    }
                }
                Done::Lost(lost) => {
                    pass.unfinished.insert(pg);
                    pass.trouble = format!(
                        "stripe {} of write {} has too few shards left",
                        job.found.stripe, job.found.write
                    );
                    if pass.lost.len() < LOST_TOLD_MAX {
                        pass.lost.push(lost);
                    }
                }
                Done::Failed(error) => {
                    pass.unfinished.insert(pg);
                    pass.failed += 1;
                    pass.trouble =
                        format!("stripe {} of write {}: {error}", job.found.stripe, job.found.write);
                    tracing::debug!(write = %job.found.write, stripe = job.found.stripe, %error, "a stripe is left to the next pass");
                }
            }
        }
        // Not faster than allowed, over what it took.
        let rate = self.head.config.repair_bytes_per_second.bytes().max(1);
        let least = Duration::from_secs_f64(bytes as f64 / rate as f64);
        tokio::time::sleep(least.saturating_sub(begun.elapsed())).await;
    }

    /// Shards that their targets say they do not have: lists are no snapshot.
    async fn still_missing(
        &mut self,
        map: &ClusterMap,
        verdict: &Verdict,
    ) -> anyhow::Result<Vec<(usize, TargetId)>> {
        let mut missing = Vec::with_capacity(verdict.bring.len());
        for (index, target) in &verdict.bring {
            let id =
                ShardId { write: verdict.found.write, stripe: verdict.found.stripe, index: *index as u8 };
            let id = Bytes::copy_from_slice(&id.to_bytes());
            if self.reach.stat(map, target.get(), &[id]).await? != [true] {
                missing.push((*index, *target));
            }
        }
        Ok(missing)
    }

    async fn bring_one(&self, job: &Verdict) -> Done {
        match tokio::time::timeout(STRIPE_TIMEOUT, self.try_one(job)).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Done::Failed(error),
            Err(_) => Done::Failed(Error::Unavailable {
                retry_after_ms: 0,
                unknown: false,
                detail: format!("not brought in {STRIPE_TIMEOUT:?}"),
            }),
        }
    }

    async fn try_one(&self, job: &Verdict) -> Result<Done, Error> {
        let object = self.cluster.describe_stripe(&job.found).await?;
        let holders = |index: usize| &job.found.holders[index];
        let to_rebuild = job.bring.iter().any(|(index, _)| holders(*index).is_empty());
        let mut bring = job.bring.clone();
        let mut is_beyond = job.spare() < 0;
        if (to_rebuild || is_beyond) && !self.is_owned(job, &object).await? {
            bring.retain(|(index, _)| !holders(*index).is_empty());
            is_beyond = false;
        }
        if is_beyond {
            // What is somewhere is still brought to where it belongs: the others may come back with their disks.
            bring.retain(|(index, _)| !holders(*index).is_empty());
            if !bring.is_empty() {
                self.cluster.bring_shards(&job.found, &object, &bring).await?;
            }
            return Ok(Done::Lost(lost(job, &object)));
        }
        if bring.is_empty() {
            return Ok(Done::Brought { shards: 0, bytes: 0 });
        }
        let rebuild = bring.iter().any(|(index, _)| holders(*index).is_empty());
        let brought = self.cluster.bring_shards(&job.found, &object, &bring).await;
        if rebuild && !self.is_owned(job, &object).await? {
            // Freed while it was rebuilt: the collector may have been here before the shards were.
            self.take_back(job, &bring).await?;
            return Ok(Done::Brought { shards: 0, bytes: 0 });
        }
        match brought {
            Ok(bytes) => Ok(Done::Brought { shards: bring.len() as u64, bytes }),
            Err(Error::Lost { .. }) => Ok(Done::Lost(lost(job, &object))),
            Err(error) => Err(error),
        }
    }

    /// Deletes what is left elsewhere of shards that are in their place. Much may have happened since they were seen: nothing
    /// is deleted unless this node still leads, the map is still the same, and the shard's home still says that it has it. So
    /// two leaders cannot each delete the copy that the other one counts on.
    async fn drop_surplus(&mut self, map: &ClusterMap, target: u32, surplus: Vec<Surplus>, pass: &mut Pass) {
        if surplus.is_empty() {
            return;
        }
        match self.try_drop(map, target, &surplus).await {
            Ok(dropped) => {
                pass.dropped += dropped;
                metrics::counter!("holdfast_meta_repair_surplus_shards_total").increment(dropped);
            }
            Err(error) => {
                pass.failed += 1;
                pass.trouble = format!("surplus shards stay on target {target}: {error:#}");
            }
        }
    }

    async fn try_drop(&mut self, map: &ClusterMap, target: u32, surplus: &[Surplus]) -> anyhow::Result<u64> {
        let mut homes: HashMap<u32, Vec<Bytes>> = HashMap::new();
        for one in surplus {
            homes.entry(one.home).or_default().push(Bytes::copy_from_slice(&one.shard.to_bytes()));
        }
        let mut doomed = Vec::with_capacity(surplus.len());
        for (home, shards) in homes {
            let present = self.reach.stat(map, home, &shards).await?;
            doomed.extend(
                shards.into_iter().zip(present).filter(|(_, present)| *present).map(|(shard, _)| shard),
            );
        }
        // Linearizable: only the leader gets an answer.
        let newest = self.head.read_map().await?;
        anyhow::ensure!(newest.generation == map.generation, "the map has changed: the next pass sees to it");
        self.reach.delete(map, target, &doomed).await?;
        Ok(doomed.len() as u64)
    }

    /// Of groups that a pass found complete: forgets where their shards were before.
    async fn forget_moves(&mut self, pass: &Pass) -> anyhow::Result<()> {
        let map = self.head.read_map().await?;
        let is_done = |pg: &PlacementGroup| {
            !pg.moving.is_empty()
                && pass.epochs.get(&pg.id) == Some(&pg.epoch)
                && !pass.unfinished.contains(&pg.id)
        };
        let done = map.pgs.iter().filter(|pg| is_done(pg)).count();
        if done == 0 {
            return Ok(());
        }
        let settled = |pg: &PlacementGroup| match is_done(pg) {
            true => PlacementGroup { moving: Vec::new(), epoch: pg.epoch + 1, ..pg.clone() },
            false => pg.clone(),
        };
        let op = PutPlacement {
            expected_generation: map.generation,
            classes: Vec::new(),
            pgs: map.pgs.iter().map(settled).collect(),
        };
        let outcome = self.head.propose(self.head.request_id(), command::Op::PutPlacement(op)).await?;
        match outcome.refusal() {
            Refusal::None => {
                tracing::info!(groups = done, "placement groups are complete at their new members")
            }
            // The map changed under our hands: the next pass does it.
            Refusal::StaleGeneration => {}
            refusal => anyhow::bail!("the zone refused: {refusal:?} {}", outcome.detail),
        }
        Ok(())
    }

    async fn take_back(&self, job: &Verdict, bring: &[(usize, TargetId)]) -> Result<(), Error> {
        for (index, target) in bring {
            let id = ShardId { write: job.found.write, stripe: job.found.stripe, index: *index as u8 };
            self.cluster.delete_shards(*target, vec![Bytes::copy_from_slice(&id.to_bytes())]).await?;
        }
        Ok(())
    }

    /// Whether a version or a part has this write.
    async fn is_owned(&self, job: &Verdict, object: &ObjectRef) -> Result<bool, Error> {
        let owner = self.owners.of(&self.cluster, job.found.write, object).await?;
        Ok(owner.is_some_and(|(_, owner)| orphans::is_owned(&owner)))
    }

    /// Deletes what nobody owns, now and then.
    async fn collect_orphans(&mut self, map: &ClusterMap, progress: &Progress) {
        let age = self.head.config.orphan_after.get();
        let now = Instant::now();
        if self.orphans_next.is_some_and(|next| now < next) {
            return;
        }
        self.orphans_next = Some(now + age.min(ORPHANS_EVERY));
        self.owners.forget();
        let (cluster, hlc) = (&self.cluster, self.head.groups.hlc());
        let held = Hlc::from_u64(map.orphans_held);
        let collector = Collector { cluster, owners: &self.owners, now: hlc, age, held, only_look: false };
        let leads = || self.head.leads();
        let collected = collector.walk(&mut self.reach, map, leads).await;
        progress.done(collected.orphans);
        metrics::counter!("holdfast_meta_repair_orphan_writes_total").increment(collected.orphans);
        if collected.failed > 0 {
            progress.trouble(&collected.trouble);
        }
    }
}

/// Looks at every write that a target has a shard of: how many there are, and those that nobody owns, which with `delete` are
/// fenced and deleted.
///
/// # Errors
/// When some write could not be judged, or this node does not lead any more.
pub(crate) async fn look_for_orphans(
    head: &ZoneHead,
    cluster: &Cluster,
    delete: bool,
) -> anyhow::Result<(u64, Vec<Bytes>)> {
    let map = head.feed.current().ok_or_else(|| anyhow::anyhow!("the zone is still being made"))?;
    let (owners, now, age) = (Owners::default(), head.groups.hlc(), head.config.orphan_after.get());
    let held = Hlc::from_u64(map.orphans_held);
    let collector = Collector { cluster, owners: &owners, now, age, held, only_look: !delete };
    let collected = collector.walk(&mut Reach::default(), &map, || head.leads()).await;
    anyhow::ensure!(head.leads(), "another node leads the zone now");
    anyhow::ensure!(collected.failed == 0, "{}", collected.trouble);
    Ok((collected.writes, collected.found))
}

fn lost(job: &Verdict, object: &ObjectRef) -> LostStripe {
    LostStripe {
        bucket: object.bucket.clone(),
        key: object.key.clone(),
        write: job.found.write.to_wire(),
        stripe: job.found.stripe,
        alive: job.alive,
        needed: job.found.scheme.data as usize,
    }
}

/// Whether the map alone says that stripes of some group may lack more than one shard: two of its places have no target
/// that can be read.
fn may_have_lost_two(map: &ClusterMap) -> bool {
    let there = listable(map);
    map.pgs.iter().any(|pg| {
        let is_gone = |place: &usize| {
            let from = pg.moving.iter().find(|moving| moving.place as usize == *place);
            let from = from.map_or(&[][..], |moving| &moving.from);
            // A member to which the place is still being brought may have none of it yet.
            let all_there = from.is_empty() && there.contains(&pg.targets[*place]);
            !all_there && !from.iter().any(|target| there.contains(target))
        };
        (0..pg.targets.len()).filter(is_gone).count() > 1
    })
}

#[cfg(test)]
#[path = "repair_test.rs"]
mod tests;
