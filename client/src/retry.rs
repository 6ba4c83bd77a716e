//! When to try again, and when to stop: exponential backoff with full jitter up to a deadline.
//!
//! "Exponential Backoff And Jitter", AWS Architecture Blog (2015): full jitter spreads callers best.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

/// Pauses between attempts of one call.
#[derive(Debug)]
pub(crate) struct Backoff {
    deadline: Instant,
    attempts: u32,
}

impl Backoff {
    const PAUSE_MS_MIN: u64 = 10;
    const PAUSE_MS_MAX: u64 = 500;

    pub(crate) fn until(deadline: Instant) -> Self {
        Self { deadline, attempts: 0 }
    }

    /// How long the next attempt may take: `limit`, or what is left. `None` when nothing is left.
    pub(crate) fn attempt(&self, limit: Duration) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { None } else { Some(left.min(limit)) }
    }

    /// The pause before the next attempt, `None` when it would end after the deadline. `at_least_ms` is what the peer
    /// asked for.
    fn pause(&mut self, now: Instant, at_least_ms: u64) -> Option<Duration> {
        let ceiling = (Self::PAUSE_MS_MIN << self.attempts.min(16)).min(Self::PAUSE_MS_MAX);
        self.attempts += 1;
        let jittered = rand::rng().random_range(0..=ceiling) + Self::PAUSE_MS_MIN / 2;
        let pause = Duration::from_millis(jittered.max(at_least_ms.min(Self::PAUSE_MS_MAX * 4)));
        if now + pause >= self.deadline { None } else { Some(pause) }
    }

    /// Waits before the next attempt. `false`: there is no time for one. Cancel-safe.
    pub(crate) async fn wait(&mut self, at_least_ms: u32) -> bool {
        match self.pause(Instant::now(), u64::from(at_least_ms)) {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_at_the_deadline() {
        let begin = Instant::now();
        let deadline = begin + Duration::from_secs(3);
        let mut backoff = Backoff::until(deadline);
        let (mut now, mut waits) = (begin, 0);
        while let Some(pause) = backoff.pause(now, 0) {
            now += pause;
            waits += 1;
            assert!(now < deadline);
        }
        assert!(waits >= 6, "{waits} attempts in three seconds");
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let now = Instant::now();
        let mut backoff = Backoff::until(now + Duration::from_secs(3600));
        for attempt in 0..40u32 {
            let pause = backoff.pause(now, 0).expect("an hour is left");
            let ceiling = (10u64 << attempt.min(16)).min(500) + 5;
            assert!(pause <= Duration::from_millis(ceiling), "{attempt}: {pause:?}");
            assert!(pause >= Duration::from_millis(5));
        }
        assert!(backoff.pause(now, 100).expect("an hour is left") >= Duration::from_millis(100));
    }
}
