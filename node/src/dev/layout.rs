//! Decides and writes what the nodes of a `dev` zone are: names, ports, configurations.

use std::net::TcpListener;
use std::path::Path;

use super::state::{DevNode, DevState};
use super::{DevArgs, certs};
use crate::cli::UsageError;
use crate::config::{Config, DataConfig, GatewaySection, LogConfig, MetaConfig, NodeConfig, TargetSection};
use crate::env::Env;
use crate::formation::init::RootKey;

const META_NODES: u32 = 3;
const PARTITIONS: u32 = 2;
/// Below the range that the kernel gives to outgoing connections, so that a restart finds its ports free.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A new zone of three meta nodes, `nodes` data nodes and a gateway at `port`.
pub(super) fn new(
    dir: &Path,
    nodes: u32,
    port: u16,
    tls: bool,
    root: RootKey,
    env: &Env,
) -> anyhow::Result<DevState> {
    let stray = std::fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.file_name())
        .find(|name| name != "LOCK" && !name.to_string_lossy().starts_with('.'));
    if let Some(stray) = stray {
        anyhow::bail!(
            "{} holds {} but no dev.json: it is not a directory of `holdfast dev`; use an empty one",
            dir.display(),
            stray.to_string_lossy()
        );
    }
    // Two ports for each node, and one for S3 where any will do.
    let count = META_NODES + nodes + 1;
    let first = free_block(u16::try_from(count * 2 + 1)?)?;
    let grpc_port = |place: u32| first + 2 * place as u16;
    let s3_port = if port == 0 { first + 2 * count as u16 } else { port };
    let mut all: Vec<DevNode> = Vec::new();
    for number in 1..=META_NODES {
        all.push(DevNode::new(format!("meta-{number}"), "meta", grpc_port(number - 1), None));
    }
    for number in 1..=nodes {
        all.push(DevNode::new(format!("data-{number}"), "data", grpc_port(META_NODES + number - 1), None));
    }
    all.push(DevNode::new("gateway-1".to_owned(), "gateway", grpc_port(count - 1), Some(s3_port)));
    let mut token = [0; 16];
    env.fill_random(&mut token);
    let secret = root.secret_key.as_str().to_owned();
    let mut state = DevState::new(tls, root.access_key, secret, hex::encode(token), all);
    state.place(dir);
    Ok(state)
}

/// The zone of the directory, with what this run asks for differently.
///
/// # Errors
/// [`UsageError`] when something cannot be changed any more.
pub(super) fn continued(
    dir: &Path,
    mut state: DevState,
    args: &DevArgs,
    root: Option<&RootKey>,
) -> anyhow::Result<DevState> {
    let nodes = state.nodes.iter().filter(|node| node.is("data")).count() as u32;
    if let Some(wanted) = args.nodes.filter(|wanted| *wanted != nodes) {
        return Err(UsageError(format!("--nodes {wanted}: {} has {nodes} data nodes", dir.display())).into());
    }
    if let Some(root) = root
        && (root.access_key != state.access_key || *root.secret_key != state.secret_key)
    {
        return Err(UsageError(format!(
            "{} has root credentials of its own: unset HOLDFAST_ROOT_ACCESS_KEY and HOLDFAST_ROOT_SECRET_KEY, or use \
             another --data-dir",
            dir.display()
        ))
        .into());
    }
    state.tls = args.tls;
    // Port 0 is any, so what was chosen stays.
    if let Some(port) = args.port.filter(|port| *port != 0) {
        for node in state.nodes.iter_mut().filter(|node| node.is("gateway")) {
            node.s3_port = Some(port);
        }
    }
    Ok(state)
}

/// Writes every node's `node.toml`.
///
/// # Errors
/// When a directory cannot be made.
pub(super) fn write_configs(dir: &Path, state: &DevState) -> anyhow::Result<()> {
    let data_nodes = state.nodes.iter().filter(|node| node.is("data")).count() as u32;
    for node in &state.nodes {
        std::fs::create_dir_all(&node.data_dir)?;
        config_of(dir, state, node, data_nodes).save(&node.config)?;
    }
    Ok(())
}

