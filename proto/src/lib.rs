//! Holdfast's vocabulary: wire messages, identities, hybrid logical time, limits and errors.
//!
//! Everything here is either on disk or on the wire, so nothing here changes its bytes.

pub mod error;
pub mod hlc;
pub mod id;
pub mod limits;

#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::unwrap_used)]
mod generated {
    /// Words shared by every service.
    pub mod v1 {
        tonic::include_proto!("holdfast.v1");
    }
    /// Shards on targets.
    pub mod data {
        pub mod v1 {
            tonic::include_proto!("holdfast.data.v1");
        }
    }
    /// Metadata: stored values, commands, queries and their service.
    pub mod meta {
        pub mod v1 {
            tonic::include_proto!("holdfast.meta.v1");
        }
    }
    /// Raft between meta nodes.
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("holdfast.raft.v1");
        }
    }
    /// The operator's questions.
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("holdfast.admin.v1");
        }
    }
}

pub use generated::admin::v1 as admin;
pub use generated::data::v1 as data;
pub use generated::meta::v1 as meta;
pub use generated::raft::v1 as raft;
pub use generated::v1;
