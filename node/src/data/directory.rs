//! A target's directory: who holds it, whose it is, and whether its index may be trusted.
//!
//! `LOCK` is locked while a process has the target open. `target.json` holds the target's uuid and realm; it is written
//! once and whole. `index.json` holds the boot in which the index was last opened and whether it was closed cleanly:
//! an index left by a killed process is whole up to its checkpoint, one left by a power cut is not to be trusted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_proto::id::RealmId;
use serde::{Deserialize, Serialize};

use super::target::TargetError;
use crate::env::{Disk, DiskLock, Env};

const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    uuid: String,
    realm: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct IndexState {
    boot_id: String,
    clean: bool,
}

/// An opened directory; holds the lock.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) root: PathBuf,
    pub(super) uuid: [u8; 16],
    disk: Arc<dyn Disk>,
    _lock: Box<dyn DiskLock>,
}

impl Directory {
    /// Locks `root` for this process, and makes it a target of `realm` if it is not one yet.
    pub(super) fn open(root: &Path, realm: RealmId, env: &Env) -> Result<Self, TargetError> {
        let disk = Arc::clone(env.disk());
        let io_error = |what: &'static str| move |source| TargetError::io(what, root, source);
        disk.create_dir_all(&segments_dir(root)).map_err(io_error("creating the directory"))?;
        let lock = disk.lock(&root.join("LOCK")).map_err(io_error("locking the directory"))?;
        let lock = lock.ok_or_else(|| TargetError::InUse { dir: root.to_owned() })?;
        let path = root.join("target.json");
        let uuid = match disk.read(&path) {
            Ok(content) => read_identity(root, &content, realm)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let segments = disk.list(&segments_dir(root)).map_err(io_error("listing segments"))?;
                if !segments.is_empty() {
                    return Err(TargetError::damaged(root, "it holds segments but no target.json"));
                }
                let mut uuid = [0; 16];
                env.fill_random(&mut uuid);
                let identity = Identity { format: FORMAT, uuid: hex::encode(uuid), realm: realm.to_string() };
                disk.replace(&path, &to_json(&identity)).map_err(io_error("writing target.json"))?;
                uuid
            }
            Err(error) => return Err(TargetError::io("reading target.json", root, error)),
        };
        Ok(Self { root: root.to_owned(), uuid, disk, _lock: lock })
    }

    pub(super) fn segments(&self) -> PathBuf {
        segments_dir(&self.root)
    }

    /// Whether the index was closed cleanly, and whether it can be trusted as far as its checkpoint goes.
    pub(super) fn index_state(&self) -> io::Result<(bool, bool)> {
        let content = match self.disk.read(&self.state_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((false, false)),
            outcome => outcome?,
        };
        let Ok(state) = serde_json::from_slice::<IndexState>(&content) else { return Ok((false, false)) };
        Ok((state.clean, state.clean || state.boot_id == self.disk.boot_id()?))
    }

    /// From now on the index is being written; `clean` says that it was closed instead.
    pub(super) fn set_index_state(&self, clean: bool) -> io::Result<()> {
        let state = IndexState { boot_id: self.disk.boot_id()?, clean };
        self.disk.replace(&self.state_path(), &to_json(&state))
    }

    fn state_path(&self) -> PathBuf {
        self.root.join("index.json")
    }
}

fn segments_dir(root: &Path) -> PathBuf {
    root.join("segments")
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("strings, numbers and booleans always encode")
}

fn read_identity(root: &Path, content: &[u8], realm: RealmId) -> Result<[u8; 16], TargetError> {
    let damaged = || TargetError::damaged(root, "target.json does not parse");
    let identity: Identity = serde_json::from_slice(content).map_err(|_| damaged())?;
    if identity.format != FORMAT {
        return Err(TargetError::damaged(root, "its format is of another version of holdfast"));
    }
    let owner: RealmId = identity.realm.parse().map_err(|_| damaged())?;
    if owner != realm {
        return Err(TargetError::Foreign { dir: root.to_owned(), realm: owner });
    }
    let mut uuid = [0; 16];
    hex::decode_to_slice(&identity.uuid, &mut uuid).map_err(|_| damaged())?;
    Ok(uuid)
}
