//! One TOML file per node, one struct per role. A role is on when its section is there.
//!
//! [`load`] reads the file, lays `HOLDFAST_<SECTION>_<KEY>` variables over it, and either returns a configuration that
//! passed every check or all its faults at once, each with its path.

mod cloud_init;
mod overrides;
mod units;
mod validate;

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use holdfast_machine::FEATURE_LEVEL;
use holdfast_proto::v1::Codec;
use serde::{Deserialize, Serialize};

pub(crate) use units::{Size, Span};
pub(crate) use validate::{host_port, resolve};

/// What every section's struct derives: unknown keys are faults, and each key can be checked alone because all have
/// defaults; what must be given is `validate`'s to say.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

section!(
    /// `[node]`: who this node is and where it listens.
    NodeConfig {
        /// Where the node keeps its identity, its lock and, for meta nodes, its groups. Required.
        data_dir: PathBuf = PathBuf::new(),
        /// Name of the zone (one site). Cloud-init's availability zone unless given; required one way or the other.
        zone: String = String::new(),
        /// Region that S3 clients name when they sign.
        region: String = String::new(),
        /// Failure domain: nodes of one host fall together. The host's name unless given.
        host: String = String::new(),
        /// Domain above the host, for the operator's eyes.
        rack: String = String::new(),
        /// gRPC: other nodes, clients and the command line.
        listen: String = "127.0.0.1:7070".to_owned(),
        /// Where others reach `listen`, when that is a wildcard.
        advertise: String = String::new(),
        /// Health and metrics over plain HTTP.
        admin_listen: String = "127.0.0.1:7071".to_owned(),
        /// gRPC addresses of meta nodes that this node asks to be let in.
        seeds: Vec<String> = Vec::new(),
        /// What `zone init` printed, or chose beforehand.
        join_token: String = String::new(),
        /// Nodes talk without TLS. There is nothing else yet, so the operator has to say that it is wanted.
        insecure_plaintext: bool = false,
        /// The zone does not go beyond this feature level while any node says so, and every node can go back to a version that
        /// knows it. Unset: as far as all nodes know.
        feature_level_max: Option<u32> = None,
    }
);

impl NodeConfig {
    /// The newest feature level that this node knows and is allowed.
    pub(crate) fn feature_level(&self) -> u32 {
        self.feature_level_max.map_or(FEATURE_LEVEL, |max| max.min(FEATURE_LEVEL))
    }
}

section!(
    /// `[meta]`: this node holds Raft groups.
    MetaConfig {
        /// Partitions of a new zone.
        partitions: u32 = holdfast_proto::limits::PARTITIONS_DEFAULT,
        /// Placement is made once this many targets have joined.
        initial_targets: u32 = 3,
        /// Copies of every body. Unset: by the number of hosts.
        copies: Option<u32> = None,
        /// Erasure code, as "4+2". Unset: by the number of hosts.
        scheme: Option<SchemeText> = None,
        /// Silence after which a node's targets are down.
        down_after: Span = Span::secs(15),
        /// Silence after which what they held is rebuilt on others.
        out_after: Span = Span::secs(600),
        /// How long freed bodies stay readable for requests already under way.
        garbage_grace: Span = Span::secs(3600),
        /// What was written and never committed is deleted once it is this old.
        orphan_after: Span = Span::secs(24 * 3600),
        /// Repair brings no more than this in a second, bytes.
        repair_bytes_per_second: Size = Size::mib(100),
        /// The replicas of every group are compared once in this time.
        scrub_every: Span = Span::secs(24 * 3600),
        /// Memory for cached metadata rows and blocks.
        cache_bytes: Size = Size::mib(64),
        /// Raft: leader's beat.
        heartbeat: Span = Span::millis(300),
        /// Raft: shortest silence before an election; the longest is twice this.
        election_timeout: Span = Span::millis(1500),
    }
);

section!(
    /// `[data]`: this node holds shards.
    DataConfig {
        /// One directory per disk.
        targets: Vec<TargetSection> = Vec::new(),
        /// Length of a segment file.
        segment_bytes: Size = Size::gib(1),
        /// Memory for the shard index of each target.
        index_cache_bytes: Size = Size::mib(16),
        /// Everything is read and proven once in this time.
        scrub_every: Span = Span::secs(14 * 24 * 3600),
        /// Scrubbing reads no more than this in a second of each target, bytes.
        scrub_bytes_per_second: Size = Size::mib(50),
        /// A segment of which less than this is needed is emptied and removed, per cent of the disk it takes.
        compact_below: u32 = 50,
        /// Compaction moves no more than this in a second of each target, bytes.
        compact_bytes_per_second: Size = Size::mib(20),
    }
);

section!(
    /// `[[data.targets]]`: one disk directory.
    TargetSection {
        /// The directory. Required.
        dir: PathBuf = PathBuf::new(),
        /// Tag that storage classes ask for.
        media: String = "default".to_owned(),
        /// O_DIRECT: `auto` where the file system has it, or `off`.
        direct_io: DirectIo = DirectIo::Auto,
    }
);

