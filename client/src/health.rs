//! What this client has seen of each target: how long it takes, and whether it should be left alone for a while.
//!
//! Latencies are smoothed with their deviation as in RFC 6298, apart for reads and writes, small and large. A target that
//! fails, or is often late, is suspected for a second, then two, up to eight; then it gets another chance. This is
//! a local opinion and is never told to anyone: the zone has its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::id::TargetId;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

/// What kind of work a latency is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Read,
    Write,
}

/// Marks that make a target suspected; they halve every [`MARKS_HALF_LIFE`].
const MARKS_MAX: f32 = 3.0;
const MARKS_HALF_LIFE: Duration = Duration::from_secs(5);
const SUSPECT_MIN: Duration = Duration::from_secs(1);
const SUSPECT_DOUBLINGS_MAX: u32 = 3;
/// A target that said it is full is believed this long.
const FULL_FOR: Duration = Duration::from_secs(5);
/// Above this a request is large.
const SMALL_BYTES_MAX: usize = 128 << 10;
/// A request is slow when it took this many times what is typical of the zone, and longer than [`SLOW_MIN`].
const SLOW_TIMES: f32 = 8.0;
const SLOW_MIN: Duration = Duration::from_millis(100);
/// Bounds of the wait before a read is hedged, and the wait while nothing is known.
const HEDGE_MIN: Duration = Duration::from_millis(15);
const HEDGE_MAX: Duration = Duration::from_secs(1);
const HEDGE_UNKNOWN: Duration = Duration::from_millis(150);

#[derive(Debug, Default)]
pub(crate) struct Health {
    targets: RwLock<HashMap<TargetId, Arc<Mutex<Seen>>>>,
    typical: Mutex<[Latency; 4]>,
    hedges: Mutex<Hedges>,
}

/// How many reads may still be hedged for lateness, in tenths. Of a tail of 5 % all are; when everything is late, a tenth.
#[derive(Debug)]
struct Hedges {
    tenths: u32,
}

impl Default for Hedges {
    fn default() -> Self {
        Self { tenths: Self::TENTHS_MAX }
    }
}

impl Hedges {
    const TENTHS_MAX: u32 = 320;
}

#[derive(Debug)]
struct Seen {
    latency: [Latency; 4],
    marks: f32,
    marked: Instant,
    suspect_until: Option<Instant>,
    full_until: Option<Instant>,
    streak: u32,
    writes: u32,
}

/// Smoothed seconds; zero while nothing was seen.
#[derive(Debug, Clone, Copy, Default)]
struct Latency {
    mean: f32,
    deviation: f32,
}

impl Latency {
    fn add(&mut self, seconds: f32) {
        if self.mean == 0.0 {
            *self = Self { mean: seconds, deviation: seconds / 2.0 };
        } else {
            self.deviation += ((seconds - self.mean).abs() - self.deviation) / 4.0;
            self.mean += (seconds - self.mean) / 8.0;
        }
    }

    /// About the 95th percentile.
    fn p95(&self) -> Option<Duration> {
        (self.mean > 0.0).then(|| Duration::from_secs_f32(self.mean + 3.0 * self.deviation))
    }
}

fn class(work: Work, bytes: usize) -> usize {
    usize::from(work == Work::Write) * 2 + usize::from(bytes > SMALL_BYTES_MAX)
}

impl Seen {
    fn new(now: Instant) -> Self {
        Self {
            latency: Default::default(),
            marks: 0.0,
            marked: now,
            suspect_until: None,
            full_until: None,
            streak: 0,
            writes: 0,
        }
    }

    fn mark(&mut self, now: Instant, weight: f32) {
        let halvings =
            now.saturating_duration_since(self.marked).as_secs_f32() / MARKS_HALF_LIFE.as_secs_f32();
        self.marks = self.marks * (-halvings).exp2() + weight;
        self.marked = now;
        if self.marks >= MARKS_MAX {
            self.marks = 0.0;
            self.suspect_until = Some(now + SUSPECT_MIN * (1 << self.streak.min(SUSPECT_DOUBLINGS_MAX)));
            self.streak += 1;
        }
    }
}

