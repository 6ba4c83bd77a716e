//! One node: an identity with a directory that runs the roles of its configuration.
//!
//! [`NodeRuntime::start`] is the same for `server` and for each node of `dev`: lock the directory, bind the sockets,
//! learn or make the identity, raise the incarnation durably, open what the roles need, serve, tell the zone. A node
//! stops in the opposite order: gateway and workers first, then the groups hand leadership over while their peers can
//! still reach them, then the listener, then the targets.

pub(crate) mod atomic_file;
pub(crate) mod contact;
pub(crate) mod directory;
pub(crate) mod heartbeat;
pub(crate) mod map_feed;
mod readiness;
mod roles;
mod runtime;

pub(crate) use runtime::NodeRuntime;
