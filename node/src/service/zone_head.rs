//! What a meta node knows and does for its zone: shared by its services and by the keeper.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::error::Fault;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{
    Answer, ClusterMap, Command, Event, EventSeverity, GetMap, Outcome, Query, RecordEvents, Refusal,
    TargetFree, answer, command, query,
};
use holdfast_proto::v1::FaultKind;
use parking_lot::{Mutex, RwLock};
use tonic::transport::Channel;

use crate::config::MetaConfig;
use crate::env::Env;
use crate::meta::Groups;
use crate::node::contact::connect_lazy;
use crate::node::directory::Identity;
use crate::node::map_feed::MapFeed;
use crate::placement::liveness::Liveness;
use crate::worker::repair::RepairState;

/// When the oldest read began that is under way through any gateway, as far as this node was told, and when it was.
#[derive(Debug, Default)]
pub(crate) struct ReadsUnderWay(Mutex<Option<(Hlc, Duration)>>);

/// What was told longer ago is not believed: nobody says it any more, as a leader of an older version does not.
const READS_TOLD: Duration = Duration::from_secs(60);

impl ReadsUnderWay {
    /// `None` tells nothing.
    pub(crate) fn heard(&self, oldest: Option<Hlc>, now: Duration) {
        if let Some(oldest) = oldest {
            *self.0.lock() = Some((oldest, now));
        }
    }

    /// When the oldest one began; `None` when nobody knows.
    pub(crate) fn oldest(&self, now: Duration) -> Option<Hlc> {
        let (oldest, at) = (*self.0.lock())?;
        (now.saturating_sub(at) <= READS_TOLD).then_some(oldest)
    }
}

/// Shared by reference.
#[derive(Debug)]
pub(crate) struct ZoneHead {
    pub(crate) groups: Arc<Groups>,
    pub(crate) identity: Identity,
    pub(crate) config: MetaConfig,
    pub(crate) feed: MapFeed,
    pub(crate) env: Env,
    pub(crate) liveness: Mutex<Liveness>,
    /// Free space as the zone's leader last told: passed on to watchers.
    pub(crate) free: RwLock<Vec<TargetFree>>,
    /// Reads that are under way, as the zone's leader last told.
    pub(crate) reads: ReadsUnderWay,
    /// Why placement has not been made, in the words for an operator.
    pub(crate) placement_wait: Mutex<Option<String>>,
    /// Why targets that have been down for long do not go out, in words.
    pub(crate) out_held_back: Mutex<Option<String>>,
    /// Somebody wants a pass of repair now.
    pub(crate) repair_wanted: AtomicBool,
    /// Which node keeps the feature level from rising, in words.
    pub(crate) level_held: Mutex<Option<String>>,
    /// What repair has seen and done, while this node leads the zone.
    pub(crate) repair: Mutex<RepairState>,
    leader_channel: Mutex<Option<(String, Channel)>>,
}

impl ZoneHead {
    pub(crate) fn new(
        groups: Arc<Groups>,
        identity: Identity,
        config: MetaConfig,
        feed: MapFeed,
        env: Env,
    ) -> Self {
        Self {
            groups,
            identity,
            config,
            feed,
            env,
            liveness: Mutex::default(),
            free: RwLock::default(),
            reads: ReadsUnderWay::default(),
            placement_wait: Mutex::default(),
            out_held_back: Mutex::default(),
            repair_wanted: AtomicBool::new(false),
            level_held: Mutex::default(),
            repair: Mutex::default(),
            leader_channel: Mutex::default(),
        }
    }

    pub(crate) fn me(&self) -> NodeId {
        self.identity.node
    }

    pub(crate) fn zone_group(&self) -> GroupId {
        GroupId::zone_group(self.identity.zone_id())
    }

    pub(crate) fn leads(&self) -> bool {
        self.groups.is_leader(self.zone_group())
    }

    pub(crate) fn now(&self) -> Duration {
        self.env.monotonic()
    }

    /// A request id nobody else has.
    pub(crate) fn request_id(&self) -> Bytes {
        let mut raw = [0; 16];
        self.env.fill_random(&mut raw);
        Bytes::copy_from_slice(&raw)
    }

    /// Commits one command of the zone group.
    ///
    /// # Errors
    /// A fault of the group; refusals are in the outcome.
    pub(crate) async fn propose(&self, request: Bytes, op: command::Op) -> Result<Outcome, Fault> {
        let now = self.groups.hlc();
        if now == Hlc::ZERO {
            return Err(Fault::new(FaultKind::FaultUnavailable, "the zone is still being made"));
        }
        let command = Command { request, first_attempt_hlc: now.get(), op: Some(op), ..Command::default() };
        let outcomes = self.groups.propose(self.zone_group(), vec![command]).await?;
        match outcomes.into_iter().next() {
            // The refusal moved the group's clock on.
            Some(outcome) if outcome.refusal() == Refusal::RequestTooOld => {
                Err(Fault::new(FaultKind::FaultUnavailable, "the zone's clock had stood still"))
            }
            Some(outcome) => Ok(outcome),
            None => Err(Fault::new(FaultKind::Invalid, "the zone group gave no outcome")),
        }
    }

    /// Tells the zone's event log of something. Whoever tells goes on without it: the next look tells again what still holds.
    pub(crate) async fn tell(
        &self,
        severity: EventSeverity,
        code: &str,
        subject: &str,
        text: String,
        why: String,
    ) {
        let (code, subject) = (code.to_owned(), subject.to_owned());
        let event = Event { severity: severity.into(), code, subject, text, why, ..Event::default() };
        if self.feed.current().is_none_or(|map| map.feature_level < holdfast_machine::LEVEL_MOVES) {
            return;
        }
        let op = command::Op::RecordEvents(RecordEvents { events: vec![event] });
        if let Err(fault) = self.propose(self.request_id(), op).await {
            tracing::debug!(%fault, "an event was not written down");
        }
    }

    /// The zone's map, linearizable. Also offered to the feed.
    ///
    /// # Errors
    /// A fault of the group, or when the zone has not been made.
    pub(crate) async fn read_map(&self) -> Result<ClusterMap, Fault> {
        let get = Query { of: Some(query::Of::GetMap(GetMap { have_generation: 0 })) };
        let answers = self.groups.read(self.zone_group(), vec![get]).await?;
        match answers.into_iter().next() {
            Some(Answer { ok: Some(answer::Ok::Map(map)), .. }) => {
                self.feed.offer(map.clone());
                Ok(map)
            }
            _ => Err(Fault::new(FaultKind::FaultUnavailable, "the zone is still being made")),
        }
    }

    /// A connection to the node that leads the zone.
    ///
    /// # Errors
    /// When no other leader is known.
    pub(crate) fn leader_channel(&self) -> Result<Channel, Fault> {
        let none = || Fault::new(FaultKind::FaultUnavailable, "the zone has no leader at the moment");
        let leader =
            self.groups.leader(self.zone_group()).filter(|leader| *leader != self.me()).ok_or_else(none)?;
        let map = self.feed.current().ok_or_else(none)?;
        let address = map
            .nodes
            .iter()
            .find(|node| node.id == leader.get())
            .map(|node| node.addr.clone())
            .ok_or_else(none)?;
        let mut open = self.leader_channel.lock();
        match &*open {
            Some((known, channel)) if *known == address => Ok(channel.clone()),
            _ => {
                let channel = connect_lazy(&address)?;
                *open = Some((address, channel.clone()));
                Ok(channel)
            }
        }
    }
}
