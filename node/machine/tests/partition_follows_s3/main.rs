//! Random interleavings of all commands of a partition, with replays and a replica that starts from a snapshot, against a
//! plain model of S3.

#![allow(clippy::unwrap_used, reason = "a test")]

mod compare;
mod steps;
#[path = "../support/mod.rs"]
mod support;
mod world;

use proptest::prelude::*;
use steps::{probe, step};
use world::World;

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_as_s3_would(steps in prop::collection::vec((step(), probe()), 1..60)) {
        let mut world = World::new();
        for (step, probe) in &steps {
            world.step(step);
            world.compare(probe);
        }
        assert_eq!(world.leader.digest(), world.replica.digest());
        assert_eq!(world.leader.rows, world.leader.reloaded().rows);
    }
}