impl Health {
    fn seen(&self, target: TargetId) -> Arc<Mutex<Seen>> {
        if let Some(seen) = self.targets.read().get(&target) {
            return seen.clone();
        }
        let fresh = || Arc::new(Mutex::new(Seen::new(Instant::now())));
        self.targets.write().entry(target).or_insert_with(fresh).clone()
    }

    /// Whether other targets should be preferred now.
    pub(crate) fn is_suspected(&self, target: TargetId) -> bool {
        let Some(seen) = self.targets.read().get(&target).cloned() else { return false };
        let until = seen.lock().suspect_until;
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the target said a moment ago that it takes no more.
    pub(crate) fn is_full(&self, target: TargetId) -> bool {
        let Some(seen) = self.targets.read().get(&target).cloned() else { return false };
        let until = seen.lock().full_until;
        until.is_some_and(|until| Instant::now() < until)
    }

    /// The target takes no more.
    pub(crate) fn full(&self, target: TargetId) {
        self.seen(target).lock().full_until = Some(Instant::now() + FULL_FOR);
    }

    /// A request was answered well.
    pub(crate) fn succeeded(&self, target: TargetId, work: Work, bytes: usize, took: Duration) {
        let (class, seconds) = (class(work, bytes), took.as_secs_f32());
        let slow = {
            let mut typical = self.typical.lock();
            let slow =
                typical[class].mean > 0.0 && seconds > SLOW_TIMES * typical[class].mean && took > SLOW_MIN;
            // What is slow says nothing about what is typical, else one slow target would hide itself.
            if !slow {
                typical[class].add(seconds);
            }
            slow
        };
        let seen = self.seen(target);
        let mut seen = seen.lock();
        seen.latency[class].add(seconds);
        if work == Work::Write {
            seen.full_until = None;
        }
        if slow {
            seen.mark(Instant::now(), 1.0);
        } else {
            seen.suspect_until = None;
            seen.streak = 0;
            seen.marks /= 2.0;
        }
    }

    /// A request failed in a way that the next one is likely to.
    pub(crate) fn failed(&self, target: TargetId) {
        self.seen(target).lock().mark(Instant::now(), MARKS_MAX);
    }

    /// A request took longer than others of its kind, and was not waited for.
    pub(crate) fn late(&self, target: TargetId) {
        self.seen(target).lock().mark(Instant::now(), 1.0);
    }

    /// How long to wait for a read before asking others too: the target's running p95.
    pub(crate) fn hedge_after(&self, target: TargetId, bytes: usize) -> Duration {
        let class = class(Work::Read, bytes);
        let own = self.targets.read().get(&target).and_then(|seen| seen.lock().latency[class].p95());
        // A target that is always slow is hedged by what is typical.
        let typical = self.typical.lock()[class].p95().map(|wait| wait * 3);
        let wait = match (own, typical) {
            (Some(own), Some(typical)) => own.min(typical),
            (own, typical) => own.or(typical).unwrap_or(HEDGE_UNKNOWN),
        };
        wait.clamp(HEDGE_MIN, HEDGE_MAX)
    }

    /// A read was sent: a tenth of a hedge is earned.
    pub(crate) fn earn_hedge(&self) {
        let mut hedges = self.hedges.lock();
        hedges.tenths = (hedges.tenths + 1).min(Hedges::TENTHS_MAX);
    }

    /// Whether a late read may be hedged now. Reads that failed are not asked for here.
    pub(crate) fn may_hedge(&self) -> bool {
        let mut hedges = self.hedges.lock();
        match hedges.tenths.checked_sub(10) {
            Some(left) => {
                hedges.tenths = left;
                true
            }
            None => false,
        }
    }

    /// Smoothed latency of reads, for choosing among copies; `None` while nothing is known.
    pub(crate) fn read_latency(&self, target: TargetId, bytes: usize) -> Option<Duration> {
        let mean = self.targets.read().get(&target)?.lock().latency[class(Work::Read, bytes)].mean;
        (mean > 0.0).then(|| Duration::from_secs_f32(mean))
    }

    /// A write to the target begins; it ends when the guard is dropped.
    pub(crate) fn writing(&self, target: TargetId) -> Writing {
        let seen = self.seen(target);
        seen.lock().writes += 1;
        Writing(seen)
    }

    /// Writes of this client in flight to the target.
    pub(crate) fn writes(&self, target: TargetId) -> u32 {
        self.targets.read().get(&target).map_or(0, |seen| seen.lock().writes)
    }
}

/// See [`Health::writing`].
#[derive(Debug)]
pub(crate) struct Writing(Arc<Mutex<Seen>>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.lock().writes -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TargetId = TargetId::new(1);

    #[test]
    fn a_failure_is_suspected_and_a_success_forgives() {
        let health = Health::default();
        assert!(!health.is_suspected(T));
        health.failed(T);
        assert!(health.is_suspected(T));
        health.succeeded(T, Work::Write, 10, Duration::from_millis(1));
        assert!(!health.is_suspected(T));
    }

    #[test]
    fn one_late_answer_is_forgiven_and_three_are_not() {
        let health = Health::default();
        health.late(T);
        assert!(!health.is_suspected(T));
        health.late(T);
        health.late(T);
        health.late(T);
        assert!(health.is_suspected(T));
    }

    #[test]
    fn suspicion_doubles_up_to_a_bound() {
        let now = Instant::now();
        let mut seen = Seen::new(now);
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            seen.mark(now, MARKS_MAX);
            let wait = seen.suspect_until.expect("suspected") - now;
            assert!(wait >= last && wait <= SUSPECT_MIN * 8);
            last = wait;
        }
        assert_eq!(last, SUSPECT_MIN * 8);
    }

