//! Where the groups of a node live, and how they keep time.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_proto::id::{NodeId, RealmId, ZoneId};
use openraft::{Config, SnapshotPolicy};

use super::MetaError;
use super::upkeep::UpkeepConfig;

/// An entry is at most half a message, and so are this many small ones.
const APPEND_ENTRIES_MAX: u64 = 1024;

/// Where groups live and how they keep time.
#[derive(Debug, Clone)]
pub(crate) struct GroupsConfig {
    /// Holds the log and the store; nothing else may use it.
    pub(crate) dir: PathBuf,
    /// This node.
    pub(crate) node: NodeId,
    /// Rises with every new life of the node's directory.
    pub(crate) incarnation: u64,
    /// Random with each incarnation: two copies of one directory cannot both be it. 0: not told.
    pub(crate) life: u64,
    /// Nodes of another realm are refused.
    pub(crate) realm: RealmId,
    /// Stamped on every command.
    pub(crate) zone: ZoneId,
    /// Between two signs of life of a leader.
    pub(crate) heartbeat: Duration,
    /// A follower that hears nothing for a random time between these asks for votes; the shorter one counts as at least
    /// half of the longer one and two and a half heartbeats.
    pub(crate) election: (Duration, Duration),
    /// Rows of all groups kept in memory, bytes.
    pub(crate) cache_bytes: u64,
    /// Durable commits and purging.
    pub(crate) upkeep: UpkeepConfig,
}

impl GroupsConfig {
    /// With default timing and sizes.
    pub(crate) fn new(
        dir: impl Into<PathBuf>,
        node: NodeId,
        incarnation: u64,
        realm: RealmId,
        zone: ZoneId,
    ) -> Self {
        Self {
            dir: dir.into(),
            node,
            incarnation,
            life: 0,
            realm,
            zone,
            heartbeat: Duration::from_millis(300),
            election: (Duration::from_millis(1500), Duration::from_millis(3000)),
            cache_bytes: 64 << 20,
            upkeep: UpkeepConfig::default(),
        }
    }

    pub(super) fn raft(&self) -> Result<Config, MetaError> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // The library waits for a lease of `election_timeout_max` and then for a random time up to it again.
        let election_timeout_max = ms(self.election.1) / 2;
        // A heartbeat that is held back because appends were just answered must not look like silence.
        let held_back = ms(self.heartbeat) * 5 / 2;
        let election_timeout_min = ms(self.election.0).saturating_sub(election_timeout_max).max(held_back);
        Config {
            cluster_name: self.realm.to_string(),
            heartbeat_interval: ms(self.heartbeat),
            heartbeat_min_interval: Some(ms(self.heartbeat)),
            election_timeout_min,
            election_timeout_max,
            // A leader without a quorum falls silent, so that its followers elect another; see section 14 of the design.
            quorum_loss_probe_interval: Some(election_timeout_max.saturating_mul(2)),
            enable_pre_vote: Some(true),
            // A restarted leader is elected again: its first entry proves what was committed before it answers a read.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::Never,
            // Only our own upkeep purges: the library counts entries, not bytes, and knows no durable point.
            max_in_snapshot_log_to_keep: u64::MAX,
            max_payload_entries: APPEND_ENTRIES_MAX,
            install_snapshot_timeout: 600_000,
            ..Config::default()
        }
        .validate()
        .map_err(|error| MetaError::Config(error.to_string()))
    }
}
