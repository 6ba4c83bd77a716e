//! What keeps a node's groups bounded: durable commits of their rows, purging of their logs behind those, and freeing of
//! the log engine's files. One worker for all groups.
//!
//! The order is what a restart relies on: rows become durable first; only log that lies [`UpkeepConfig::retain_bytes`]
//! behind the durable point goes, and only after the library has been told of a snapshot that covers it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_proto::id::GroupId;
use openraft::async_runtime::watch::WatchReceiver as _;

use super::group::Group;
use super::groups::Groups;

const BEAT: Duration = Duration::from_secs(1);
/// Between two looks for log files that can go.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(30);

/// More log of one group than this is kept for no good reason, bytes.
const LOG_BYTES_MAX: u64 = 1 << 30;

/// When rows are made durable and how much log is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpkeepConfig {
    /// Log applied between two durable commits, bytes over all groups.
    pub(crate) persist_bytes: u64,
    /// Time between two durable commits while anything is applied.
    pub(crate) persist_interval: Duration,
    /// Log kept behind the last durable commit, bytes of each group.
    pub(crate) retain_bytes: u64,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        Self { persist_bytes: 64 << 20, persist_interval: Duration::from_secs(10), retain_bytes: 64 << 20 }
    }
}

/// When things were last done, on the monotonic clock, and at how many bytes of log.
#[derive(Debug, Default)]
struct Last {
    persisted: Duration,
    persisted_bytes: u64,
    reclaimed: Duration,
    /// Groups that keep too much log, which was logged.
    long_logs: BTreeSet<GroupId>,
    /// The clock was off, and that was logged.
    clock_off: bool,
}

pub(super) async fn run(groups: Arc<Groups>, config: UpkeepConfig) {
    let now = groups.env().monotonic();
    let mut last = Last { persisted: now, reclaimed: now, ..Last::default() };
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = groups.cancel().cancelled() => return,
        }
        step(&groups, config, &mut last).await;
    }
}

async fn step(groups: &Arc<Groups>, config: UpkeepConfig, last: &mut Last) {
    let all = groups.all();
    for group in &all {
        // One whose rows cannot be read stops too, and one that is rebuilt was stopped: neither ends the node.
        if let Some(why) = group.stopped()
            && group.state().suspicion().is_none()
            && groups.is_open(group)
            && !groups.cancel().is_cancelled()
        {
            groups.fail(format!("{} stopped: {why}", group.id()));
        }
    }
    groups.rebuild_suspicious();
    watch_clock(groups, &all, last);
    let now = groups.env().monotonic();
    let written: u64 = all.iter().map(|group| group.log().written()).sum();
    let dirty = all.iter().any(|group| group.state().applied_index() > durable(group));
    let due = now >= last.persisted + config.persist_interval
        || written.saturating_sub(last.persisted_bytes) >= config.persist_bytes;
    if dirty && due {
        last.persisted = now;
        last.persisted_bytes = written;
        if let Err(error) = groups.persist().await {
            groups.fail(error.to_string());
        }
    }
    for group in &all {
        watch_log(group, last);
        if !groups.rebuilds().is_running(group.id()) {
            purge(group, config).await;
        }
    }
    if now >= last.reclaimed + RECLAIM_INTERVAL {
        last.reclaimed = now;
        let engine = Arc::clone(groups.engine());
        match tokio::task::spawn_blocking(move || engine.reclaim()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => groups.fail(error.to_string()),
            Err(error) => groups.fail(error.to_string()),
        }
    }
}

/// Shows how much log a group keeps, and says so once when it is too much: something holds it that should not.
fn watch_log(group: &Group, last: &mut Last) {
    let retained_bytes = group.log().retained();
    let name = group.id().to_string();
    metrics::gauge!("holdfast_meta_group_log_bytes", "group" => name).set(retained_bytes as f64);
    if retained_bytes <= LOG_BYTES_MAX {
        last.long_logs.remove(&group.id());
    } else if last.long_logs.insert(group.id()) {
        tracing::error!(
            group = %group.id(), retained_bytes,
            "the log of a group is not purged: see holdfast_meta_group_behind_entries for a member that is behind"
        );
    }
}

/// A leader whose clock is off does not stamp: who can, should lead.
fn watch_clock(groups: &Groups, all: &[Arc<Group>], last: &mut Last) {
    let clock = groups.clock();
    clock.set_voters(all.iter().flat_map(|group| group.state().other_voters(groups.node())).collect());
    let ahead_ms = clock.peers().ahead_of_median_ms().unwrap_or(0);
    metrics::gauge!("holdfast_meta_clock_ahead_seconds").set(ahead_ms as f64 / 1000.0);
    let off = clock.peers().check().err();
    metrics::gauge!("holdfast_meta_clock_off_bool").set(f64::from(u8::from(off.is_some())));
    match off {
        Some(off) if !last.clock_off => {
            tracing::error!(%off, "this machine's clock is off: the groups it leads take no commands");
        }
        None if last.clock_off => tracing::info!("this machine's clock is right again"),
        _ => {}
    }
    last.clock_off = off.is_some();
    if off.is_none() {
        return;
    }
    for group in all {
        if let Some(to) = group.successor(|node| clock.peers().is_near_median(node)) {
            let group = Arc::clone(group);
            groups.tasks().spawn(async move {
                if let Err(fault) = group.transfer_leader(to).await {
                    tracing::debug!(group = %group.id(), %to, %fault, "the lead was not handed over");
                }
            });
        }
    }
}

fn durable(group: &Group) -> u64 {
    group.state().durable().load(Ordering::Acquire)
}

/// Purges what lies far enough behind the durable point. The library purges only what a snapshot it knows covers, so it
/// is asked to make one first (a view and a persist), and purges what that covers on a later beat.
///
/// A leader's log is kept while a member is being sent what lies before the target. Sending to one that is dead or does not
/// answer in time fails, and the library then lets go of it: it gets a snapshot when it is back.
async fn purge(group: &Group, config: UpkeepConfig) {
    let Some(target) = group.log().purgeable(durable(group), config.retain_bytes) else { return };
    let covered = group.raft().metrics().borrow_watched().snapshot.map_or(0, |log_id| log_id.index());
    let trigger = group.raft().trigger();
    // A group that is stopping is not an error here: what stopped it was reported.
    if covered < target {
        let _ = trigger.snapshot().await;
    }
    // Under load the target is always a little ahead of what is covered.
    if target.min(covered) > group.log().purged_index() {
        let _ = trigger.purge_log(target.min(covered)).await;
    }
}
