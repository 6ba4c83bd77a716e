//! The S3 gateway: S3 in, cluster-client calls out. It knows no disk.
//!
//! A request passes `server` (connection), `guard` and `preflight` (what must not go further), the protocol library
//! (signature, parsing), `auth` and `surface` (who may, and what is served), and ends in one operation of `ops`. Object
//! data does not pass the library: it goes from the connection through `body`, which verifies it, into the cluster
//! client. Every error becomes an S3 code in `error`, and nowhere else.

mod access_log;
mod auth;
mod body;
mod checksum;
mod chunked;
mod condition;
mod config;
mod error;
mod guard;
mod headers;
mod host;
mod idle;
mod ignored_range;
mod inflight;
mod name;
mod ops;
mod preflight;
mod server;
mod sigv4;
mod surface;
mod ticket;
mod token;
mod xml;

pub use config::GatewayConfig;
pub use server::{GatewayError, serve};
