//! A node's directory: one process at a time, one identity for ever.
//!
//! `LOCK` is held (flock) while a process uses the directory. `identity.json`, mode 0600, says who the node is and holds
//! the realm's key; it is replaced atomically. The incarnation in it is raised durably before the node says a word to
//! anybody, so that a directory that went back in time is recognised by its peers.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holdfast_proto::id::{AccountId, NodeId, RealmId, ZoneId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::atomic_file;
use crate::env::Env;

/// Why a directory cannot be used. Each is one clear line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error("{dir} is in use by another process{holder}")]
    InUse { dir: String, holder: String },
    #[error("{dir}: {error}")]
    Io { dir: String, error: io::Error },
    #[error("{file} is damaged: {reason}; restore it from a backup, or give the node a new directory")]
    Damaged { file: String, reason: String },
    #[error("{dir} belongs to zone {found:?} of realm {realm}; the configuration says zone {wanted:?}")]
    OtherZone { dir: String, realm: RealmId, found: String, wanted: String },
    #[error("{dir} already belongs to node {node} of realm {realm}")]
    AlreadyInit { dir: String, node: NodeId, realm: RealmId },
    #[error(
        "{dir} holds metadata but no identity: it is not a new directory; restore identity.json or use another one"
    )]
    Orphaned { dir: String },
    #[error(
        "{dir} is gone or empty, and this node has voted: it must not vote again as if it had not; restore the \
         directory, or give the node a new data_dir so that it joins under a new id"
    )]
    MetaGone { dir: String },
}

/// A secret in memory and, as hex, in the identity file. Never printed.
#[derive(Clone)]
pub(crate) struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

mod hex_secret {
    use super::Secret;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(secret: &Secret, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(secret.bytes()))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(from)?);
        hex::decode(text.as_bytes()).map(Secret::new).map_err(D::Error::custom)
    }
}

mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<T: std::fmt::Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }
    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Who a node is. Version 1 of the file (day 1).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) version: u32,
    #[serde(with = "text")]
    pub(crate) realm: RealmId,
    pub(crate) zone: u16,
    pub(crate) zone_name: String,
    #[serde(with = "text")]
    pub(crate) node: NodeId,
    /// Raised by one at every start.
    pub(crate) incarnation: u64,
    /// Seals secrets; the same on every node of the realm. 32 bytes.
    #[serde(with = "hex_secret")]
    pub(crate) realm_key: Secret,
    /// What new nodes must show.
    #[serde(with = "hex_secret")]
    pub(crate) join_token: Secret,
    /// The groups' directory was opened once: from then on its log and its votes must be there.
    #[serde(default)]
    pub(crate) meta_opened: bool,
    /// Ids of this node's targets by the uuid in their directories, as hex.
    #[serde(default)]
    pub(crate) targets: std::collections::BTreeMap<String, u32>,
    /// Present on the first node of a zone until, and after, it made the groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) founding: Option<Founding>,
}

impl Identity {
    pub(crate) const VERSION: u32 = 1;

    /// That in a file, of whichever node.
    ///
    /// # Errors
    /// When it does not read.
    pub(crate) fn read(path: &Path) -> Result<Self, DirectoryError> {
        let damaged = |reason| DirectoryError::Damaged { file: path.display().to_string(), reason };
        let raw = std::fs::read(path)
            .map_err(|error| DirectoryError::Io { dir: path.display().to_string(), error })?;
        let raw = Zeroizing::new(raw);
        let identity: Self = serde_json::from_slice(&raw).map_err(|error| damaged(error.to_string()))?;
        if identity.version != Self::VERSION {
            return Err(damaged(format!("version {} is not known here", identity.version)));
        }
        if identity.realm_key_array().is_none() {
            return Err(damaged("the realm key is not 32 bytes".to_owned()));
        }
        Ok(identity)
    }

    pub(crate) fn zone_id(&self) -> ZoneId {
        ZoneId::new(self.zone)
    }
    pub(crate) fn realm_key_array(&self) -> Option<[u8; 32]> {
        self.realm_key.bytes().try_into().ok()
    }
}

