//! What the roles of a node open and serve.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_gateway::GatewayConfig;
use holdfast_proto::meta::{Target as TargetRow, TargetState};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use super::directory::Identity;
use crate::config::{Config, DataConfig, DirectIo, GatewaySection, MetaConfig};
use crate::data::{Target, TargetConfig};
use crate::env::Env;
use crate::meta::{AddressBook, Groups, GroupsConfig};

/// Opens the groups of a meta node.
///
/// # Errors
/// When the directory or a group in it cannot be used.
pub(super) async fn open_groups(
    dir: PathBuf,
    identity: &Identity,
    meta: &MetaConfig,
    env: &Env,
    addresses: Arc<AddressBook>,
    cancel: CancellationToken,
) -> anyhow::Result<Arc<Groups>> {
    let zone = identity.zone_id();
    let election = meta.election_timeout.get();
    let mut life = [0; 8];
    env.fill_random(&mut life);
    // Never 0: that is who does not tell.
    let life = u64::from_ne_bytes(life) | 1;
    let config = GroupsConfig {
        heartbeat: meta.heartbeat.get(),
        election: (election, election * 2),
        cache_bytes: meta.cache_bytes.bytes(),
        life,
        ..GroupsConfig::new(dir, identity.node, identity.incarnation, identity.realm, zone)
    };
    Ok(Groups::open(config, env.clone(), addresses, cancel).await?)
}

/// One opened target and how it is described to the zone.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub(super) target: Arc<Target>,
    pub(super) media: String,
}

impl Opened {
    /// The target's uuid as identity files spell it.
    pub(super) fn uuid_text(&self) -> String {
        hex::encode(self.target.uuid())
    }

    /// As a row of the map; `node` 0 is filled in by who registers it.
    pub(super) fn row(&self, id: u32, node: u64) -> TargetRow {
        TargetRow {
            id,
            node,
            uuid: bytes::Bytes::copy_from_slice(&self.target.uuid()),
            media: self.media.clone(),
            capacity_bytes: self.target.report().capacity_bytes,
            state: TargetState::TargetUp.into(),
        }
    }
}

/// Opens all targets of a data node, concurrently.
///
/// # Errors
/// The first that cannot be opened, one clear line.
pub(super) async fn open_targets(
    data: &DataConfig,
    identity: &Identity,
    env: &Env,
    cancel: &CancellationToken,
) -> anyhow::Result<Vec<Opened>> {
    let opening = data.targets.iter().map(|section| {
        let config = TargetConfig {
            segment_bytes: data.segment_bytes.bytes(),
            index_cache_bytes: data.index_cache_bytes.bytes(),
            direct_io: match section.direct_io {
                DirectIo::Auto => crate::data::DirectIo::Auto,
                DirectIo::Off => crate::data::DirectIo::Off,
            },
            ..TargetConfig::new(&section.dir, identity.realm)
        };
        async move {
            let target = Target::open(config, env.clone(), cancel.clone()).await?;
            Ok(Opened { target, media: section.media.clone() })
        }
    });
    futures::future::try_join_all(opening).await
}

/// Ids that the identity already knows, by place in `opened`.
pub(super) fn known_ids(identity: &Identity, opened: &[Opened]) -> BTreeMap<usize, u32> {
    opened
        .iter()
        .enumerate()
        .filter_map(|(place, opened)| Some((place, *identity.targets.get(&opened.uuid_text())?)))
        .collect()
}

/// What the gateway is told.
///
/// # Errors
/// When the certificate or key does not read.
pub(super) fn gateway_config(
    config: &Config,
    gateway: &GatewaySection,
    identity: &Identity,
) -> anyhow::Result<GatewayConfig> {
    let realm_key =
        identity.realm_key_array().ok_or_else(|| anyhow::anyhow!("the realm key is not 32 bytes"))?;
    let tls = match (&gateway.tls_cert, &gateway.tls_key) {
        (Some(cert), Some(key)) => Some(Arc::new(tls(cert, key)?)),
        _ => None,
    };
    Ok(GatewayConfig {
        domains: gateway.domains.clone(),
        inflight_bytes: usize::try_from(gateway.inflight_bytes.bytes())?,
        tls,
        ..GatewayConfig::new(config.node.region.clone(), realm_key)
    })
}

fn tls(cert: &Path, key: &Path) -> anyhow::Result<rustls::ServerConfig> {
    let fault = |path: &Path, error: &dyn std::fmt::Display| anyhow::anyhow!("{}: {error}", path.display());
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| fault(cert, &error))?;
    if chain.is_empty() {
        return Err(fault(cert, &"no certificate in it"));
    }
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| fault(key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key_der)
        .map_err(|error| fault(cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
