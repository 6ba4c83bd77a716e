//! What a suspicious operator runs before trusting Holdfast: the real binary in several processes, an S3 client that
//! controls every byte it sends, loads that remember what they were promised, and faults.
//!
//! This crate knows the product only through its command line (DESIGN.md section 11), its HTTP endpoints and its files:
//! it depends on no other crate of the workspace, so that it cannot share their mistakes.
//!
//! Tests live in `tests/`, one file per behaviour. Most files share one zone ([`cluster::Zone::shared`]) and isolate
//! themselves by bucket; files that break things start zones of their own. No process outlives its test binary.

pub mod chaos;
pub mod chunked;
pub mod cluster;
pub mod damage;
pub mod mount;
pub mod multipart;
pub mod process;
pub mod s3;
pub mod sigv4;
pub mod sums;
pub mod wait;
pub mod workload;
pub mod xml;
