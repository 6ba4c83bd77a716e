//! Metadata on its way to another place and back: `holdfast meta backup|verify|restore`.
//!
//! A backup is the rows of every group, as one of its leaders had them after the backup was begun, in pieces; and, written last,
//! a manifest that names the pieces with their digests. Without the manifest it is no backup. The realm comes first, then the
//! partitions, then the zone: what was acknowledged before the backup was begun is in it, and what partitions name of the zone
//! is, too.
//!
//! [`depot`] is where it lies, [`manifest`] what it says of itself, [`make`] asks a running zone, [`restore`] makes a meta node
//! of it, [`buckets`] settles what was created or deleted between the first group's rows and the last one's.
//! Formats: docs/formats/backup.md.

mod buckets;
pub(crate) mod depot;
pub(crate) mod make;
mod manifest;
pub(crate) mod restore;
mod rows;

pub(crate) use manifest::Manifest;
