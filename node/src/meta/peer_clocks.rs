//! The machine clocks of the other meta nodes, as their messages tell: every request and every reply between two nodes
//! carries its sender's. A reply says within the time of its round trip what the other clock shows; a request says it
//! within a delay that nobody measured, which is good enough for a bound and not to accuse a clock.
//!
//! Readings are kept with the monotonic time of their arrival, so a machine clock that jumps is noticed at once.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use holdfast_proto::id::NodeId;
use holdfast_proto::limits::{CLOCK_AHEAD_MS_MAX, CLOCK_OFF_MS_MAX};
use parking_lot::Mutex;

use crate::env::Env;

/// A reading counts this long. A leader hears from its members many times within it.
const FRESH: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Duration,
    /// What the peer's clock showed at `at` at the earliest.
    clock_ms: u64,
    /// How much later than that it may have shown.
    width_ms: u64,
    round_trip: bool,
}

/// This machine's clock is off its peers'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClockOff {
    /// By how much it is ahead of their median, at the least, milliseconds; negative when it is behind.
    pub(super) ahead_ms: i64,
}

impl fmt::Display for ClockOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.ahead_ms > 0 { "ahead of" } else { "behind" };
        write!(f, "{} ms {side} the median of its peers", self.ahead_ms.unsigned_abs())
    }
}

/// The clocks of the other nodes.
#[derive(Debug)]
pub(super) struct PeerClocks {
    env: Env,
    readings: Mutex<HashMap<NodeId, Reading>>,
    /// Whose readings count; all while nobody said.
    voters: Mutex<Option<BTreeSet<NodeId>>>,
}

/// The middle of some values, of two middle ones what is nearest to zero between them.
fn median(mut values: Vec<i64>) -> Option<i64> {
    values.sort_unstable();
    let high = *values.get(values.len() / 2)?;
    let low = values[(values.len() - 1) / 2];
    Some(0.clamp(low, high))
}

