//! Background work that belongs to no single role's module.

pub(crate) mod buckets;
pub(crate) mod chronicle;
pub(crate) mod garbage;
pub(crate) mod group_metrics;
pub(crate) mod mend;
pub(crate) mod reach;
pub(crate) mod repair;
mod walk;

#[cfg(test)]
pub(crate) mod small_zone;
