//! The graph is law: proto <- client <- gateway <- node, proto <- machine <- node. `chaos-tests` drives the binary and
//! may use the vocabulary and the client. An edge that ARCHITECTURE.md does not draw fails here.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// For each crate of the workspace, the crates of the workspace it may use.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("holdfast-proto", &[]),
    ("holdfast-client", &["holdfast-proto"]),
    ("holdfast-machine", &["holdfast-proto"]),
    ("holdfast-gateway", &["holdfast-client", "holdfast-proto"]),
    ("holdfast-node", &["holdfast-client", "holdfast-gateway", "holdfast-machine", "holdfast-proto"]),
    ("holdfast-chaos", &["holdfast-client", "holdfast-machine", "holdfast-proto"]),
];

/// What would let the machine see time, chance or the world.
const NOT_IN_MACHINE: [&str; 8] =
    ["tokio", "futures", "rand", "rustix", "tonic", "fjall", "openraft", "parking_lot"];

fn dependencies() -> BTreeMap<String, BTreeSet<(String, bool)>> {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo runs where cargo test runs");
    metadata
        .packages
        .iter()
        .map(|package| {
            let uses = package
                .dependencies
                .iter()
                .map(|dependency| (dependency.name.clone(), dependency.kind == DependencyKind::Development))
                .collect();
            (package.name.to_string(), uses)
        })
        .collect()
}

#[test]
fn crates_use_only_what_is_drawn() {
    let all = dependencies();
    let drawn: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    assert_eq!(
        all.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        drawn.keys().copied().collect::<BTreeSet<_>>(),
        "crates come and go together with this list and ARCHITECTURE.md"
    );
    for (name, uses) in &all {
        let ours: BTreeSet<&str> =
            uses.iter().map(|(used, _)| used.as_str()).filter(|used| all.contains_key(*used)).collect();
        let extra: Vec<&&str> = ours.difference(&drawn[name.as_str()]).collect();
        assert!(extra.is_empty(), "{name} must not use {extra:?}");
    }
}

#[test]
fn the_machine_stays_pure() {
    let all = dependencies();
    let uses: Vec<&str> =
        all["holdfast-machine"].iter().filter(|(_, dev)| !dev).map(|(name, _)| name.as_str()).collect();
    for forbidden in NOT_IN_MACHINE {
        assert!(!uses.contains(&forbidden), "machine must not use {forbidden}");
    }
}

#[test]
fn the_gateway_knows_no_disk_and_no_raft() {
    let all = dependencies();
    for forbidden in
        ["rustix", "sled", "fjall", "openraft", "raft-engine", "reed-solomon-erasure", "holdfast-machine"]
    {
        assert!(
            !all["holdfast-gateway"].iter().any(|(name, dev)| name == forbidden && !dev),
            "the gateway must not use {forbidden}"
        );
    }
}
