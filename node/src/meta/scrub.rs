//! Whether the replicas of a group have the same rows: the group's leader has every member sum up its rows at one entry
//! ([`super::digest`]), compares, and has those that differ from more than half of the members rebuilt
//! ([`super::rebuild`]). If the leader itself is the odd one, it hands the lead over and rebuilds.
//!
//! Nothing of this is durable: a new leader compares again before long, and so does one that found a difference, until
//! there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{CommandBatch, GroupMembers, GroupScrubReport};
use holdfast_proto::raft::{
    DigestRequest, RebuildRequest, ScrubRequest, digest_reply, peer_reply, peer_request,
};
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::Notify;

use super::group::Group;
use super::groups::Groups;
use super::members::write_fault;
use super::raft::Commands;
use crate::supervisor::Progress;

const TICK: Duration = Duration::from_secs(1);
/// A new leader compares this soon, and so does one that missed a member.
const SOON: Duration = Duration::from_secs(600);
/// One that found a difference compares again after this, then after twice as long, and so on.
const AGAIN_MIN: Duration = Duration::from_secs(30);
const MARK_DEADLINE: Duration = Duration::from_secs(10);
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A member that answers nothing for this long is not waited for.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Summing up the rows of one group takes no longer.
const SUM_DEADLINE: Duration = Duration::from_secs(3600);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What the groups that this node leads know of their replicas.
#[derive(Debug, Default)]
pub(super) struct Scrubs {
    groups: Mutex<BTreeMap<GroupId, Scrub>>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Scrub {
    /// On the monotonic clock.
    next: Duration,
    /// Pause after a difference.
    again: Duration,
    report: GroupScrubReport,
}

/// What a member said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Sum { blake3: Bytes, rows: u64 },
    Unreadable(String),
    Nothing,
}

/// What follows from what the members said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    agree: BTreeSet<NodeId>,
    diverged: BTreeSet<NodeId>,
    silent: BTreeSet<NodeId>,
    /// They differ, and no digest is that of more than half of the members.
    no_majority: bool,
}

fn judge(said: &BTreeMap<NodeId, Said>) -> Verdict {
    let mut sums: BTreeMap<&Bytes, BTreeSet<NodeId>> = BTreeMap::new();
    let mut verdict = Verdict::default();
    for (node, said) in said {
        match said {
            Said::Sum { blake3, .. } => {
                sums.entry(blake3).or_default().insert(*node);
            }
            Said::Unreadable(_) => {
                verdict.diverged.insert(*node);
            }
            Said::Nothing => {
                verdict.silent.insert(*node);
            }
        }
    }
    let differ = sums.len() > 1 || !verdict.diverged.is_empty();
    let best = sums.values().max_by_key(|nodes| nodes.len()).cloned().unwrap_or_default();
    verdict.no_majority = differ && best.len() * 2 <= said.len();
    let others = sums.into_values().flatten().filter(|node| !best.contains(node));
    verdict.diverged.extend(others.collect::<Vec<_>>());
    verdict.agree = best;
    verdict
}

