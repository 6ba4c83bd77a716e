//! What types cannot say: required keys, ranges, and keys that only make sense together. Reports everything it finds.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use holdfast_machine::{FEATURE_LEVEL, FEATURE_LEVEL_FIRST};
use holdfast_proto::limits;

use super::{Config, ConfigFault, DataConfig, GatewaySection, MetaConfig, NodeConfig, Size};

/// Adds every fault of `config` to `faults`.
pub(super) fn validate(config: &Config, faults: &mut Vec<ConfigFault>) {
    let mut check = Check { faults };
    check.node(&config.node);
    if let Some(meta) = &config.meta {
        check.meta(meta);
    }
    if let Some(data) = &config.data {
        check.data(data);
    }
    if let Some(gateway) = &config.gateway {
        check.gateway(gateway);
    }
    if config.roles().is_empty() && check.faults.is_empty() {
        check.fault("", "the node has no role: add [meta], [data] or [gateway]");
    }
    check.distinct_listeners(config);
}

struct Check<'a> {
    faults: &'a mut Vec<ConfigFault>,
}

impl Check<'_> {
    fn fault(&mut self, path: &str, message: impl Into<String>) {
        // A key that did not parse has been reported; what its default breaks is noise.
        if path.is_empty() || !self.faults.iter().any(|fault| fault.path == path) {
            self.faults.push(ConfigFault::new(path, message));
        }
    }

    fn node(&mut self, node: &NodeConfig) {
        if node.data_dir.as_os_str().is_empty() {
            self.fault("node.data_dir", "required: the directory of this node");
        }
        if node.zone.is_empty() {
            self.fault("node.zone", "required: the name of the zone (cloud-init names none here)");
        } else if !node.zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            self.fault("node.zone", "letters, digits, '-', '_' and '.' only");
        }
        if node.host.is_empty() {
            self.fault("node.host", "required: this machine has no host name");
        }
        self.address("node.listen", &node.listen);
        self.address("node.admin_listen", &node.admin_listen);
        if !node.advertise.is_empty() {
            if host_port(&node.advertise).is_none() {
                self.fault("node.advertise", format!("{:?} is not host:port", node.advertise));
            }
        } else if is_wildcard(&node.listen) {
            self.fault(
                "node.advertise",
                "required when `listen` is a wildcard: where others reach this node",
            );
        }
        for (index, seed) in node.seeds.iter().enumerate() {
            if host_port(seed).is_none() {
                self.fault(&format!("node.seeds[{index}]"), format!("{seed:?} is not host:port"));
            }
        }
        if node.feature_level_max.is_some_and(|max| !(FEATURE_LEVEL_FIRST..=FEATURE_LEVEL).contains(&max)) {
            self.fault(
                "node.feature_level_max",
                format!("between {FEATURE_LEVEL_FIRST} and {FEATURE_LEVEL}, which this version knows"),
            );
        }
        if !node.insecure_plaintext {
            self.fault(
                "node.insecure_plaintext",
                "must be true: nodes cannot talk over TLS yet, so their network has to be trusted",
            );
        }
    }

    fn meta(&mut self, meta: &MetaConfig) {
        if !(1..=limits::PARTITIONS_MAX).contains(&meta.partitions) {
            self.fault("meta.partitions", format!("between 1 and {}", limits::PARTITIONS_MAX));
        }
        if meta.initial_targets == 0 {
            self.fault("meta.initial_targets", "at least 1");
        }
        if meta.copies.is_some() && meta.scheme.is_some() {
            self.fault("meta.copies", "not together with meta.scheme: the default class has one of them");
        }
        if let Some(copies) = meta.copies
            && !(1..=limits::STRIPE_WIDTH_MAX as u32).contains(&copies)
        {
            self.fault("meta.copies", format!("between 1 and {}", limits::STRIPE_WIDTH_MAX));
        }
        if let Some(scheme) = meta.scheme {
            if scheme.data == 0 || scheme.parity == 0 {
                self.fault("meta.scheme", "at least one data and one parity shard");
            } else if scheme.data.saturating_add(scheme.parity) > limits::STRIPE_WIDTH_MAX as u32 {
                self.fault("meta.scheme", format!("at most {} shards together", limits::STRIPE_WIDTH_MAX));
            }
        }
        if meta.out_after.get() <= meta.down_after.get() {
            self.fault("meta.out_after", "longer than meta.down_after");
        }
        if meta.orphan_after.get() < Duration::from_secs(1) {
            self.fault("meta.orphan_after", "at least 1s; longer than twice the gateways' renew_every");
        }
        if meta.scrub_every.get() < Duration::from_secs(10) {
            self.fault("meta.scrub_every", "at least 10s");
        }
        if meta.repair_bytes_per_second < Size::mib(1) {
            self.fault("meta.repair_bytes_per_second", "at least 1MiB: repair would never end");
        }
        if meta.down_after.get() < Duration::from_secs(3) {
            self.fault("meta.down_after", "at least 3s: nodes beat once a second");
        }
        if meta.heartbeat.get() < Duration::from_millis(10) {
            self.fault("meta.heartbeat", "at least 10ms");
        }
        if meta.election_timeout.get() < meta.heartbeat.get() * 3 {
            self.fault("meta.election_timeout", "at least three times meta.heartbeat");
        }
        if meta.cache_bytes.bytes() < 1 << 20 {
            self.fault("meta.cache_bytes", "at least 1MiB");
        }
    }

    fn data(&mut self, data: &DataConfig) {
        if data.targets.is_empty() {
            self.fault("data.targets", "required: one [[data.targets]] with a `dir` for each disk");
        }
        for (index, target) in data.targets.iter().enumerate() {
            if target.dir.as_os_str().is_empty() {
                self.fault(&format!("data.targets[{index}].dir"), "required: the directory of the target");
            } else if data.targets[..index].iter().any(|other| other.dir == target.dir) {
                self.fault(&format!("data.targets[{index}].dir"), "named twice: a target is one directory");
            }
        }
        if !(16 << 20..=64 << 30).contains(&data.segment_bytes.bytes()) {
            self.fault("data.segment_bytes", "between 16MiB and 64GiB");
        }
        if data.index_cache_bytes.bytes() < 1 << 20 {
            self.fault("data.index_cache_bytes", "at least 1MiB");
        }
        if !(1..=90).contains(&data.compact_below) {
            self.fault(
                "data.compact_below",
                "between 1 and 90 per cent: above that the same is moved again and again",
            );
        }
        if data.compact_bytes_per_second < Size::mib(1) {
            self.fault("data.compact_bytes_per_second", "at least 1MiB: deleted space would not come back");
        }
        if data.scrub_every.get() < Duration::from_secs(60) {
            self.fault("data.scrub_every", "at least 1min");
        }
        if data.scrub_bytes_per_second < Size::mib(1) {
            self.fault("data.scrub_bytes_per_second", "at least 1MiB: a pass would never end");
        }
    }

    fn gateway(&mut self, gateway: &GatewaySection) {
        self.address("gateway.listen", &gateway.listen);
        if gateway.tls_cert.is_some() != gateway.tls_key.is_some() {
            self.fault("gateway.tls_cert", "tls_cert and tls_key go together");
        }
        if gateway.inflight_bytes.bytes() < 16 << 20 {
            self.fault("gateway.inflight_bytes", "at least 16MiB: a few stripes");
        }
        for (index, domain) in gateway.domains.iter().enumerate() {
            if domain.is_empty() || domain.contains([':', '/', ' ']) {
                self.fault(&format!("gateway.domains[{index}]"), format!("{domain:?} is not a host name"));
            }
        }
    }

    fn address(&mut self, path: &str, text: &str) {
        if resolve(text).is_err() {
            self.fault(path, format!("{text:?} is not an address to listen on, such as \"0.0.0.0:7070\""));
        }
    }

    fn distinct_listeners(&mut self, config: &Config) {
        let mut listeners =
            vec![("node.listen", &config.node.listen), ("node.admin_listen", &config.node.admin_listen)];
        if let Some(gateway) = &config.gateway {
            listeners.push(("gateway.listen", &gateway.listen));
        }
        for (index, (path, text)) in listeners.iter().enumerate() {
            let port_of = |text: &str| text.rsplit_once(':').map(|(_, port)| port.to_owned());
            let same = |other: &&(&str, &String)| *other.1 == **text && port_of(text).as_deref() != Some("0");
            if let Some((other, _)) = listeners[..index].iter().find(same) {
                let message = format!("the same address as {other}");
                self.fault(path, message);
            }
        }
    }
}

/// The two halves of `host:port`.
pub(crate) fn host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    (!host.is_empty() && port != 0).then_some((host, port))
}

fn is_wildcard(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}

/// The socket address of a listener.
///
/// # Errors
/// When the text is no address or its name does not resolve.
pub(crate) fn resolve(text: &str) -> std::io::Result<SocketAddr> {
    text.to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other(format!("{text} has no address")))
}
