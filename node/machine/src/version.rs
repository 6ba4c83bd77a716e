//! The versions of a key: a set of `ver` rows, newest first, and what follows from it alone: the current version, its
//! listing row `cur` (only while it is visible, so never for a delete marker) and the slot's counters.
//!
//! A bucket whose versioning was never on holds at most one version of a key, the null one, and never a marker.

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{UploadId, VersionId};
use holdfast_proto::meta::{
    Bucket, Committed, Counters, Listed, MultipartRef, Outcome, Part, Version, Versioning, outcome,
};

use crate::Halt;
use crate::key::{self, Spot};
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step};
use crate::session::Session;
use crate::wire;
use crate::writes::Place;

/// The listing row of a version.
pub(crate) fn listed(id: VersionId, version: &Version) -> Listed {
    let checksum = version.checksums.first();
    Listed {
        version: bytes::Bytes::copy_from_slice(&id.to_bytes()),
        null: version.null,
        size: version.size,
        etag: version.etag.clone(),
        storage_class: version
            .headers
            .as_ref()
            .map(|headers| headers.storage_class.clone())
            .unwrap_or_default(),
        owner: version.owner.clone(),
        modified_ms: version.modified_ms,
        checksum_algorithm: checksum.map_or(0, |checksum| checksum.algorithm),
        checksum_type: checksum.map_or(0, |checksum| checksum.r#type),
    }
}

/// What the commit of a version answers, now and when it is repeated.
pub(crate) fn committed(id: VersionId, version: &Version) -> Outcome {
    let committed = Committed {
        version: bytes::Bytes::copy_from_slice(&id.to_bytes()),
        null: version.null,
        versioned: !version.null,
        etag: version.etag.clone(),
        modified_ms: version.modified_ms,
        checksums: version.checksums.clone(),
        size: version.size,
    };
    Outcome { ok: Some(outcome::Ok::Committed(committed)), ..Outcome::default() }
}

/// What the commit of a part answers.
pub(crate) fn committed_part(part: &Part) -> Outcome {
    let committed = Committed {
        etag: data_encoding::HEXLOWER.encode(&part.md5),
        modified_ms: part.modified_ms,
        checksums: part.checksums.clone(),
        size: part.size,
        ..Committed::default()
    };
    Outcome { ok: Some(outcome::Ok::Committed(committed)), ..Outcome::default() }
}

/// The listing row of the current version, while it is visible.
pub(crate) fn current(kv: &impl KvRead, spot: Spot<'_>) -> Result<Option<Listed>, Halt> {
    row::read(kv, &key::of_key(key::CUR, spot))
}

/// The version a listing row shows.
pub(crate) fn id_of(spot: Spot<'_>, listed: &Listed) -> Result<VersionId, Halt> {
    <[u8; 10]>::try_from(listed.version.as_ref())
        .map(VersionId::from_bytes)
        .map_err(|_| row::corrupt(&key::of_key(key::CUR, spot), "no version id"))
}

/// Versions of a key, newest first, lazily.
pub(crate) fn versions<'k>(
    kv: &'k impl KvRead,
    spot: Spot<'_>,
) -> impl Iterator<Item = Result<(VersionId, Version), Halt>> + 'k {
    let start = key::of_key(key::VER, spot);
    let key_len = start.len();
    kv.scan(&start, &key::prefix_end(&start)).map(move |row| {
        let (key, value) = row?;
        let id =
            key::parse_version_suffix(&key[key_len..]).ok_or_else(|| row::corrupt(&key, "no version id"))?;
        Ok((id, row::decode(&key, value)?))
    })
}

/// The newest version of a key, marker or not.
pub(crate) fn newest(kv: &impl KvRead, spot: Spot<'_>) -> Result<Option<(VersionId, Version)>, Halt> {
    versions(kv, spot).next().transpose()
}

/// The null version of a key.
pub(crate) fn null(
    kv: &impl KvRead,
    bucket: &Bucket,
    spot: Spot<'_>,
) -> Result<Option<(VersionId, Version)>, Halt> {
    if bucket.versioning() != Versioning::Off {
        return versions(kv, spot)
            .find(|row| row.as_ref().map_or(true, |(_, version)| version.null))
            .transpose();
    }
    let Some(listed) = current(kv, spot)? else { return Ok(None) };
    let id = id_of(spot, &listed)?;
    let version = row::read_sure(kv, &key::version(spot, id), "the current version")?;
    Ok(Some((id, version)))
}

