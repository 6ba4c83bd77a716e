//! The shard store: one [`Target`] per disk directory, and the gRPC service over all targets of a node.
//!
//! A target appends records to segments (`segment`, `record`; byte layout in docs/formats/segment.md) through a single
//! writer thread that commits in groups (`writer`): one write and one fdatasync for all that is queued, and nobody is
//! answered before. The segments are the only truth. The index over them (`index`) is a cache that is rebuilt whenever
//! it cannot be trusted (`indexer`), and never stands between a write and its acknowledgement.
//!
//! A crash leaves segments whose last batch may be torn; nothing in it was acknowledged, so opening cuts it off
//! (`scan`). Everything before it was fsynced. What was read back whole once may not be later: `scrub` reads it all, again and again.

mod aligned;
pub(crate) mod compact;
mod directory;
mod footer;
mod index;
mod indexer;
mod open;
mod overlay;
mod read;
mod record;
mod scan;
pub(crate) mod scrub;
mod segment;
mod service;
mod shared;
mod sled_index;
mod space;
mod target;
mod writer;

#[cfg(test)]
mod mem_index;
#[cfg(test)]
mod sim_disk;
#[cfg(test)]
mod testing;

#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod fault_test;
#[cfg(test)]
mod format_test;
#[cfg(test)]
mod index_test;
#[cfg(test)]
mod list_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod scan_test;
#[cfg(test)]
mod service_test;
#[cfg(test)]
mod target_test;

pub(crate) use service::ShardService;
pub(crate) use target::{DirectIo, Target, TargetConfig};
