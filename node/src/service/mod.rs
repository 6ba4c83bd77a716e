//! The node's gRPC services and the sockets they are served on.
//!
//! One listener carries all services of a node's roles. Peers keep bulk data on a connection of its own, so the windows
//! here are those of the data service; Raft and metadata use what they need of them.

pub(crate) mod admin;
pub(crate) mod change;
mod fsck;
pub(crate) mod health;
pub(crate) mod http;
pub(crate) mod incoming;
pub(crate) mod membership;
pub(crate) mod meta;
mod object_stat;
mod scrub;
mod status;
pub(crate) mod zone_head;
