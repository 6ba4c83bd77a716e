//! Replicated metadata: the Raft groups of a node, their shared log, their rows and how they talk to other nodes.
//!
//! A proposal goes through [`groups`] to its [`group`], which merges it with others into one entry; [`raft`] (the openraft
//! library) appends it to the [`storage`] of the group, whose records the one writer of [`log`] makes durable together
//! with those of all other groups; [`transport`] brings it to the other voters over [`peer`], where [`service`] takes it
//! in; committed, it is applied by [`state`] to the rows in [`kv`]. [`upkeep`] makes rows durable and purges the log
//! behind them, and [`snapshot`] brings a node that fell behind the purged log up to date. [`scrub`] compares the replicas'
//! rows, and [`rebuild`] replaces those that are wrong. [`alone`] is what an operator does to the groups of a directory when the
//! other members are lost.
//!
//! Invariants: nothing is acknowledged before a majority has it on disk; a restart finds rows of some applied index and
//! applies the rest from the log; no log is purged that a power cut could make necessary again.

mod address;
mod alone;
mod clock;
mod config;
mod digest;
mod group;
mod groups;
#[cfg(test)]
mod groups_test;
mod kv;
mod lives;
mod log;
#[cfg(test)]
mod log_contract;
mod log_engine;
mod log_record;
mod members;
mod peer;
mod peer_clocks;
mod raft;
mod rebuild;
#[cfg(test)]
mod rebuild_test;
mod scrub;
mod service;
mod snapshot;
mod state;
mod status;
mod storage;
#[cfg(test)]
mod storage_test;
mod transport;
mod upkeep;
mod wire;

use std::path::PathBuf;

use holdfast_machine::kv::KvError;
use holdfast_proto::id::GroupId;

pub(crate) use address::AddressBook;
pub(crate) use alone::{Alone, GroupEnd};
pub(crate) use config::GroupsConfig;
pub(crate) use groups::Groups;
pub(crate) use kv::Generation;
pub(crate) use status::GroupStatus;

/// Why groups do not start or do not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetaError {
    /// The directory cannot be used.
    #[error("{}: {reason}", dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Timing that contradicts itself.
    #[error("raft configuration: {0}")]
    Config(String),
    /// The log engine failed.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] KvError),
    /// One group cannot go on.
    #[error("{0}: {1}")]
    Group(GroupId, String),
}
