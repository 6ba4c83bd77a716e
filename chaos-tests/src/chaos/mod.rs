//! Runs that look for mistakes: clients that write down what they were told, faults, and checkers of what must hold.
//!
//! [`run`] puts them together; [`clients`] and [`nemesis`] act, [`linear`] and [`members`] judge a [`history`], and what a zone
//! says of itself at the end is judged in [`run`]. [`report`] is what is left. Every checker is proven by a plant: clients that lie
//! as a store with that mistake would (`tests/chaos.rs`).

pub mod clients;
pub mod content;
pub mod history;
pub mod linear;
pub mod members;
pub mod nemesis;
pub mod report;
pub mod run;
