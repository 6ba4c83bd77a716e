//! The hybrid clock that stamps proposals. It only moves forward: past every stamp it gave, and past those it saw applied,
//! unless they come from a clock that runs too far ahead.
//!
//! What it tells others is held to what the peers' clocks show, where any was heard: a node whose machine clock is wrong
//! neither stamps nor carries its time to clients.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::NodeId;
use holdfast_proto::limits::CLOCK_AHEAD_MS_MAX;

use super::peer_clocks::PeerClocks;
use crate::env::Env;

/// One node's hybrid clock.
#[derive(Debug)]
pub(crate) struct StampClock {
    env: Env,
    peers: PeerClocks,
    /// There are other voters to hear from.
    has_peers: AtomicBool,
    /// The last stamp given or merged.
    last: AtomicU64,
}

impl StampClock {
    /// A clock over the machine's.
    pub(crate) fn new(env: Env) -> Self {
        let peers = PeerClocks::new(env.clone());
        Self { env, peers, has_peers: AtomicBool::new(false), last: AtomicU64::new(0) }
    }

    /// The clocks this one is held against.
    pub(super) fn peers(&self) -> &PeerClocks {
        &self.peers
    }

    /// The other voters of this node's groups: until one of them is heard, this machine's clock alone tells nobody the
    /// time. What learners show counts for nothing: they cannot take the lead of a node that they accuse.
    pub(super) fn set_voters(&self, voters: BTreeSet<NodeId>) {
        self.has_peers.store(!voters.is_empty(), Ordering::Release);
        self.peers.set_voters(voters);
    }

    /// A stamp above all earlier ones: `max(last + 1, now)`. Only for who checked that the clock is not off.
    pub(crate) fn stamp(&self) -> Hlc {
        let now = Hlc::from_ms(self.env.now_ms());
        let tick = |last| Some(Hlc::tick(Hlc::from_u64(last), now).get());
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, tick);
        Hlc::tick(Hlc::from_u64(last.unwrap_or_else(|last| last)), now)
    }

    /// Takes note of a stamp in applied state.
    pub(crate) fn saw(&self, stamp: Hlc) {
        let now_ms = self.believed_ms().unwrap_or_else(|| self.env.now_ms());
        if stamp.ms() <= now_ms.saturating_add(CLOCK_AHEAD_MS_MAX) {
            self.last.fetch_max(stamp.get(), Ordering::AcqRel);
        }
    }

    /// The machine's clock, no further from the peers' than a stamp that is merged may be. `None`: they are not heard.
    fn believed_ms(&self) -> Option<u64> {
        let machine = self.env.now_ms();
        match self.peers.ahead_of_median_ms() {
            Some(ahead) => {
                let off = ahead.unsigned_abs().saturating_sub(CLOCK_AHEAD_MS_MAX);
                Some(if ahead > 0 { machine.saturating_sub(off) } else { machine.saturating_add(off) })
            }
            None if self.has_peers.load(Ordering::Acquire) => None,
            None => Some(machine),
        }
    }

    /// The reading now, without ticking, as callers are told it. In a zone where nothing happens it goes on with the
    /// machine's clock, so that what callers learn from it does not age; beyond that it goes only as far as stamps from
    /// elsewhere are merged. While no peer is heard it is the last stamp.
    pub(crate) fn now(&self) -> Hlc {
        let last = Hlc::from_u64(self.last.load(Ordering::Acquire));
        let Some(now_ms) = self.believed_ms() else { return last };
        // Peers that are ahead do not make it run: a follower that hears its leader alone cannot know whose clock is wrong.
        let own_ms = now_ms.min(self.env.now_ms());
        last.min(Hlc::from_ms(now_ms.saturating_add(CLOCK_AHEAD_MS_MAX))).max(Hlc::from_ms(own_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer_clocks::tests::moved_env;
    use super::*;

    #[test]
    fn stamps_only_rise() {
        let clock = StampClock::new(Env::real());
        let first = clock.stamp();
        assert!(clock.stamp() > first);
        let ahead = Hlc::from_ms(first.ms() + 1_000);
        clock.saw(ahead);
        assert!(clock.stamp() > ahead);
        assert!(clock.now() > ahead);
    }

    #[test]
    fn a_clock_far_ahead_is_not_followed_and_nobody_is_told_of_it() {
        let clock = StampClock::new(Env::real());
        let far = Hlc::from_ms(clock.stamp().ms() + 3_600_000);
        clock.saw(far);
        assert!(clock.stamp() < far);
        assert!(clock.now() < Hlc::from_ms(Env::real().now_ms() + CLOCK_AHEAD_MS_MAX + 1));
    }

    #[test]
    fn a_clock_that_went_back_tells_no_more_than_what_is_merged() {
        let (moved, env) = moved_env();
        let clock = StampClock::new(env.clone());
        let before = clock.stamp();
        moved.0.store(-60_000, Ordering::Relaxed);
        assert!(clock.stamp() > before, "stamps rise all the same");
        assert!(clock.now() <= Hlc::from_ms(env.now_ms() + CLOCK_AHEAD_MS_MAX));
    }

    #[test]
    fn a_peer_whose_clock_is_ahead_carries_nobody_away() {
        let clock = StampClock::new(Env::real());
        clock.set_voters([NodeId::new(2)].into());
        let right = Env::real().now_ms();
        clock.peers().told(NodeId::new(2), right + 3_600_000);
        let tells = clock.now().ms();
        assert!(tells.abs_diff(right) < 1_000, "{tells} where {right} is right");
    }

    #[test]
    fn a_machine_whose_clock_is_wrong_tells_its_peers_time() {
        for wrong in [3_600_000, -3_600_000] {
            let (moved, env) = moved_env();
            let clock = StampClock::new(env.clone());
            clock.set_voters([NodeId::new(2)].into());
            moved.0.store(wrong, Ordering::Relaxed);
            assert_eq!(clock.now(), Hlc::ZERO, "nobody vouches for it");
            let right = Env::real().now_ms();
            clock.peers().told(NodeId::new(2), right);
            let tells = clock.now().ms();
            assert!(tells < right + CLOCK_AHEAD_MS_MAX + 1_000, "{tells} where {right} is right");
            // What the zone does is followed, whatever the machine's clock shows.
            clock.saw(Hlc::from_ms(right));
            assert!(clock.now().ms() >= right);
            clock.saw(Hlc::from_ms(right + 3_500_000));
            assert!(clock.now().ms() < right + 2 * CLOCK_AHEAD_MS_MAX + 1_000);
        }
    }
}