section!(
    /// `[gateway]`: this node serves S3.
    GatewaySection {
        /// Where S3 is served.
        listen: String = "127.0.0.1:9000".to_owned(),
        /// Host names whose subdomains are buckets (virtual-host style).
        domains: Vec<String> = Vec::new(),
        /// How often a write that takes long says that it is under way: less than half of the meta nodes' `orphan_after`.
        renew_every: Span = Span::secs(3600),
        /// Object bytes in memory at one time, over all requests: 6 MiB for each large one.
        inflight_bytes: Size = Size::mib(512),
        /// PEM certificate chain; with `tls_key`, S3 is served over TLS.
        tls_cert: Option<PathBuf> = None,
        /// PEM private key.
        tls_key: Option<PathBuf> = None,
    }
);

section!(
    /// `[log]`: to standard error.
    LogConfig {
        /// `human` or `json`.
        format: LogFormat = LogFormat::Human,
        /// Directives of tracing's env-filter; `HOLDFAST_LOG` overrides it.
        filter: String = String::new(),
    }
);

/// When to write around the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DirectIo {
    Auto,
    Off,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Human,
    Json,
}

/// An erasure code as text: data shards, a plus, parity shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct SchemeText {
    pub(crate) data: u32,
    pub(crate) parity: u32,
}

impl SchemeText {
    pub(crate) fn scheme(self) -> holdfast_proto::v1::Scheme {
        holdfast_proto::v1::Scheme { codec: Codec::RsGf8.into(), data: self.data, parity: self.parity }
    }
}

impl TryFrom<String> for SchemeText {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.split_once('+')
            .and_then(|(data, parity)| Some(Self { data: data.parse().ok()?, parity: parity.parse().ok()? }))
            .ok_or_else(|| format!("{text:?} is not a code such as \"4+2\""))
    }
}

impl From<SchemeText> for String {
    fn from(scheme: SchemeText) -> Self {
        scheme.to_string()
    }
}

impl fmt::Display for SchemeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Config {
    pub(crate) node: NodeConfig,
    pub(crate) log: LogConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) meta: Option<MetaConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<DataConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<GatewaySection>,
}

impl Config {
    /// The roles this node runs, as the cluster map names them.
    pub(crate) fn roles(&self) -> Vec<String> {
        [("meta", self.meta.is_some()), ("data", self.data.is_some()), ("gateway", self.gateway.is_some())]
            .into_iter()
            .filter(|(_, on)| *on)
            .map(|(role, _)| role.to_owned())
            .collect()
    }

    /// Writes the file as an operator would, atomically.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = toml::to_string(self)?;
        crate::node::atomic_file::write(path, text.as_bytes(), 0o600)?;
        Ok(())
    }
}

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigFault {
    /// Where, as `section.key`; empty for the file as a whole.
    pub(crate) path: String,
    /// What is wrong, and what would be right.
    pub(crate) message: String,
}

impl ConfigFault {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Every fault of a configuration; the process ends with code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) struct ConfigFaults {
    /// Which file.
    pub(crate) file: String,
    /// At least one.
    pub(crate) faults: Vec<ConfigFault>,
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.faults.len();
        write!(f, "{}: {count} fault{} in the configuration", self.file, if count == 1 { "" } else { "s" })?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// Reads, overrides and checks a node's configuration.
///
/// # Errors
/// All faults at once.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigFaults> {
    let fail = |faults| ConfigFaults { file: path.display().to_string(), faults };
    let text = std::fs::read_to_string(path)
        .map_err(|error| fail(vec![ConfigFault::new("", format!("the file cannot be read: {error}"))]))?;
    load_text(path, &text)
}

/// [`load`] of a file that would have this text.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_text(path: &Path, text: &str) -> Result<Config, ConfigFaults> {
    parse(text, std::env::vars(), cloud_init::read())
        .map_err(|faults| ConfigFaults { file: path.display().to_string(), faults })
}

/// [`load`] without the outside world.
fn parse(
    text: &str,
    env: impl Iterator<Item = (String, String)>,
    instance: cloud_init::Instance,
) -> Result<Config, Vec<ConfigFault>> {
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        vec![ConfigFault::new("", format!("not TOML: {}", error.to_string().trim_end()))]
    })?;
    let mut faults = Vec::new();
    overrides::apply(&mut table, env, &mut faults);
    let mut config = Config {
        node: take(&mut table, "node", &mut faults).unwrap_or_default(),
        log: take(&mut table, "log", &mut faults).unwrap_or_default(),
        meta: take(&mut table, "meta", &mut faults),
        data: take(&mut table, "data", &mut faults),
        gateway: take(&mut table, "gateway", &mut faults),
    };
    faults.extend(table.keys().map(|key| {
        ConfigFault::new(key, "unknown section; there are [node], [log], [meta], [data] and [gateway]")
    }));
    instance.fill(&mut config.node);
    validate::validate(&config, &mut faults);
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

/// Takes one section, checking its keys one by one so that each faulty key is reported.
fn take<T: for<'de> Deserialize<'de>>(
    table: &mut toml::Table,
    name: &str,
    faults: &mut Vec<ConfigFault>,
) -> Option<T> {
    let section = match table.remove(name)? {
        toml::Value::Table(section) => section,
        _ => {
            faults.push(ConfigFault::new(name, "this is a section: write it as [section]"));
            return None;
        }
    };
    let mut sound = toml::Table::new();
    for (key, value) in section {
        let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
        match T::deserialize(alone) {
            Ok(_) => drop(sound.insert(key, value)),
            Err(error) => faults.push(ConfigFault::new(format!("{name}.{key}"), error.message())),
        }
    }
    T::deserialize(sound).map_err(|error| faults.push(ConfigFault::new(name, error.message()))).ok()
}
