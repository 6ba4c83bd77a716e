//! How full the file system is, and what is still allowed on it. Deletes go on for longer than writes: they are the way
//! out.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::env::{Disk, Env, Space};

/// A figure older than this is taken again.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// When writing stops, thousandths of the file system's capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Puts are refused from here on.
    pub(crate) writes_permille: u32,
    /// Deletes, whose tombstones need a little space, are refused from here on.
    pub(crate) deletes_permille: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { writes_permille: 900, deletes_permille: 970 }
    }
}

#[derive(Debug, Default)]
struct Gauge {
    space: Space,
    taken: Option<Duration>,
}

/// The space under one target.
#[derive(Debug)]
pub(super) struct SpaceWatch {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    env: Env,
    thresholds: Thresholds,
    gauge: Mutex<Gauge>,
}

impl SpaceWatch {
    pub(super) fn new(dir: PathBuf, env: Env, thresholds: Thresholds) -> Self {
        Self { dir, disk: Arc::clone(env.disk()), env, thresholds, gauge: Mutex::default() }
    }

    /// The space, at most a second old, less what was written since.
    pub(super) fn now(&self) -> io::Result<Space> {
        let now = self.env.monotonic();
        let mut gauge = self.gauge.lock();
        if gauge.taken.is_none_or(|taken| now.saturating_sub(taken) >= FRESH_FOR) {
            *gauge = Gauge { space: self.disk.space(&self.dir)?, taken: Some(now) };
        }
        Ok(gauge.space)
    }

    /// Accounts for `bytes` written, until the next figure.
    pub(super) fn wrote(&self, bytes: u64) {
        let mut gauge = self.gauge.lock();
        gauge.space.free = gauge.space.free.saturating_sub(bytes);
    }

    /// Whether a put of `bytes` is allowed.
    pub(super) fn allows_write(&self, bytes: u64) -> io::Result<bool> {
        Ok(fits(self.now()?, bytes, self.thresholds.writes_permille))
    }

    /// Whether a tombstone is allowed.
    pub(super) fn allows_delete(&self) -> io::Result<bool> {
        Ok(fits(self.now()?, 0, self.thresholds.deletes_permille))
    }
}

fn fits(space: Space, bytes: u64, permille: u32) -> bool {
    let used = u128::from(space.capacity.saturating_sub(space.free)) + u128::from(bytes);
    used * 1000 < u128::from(space.capacity) * u128::from(permille)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_at_the_threshold() {
        let space = |free| Space { capacity: 1000, free };
        assert!(fits(space(101), 0, 900));
        assert!(!fits(space(101), 1, 900));
        assert!(!fits(space(100), 0, 900));
        assert!(fits(space(31), 0, 970));
        assert!(!fits(space(30), 0, 970));
    }
}