/// The parts of an upload or of a completed object, in order, with their row keys.
pub(crate) fn parts(kv: &impl KvRead, place: Place, upload: UploadId) -> Result<Vec<(u16, Hlc, Part)>, Halt> {
    row::read_prefix::<Part>(kv, &key::parts(place.bucket, place.slot, upload))?
        .into_iter()
        .map(|(key, part)| {
            let (_, number, attempt) = key::parse_part(&key).ok_or_else(|| row::corrupt(&key, "no part"))?;
            Ok((number, attempt, part))
        })
        .collect()
}

impl<K: Kv> Session<'_, K> {
    /// Adds `version` as of now and replaces the null version where the bucket's versioning says so. `current` is the
    /// `cur` row as it was.
    pub(crate) fn insert_version(
        &mut self,
        bucket: &Bucket,
        spot: Spot<'_>,
        current: Option<&Listed>,
        version: &Version,
        counters: &mut Counters,
    ) -> Step<VersionId> {
        let id = VersionId::new(self.hlc, self.zone);
        let replaced = if version.null { null(self.kv, bucket, spot)? } else { None };
        if let Some((old, row)) = replaced {
            self.remove_version(spot, old, &row, counters)?;
        }
        row::write(self.kv, key::version(spot, id), version);
        if version.delete_marker {
            counters.markers += 1;
        } else {
            counters.versions += 1;
            counters.bytes += version.size;
        }
        let newest_known = match current {
            Some(listed) => Some(id_of(spot, listed)?),
            None if bucket.versioning() == Versioning::Off => Some(VersionId::default()),
            None => None,
        };
        match newest_known {
            Some(known) if known < id => self.set_current(spot, current, Some((id, version)), counters),
            // Markers, or versions from a zone whose clock is ahead: look.
            _ => self.refresh_current(spot, current, counters)?,
        }
        Ok(id)
    }

    /// Removes a version's row and frees what it holds. The caller sets the current version afterwards.
    pub(crate) fn remove_version(
        &mut self,
        spot: Spot<'_>,
        id: VersionId,
        version: &Version,
        counters: &mut Counters,
    ) -> Step<()> {
        self.kv.delete(&key::version(spot, id));
        if version.delete_marker {
            counters.markers -= 1;
            return Ok(());
        }
        counters.versions -= 1;
        counters.bytes -= version.size;
        let place = Place { bucket: spot.bucket, slot: spot.slot };
        if let Some(body) = &version.body {
            self.release(place, body, committed(id, version))?;
        }
        if let Some(MultipartRef { upload, .. }) = &version.multipart {
            let upload: UploadId = wire::id(upload)?;
            for (number, attempt, part) in parts(self.kv, place, upload)? {
                self.remove_part(place, upload, number, attempt, &part)?;
            }
        }
        Ok(())
    }

    /// Removes a part's row and frees its body.
    pub(crate) fn remove_part(
        &mut self,
        place: Place,
        upload: UploadId,
        number: u16,
        attempt: Hlc,
        part: &Part,
    ) -> Step<()> {
        let key = key::part_attempt(place.bucket, place.slot, upload, number, attempt);
        self.kv.delete(&key);
        match &part.body {
            Some(body) => self.release(place, body, committed_part(part)),
            None => Err(row::corrupt(&key, "no body").into()),
        }
    }

    /// Works out the current version from the set.
    pub(crate) fn refresh_current(
        &mut self,
        spot: Spot<'_>,
        was: Option<&Listed>,
        counters: &mut Counters,
    ) -> Result<(), Halt> {
        let newest = newest(self.kv, spot)?;
        let now = newest.as_ref().map(|(id, version)| (*id, version));
        self.set_current(spot, was, now, counters);
        Ok(())
    }

    fn set_current(
        &mut self,
        spot: Spot<'_>,
        was: Option<&Listed>,
        now: Option<(VersionId, &Version)>,
        counters: &mut Counters,
    ) {
        let key = key::of_key(key::CUR, spot);
        match now.filter(|(_, version)| !version.delete_marker) {
            Some((id, version)) => {
                row::write(self.kv, key, &listed(id, version));
                counters.objects += u64::from(was.is_none());
            }
            None if was.is_some() => {
                self.kv.delete(&key);
                counters.objects -= 1;
            }
            None => {}
        }
    }
}
