//! The hybrid clock that stamps proposals. It only moves forward: past every stamp it gave, and past those it saw applied,
//! unless they come from a clock that runs too far ahead.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_proto::hlc::Hlc;
use holdfast_proto::limits::CLOCK_AHEAD_MS_MAX;

use crate::env::Env;

/// One node's hybrid clock.
#[derive(Debug)]
pub(crate) struct StampClock {
    env: Env,
    /// The last stamp given or merged.
    last: AtomicU64,
    /// The highest stamp seen in any applied state, merged or not.
    seen: AtomicU64,
}

impl StampClock {
    /// A clock over the machine's.
    pub(crate) fn new(env: Env) -> Self {
        Self { env, last: AtomicU64::new(0), seen: AtomicU64::new(0) }
    }

    /// A stamp above all earlier ones: `max(last + 1, now)`.
    pub(crate) fn stamp(&self) -> Hlc {
        let now = Hlc::from_ms(self.env.now_ms());
        let tick = |last| Some(Hlc::tick(Hlc::from_u64(last), now).get());
        let last = self.last.fetch_update(Ordering::AcqRel, Ordering::Acquire, tick);
        Hlc::tick(Hlc::from_u64(last.unwrap_or_else(|last| last)), now)
    }

    /// Takes note of a stamp in applied state.
    pub(crate) fn saw(&self, stamp: Hlc) {
        self.seen.fetch_max(stamp.get(), Ordering::AcqRel);
        if stamp.ms() <= self.env.now_ms().saturating_add(CLOCK_AHEAD_MS_MAX) {
            self.last.fetch_max(stamp.get(), Ordering::AcqRel);
        }
    }

    /// The reading now, without ticking: no stamp given here or seen applied is above it. In a zone where nothing happens
    /// it goes on with the machine's clock, so that what callers learn from it does not age.
    pub(crate) fn now(&self) -> Hlc {
        let seen = self.seen.load(Ordering::Acquire).max(self.last.load(Ordering::Acquire));
        Hlc::from_u64(seen).max(Hlc::from_ms(self.env.now_ms()))
    }
}

#[cfg(test)]
mod tests {
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
    fn a_clock_far_ahead_is_not_followed() {
        let clock = StampClock::new(Env::real());
        let far = Hlc::from_ms(clock.stamp().ms() + 3_600_000);
        clock.saw(far);
        assert!(clock.stamp() < far);
        assert_eq!(clock.now(), far);
    }
}
