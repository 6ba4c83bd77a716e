//! The cluster client: what librados is to Ceph. It knows the cluster map, finds leaders, retries with a deadline and the
//! same request ids, codes bodies into shards and reads them back verified. It knows no disk and no S3.
//!
//! One [`Cluster`] is one zone. A write is `put_body` (shards are durable, owned by nobody), then `put_object` or
//! `put_part` (the partition owns them); a read is `get_object`, then `read_object`.

mod bucket;
pub mod bulk;
mod cache;
mod channel;
mod cluster;
pub mod codec;
mod discard;
mod error;
mod found;
mod frame;
pub mod geometry;
mod get;
mod health;
mod layout;
mod list;
mod map;
mod merge;
mod object;
mod place;
mod propose;
mod put;
mod read;
mod reads;
mod renew;
mod restore;
mod retry;
mod route;
pub mod seal;
mod shard;
mod source;
mod stripe;
mod unary;
mod verify;
mod view;
mod watch;

pub use cluster::{ClientConfig, Cluster};
pub use error::{Error, PutError};
pub use found::{FoundStripe, Located};
pub use get::BodyReader;
pub use layout::extents;
pub use map::{CLASS_DEFAULT, Map, Pg, bucket_id};
pub use source::{BodySource, StoredBody, WriteIntent};
