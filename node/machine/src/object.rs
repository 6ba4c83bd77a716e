//! Objects: put, delete, get.

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, UploadId, VersionId, WriteId};
use holdfast_proto::limits::OBJECT_BYTES_MAX;
use holdfast_proto::meta::{
    Bucket, Command, DeleteObject, Deleted, GetObject, Listed, ObjectFound, Outcome, PlacedPart,
    Preconditions, PutObject, Refusal, Version, Versioning, WriteOwner, answer, outcome, write_owner::Owner,
};

use crate::Halt;
use crate::key::{self, Spot};
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step, Stop, refuse};
use crate::session::Session;
use crate::writes::{Claim, Place};
use crate::{bucket, condition, version, wire};

/// How S3 names the null version.
const NULL: &[u8] = b"null";

impl<K: Kv> Session<'_, K> {
    pub(crate) fn put_object(&mut self, command: &Command, op: &PutObject) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        let bucket = bucket::find(self.kv, id)?;
        let spot = wire::spot(id, &bucket, &op.key)?;
        let place = Place { bucket: id, slot: spot.slot };
        let Some(given) = &op.version else { return wire::malformed("no version") };
        let Some(body) = &given.body else { return wire::malformed("no body") };
        if given.delete_marker || given.multipart.is_some() {
            return wire::malformed("a plain version has a body and nothing else");
        }
        let write: WriteId = wire::id(&body.write)?;
        match self.claim(place, write, Hlc::from_u64(given.begin_hlc))? {
            Claim::Free => {}
            Claim::Answered(outcome) => return Ok(outcome),
            Claim::Owned(owner) => return self.put_again(spot, &owner),
        }
        self.check_age(command)?;
        let current = match self.may_put(&bucket, spot, op, given.size) {
            Ok(current) => current,
            Err(stop) => return self.give_up(place, write, stop),
        };
        let version = Version {
            null: bucket.versioning() != Versioning::Enabled,
            modified_ms: self.hlc.ms(),
            ..given.clone()
        };
        let mut counters = self.counters(id, spot.slot)?;
        let version_id = self.insert_version(&bucket, spot, current.as_ref(), &version, &mut counters)?;
        self.put_counters(id, spot.slot, &counters);
        let owner = WriteOwner {
            owner: Some(Owner::Key(op.key.clone())),
            version: Bytes::copy_from_slice(&version_id.to_bytes()),
            outcome: None,
        };
        self.own(place, write, &owner, body, &op.missed);
        Ok(version::committed(version_id, &version))
    }

    /// The `cur` row as it is, when the put is allowed.
    fn may_put(&self, bucket: &Bucket, spot: Spot<'_>, op: &PutObject, size: u64) -> Step<Option<Listed>> {
        let none = Preconditions::default();
        let conditions = op.conditions.as_ref().unwrap_or(&none);
        bucket::check_generation(bucket, conditions.bucket_generation)?;
        bucket::check_writable(bucket)?;
        if size > OBJECT_BYTES_MAX {
            return refuse(Refusal::ObjectTooLarge, format!("{size} bytes"));
        }
        let current = version::current(self.kv, spot)?;
        condition::check(conditions, current.as_ref())?;
        Ok(current)
    }

    /// The answer of a PUT that was committed before, from the version it made.
    fn put_again(&self, spot: Spot<'_>, owner: &WriteOwner) -> Step<Outcome> {
        match &owner.owner {
            Some(Owner::Key(key)) if key == spot.key => {}
            _ => return wire::malformed("the write belongs to something else"),
        }
        let id: VersionId = wire::id(&owner.version)?;
        let version = row::read_sure(self.kv, &key::version(spot, id), "it owns a write")?;
        Ok(version::committed(id, &version))
    }

    pub(crate) fn delete_object(&mut self, op: &DeleteObject) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        let bucket = bucket::find(self.kv, id)?;
        let none = Preconditions::default();
        let conditions = op.conditions.as_ref().unwrap_or(&none);
        bucket::check_generation(&bucket, conditions.bucket_generation)?;
        bucket::check_writable(&bucket)?;
        let spot = wire::spot(id, &bucket, &op.key)?;
        let deleted = if op.version.is_empty() && !op.version_null {
            self.delete_current(&bucket, spot, op, conditions)?
        } else {
            self.delete_version(&bucket, spot, op, conditions)?
        };
        Ok(Outcome { ok: Some(outcome::Ok::Deleted(deleted)), ..Outcome::default() })
    }

    fn delete_current(
        &mut self,
        bucket: &Bucket,
        spot: Spot<'_>,
        op: &DeleteObject,
        conditions: &Preconditions,
    ) -> Step<Deleted> {
        let current = version::current(self.kv, spot)?;
        condition::check(conditions, current.as_ref())?;
        let mut counters = self.counters(spot.bucket, spot.slot)?;
        if bucket.versioning() == Versioning::Off {
            let Some((id, row)) = version::null(self.kv, bucket, spot)? else {
                return Ok(Deleted::default());
            };
            self.remove_version(spot, id, &row, &mut counters)?;
            self.refresh_current(spot, current.as_ref(), &mut counters)?;
            self.put_counters(spot.bucket, spot.slot, &counters);
            return Ok(Deleted::default());
        }
        let marker = Version {
            delete_marker: true,
            null: bucket.versioning() == Versioning::Suspended,
            owner: op.owner.clone(),
            modified_ms: self.hlc.ms(),
            ..Version::default()
        };
        let id = self.insert_version(bucket, spot, current.as_ref(), &marker, &mut counters)?;
        self.put_counters(spot.bucket, spot.slot, &counters);
        Ok(Deleted { marker: true, version: Bytes::copy_from_slice(&id.to_bytes()), null: marker.null })
    }

    fn delete_version(
        &mut self,
        bucket: &Bucket,
        spot: Spot<'_>,
        op: &DeleteObject,
        conditions: &Preconditions,
    ) -> Step<Deleted> {
        let found = find_version(self.kv, bucket, spot, &op.version, op.version_null)?;
        let listed =
            found.as_ref().filter(|(_, row)| !row.delete_marker).map(|(id, row)| version::listed(*id, row));
        condition::check(conditions, listed.as_ref())?;
        let Some((id, row)) = found else {
            // S3 answers a delete of what is not there as if it had been.
            let null = op.version_null || op.version.as_ref() == NULL;
            let version = if null { Bytes::new() } else { op.version.clone() };
            return Ok(Deleted { marker: false, version, null });
        };
        let current = version::current(self.kv, spot)?;
        let mut counters = self.counters(spot.bucket, spot.slot)?;
        self.remove_version(spot, id, &row, &mut counters)?;
        self.refresh_current(spot, current.as_ref(), &mut counters)?;
        self.put_counters(spot.bucket, spot.slot, &counters);
        let version = Bytes::copy_from_slice(&id.to_bytes());
        Ok(Deleted { marker: row.delete_marker, version, null: row.null })
    }
}

