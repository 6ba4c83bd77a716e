//! What cannot start says why in one clear line, or, for a configuration, all that is wrong with it at once.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use holdfast_chaos::cluster::{Node, Options, Zone};
use holdfast_chaos::process::binary;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of standard error: what the operator sees.
fn complaint(output: &Output) -> String {
    text(output).trim_end().lines().last().unwrap_or_default().to_owned()
}

/// A copy of a node's configuration with some keys of its sections replaced.
fn changed(zone: &Zone, node: &Node, changes: &[(&str, &str, toml::Value)]) -> PathBuf {
    let mut config: toml::Table = std::fs::read_to_string(&node.config).unwrap().parse().unwrap();
    for (section, key, value) in changes {
        config[*section].as_table_mut().unwrap().insert((*key).to_owned(), value.clone());
    }
    let path = zone.scratch().join(format!("changed-{:08x}.toml", rand::random::<u32>()));
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

fn anywhere() -> toml::Value {
    "127.0.0.1:0".into()
}

fn path_value(path: &Path) -> toml::Value {
    path.to_str().unwrap().into()
}

#[test]
fn every_fault_of_a_configuration_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(
        &path,
        "surprise = 1\n[node]\nlisten = \"nowhere\"\nzone = \"a b\"\ncolour = \"red\"\n[meta]\npartitions = 0\n[data]\nsegment_bytes = \"much\"\n",
    )
    .unwrap();
    for command in [["config", "check", "-c"].as_slice(), ["server", "-c"].as_slice()] {
        let output = Command::new(binary()).args(command).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", text(&output));
        for fault in [
            "surprise",
            "node.listen",
            "node.zone",
            "node.colour",
            "node.data_dir",
            "meta.partitions",
            "data.segment_bytes",
            "data.targets",
        ] {
            assert!(text(&output).contains(fault), "{command:?} says nothing of {fault}: {}", text(&output));
        }
    }
    let missing = Command::new(binary()).args(["config", "check", "-c", "/no/such/file"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing).contains("/no/such/file"));
}

#[test]
fn configurations_that_dev_writes_are_good() {
    let zone = Zone::shared();
    for node in &zone.zone().nodes {
        let output =
            Command::new(binary()).args(["config", "check", "-c"]).arg(&node.config).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn a_port_in_use() {
    let zone = Zone::shared();
    let node = zone.gateway();
    let listen = node.addr.to_string();
    // Its own directory is in use as well, so it gets an empty one.
    let empty = zone.scratch().join("empty");
    let config = changed(
        zone,
        &node,
        &[
            ("node", "data_dir", path_value(&empty)),
            ("node", "listen", listen.clone().into()),
            ("node", "admin_listen", anywhere()),
            ("gateway", "listen", anywhere()),
        ],
    );
    let output = zone.server(&config);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(complaint(&output).contains(&listen), "{}", text(&output));
    assert!(complaint(&output).contains("in use"), "{}", text(&output));
}

#[test]
fn a_directory_in_use() {
    let zone = Zone::shared();
    for role in ["data", "meta"] {
        let node = zone.nodes(role).remove(0);
        let config =
            changed(zone, &node, &[("node", "listen", anywhere()), ("node", "admin_listen", anywhere())]);
        let output = zone.server(&config);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let complaint = complaint(&output);
        assert!(complaint.contains("in use"), "{}", text(&output));
        assert!(complaint.contains(node.data_dir.to_str().unwrap()), "{}", text(&output));
    }
}

#[test]
fn dev_on_a_directory_that_dev_uses() {
    let zone = Zone::shared();
    let output = Command::new(binary())
        .args(["dev", "--json", "--port", "0", "--data-dir"])
        .arg(zone.data_dir())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(output.stdout.is_empty());
    assert!(complaint(&output).contains("in use"), "{}", text(&output));
}

#[test]
fn directories_of_another_cluster() {
    let mut other = Zone::start(Options { one_process: true, ..Options::default() });
    let foreign = other.nodes("data").remove(0);
    let foreign_config: toml::Table = std::fs::read_to_string(&foreign.config).unwrap().parse().unwrap();
    let foreign_target = foreign_config["data"]["targets"][0]["dir"].as_str().unwrap().to_owned();
    other.kill_all();

    // Its own zone: one of its nodes dies.
    let zone = Zone::start(Options::default());
    let own = zone.nodes("data").remove(1);
    zone.kill(&own);
    let own_config: toml::Table = std::fs::read_to_string(&own.config).unwrap().parse().unwrap();
    let mut targets = own_config["data"]["targets"].clone();
    targets[0]["dir"] = foreign_target.clone().into();
    let config = changed(&zone, &own, &[("data", "targets", targets)]);
    let output = zone.server(&config);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(complaint(&output).contains(&foreign_target), "{}", text(&output));
    assert!(complaint(&output).contains("realm"), "{}", text(&output));

    let config = changed(&zone, &own, &[("node", "data_dir", path_value(&foreign.data_dir))]);
    let output = zone.server(&config);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(complaint(&output).contains("realm"), "{}", text(&output));
}

#[test]
fn bad_usage_is_exit_code_2() {
    for command in [["dev", "--nonsense"].as_slice(), &["frobnicate"], &["server"]] {
        let output = Command::new(binary()).args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}");
    }
}