    #[test]
    fn marks_fade() {
        let now = Instant::now();
        let mut seen = Seen::new(now);
        for at in 0..20u32 {
            seen.mark(now + Duration::from_secs(10) * at, 1.0);
        }
        assert_eq!(seen.suspect_until, None);
    }

    #[test]
    fn a_slow_target_is_found_among_quick_ones() {
        let health = Health::default();
        for at in 2..8 {
            for _ in 0..5 {
                health.succeeded(TargetId::new(at), Work::Write, 1 << 20, Duration::from_millis(10));
            }
        }
        for _ in 0..4 {
            health.succeeded(T, Work::Write, 1 << 20, Duration::from_millis(900));
        }
        assert!(health.is_suspected(T));
        assert!(!health.is_suspected(TargetId::new(3)));
    }

    #[test]
    fn when_everything_is_late_a_tenth_is_hedged() {
        let health = Health::default();
        let hedged = (0..1000).filter(|_| {
            health.earn_hedge();
            health.may_hedge()
        });
        let hedged = hedged.count();
        assert!((100..140).contains(&hedged), "{hedged}");
    }

    #[test]
    fn the_hedge_follows_what_was_seen() {
        let health = Health::default();
        assert_eq!(health.hedge_after(T, 10), HEDGE_UNKNOWN);
        for _ in 0..50 {
            health.succeeded(T, Work::Read, 10, Duration::from_millis(40));
        }
        let wait = health.hedge_after(T, 10);
        assert!(wait >= Duration::from_millis(40) && wait < Duration::from_millis(60), "{wait:?}");
        let mean = health.read_latency(T, 10).expect("it was seen");
        assert!(mean > Duration::from_millis(39) && mean < Duration::from_millis(41), "{mean:?}");
    }
}