/// The version asked for by id, or the null one.
fn find_version(
    kv: &impl KvRead,
    bucket: &Bucket,
    spot: Spot<'_>,
    asked: &Bytes,
    null: bool,
) -> Step<Option<(VersionId, Version)>> {
    if null || asked.as_ref() == NULL {
        return Ok(version::null(kv, bucket, spot)?);
    }
    let id: VersionId = wire::id(asked)?;
    Ok(row::read(kv, &key::version(spot, id))?.map(|version| (id, version)))
}

/// Answers a read of one object. Refusals about a delete marker carry the marker, which S3 names in its answer.
pub(crate) fn get(kv: &impl KvRead, query: &GetObject) -> Result<holdfast_proto::meta::Answer, Halt> {
    match find(kv, query) {
        Ok((refusal, found)) => Ok(holdfast_proto::meta::Answer {
            refusal: refusal.into(),
            ok: found.map(answer::Ok::Object),
            ..Default::default()
        }),
        Err(stop) => row::answer(Err(stop)),
    }
}

fn find(kv: &impl KvRead, query: &GetObject) -> Step<(Refusal, Option<ObjectFound>)> {
    let id: BucketId = wire::id(&query.bucket)?;
    let bucket = bucket::find(kv, id)?;
    let spot = wire::spot(id, &bucket, &query.key)?;
    let current = version::current(kv, spot)?;
    let current_id = current.as_ref().map(|row: &Listed| version::id_of(spot, row)).transpose()?;
    let asked = !query.version.is_empty() || query.version_null;
    let found = if asked {
        find_version(kv, &bucket, spot, &query.version, query.version_null)?
    } else if let Some(id) = current_id {
        Some((id, row::read_sure(kv, &key::version(spot, id), "the current version")?))
    } else if bucket.versioning() == Versioning::Off {
        None
    } else {
        version::newest(kv, spot)?
    };
    let Some((version_id, row)) = found else {
        return Ok((if asked { Refusal::NoSuchVersion } else { Refusal::NoSuchKey }, None));
    };
    let refusal = match (row.delete_marker, asked) {
        (false, _) => Refusal::None,
        (true, true) => Refusal::MethodNotAllowed,
        (true, false) => Refusal::NoSuchKey,
    };
    let parts = match &row.multipart {
        Some(multipart) if !query.no_parts => {
            placed_parts(kv, Place { bucket: id, slot: spot.slot }, wire::id(&multipart.upload)?, query)?
        }
        _ => Vec::new(),
    };
    let found = ObjectFound {
        version: Some(row),
        version_id: Bytes::copy_from_slice(&version_id.to_bytes()),
        current: !asked || current_id == Some(version_id),
        parts,
        versioned: bucket.versioning() != Versioning::Off,
    };
    Ok((refusal, Some(found)))
}

/// The parts of a completed object that the query asks for.
fn placed_parts(
    kv: &impl KvRead,
    place: Place,
    upload: UploadId,
    query: &GetObject,
) -> Step<Vec<PlacedPart>> {
    let start = query.range_start.unwrap_or(0);
    let end = query.range_end.unwrap_or(u64::MAX);
    let prefix = key::parts(place.bucket, place.slot, upload);
    let (mut offset, mut ordinal) = (0, 0);
    let mut placed = Vec::new();
    for row in kv.scan(&prefix, &key::prefix_end(&prefix)) {
        let (key, value) = row.map_err(Stop::from)?;
        let (_, number, _) = key::parse_part(&key).ok_or_else(|| row::corrupt(&key, "no part"))?;
        let part: holdfast_proto::meta::Part = row::decode(&key, value)?;
        let (first, past) = (offset, offset + part.size);
        offset = past;
        ordinal += 1;
        let wanted = match query.part {
            0 => first < end && past > start,
            // S3's part-number reads count the parts of the object.
            wanted => wanted == ordinal,
        };
        if wanted {
            placed.push(PlacedPart { part: number.into(), ordinal, offset: first, row: Some(part) });
        }
        if query.part == ordinal || past >= end {
            break;
        }
    }
    Ok(placed)
}