fn config_of(dir: &Path, state: &DevState, node: &DevNode, data_nodes: u32) -> Config {
    Config {
        node: NodeConfig {
            data_dir: node.data_dir.clone(),
            zone: state.zone.clone(),
            region: "us-east-1".to_owned(),
            host: node.host.clone(),
            listen: node.grpc(),
            admin_listen: node.admin(),
            seeds: state.meta_addresses().into_iter().filter(|address| *address != node.grpc()).collect(),
            join_token: state.join_token.clone(),
            insecure_plaintext: true,
            ..NodeConfig::default()
        },
        log: LogConfig::default(),
        meta: node.is("meta").then(|| MetaConfig {
            partitions: PARTITIONS,
            initial_targets: data_nodes,
            // One disk has to be asked for.
            copies: (data_nodes == 1).then_some(1),
            ..MetaConfig::default()
        }),
        data: node.is("data").then(|| DataConfig {
            targets: vec![TargetSection { dir: node.data_dir.join("target"), ..TargetSection::default() }],
            ..DataConfig::default()
        }),
        gateway: node.s3_port.map(|port| GatewaySection {
            listen: format!("127.0.0.1:{port}"),
            domains: vec!["localhost".to_owned()],
            tls_cert: state.tls.then(|| certs::cert_path(dir)),
            tls_key: state.tls.then(|| certs::key_path(dir)),
            ..GatewaySection::default()
        }),
    }
}

/// The first of `count` ports in a row that are free now. Starts at a place given by the process id, so that two that
/// start at once do not try the same.
fn free_block(count: u16) -> anyhow::Result<u16> {
    let blocks = (PORTS.end - PORTS.start) / count;
    let first = (std::process::id() % u32::from(blocks)) as u16;
    for turn in 0..blocks {
        let base = PORTS.start + (first + turn) % blocks * count;
        if (base..base + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(base);
        }
    }
    anyhow::bail!("no {count} free ports in a row between {} and {}", PORTS.start, PORTS.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;
    use zeroize::Zeroizing;

    fn zone(dir: &Path, nodes: u32) -> DevState {
        let root = RootKey { access_key: "AK".to_owned(), secret_key: Zeroizing::new("secret".to_owned()) };
        let state = new(dir, nodes, 0, true, root, &Env::real()).unwrap();
        write_configs(dir, &state).unwrap();
        state.save(dir).unwrap();
        state
    }

    #[test]
    fn every_configuration_is_good_and_no_port_is_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let state = zone(dir.path(), 6);
        assert_eq!(state.nodes.len(), 10);
        let mut ports = Vec::new();
        for node in &state.nodes {
            let config = load(&node.config).unwrap();
            assert_eq!(config.roles(), node.roles);
            ports.extend([node.grpc_port, node.admin_port]);
            ports.extend(node.s3_port);
        }
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), all);
    }

    #[test]
    fn one_data_node_keeps_one_copy() {
        let dir = tempfile::tempdir().unwrap();
        let state = zone(dir.path(), 1);
        assert_eq!(load(&state.first_meta().unwrap().config).unwrap().meta.unwrap().copies, Some(1));
    }

    #[test]
    fn a_restart_keeps_ports_and_refuses_another_size() {
        let dir = tempfile::tempdir().unwrap();
        let state = zone(dir.path(), 3);
        let args = |nodes, port| DevArgs {
            zones: 1,
            nodes,
            data_dir: dir.path().to_owned(),
            port,
            tls: false,
            spawn: false,
            json: true,
        };
        let read = || DevState::read(dir.path()).unwrap().unwrap();
        let same = continued(dir.path(), read(), &args(Some(3), Some(0)), None).unwrap();
        assert_eq!(same.s3_url().unwrap(), state.s3_url().unwrap().replace("https", "http"));
        let moved = continued(dir.path(), read(), &args(None, Some(9123)), None).unwrap();
        assert_eq!(moved.s3_url().unwrap(), "http://127.0.0.1:9123");
        assert!(continued(dir.path(), read(), &args(Some(4), None), None).unwrap_err().is::<UsageError>());
    }

    #[test]
    fn a_directory_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("photos"), b"").unwrap();
        let root = RootKey { access_key: "AK".to_owned(), secret_key: Zeroizing::new("secret".to_owned()) };
        assert!(new(dir.path(), 6, 0, false, root, &Env::real()).is_err());
    }
}
