//! Placement: which targets hold which placement groups.
//!
//! [`algorithm`] is pure and deterministic: the same targets give the same groups. [`class`] chooses the default storage
//! class from the hosts there are. [`keeper`] runs on the zone group's leader, hears heartbeats, and proposes what
//! changes. Invariant: the targets of a placement group that exists are never changed while the targets are in the zone,
//! because bodies are found through them; growth adds groups.

pub(crate) mod algorithm;
pub(crate) mod class;
pub(crate) mod keeper;
pub(crate) mod liveness;
