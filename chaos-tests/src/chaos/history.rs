//! What clients did and what they were told, with times: the one thing that checkers look at.

use serde::Serialize;

/// Nanoseconds since the run began.
pub type Time = u64;

/// What a value is: every write of a run has its own.
pub type Value = u64;

/// What was asked of a register, which is one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    Put(Value),
    /// `If-None-Match: *`.
    PutIfAbsent(Value),
    /// `If-Match` with the ETag of the first one.
    PutIfMatch(Value, Value),
    Get,
    Delete,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Told {
    /// It is done.
    Done,
    /// A GET found this.
    Found(Option<Value>),
    /// The condition did not hold, so nothing was done.
    Refused,
    /// No answer, or one that leaves it open: it may have been done, or be done yet.
    Unknown,
}

/// One attempt of one request on one register. Repeats are attempts of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    pub client: usize,
    pub register: usize,
    pub action: Action,
    pub begin: Time,
    /// Of an unknown outcome the end means nothing.
    pub end: Time,
    pub told: Told,
}

/// A key of the set workload: it is added once, and perhaps removed once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Member {
    pub key: String,
    pub added: Option<Change>,
    pub removed: Option<Change>,
}

/// A write of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub begin: Time,
    pub end: Time,
    /// Acknowledged; else it may have happened or not.
    pub done: bool,
}

/// What a listing showed, all of its pages together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listing {
    pub begin: Time,
    pub end: Time,
    pub keys: Vec<String>,
}

/// A group of the set workload: its members, and what listings of it showed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Set {
    pub members: Vec<Member>,
    pub listings: Vec<Listing>,
}

/// All of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct History {
    pub events: Vec<Event>,
    pub sets: Vec<Set>,
    /// Answers whose bytes were those of no value, in words.
    pub wrong_bytes: Vec<String>,
}

impl History {
    /// The events of one register, in the order in which they began.
    pub fn of(&self, register: usize) -> Vec<Event> {
        let mut events: Vec<Event> =
            self.events.iter().filter(|event| event.register == register).cloned().collect();
        events.sort_by_key(|event| event.begin);
        events
    }
}
