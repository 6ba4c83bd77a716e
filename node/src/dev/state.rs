//! What `dev` remembers of its directory between runs. Version 1 of `dev.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::node::atomic_file;

const FILE: &str = "dev.json";
const VERSION: u32 = 1;

/// One zone of `dev`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DevState {
    pub(super) version: u32,
    pub(super) zone: String,
    pub(super) tls: bool,
    pub(super) access_key: String,
    pub(super) secret_key: String,
    pub(super) join_token: String,
    /// In the order of starting: the first meta node makes the zone.
    pub(crate) nodes: Vec<DevNode>,
}

/// One node of the zone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DevNode {
    pub(super) name: String,
    pub(crate) roles: Vec<String>,
    pub(super) host: String,
    /// Filled in when the state is read: the directory may have been moved.
    #[serde(skip)]
    pub(super) data_dir: PathBuf,
    #[serde(skip)]
    pub(super) config: PathBuf,
    pub(super) grpc_port: u16,
    pub(super) admin_port: u16,
    /// Gateways.
    pub(super) s3_port: Option<u16>,
}

impl DevNode {
    pub(super) fn new(name: String, role: &str, grpc_port: u16, s3_port: Option<u16>) -> Self {
        Self {
            host: format!("host-{name}"),
            name,
            roles: vec![role.to_owned()],
            data_dir: PathBuf::new(),
            config: PathBuf::new(),
            grpc_port,
            admin_port: grpc_port + 1,
            s3_port,
        }
    }
    pub(super) fn grpc(&self) -> String {
        format!("127.0.0.1:{}", self.grpc_port)
    }
    pub(super) fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin_port)
    }
    pub(super) fn is(&self, role: &str) -> bool {
        self.roles.iter().any(|own| own == role)
    }
}

impl DevState {
    /// The state of a directory; `None` when `dev` has not run in it.
    ///
    /// # Errors
    /// When the file does not read.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        let raw = match std::fs::read(&path) {
            Ok(raw) => raw,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => anyhow::bail!("{}: {error}", path.display()),
        };
        let mut state: Self = serde_json::from_slice(&raw).map_err(|error| {
            anyhow::anyhow!("{} is damaged: {error}; use another --data-dir", path.display())
        })?;
        if state.version != VERSION {
            anyhow::bail!("{} is of version {}, which is not known here", path.display(), state.version);
        }
        state.place(dir);
        Ok(Some(state))
    }

    /// Fills in where the nodes' files are.
    pub(super) fn place(&mut self, dir: &Path) {
        for node in &mut self.nodes {
            node.data_dir = dir.join(&node.name);
            node.config = node.data_dir.join("node.toml");
        }
    }

    /// Writes the state, for its owner's eyes only.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(super) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let raw = serde_json::to_vec_pretty(self)?;
        Ok(atomic_file::write(&dir.join(FILE), &raw, 0o600)?)
    }

    /// A new one.
    pub(super) fn new(
        tls: bool,
        access_key: String,
        secret_key: String,
        join_token: String,
        nodes: Vec<DevNode>,
    ) -> Self {
        Self { version: VERSION, zone: "dev".to_owned(), tls, access_key, secret_key, join_token, nodes }
    }

    /// gRPC addresses of the meta nodes, the first one's first.
    pub(crate) fn meta_addresses(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| node.is("meta")).map(DevNode::grpc).collect()
    }

    pub(super) fn first_meta(&self) -> anyhow::Result<&DevNode> {
        self.nodes
            .iter()
            .find(|node| node.is("meta"))
            .ok_or_else(|| anyhow::anyhow!("the zone has no meta node"))
    }

    pub(super) fn gateway(&self) -> anyhow::Result<&DevNode> {
        self.nodes
            .iter()
            .find(|node| node.is("gateway"))
            .ok_or_else(|| anyhow::anyhow!("the zone has no gateway"))
    }

    /// Where S3 is served.
    pub(super) fn s3_url(&self) -> anyhow::Result<String> {
        let scheme = if self.tls { "https" } else { "http" };
        Ok(format!("{scheme}://127.0.0.1:{}", self.gateway()?.s3_port.unwrap_or_default()))
    }
}