/// What the first node writes into the new realm and zone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Founding {
    #[serde(with = "text")]
    pub(crate) root_account: AccountId,
    pub(crate) root_access_key: String,
    /// Sealed with the realm's key.
    #[serde(with = "hex_secret")]
    pub(crate) root_sealed_secret: Secret,
    pub(crate) created_ms: u64,
    /// Where the other meta nodes are going to be.
    pub(crate) meta: Vec<String>,
    /// The realm and the zone have been made.
    pub(crate) done: bool,
    /// The zone is one whose metadata was lost: its data nodes are still there, with the numbers they were given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) of_old_data: bool,
}

/// A locked directory.
#[derive(Debug)]
pub(crate) struct NodeDirectory {
    path: PathBuf,
    _lock: File,
}

impl NodeDirectory {
    /// Creates the directory where needed and locks it until the value is dropped.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be used.
    pub(crate) fn open(path: &Path) -> Result<Self, DirectoryError> {
        let io = |error| DirectoryError::Io { dir: path.display().to_string(), error };
        std::fs::create_dir_all(path).map_err(io)?;
        let name = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&name)
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&name).unwrap_or_default();
                let holder =
                    if pid.trim().is_empty() { String::new() } else { format!(" (pid {})", pid.trim()) };
                return Err(DirectoryError::InUse { dir: path.display().to_string(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(io)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the groups live.
    pub(crate) fn meta_path(&self) -> PathBuf {
        self.path.join("meta")
    }

    /// Checks that the groups' directory is there if it ever was.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn check_meta(&self, identity: &Identity) -> Result<(), DirectoryError> {
        let dir = self.meta_path();
        let is_there = ["log", "state"].iter().all(|part| dir.join(part).is_dir());
        if identity.meta_opened && !is_there {
            return Err(DirectoryError::MetaGone { dir: dir.display().to_string() });
        }
        Ok(())
    }

    fn identity_path(&self) -> PathBuf {
        self.path.join("identity.json")
    }

    /// The identity, or `None` in a new directory.
    ///
    /// # Errors
    /// When the file does not read, or metadata lies here without an identity.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, DirectoryError> {
        let path = self.identity_path();
        match Identity::read(&path) {
            Err(DirectoryError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                if self.meta_path().exists() {
                    return Err(DirectoryError::Orphaned { dir: self.path.display().to_string() });
                }
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// The identity of a directory that must fit the configured zone.
    ///
    /// # Errors
    /// As [`Self::identity`], and when it belongs to another zone.
    pub(crate) fn identity_in(&self, zone_name: &str) -> Result<Option<Identity>, DirectoryError> {
        let identity = self.identity()?;
        match &identity {
            Some(known) if known.zone_name != zone_name => Err(DirectoryError::OtherZone {
                dir: self.path.display().to_string(),
                realm: known.realm,
                found: known.zone_name.clone(),
                wanted: zone_name.to_owned(),
            }),
            _ => Ok(identity),
        }
    }

    /// Writes the identity durably.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(crate) fn save(&self, identity: &Identity) -> Result<(), DirectoryError> {
        let io = |error| DirectoryError::Io { dir: self.path.display().to_string(), error };
        let raw = Zeroizing::new(serde_json::to_vec_pretty(identity).map_err(|error| io(error.into()))?);
        atomic_file::write(&self.identity_path(), &raw, 0o600).map_err(io)
    }

    /// Sixteen random bytes that name the first attempt to join, kept until the node has an identity.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub(crate) fn join_nonce(&self, env: &Env) -> Result<[u8; 16], DirectoryError> {
        let io = |error| DirectoryError::Io { dir: self.path.display().to_string(), error };
        let path = self.path.join("join-nonce");
        if let Ok(raw) = std::fs::read(&path)
            && let Ok(nonce) = <[u8; 16]>::try_from(raw.as_slice())
        {
            return Ok(nonce);
        }
        let mut nonce = [0; 16];
        env.fill_random(&mut nonce);
        atomic_file::write(&path, &nonce, 0o600).map_err(io)?;
        Ok(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            version: 1,
            realm: RealmId::from_bytes([7; 16]),
            zone: 1,
            zone_name: "a".to_owned(),
            node: NodeId::in_zone(ZoneId::new(1), 3).unwrap(),
            incarnation: 4,
            realm_key: Secret::new(vec![1; 32]),
            join_token: Secret::new(b"token".to_vec()),
            meta_opened: false,
            targets: [("ab".to_owned(), 9)].into(),
            founding: None,
        }
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = NodeDirectory::open(dir.path()).unwrap();
        let error = NodeDirectory::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("in use by another process (pid "), "{error}");
        drop(held);
        NodeDirectory::open(dir.path()).unwrap();
    }

    #[test]
    fn an_identity_survives_and_is_nobody_elses_to_read() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let directory = NodeDirectory::open(dir.path()).unwrap();
        assert!(directory.identity().unwrap().is_none());
        directory.save(&identity()).unwrap();
        let read = directory.identity_in("a").unwrap().unwrap();
        assert_eq!((read.node, read.incarnation, read.realm_key.bytes()), (identity().node, 4, &[1; 32][..]));
        assert_eq!(read.targets["ab"], 9);
        let mode = std::fs::metadata(dir.path().join("identity.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = directory.identity_in("b").unwrap_err().to_string();
        assert!(error.contains("belongs to zone \"a\""), "{error}");
    }

    #[test]
    fn a_damaged_or_lost_identity_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let directory = NodeDirectory::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("identity.json"), b"{").unwrap();
        assert!(matches!(directory.identity(), Err(DirectoryError::Damaged { .. })));
        std::fs::remove_file(dir.path().join("identity.json")).unwrap();
        std::fs::create_dir(dir.path().join("meta")).unwrap();
        assert!(matches!(directory.identity(), Err(DirectoryError::Orphaned { .. })));
    }

    #[test]
    fn a_node_that_voted_does_not_start_without_its_votes() {
        let dir = tempfile::tempdir().unwrap();
        let directory = NodeDirectory::open(dir.path()).unwrap();
        // A file from before this was recorded.
        directory.save(&identity()).unwrap();
        let path = dir.path().join("identity.json");
        let old = std::fs::read_to_string(&path).unwrap().replace("  \"meta_opened\": false,\n", "");
        assert!(!old.contains("meta_opened"));
        std::fs::write(&path, old).unwrap();
        let mut identity = directory.identity().unwrap().unwrap();
        assert!(!identity.meta_opened);
        directory.check_meta(&identity).unwrap();

        for part in ["log", "state"] {
            std::fs::create_dir_all(directory.meta_path().join(part)).unwrap();
        }
        identity.meta_opened = true;
        directory.save(&identity).unwrap();
        let identity = directory.identity().unwrap().unwrap();
        directory.check_meta(&identity).unwrap();
        // One of the two, then an empty directory where something should be mounted, then none.
        std::fs::remove_dir(directory.meta_path().join("log")).unwrap();
        assert!(matches!(directory.check_meta(&identity), Err(DirectoryError::MetaGone { .. })));
        std::fs::remove_dir(directory.meta_path().join("state")).unwrap();
        assert!(matches!(directory.check_meta(&identity), Err(DirectoryError::MetaGone { .. })));
        std::fs::remove_dir(directory.meta_path()).unwrap();
        let error = directory.check_meta(&identity).unwrap_err().to_string();
        assert!(error.contains("this node has voted") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_join_is_repeated_under_one_nonce() {
        let dir = tempfile::tempdir().unwrap();
        let directory = NodeDirectory::open(dir.path()).unwrap();
        let env = Env::real();
        assert_eq!(directory.join_nonce(&env).unwrap(), directory.join_nonce(&env).unwrap());
    }
}
