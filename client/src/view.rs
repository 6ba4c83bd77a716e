//! What this client knows of the zone: the map, the time, who leads, and how fresh that is. Written by the watcher and
//! by answers, read by every call.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId, TargetId};
use holdfast_proto::limits::MAP_LIFE_SHIFT;
use holdfast_proto::meta::WatchEvent;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::Error;
use crate::map::Map;
use crate::propose::GROUP_HLC_AGE_MAX;

/// Cached rows of the realm are believed without asking while the watch is younger than this.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(1);

/// A zone that is recovered may count changes of the realm from less than before: the bits above say of which of its lives a
/// count is.
/// That of a zone that is restored begins at 2^40.
const COUNT_BITS: u32 = 44;

#[derive(Debug)]
pub(crate) struct View {
    map: RwLock<Option<Arc<Map>>>,
    /// Whether both a map and the time are known.
    ready: watch::Sender<bool>,
    hlc: AtomicU64,
    /// What each group's leader said that the group has applied, and when it said so.
    group_hlcs: RwLock<HashMap<GroupId, (Hlc, Instant)>>,
    realm_applied: AtomicU64,
    heard: Mutex<Option<Instant>>,
    leaders: RwLock<HashMap<GroupId, NodeId>>,
    /// What the watched node said last: only a change of its mind overrides what answers have taught since.
    told: Mutex<HashMap<GroupId, NodeId>>,
    free: RwLock<HashMap<TargetId, u64>>,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            map: RwLock::new(None),
            ready: watch::Sender::new(false),
            hlc: AtomicU64::new(0),
            group_hlcs: RwLock::default(),
            realm_applied: AtomicU64::new(0),
            heard: Mutex::new(None),
            leaders: RwLock::default(),
            told: Mutex::default(),
            free: RwLock::default(),
        }
    }

    /// The map; `None` before the first.
    pub(crate) fn map(&self) -> Option<Arc<Map>> {
        self.map.read().clone()
    }

    /// Turns true when both a map and the zone's time are known.
    pub(crate) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(crate) fn now(&self) -> Hlc {
        Hlc::from_u64(self.hlc.load(Ordering::Acquire))
    }

    /// Merges a timestamp that a meta node sent.
    pub(crate) fn saw(&self, hlc: u64) {
        self.hlc.fetch_max(hlc, Ordering::AcqRel);
    }

    /// The HLC that a group was known to have applied a short time before `now`.
    pub(crate) fn group_hlc(&self, group: GroupId, now: Instant) -> Option<Hlc> {
        let (hlc, at) = *self.group_hlcs.read().get(&group)?;
        (now.saturating_duration_since(at) <= GROUP_HLC_AGE_MAX).then_some(hlc)
    }

    /// Notes the HLC of a group in an answer of its leader.
    pub(crate) fn saw_group_hlc(&self, group: GroupId, hlc: u64) {
        let fresh = (Hlc::from_u64(hlc), Instant::now());
        let mut hlcs = self.group_hlcs.write();
        let known = hlcs.entry(group).or_insert(fresh);
        // Answers may overtake each other, by less than what is known is believed for.
        if fresh.0 >= known.0 || fresh.1.saturating_duration_since(known.1) > GROUP_HLC_AGE_MAX {
            *known = fresh;
        }
    }

    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.leaders.read().get(&group).copied()
    }

    /// Notes who leads; `None`: who was believed to lead does not.
    pub(crate) fn set_leader(&self, group: GroupId, leader: Option<NodeId>) {
        if self.leader(group) == leader {
            return;
        }
        let mut leaders = self.leaders.write();
        match leader {
            Some(node) => leaders.insert(group, node),
            None => leaders.remove(&group),
        };
    }

    /// The count of realm changes, when the watch is fresh enough to be believed.
    pub(crate) fn realm_applied(&self) -> Option<u64> {
        let heard = (*self.heard.lock())?;
        if heard.elapsed() > WATCH_SILENCE_MAX {
            return None;
        }
        Some(self.realm_applied.load(Ordering::Acquire))
    }

    /// Free bytes of a target as last reported; `None` when never.
    pub(crate) fn free_bytes(&self, target: TargetId) -> Option<u64> {
        self.free.read().get(&target).copied()
    }

    /// Takes in one event of the watch. A map of another zone or realm than the first one's is refused, and so is who has not
    /// heard that the zone was recovered without it.
    pub(crate) fn absorb(&self, event: WatchEvent) -> Result<(), Error> {
        let life = |generation: u64| generation >> MAP_LIFE_SHIFT;
        if event.generation != 0
            && self.map().is_some_and(|have| life(have.generation()) > life(event.generation))
        {
            return Err(Error::internal("a meta node of a zone that was recovered since"));
        }
        if let Some(raw) = event.map {
            let next = Map::parse(raw)?;
            if let Some(have) = self.map()
                && (have.realm() != next.realm() || have.zone() != next.zone())
            {
                return Err(Error::internal("a meta node sent the map of another zone"));
            }
            let mut have = self.map.write();
            if have.as_ref().is_none_or(|have| have.generation() < next.generation()) {
                *have = Some(Arc::new(next));
            }
        }
        self.saw(event.hlc);
        let life = self.map().map_or(0, |map| map.generation() >> MAP_LIFE_SHIFT);
        let count = life << COUNT_BITS | event.realm_applied.min((1 << COUNT_BITS) - 1);
        self.realm_applied.fetch_max(count, Ordering::AcqRel);
        for belief in event.leaders {
            let (Ok(group), leader) = (GroupId::from_u64(belief.group), NodeId::new(belief.leader)) else {
                continue;
            };
            if belief.leader != 0 && self.told.lock().insert(group, leader) != Some(leader) {
                self.set_leader(group, Some(leader));
            }
        }
        if !event.free.is_empty() {
            let mut free = self.free.write();
            free.extend(event.free.iter().map(|report| (TargetId::new(report.target), report.free_bytes)));
        }
        *self.heard.lock() = Some(Instant::now());
        let ready = self.now() > Hlc::ZERO && self.map.read().is_some();
        self.ready.send_if_modified(|was| ready && !std::mem::replace(was, true));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::meta::{ClusterMap, GroupLeader};

    fn event(generation: u64, realm_applied: u64) -> WatchEvent {
        let realm = vec![7; 16].into();
        let map = ClusterMap { realm, zone: 1, generation, ..ClusterMap::default() };
        WatchEvent { map: Some(map), generation, realm_applied, ..WatchEvent::default() }
    }

    /// What was cached in the zone's former life is not believed in the next.
    #[test]
    fn changes_are_counted_anew_in_a_zone_that_was_recovered() {
        let view = View::new();
        let mut before = None;
        let recovered = 1 << MAP_LIFE_SHIFT;
        for (generation, applied) in
            [(5, 900), (6, 901), (recovered, 12), (recovered + 1, 13), (2 * recovered, 1)]
        {
            view.absorb(event(generation, applied)).unwrap();
            let now = view.realm_applied();
            assert!(now > before, "{generation}");
            before = now;
        }
        view.absorb(WatchEvent { map: None, ..event(0, 0) }).unwrap();
        assert_eq!(view.realm_applied(), before, "nothing changed");
        let old = GroupLeader { group: GroupId::REALM.get(), leader: 9 };
        let late = WatchEvent { map: None, leaders: vec![old], ..event(recovered + 7, 99) };
        assert!(view.absorb(late).is_err(), "whoever was given up");
        assert_eq!((view.leader(GroupId::REALM), view.realm_applied()), (None, before));
    }

    #[test]
    fn a_groups_time_is_its_own_and_known_for_a_while() {
        let view = View::new();
        let (group, other) = (GroupId::REALM, GroupId::zone_group(holdfast_proto::id::ZoneId::new(1)));
        view.saw(1_000 << 16);
        view.saw_group_hlc(other, 500 << 16);
        assert_eq!(view.group_hlc(group, Instant::now()), None);
        view.saw_group_hlc(group, 20 << 16);
        view.saw_group_hlc(group, 10 << 16);
        let now = Instant::now();
        assert_eq!(view.group_hlc(group, now), Some(Hlc::from_ms(20)));
        assert_eq!(view.group_hlc(group, now + GROUP_HLC_AGE_MAX * 2), None);
    }
}