impl Groups {
    /// Compares the replicas of every group that this node leads, each once in `every`. Runs until the node stops.
    pub(crate) async fn run_scrub(
        self: Arc<Self>,
        every: Duration,
        progress: Progress,
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                () = self.scrubs().wake.notified() => {}
            }
            let due = self.due(every);
            for (left, id) in due.iter().enumerate() {
                progress.backlog((due.len() - left) as u64);
                match self.scrub(*id).await {
                    Ok(_) => progress.well(),
                    Err(fault) => progress.trouble(format!("{id}: {fault}")),
                }
                self.schedule(*id, every);
                progress.done(1);
            }
            progress.backlog(0);
        }
    }

    fn due(&self, every: Duration) -> Vec<GroupId> {
        let led: BTreeSet<GroupId> =
            self.all().iter().filter(|group| group.is_leader()).map(|group| group.id()).collect();
        let now = self.env().monotonic();
        let mut scrubs = self.scrubs().groups.lock();
        scrubs.retain(|id, _| led.contains(id));
        for id in led {
            scrubs.entry(id).or_insert_with(|| Scrub { next: now + every.min(SOON), ..Scrub::default() });
        }
        scrubs.iter().filter(|(_, scrub)| scrub.next <= now).map(|(id, _)| *id).collect()
    }

    fn schedule(&self, id: GroupId, every: Duration) {
        let now = self.env().monotonic();
        let mut scrubs = self.scrubs().groups.lock();
        let Some(scrub) = scrubs.get_mut(&id) else { return };
        let report = &scrub.report;
        if !report.diverged.is_empty() || report.no_majority {
            scrub.again = (scrub.again * 2).max(AGAIN_MIN);
            scrub.next = now + scrub.again.min(every);
            return;
        }
        let missed = !report.silent.is_empty() || !report.trouble.is_empty();
        scrub.again = Duration::ZERO;
        scrub.next = now + if missed { every.min(SOON) } else { every };
    }

    /// Compares the replicas of a group that this node leads, and has those that differ from the majority rebuilt.
    ///
    /// # Errors
    /// `NotLeader`, `NotHere`, or `FaultUnavailable` when the mark was not committed.
    pub(super) async fn scrub(self: &Arc<Self>, id: GroupId) -> Result<GroupScrubReport, Fault> {
        let began = self.env().monotonic();
        self.note(id, |report| report.running = true);
        let compared = self.compare(id).await;
        self.note(id, |report| {
            report.running = false;
            report.trouble = compared.as_ref().err().map(ToString::to_string).unwrap_or_default();
        });
        let (group, index, said) = compared?;
        let verdict = judge(&said);
        let rows = said.iter().find_map(|(node, said)| match said {
            Said::Sum { rows, .. } if verdict.agree.contains(node) => Some(*rows),
            _ => None,
        });
        let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.get()).collect::<Vec<u64>>();
        let took = self.env().monotonic().saturating_sub(began);
        metrics::histogram!("holdfast_meta_scrub_seconds").record(took.as_secs_f64());
        let report = GroupScrubReport {
            group: id.get(),
            finished_ms: self.env().now_ms(),
            index,
            rows: rows.unwrap_or(0),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            agree: ids(&verdict.agree),
            diverged: ids(&verdict.diverged),
            silent: ids(&verdict.silent),
            no_majority: verdict.no_majority,
            ..GroupScrubReport::default()
        };
        self.note(id, |noted| *noted = report.clone());
        self.act(&group, &verdict, &said, index).await;
        Ok(report)
    }

    fn note(&self, id: GroupId, change: impl FnOnce(&mut GroupScrubReport)) {
        let mut scrubs = self.scrubs().groups.lock();
        let report = &mut scrubs.entry(id).or_default().report;
        report.group = id.get();
        change(report);
    }

    async fn compare(&self, id: GroupId) -> Result<(Arc<Group>, u64, BTreeMap<NodeId, Said>), Fault> {
        let group = self.group(id)?;
        let mut raw = [0; 8];
        self.env().fill_random(&mut raw);
        // 0 is no mark.
        let mark = u64::from_ne_bytes(raw) | 1;
        let index = group.mark(mark).await?;
        let (voters, learners) = group.members();
        let said = voters.union(&learners).map(|node| {
            let (node, group) = (*node, &group);
            async move { (node, self.ask(group, node, DigestRequest { mark, index }).await) }
        });
        let said = join_all(said).await.into_iter().collect();
        Ok((group, index, said))
    }

    /// Asks a member until it has summed up its rows.
    async fn ask(&self, group: &Group, node: NodeId, request: DigestRequest) -> Said {
        let began = self.env().monotonic();
        let (mut heard, mut pause) = (began, PAUSE_MIN);
        loop {
            let reply = if node == self.node() {
                let state = group.state();
                Ok(state.marks().reply(request.mark, request.index, state.applied_index()))
            } else {
                let message = peer_request::Message::Digest(request);
                match self.call(group.id(), node, message).await {
                    Ok(peer_reply::Message::Digest(reply)) => Ok(reply),
                    Ok(_) => Err("a reply of another kind".to_owned()),
                    Err(why) => Err(why),
                }
            };
            let now = self.env().monotonic();
            match reply.map(|reply| reply.result) {
                Ok(Some(digest_reply::Result::Rows(sum))) => {
                    return Said::Sum { blake3: sum.blake3, rows: sum.rows };
                }
                Ok(Some(digest_reply::Result::Fault(fault))) => return Said::Unreadable(fault),
                Ok(Some(digest_reply::Result::Pending(_))) => heard = now,
                Ok(Some(digest_reply::Result::Unknown(_)) | None) => return Said::Nothing,
                Err(why) => tracing::debug!(group = %group.id(), %node, why, "no digest yet"),
            }
            if now > heard + SILENCE_MAX || now > began + SUM_DEADLINE || !group.is_leader() {
                return Said::Nothing;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn call(
        &self,
        group: GroupId,
        node: NodeId,
        message: peer_request::Message,
    ) -> Result<peer_reply::Message, String> {
        let pending = self.peers().get(node).send(group.get(), message).await.map_err(|e| e.to_string())?;
        pending.reply(CALL_DEADLINE).await.map_err(|error| error.to_string())
    }

    async fn act(
        self: &Arc<Self>,
        group: &Group,
        verdict: &Verdict,
        said: &BTreeMap<NodeId, Said>,
        index: u64,
    ) {
        let id = group.id();
        if verdict.diverged.is_empty() {
            return;
        }
        metrics::counter!("holdfast_meta_replicas_diverged_total").increment(verdict.diverged.len() as u64);
        if verdict.no_majority {
            tracing::error!(
                group = %id, index, ?said,
                "META_NO_MAJORITY: replicas differ and none is like more than half of the members; nothing is rebuilt"
            );
            return;
        }
        let from: Vec<NodeId> = verdict.agree.iter().copied().collect();
        for node in &verdict.diverged {
            let why = match said.get(node) {
                Some(Said::Unreadable(fault)) => fault.clone(),
                _ => format!("they differ at index {index} from those of {} members", from.len()),
            };
            tracing::error!(group = %id, %node, why, "META_DIVERGED: the rows of a replica are wrong");
            if *node == self.node() {
                self.begin_rebuild(id, from.clone(), why);
                continue;
            }
            let from = from.iter().map(|node| node.get()).collect();
            let message = peer_request::Message::Rebuild(RebuildRequest { from });
            if let Err(error) = self.call(id, *node, message).await {
                tracing::error!(group = %id, %node, error, "a replica was not told to rebuild itself");
            }
        }
    }

    /// Has the group's leader compare now: this node, or one of `members`.
    ///
    /// # Errors
    /// When none of them leads, or says so.
    pub(crate) async fn start_scrub(&self, id: GroupId, members: &[NodeId]) -> Result<(), Fault> {
        if self.is_leader(id) {
            return self.start_scrub_here(id);
        }
        let mut last = "nobody is known to lead it".to_owned();
        let known = self.leader(id);
        let others = members.iter().copied().filter(|node| Some(*node) != known);
        for node in known.into_iter().chain(others).filter(|node| *node != self.node()) {
            match self.call(id, node, peer_request::Message::Scrub(ScrubRequest {})).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(Fault::new(FaultKind::FaultUnavailable, last))
    }

    /// Compares now, when this node leads.
    pub(super) fn start_scrub_here(&self, id: GroupId) -> Result<(), Fault> {
        if !self.is_leader(id) {
            return Err(Fault::not_leader(self.leader(id).map_or(0, NodeId::get)));
        }
        self.scrubs().groups.lock().entry(id).or_default().next = Duration::ZERO;
        self.scrubs().wake.notify_one();
        Ok(())
    }

    /// A replica was rebuilt here: whether it is well now is the leader's to see.
    pub(super) async fn scrub_again(&self, id: GroupId) {
        if let Err(fault) = self.start_scrub(id, &[]).await {
            tracing::debug!(group = %id, %fault, "the leader was not asked to compare again");
        }
    }

    /// What is known of the groups that this node leads or rebuilds.
    pub(crate) fn scrub_reports(&self) -> Vec<GroupScrubReport> {
        let mut reports: BTreeMap<GroupId, GroupScrubReport> = BTreeMap::new();
        let scrubs = self.scrubs().groups.lock();
        for group in self.all().into_iter().filter(|group| group.is_leader()) {
            let (voters, learners) = group.members();
            let ids = |nodes: BTreeSet<NodeId>| nodes.into_iter().map(NodeId::get).collect();
            let members = Some(GroupMembers { voters: ids(voters), learners: ids(learners) });
            let known = scrubs.get(&group.id()).map(|scrub| scrub.report.clone()).unwrap_or_default();
            reports.insert(group.id(), GroupScrubReport { members, ..known });
        }
        drop(scrubs);
        for (id, why) in self.rebuilds().running() {
            reports.entry(id).or_default().rebuilding = why;
        }
        reports.into_iter().map(|(id, report)| GroupScrubReport { group: id.get(), ..report }).collect()
    }
}

impl Group {
    /// Commits an entry that makes every replica sum up its rows as of it, and answers its index.
    async fn mark(&self, mark: u64) -> Result<u64, Fault> {
        let batch = CommandBatch { commands: Vec::new(), take_digest: mark };
        let entry = Commands(Bytes::from(batch.encode_to_vec()));
        match tokio::time::timeout(MARK_DEADLINE, self.raft().client_write(entry)).await {
            Ok(Ok(written)) => Ok(written.log_id.index()),
            Ok(Err(error)) => Err(write_fault(error)),
            Err(_) => Err(Fault::new(FaultKind::FaultUnavailable, "no quorum in time")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(said: &[&'static str]) -> Verdict {
        let said = said.iter().enumerate().map(|(place, said)| {
            let said = match *said {
                "" => Said::Nothing,
                "!" => Said::Unreadable("a fault".into()),
                sum => Said::Sum { blake3: Bytes::from(sum), rows: 1 },
            };
            (NodeId::new(place as u64 + 1), said)
        });
        judge(&said.collect())
    }

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId::new).collect()
    }

    #[test]
    fn who_differs_from_more_than_half_of_the_members_is_wrong() {
        let odd = verdict(&["a", "b", "a"]);
        assert_eq!((odd.agree, odd.diverged, odd.no_majority), (nodes(&[1, 3]), nodes(&[2]), false));
        let unreadable = verdict(&["!", "a", "a"]);
        assert_eq!((unreadable.diverged, unreadable.no_majority), (nodes(&[1]), false));
        let equal = verdict(&["a", "a", "a"]);
        assert_eq!(equal, Verdict { agree: nodes(&[1, 2, 3]), ..Verdict::default() });
    }

    #[test]
    fn without_a_majority_nobody_is_told_anything() {
        assert!(verdict(&["a", "b"]).no_majority);
        assert!(verdict(&["a", "b", ""]).no_majority);
        assert!(verdict(&["a", "b", "c"]).no_majority);
        assert!(verdict(&["a", "a", "b", ""]).no_majority, "two of four are not more than half");
        assert!(verdict(&["!", "!", "a"]).no_majority);
        assert!(verdict(&["a", "!"]).no_majority);
    }

    #[test]
    fn silence_is_no_difference() {
        let two = verdict(&["a", "", "a"]);
        assert_eq!((two.silent, two.diverged, two.no_majority), (nodes(&[2]), nodes(&[]), false));
        let one = verdict(&["a", "", ""]);
        assert_eq!((one.agree, one.no_majority), (nodes(&[1]), false));
    }
}
