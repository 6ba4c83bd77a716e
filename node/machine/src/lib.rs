//! The pure metadata state machine: `apply(&mut impl Kv, Command) -> Outcome`.
//!
//! No clock, no randomness, no IO, no await: time and ids arrive in the command, so every replica computes the same.

pub mod kv;

use holdfast_proto::id::GroupId;
use holdfast_proto::meta::{Answer, Command, Outcome, Query};

use kv::{Kv, KvError, KvRead};

/// The group cannot go on: the node stops it rather than guess.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The store below failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A stored row does not decode, or rows contradict each other.
    #[error("corrupt row {key}: {reason}")]
    Corrupt {
        /// The row's key, escaped.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A command of a newer feature level, or of another kind of group: skipping it would make replicas diverge.
    #[error("unknown command: {0}")]
    UnknownCommand(String),
}

/// Applies one committed command.
///
/// # Errors
/// [`Halt`]: nothing of the overlay may be committed and the group stops.
pub fn apply(_kv: &mut impl Kv, group: GroupId, _command: &Command) -> Result<Outcome, Halt> {
    Err(Halt::UnknownCommand(format!("{group}: not written yet")))
}

/// Answers one query from a read view.
///
/// # Errors
/// [`Halt`], as for [`apply`].
pub fn query(_kv: &impl KvRead, group: GroupId, _query: &Query) -> Result<Answer, Halt> {
    Err(Halt::UnknownCommand(format!("{group}: not written yet")))
}
