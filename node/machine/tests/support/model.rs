//! S3 as its documentation tells it, in plain maps: what the machine is held against.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::limits::PART_BYTES_MIN;
use holdfast_proto::meta::{Refusal, Versioning};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// The ten bytes the machine gave it.
    pub(crate) id: Vec<u8>,
    pub(crate) null: bool,
    pub(crate) marker: bool,
    pub(crate) size: u64,
    pub(crate) etag: String,
}

#[derive(Debug, Clone)]
pub(crate) struct ModelUpload {
    pub(crate) key: Vec<u8>,
    /// Number -> (size, MD5 in hex).
    pub(crate) parts: BTreeMap<u32, (u64, String)>,
}

/// A condition of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    IfMatch(Vec<String>),
    IfNoneMatch(Vec<String>),
    IfSize(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Which {
    Current,
    Null,
    Id(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gone {
    Nothing,
    Removed(Stored),
    /// A marker was made; the caller fills its id in.
    Marker {
        null: bool,
    },
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) versioning: i32,
    /// Newest first.
    pub(crate) keys: BTreeMap<Vec<u8>, Vec<Stored>>,
    pub(crate) uploads: BTreeMap<Vec<u8>, ModelUpload>,
}

impl Model {
    fn versioning(&self) -> Versioning {
        Versioning::try_from(self.versioning).unwrap()
    }

    pub(crate) fn current(&self, key: &[u8]) -> Option<&Stored> {
        self.keys.get(key)?.first().filter(|newest| !newest.marker)
    }

    fn meets(condition: &Condition, object: Option<&Stored>) -> Result<(), Refusal> {
        let hit = |etags: &[String], object: &Stored| etags.iter().any(|e| e == "*" || *e == object.etag);
        match (condition, object) {
            (Condition::IfMatch(_), None) => Err(Refusal::NoSuchKey),
            (Condition::IfMatch(etags), Some(object)) if !hit(etags, object) => {
                Err(Refusal::PreconditionFailed)
            }
            (Condition::IfNoneMatch(etags), Some(object)) if hit(etags, object) => {
                Err(Refusal::PreconditionFailed)
            }
            (Condition::IfSize(size), Some(object)) if object.size != *size => {
                Err(Refusal::PreconditionFailed)
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, key: &[u8], mut stored: Stored) {
        stored.null = self.versioning() != Versioning::Enabled;
        let versions = self.keys.entry(key.to_vec()).or_default();
        if stored.null {
            versions.retain(|old| !old.null);
        }
        versions.insert(0, stored);
    }

    /// Whether the put is allowed; `commit` records it under the id the machine gave.
    pub(crate) fn may_put(&self, key: &[u8], condition: &Condition) -> Result<(), Refusal> {
        Self::meets(condition, self.current(key))
    }

    pub(crate) fn commit(&mut self, key: &[u8], id: &[u8], size: u64, etag: String) {
        self.add(key, Stored { id: id.to_vec(), null: false, marker: false, size, etag });
    }

    pub(crate) fn delete(
        &mut self,
        key: &[u8],
        which: &Which,
        condition: &Condition,
    ) -> Result<Gone, Refusal> {
        let null_on = self.versioning() == Versioning::Suspended;
        match which {
            Which::Current => {
                Self::meets(condition, self.current(key))?;
                if self.versioning() != Versioning::Off {
                    return Ok(Gone::Marker { null: null_on });
                }
                Ok(self.keys.remove(key).map_or(Gone::Nothing, |mut all| Gone::Removed(all.remove(0))))
            }
            which => {
                let found = self.keys.get(key).into_iter().flatten().find(|stored| match which {
                    Which::Id(id) => stored.id == *id,
                    _ => stored.null,
                });
                let found = found.cloned();
                Self::meets(condition, found.as_ref().filter(|stored| !stored.marker))?;
                let Some(found) = found else { return Ok(Gone::Nothing) };
                let versions = self.keys.get_mut(key).unwrap();
                versions.retain(|stored| *stored != found);
                if versions.is_empty() {
                    self.keys.remove(key);
                }
                Ok(Gone::Removed(found))
            }
        }
    }

    pub(crate) fn mark(&mut self, key: &[u8], id: &[u8]) {
        self.add(key, Stored { id: id.to_vec(), null: false, marker: true, size: 0, etag: String::new() });
    }

    /// What completing would make: size and number of parts.
    pub(crate) fn may_complete(
        &self,
        upload: &[u8],
        key: &[u8],
        listed: &[(u32, String)],
        condition: &Condition,
    ) -> Result<u64, Refusal> {
        let found = self.uploads.get(upload).filter(|found| found.key == key).ok_or(Refusal::NoSuchUpload)?;
        Self::meets(condition, self.current(key))?;
        if listed.is_empty() {
            return Err(Refusal::Malformed);
        }
        if listed.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            return Err(Refusal::InvalidPartOrder);
        }
        let mut sizes = Vec::new();
        for (number, etag) in listed {
            match found.parts.get(number) {
                Some((size, md5)) if md5 == etag => sizes.push(*size),
                _ => return Err(Refusal::InvalidPart),
            }
        }
        let last = sizes.len() - 1;
        if sizes[..last].iter().any(|size| *size < PART_BYTES_MIN) {
            return Err(Refusal::PartTooSmall);
        }
        Ok(sizes.iter().sum())
    }

    /// (objects, versions, markers, bytes, uploads, bytes of parts)
    pub(crate) fn count(&self) -> [u64; 6] {
        let all = || self.keys.values().flatten();
        let parts = self.uploads.values().flat_map(|upload| upload.parts.values());
        [
            self.keys.keys().filter(|key| self.current(key).is_some()).count() as u64,
            all().filter(|stored| !stored.marker).count() as u64,
            all().filter(|stored| stored.marker).count() as u64,
            all().map(|stored| stored.size).sum(),
            self.uploads.len() as u64,
            parts.map(|(size, _)| size).sum(),
        ]
    }

    /// Keys and common prefixes of a listing of `keys`.
    pub(crate) fn roll_up<'m>(
        keys: impl Iterator<Item = &'m Vec<u8>>,
        prefix: &[u8],
        delimiter: &[u8],
        after: &[u8],
    ) -> (Vec<Vec<u8>>, BTreeSet<Vec<u8>>) {
        let mut plain = Vec::new();
        let mut common = BTreeSet::new();
        for key in keys.filter(|key| key.starts_with(prefix) && key.as_slice() > after) {
            let rest = &key[prefix.len()..];
            let at = (0..rest.len()).find(|&at| !delimiter.is_empty() && rest[at..].starts_with(delimiter));
            match at {
                None => plain.push(key.clone()),
                Some(at) => {
                    let rolled = key[..prefix.len() + at + delimiter.len()].to_vec();
                    if !after.starts_with(&rolled) {
                        common.insert(rolled);
                    }
                }
            }
        }
        (plain, common)
    }
}
