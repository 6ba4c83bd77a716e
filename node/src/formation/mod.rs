//! How a zone comes to be: [`init`] marks the first node, [`found`] makes the realm, the zone and their groups on it,
//! [`join`] lets further nodes in, [`members`] spreads the groups over the meta nodes that have come. [`recover`] lets a zone go on
//! when most of its meta nodes are lost.
//!
//! A crash at any point leaves something that the same command or the next start goes on from: identities are written
//! before they are used, commands that make things are idempotent by request id.

pub(crate) mod found;
pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod levels;
pub(crate) mod members;
pub(crate) mod recover;
pub(crate) mod voters;
