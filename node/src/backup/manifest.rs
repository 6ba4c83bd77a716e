//! What a backup says of itself: one line of JSON, and a line with the blake3 of the first in hex. Version 1.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::depot::Depot;

/// Written last.
pub(super) const NAME: &str = "MANIFEST";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    /// As text.
    pub(crate) realm: String,
    pub(crate) zone: u16,
    pub(crate) zone_name: String,
    /// Of the zone that was backed up: what a version must know to read the rows.
    pub(crate) feature_level: u32,
    /// By the clock of who made it.
    pub(crate) begun_ms: u64,
    pub(crate) finished_ms: u64,
    pub(crate) groups: Vec<GroupRows>,
}

/// The rows of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupRows {
    pub(crate) group: u64,
    /// The entry they are as of.
    pub(crate) term: u64,
    pub(crate) index: u64,
    /// The newest stamp in them.
    pub(crate) hlc: u64,
    pub(crate) rows: u64,
    /// Over all rows, in hex, as in a snapshot's tail.
    pub(crate) blake3: String,
    pub(crate) pieces: Vec<Piece>,
}

/// Whole rows, in key order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// In hex.
    pub(crate) blake3: String,
}

pub(super) fn hex_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

impl Manifest {
    pub(super) const VERSION: u32 = 1;

    pub(super) fn encode(&self) -> anyhow::Result<Bytes> {
        let line = serde_json::to_string(self)?;
        let check = hex_of(line.as_bytes());
        Ok(format!("{line}\n{check}\n").into())
    }

    pub(super) fn decode(bytes: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(bytes).context("the manifest is no text")?;
        let Some((line, check)) = text.split_once('\n') else { bail!("the manifest is cut off") };
        let whole = check == format!("{}\n", hex_of(line.as_bytes()));
        ensure!(whole, "the manifest does not match its checksum");
        let head: serde_json::Value = serde_json::from_str(line)?;
        let version = head["version"].as_u64();
        ensure!(version == Some(Self::VERSION.into()), "the manifest is of a version not known here");
        Ok(serde_json::from_str(line)?)
    }

    /// Reads that of a backup.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub(crate) async fn read(depot: &mut Depot) -> anyhow::Result<Self> {
        let found = depot.get(NAME).await?;
        let found = found.context("there is no manifest: no backup was finished here")?;
        Self::decode(&found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These bytes lie in backups: they never change.
    const GOLDEN: &str = include_str!("golden/MANIFEST");

    fn manifest() -> Manifest {
        Manifest {
            version: 1,
            realm: "00000000000000000000000007".into(),
            zone: 1,
            zone_name: "a".into(),
            feature_level: 2,
            begun_ms: 1_700_000_000_000,
            finished_ms: 1_700_000_000_500,
            groups: vec![GroupRows {
                group: 5,
                term: 2,
                index: 9,
                hlc: 77,
                rows: 1,
                blake3: hex_of(b"rows"),
                pieces: vec![Piece { name: "5-1-0".into(), bytes: 4, blake3: hex_of(b"rows") }],
            }],
        }
    }

    #[test]
    fn golden_manifest() {
        assert_eq!(manifest().encode().unwrap(), GOLDEN);
        assert_eq!(Manifest::decode(GOLDEN.as_bytes()).unwrap(), manifest());
    }

    #[test]
    fn a_damaged_manifest_is_none() {
        let flipped = GOLDEN.replacen("\"rows\":1", "\"rows\":2", 1);
        let newer = manifest_of_version(2);
        for bad in ["", "{}", &GOLDEN[..GOLDEN.len() / 2], &flipped, &newer] {
            assert!(Manifest::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    fn manifest_of_version(version: u32) -> String {
        let newer = Manifest { version, ..manifest() };
        String::from_utf8(newer.encode().unwrap().to_vec()).unwrap()
    }
}