fn ms_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl PeerClocks {
    pub(super) fn new(env: Env) -> Self {
        Self { env, readings: Mutex::default(), voters: Mutex::default() }
    }

    /// Only the clocks of these count from now on.
    pub(super) fn set_voters(&self, voters: BTreeSet<NodeId>) {
        *self.voters.lock() = Some(voters);
    }

    /// A request of `peer` arrived and says what its clock showed; 0 from one that does not tell.
    pub(super) fn told(&self, peer: NodeId, clock_ms: u64) {
        let at = self.env.monotonic();
        let reading = Reading { at, clock_ms, width_ms: CLOCK_OFF_MS_MAX, round_trip: false };
        let mut readings = self.readings.lock();
        let better = readings.get(&peer).is_some_and(|known| known.round_trip && at < known.at + FRESH);
        if clock_ms != 0 && !better {
            readings.insert(peer, reading);
        }
    }

    /// A reply of `peer` to a request that was sent at `sent`, on the monotonic clock, arrived.
    pub(super) fn answered(&self, peer: NodeId, clock_ms: u64, sent: Duration) {
        let at = self.env.monotonic();
        let width_ms = ms_of(at.saturating_sub(sent));
        if clock_ms != 0 && width_ms <= CLOCK_OFF_MS_MAX {
            self.readings.lock().insert(peer, Reading { at, clock_ms, width_ms, round_trip: true });
        }
    }

    /// How far this machine's clock is ahead of each peer's, at the least; negative where it is behind.
    fn ahead_ms(&self, round_trip: bool) -> HashMap<NodeId, i64> {
        let (now, machine) = (self.env.monotonic(), i64::try_from(self.env.now_ms()).unwrap_or(i64::MAX));
        let ahead = |reading: &Reading| {
            let earliest = reading.clock_ms.saturating_add(ms_of(now.saturating_sub(reading.at)));
            let latest = i64::try_from(earliest.saturating_add(reading.width_ms)).unwrap_or(i64::MAX);
            let earliest = i64::try_from(earliest).unwrap_or(i64::MAX);
            0.clamp(machine.saturating_sub(latest), machine.saturating_sub(earliest))
        };
        let mut readings = self.readings.lock();
        readings.retain(|_, reading| now < reading.at + FRESH);
        let voters = self.voters.lock();
        let counts = |peer| voters.as_ref().is_none_or(|voters| voters.contains(peer));
        let counted =
            readings.iter().filter(|(peer, reading)| counts(*peer) && (reading.round_trip || !round_trip));
        counted.map(|(peer, reading)| (*peer, ahead(reading))).collect()
    }

    /// How far this machine's clock is ahead of the median of its peers'; `None` when none of them was heard lately.
    pub(super) fn ahead_of_median_ms(&self) -> Option<i64> {
        median(self.ahead_ms(false).into_values().collect())
    }

    /// Whether this machine's clock must not stamp. One peer alone cannot tell whose clock is wrong: then only stamps
    /// that the peer would never merge into its own clock are kept from the log.
    pub(super) fn check(&self) -> Result<(), ClockOff> {
        let ahead = self.ahead_ms(true);
        let alone = ahead.len() == 1;
        let Some(ahead_ms) = median(ahead.into_values().collect()) else { return Ok(()) };
        let off = match alone {
            true => ahead_ms > CLOCK_AHEAD_MS_MAX as i64,
            false => ahead_ms.unsigned_abs() > CLOCK_OFF_MS_MAX,
        };
        if off { Err(ClockOff { ahead_ms }) } else { Ok(()) }
    }

    /// Whether `peer` was heard lately and its clock is near the median of all.
    pub(super) fn is_near_median(&self, peer: NodeId) -> bool {
        let ahead = self.ahead_ms(true);
        let Some(own) = ahead.get(&peer).copied() else { return false };
        median(ahead.into_values().collect())
            .is_some_and(|median| own.saturating_sub(median).unsigned_abs() <= CLOCK_OFF_MS_MAX)
    }

    /// Whether `peer` was heard lately and its clock is far from the median of all.
    pub(super) fn is_off(&self, peer: NodeId) -> bool {
        self.ahead_ms(true).contains_key(&peer) && !self.is_near_median(peer)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::env::{Clock, Random};

    /// The machine's clock, moved by so many milliseconds.
    #[derive(Debug, Default)]
    pub(in crate::meta) struct MovedClock(pub(in crate::meta) AtomicI64);

    #[derive(Debug)]
    struct RealRandom;

    #[derive(Debug)]
    struct Shared(Arc<MovedClock>, Env);

    impl Clock for Shared {
        fn now_ms(&self) -> u64 {
            self.1.now_ms().saturating_add_signed(self.0.0.load(Ordering::Relaxed))
        }
        fn monotonic(&self) -> Duration {
            self.1.monotonic()
        }
    }

    impl Random for RealRandom {
        fn fill(&self, out: &mut [u8]) {
            Env::real().fill_random(out);
        }
    }

    /// An environment whose wall clock can be moved.
    pub(in crate::meta) fn moved_env() -> (Arc<MovedClock>, Env) {
        let (moved, real) = (Arc::new(MovedClock::default()), Env::real());
        let disk = Arc::clone(real.disk());
        (Arc::clone(&moved), Env::new(Arc::new(Shared(moved, real)), Arc::new(RealRandom), disk))
    }

    /// Clocks of peers that are ahead of this one by `peers` milliseconds each.
    fn clocks(peers: &[i64]) -> (Arc<MovedClock>, PeerClocks) {
        let (moved, env) = moved_env();
        let clocks = PeerClocks::new(env.clone());
        for (peer, ahead) in (2..).zip(peers) {
            let clock_ms = env.now_ms().saturating_add_signed(*ahead);
            clocks.answered(NodeId::new(peer), clock_ms, env.monotonic());
        }
        (moved, clocks)
    }

    #[test]
    fn the_majority_of_clocks_is_right() {
        let checked = |peers: &[i64]| clocks(peers).1.check().map_err(|off| off.ahead_ms / 1000);
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&[100, -100]), Ok(()));
        assert_eq!(checked(&[0, 60_000]), Ok(()), "the peer is wrong");
        assert_eq!(checked(&[-60_000, 60_000]), Ok(()), "nobody knows");
        assert_eq!(checked(&[61_000, 60_500]), Err(-60), "this one is wrong");
        assert_eq!(checked(&[-61_500, -60_500]), Err(60));
        assert_eq!(checked(&[-60_000, 0, 10, 60_000]), Ok(()));
        // One against one: what would carry the other's clock away is refused.
        assert_eq!(checked(&[60_000]), Ok(()));
        assert_eq!(checked(&[-4_000]), Ok(()));
        assert_eq!(checked(&[-60_500]), Err(60));
    }

    #[test]
    fn who_has_no_vote_accuses_nobody() {
        let (_moved, clocks) = clocks(&[-60_500]);
        assert!(clocks.check().is_err());
        clocks.set_voters(BTreeSet::new());
        assert_eq!(clocks.check(), Ok(()));
        assert_eq!(clocks.ahead_of_median_ms(), None);
    }

    #[test]
    fn a_peer_that_is_off_is_known() {
        let (_moved, clocks) = clocks(&[0, 60_000]);
        assert!(!clocks.is_off(NodeId::new(2)) && clocks.is_off(NodeId::new(3)));
        assert!(!clocks.is_off(NodeId::new(9)), "nobody knows");
    }

    #[test]
    fn a_jump_of_this_clock_is_noticed_before_anybody_is_heard_again() {
        let (moved, clocks) = clocks(&[0, 0]);
        assert_eq!(clocks.check(), Ok(()));
        moved.0.store(-2_000, Ordering::Relaxed);
        assert!(clocks.check().is_err_and(|off| (-2_000..-500).contains(&off.ahead_ms)));
        assert!(clocks.is_near_median(NodeId::new(2)));
        assert!(!clocks.is_near_median(NodeId::new(9)));
    }

    #[test]
    fn a_slow_round_trip_and_a_request_accuse_nobody() {
        let (_moved, env) = moved_env();
        let clocks = PeerClocks::new(env.clone());
        std::thread::sleep(Duration::from_millis(CLOCK_OFF_MS_MAX + 10));
        clocks.answered(NodeId::new(2), 1, Duration::ZERO);
        assert_eq!(clocks.ahead_of_median_ms(), None);
        clocks.told(NodeId::new(2), env.now_ms() - 60_000);
        assert_eq!(clocks.check(), Ok(()));
        assert!(clocks.ahead_of_median_ms().is_some_and(|ahead| ahead > 59_000));
        clocks.answered(NodeId::new(2), env.now_ms(), env.monotonic());
        clocks.told(NodeId::new(2), env.now_ms() - 60_000);
        assert!(
            clocks.ahead_of_median_ms().is_some_and(|ahead| ahead < 1_000),
            "the round trip knows better"
        );
    }
}
