//! `zone init`: marks a directory as the first node of a new realm and zone. It writes one identity and nothing else;
//! the node's next start makes the groups.

use holdfast_machine::NODES_SKIPPED;
use holdfast_proto::id::{AccountId, NodeId, RealmId, ZoneId};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::env::Env;
use crate::node::directory::{DirectoryError, Founding, Identity, NodeDirectory, Secret};

/// The zone that a new realm begins with.
const FIRST_ZONE: ZoneId = ZoneId::new(1);
const ACCESS_KEY_BYTES: std::ops::RangeInclusive<usize> = 3..=128;
const SECRET_KEY_BYTES: std::ops::RangeInclusive<usize> = 8..=128;

/// What is shown once.
#[derive(Debug)]
pub(crate) struct NewZone {
    pub(crate) realm: RealmId,
    pub(crate) node: NodeId,
    pub(crate) access_key: String,
    pub(crate) secret_key: Zeroizing<String>,
    pub(crate) join_token: Zeroizing<String>,
}

/// Root credentials: given, or made up.
#[derive(Clone)]
pub(crate) struct RootKey {
    pub(crate) access_key: String,
    pub(crate) secret_key: Zeroizing<String>,
}

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootKey").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl RootKey {
    /// From `HOLDFAST_ROOT_ACCESS_KEY` and `HOLDFAST_ROOT_SECRET_KEY`; `None` when neither is set.
    ///
    /// # Errors
    /// One sentence when one is missing, or a length is not allowed.
    pub(crate) fn from_env() -> anyhow::Result<Option<Self>> {
        let read = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (access_key, secret_key) =
            match (read("HOLDFAST_ROOT_ACCESS_KEY"), read("HOLDFAST_ROOT_SECRET_KEY")) {
                (None, None) => return Ok(None),
                (Some(access_key), Some(secret_key)) => (access_key, Zeroizing::new(secret_key)),
                _ => anyhow::bail!("HOLDFAST_ROOT_ACCESS_KEY and HOLDFAST_ROOT_SECRET_KEY go together"),
            };
        if !ACCESS_KEY_BYTES.contains(&access_key.len())
            || !access_key.bytes().all(|b| b.is_ascii_alphanumeric())
        {
            anyhow::bail!("HOLDFAST_ROOT_ACCESS_KEY: 3 to 128 letters and digits");
        }
        if !SECRET_KEY_BYTES.contains(&secret_key.len()) || !secret_key.bytes().all(|b| b.is_ascii_graphic())
        {
            anyhow::bail!("HOLDFAST_ROOT_SECRET_KEY: 8 to 128 printable ASCII characters without spaces");
        }
        Ok(Some(Self { access_key, secret_key }))
    }

    /// A new random pair, shaped like those of AWS.
    pub(crate) fn random(env: &Env) -> Self {
        let mut raw = Zeroizing::new([0; 45]);
        env.fill_random(&mut *raw);
        let id = data_encoding::BASE32_NOPAD.encode(&raw[..10]);
        Self {
            access_key: format!("HF{id}"),
            secret_key: Zeroizing::new(data_encoding::BASE64URL_NOPAD.encode(&raw[15..])),
        }
    }
}

/// Marks the configured directory as a zone's first node: of a new realm, or of the zone of `old`, whose metadata was lost.
///
/// # Errors
/// When the directory belongs to a zone already, is in use, or the node is no meta node.
pub(crate) fn zone_init(
    config: &Config,
    env: &Env,
    root: Option<RootKey>,
    meta: Vec<String>,
    old: Option<Identity>,
) -> anyhow::Result<NewZone> {
    if config.meta.is_none() {
        anyhow::bail!("the first node of a zone holds its metadata: add [meta] to its configuration");
    }
    let directory = NodeDirectory::open(&config.node.data_dir)?;
    if let Some(known) = directory.identity()? {
        return Err(DirectoryError::AlreadyInit {
            dir: config.node.data_dir.display().to_string(),
            node: known.node,
            realm: known.realm,
        }
        .into());
    }
    let of_old_data = old.is_some();
    let base = match old {
        Some(old) if old.zone_name != config.node.zone => anyhow::bail!(
            "the identity is of zone {:?}, the configuration is for {:?}",
            old.zone_name,
            config.node.zone
        ),
        Some(old) => {
            let node = NodeId::in_zone(old.zone_id(), NODES_SKIPPED).expect("it fits 48 bits");
            Identity { node, ..old }
        }
        None => new_identity(config, env),
    };
    let realm_key = base.realm_key_array().ok_or_else(|| anyhow::anyhow!("the realm key is not 32 bytes"))?;
    let root = root.unwrap_or_else(|| RootKey::random(env));
    let sealed =
        holdfast_client::seal::seal_secret(&realm_key, &root.access_key, root.secret_key.as_bytes())?;
    let zone = NewZone {
        realm: base.realm,
        node: base.node,
        access_key: root.access_key.clone(),
        secret_key: root.secret_key,
        join_token: Zeroizing::new(String::from_utf8_lossy(base.join_token.bytes()).into_owned()),
    };
    directory.save(&Identity {
        incarnation: 0,
        meta_opened: false,
        targets: std::collections::BTreeMap::new(),
        founding: Some(Founding {
            root_account: AccountId::from_bytes(random(env)),
            root_access_key: root.access_key,
            root_sealed_secret: Secret::new(sealed),
            created_ms: env.now_ms(),
            meta,
            done: false,
            of_old_data,
        }),
        ..base
    })?;
    Ok(zone)
}

/// The first node of a new realm and zone.
fn new_identity(config: &Config, env: &Env) -> Identity {
    let mut realm_key = [0; 32];
    env.fill_random(&mut realm_key);
    let join_token = if config.node.join_token.is_empty() {
        let raw: [u8; 16] = random(env);
        Zeroizing::new(hex::encode(raw))
    } else {
        Zeroizing::new(config.node.join_token.clone())
    };
    Identity {
        version: Identity::VERSION,
        realm: RealmId::from_bytes(random(env)),
        zone: FIRST_ZONE.get(),
        zone_name: config.node.zone.clone(),
        node: NodeId::in_zone(FIRST_ZONE, 1).expect("1 fits 48 bits"),
        incarnation: 0,
        realm_key: Secret::new(realm_key.to_vec()),
        join_token: Secret::new(join_token.as_bytes().to_vec()),
        meta_opened: false,
        targets: std::collections::BTreeMap::new(),
        founding: None,
    }
}

fn random(env: &Env) -> [u8; 16] {
    let mut raw = [0; 16];
    env.fill_random(&mut raw);
    raw
}
