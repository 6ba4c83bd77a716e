//! Multipart uploads: start, parts, abort, and what is asked of them. Completion is in `complete`.
//!
//! An upload in progress has an `upl` row; its parts are `prt` rows under its id. There is one row for each part number: a
//! newer attempt frees the older one's body, so the last one committed wins. After completion or abort there is no `upl`
//! row, and a late part finds NO_SUCH_UPLOAD: its body stays unowned, for its gateway to discard.

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, UploadId, WriteId};
use holdfast_proto::limits::{LIST_PAGE_MAX, PUT_BYTES_MAX};
use holdfast_proto::meta::{
    AbortUpload, Bucket, Command, CreateUpload, GetUpload, ListParts, ListPartsPage, ListedPart, Outcome,
    Part, PutPart, Refusal, Upload, UploadPart, WriteOwner, outcome, write_owner::Owner,
};

use crate::Halt;
use crate::key::{self, Spot};
use crate::kv::{Kv, KvRead};
use crate::row::{self, Step, Stop, refuse};
use crate::session::Session;
use crate::version::{self, committed_part};
use crate::writes::{Claim, Place};
use crate::{bucket, condition, wire};

/// The row of an upload in progress, or NO_SUCH_UPLOAD.
pub(crate) fn find(kv: &impl KvRead, spot: Spot<'_>, upload: UploadId) -> Step<Upload> {
    match row::read(kv, &key::upload(spot, upload))? {
        Some(row) => Ok(row),
        None => refuse(Refusal::NoSuchUpload, format!("upload {upload} is not in progress")),
    }
}

/// The row of a part of an upload.
fn find_part(
    kv: &impl KvRead,
    place: Place,
    upload: UploadId,
    number: u16,
) -> Result<Option<(Hlc, Part)>, Halt> {
    let prefix = key::part(place.bucket, place.slot, upload, number);
    let Some(row) = kv.scan(&prefix, &key::prefix_end(&prefix)).next() else { return Ok(None) };
    let (key, value) = row?;
    let (_, _, attempt) = key::parse_part(&key).ok_or_else(|| row::corrupt(&key, "no part"))?;
    Ok(Some((attempt, row::decode(&key, value)?)))
}

impl<K: Kv> Session<'_, K> {
    pub(crate) fn create_upload(&mut self, op: &CreateUpload) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        let bucket = self.writable(id)?;
        let spot = wire::spot(id, &bucket, &op.key)?;
        let Some(row) = &op.upload else { return wire::malformed("no upload") };
        let upload = UploadId { hlc: self.hlc, random: op.random };
        row::write(self.kv, key::upload(spot, upload), row);
        let mut counters = self.counters(id, spot.slot)?;
        counters.uploads += 1;
        self.put_counters(id, spot.slot, &counters);
        Ok(Outcome { ok: Some(outcome::Ok::Upload(upload.to_wire())), ..Outcome::default() })
    }

    pub(crate) fn writable(&self, id: BucketId) -> Step<Bucket> {
        let bucket = bucket::find(self.kv, id)?;
        bucket::check_writable(&bucket)?;
        Ok(bucket)
    }

    pub(crate) fn put_part(&mut self, command: &Command, op: &PutPart) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        let bucket = bucket::find(self.kv, id)?;
        let spot = wire::spot(id, &bucket, &op.key)?;
        let place = Place { bucket: id, slot: spot.slot };
        let upload: UploadId = wire::id(&op.upload)?;
        let number = wire::part_number(op.part)?;
        let Some(given) = &op.row else { return wire::malformed("no part") };
        let Some(body) = &given.body else { return wire::malformed("no body") };
        if given.md5.len() != 16 {
            return wire::malformed("an MD5 has 16 bytes");
        }
        let write: WriteId = wire::id(&body.write)?;
        let owned_by = UploadPart { upload: op.upload.clone(), part: op.part };
        match self.claim(place, write, Hlc::from_u64(op.begin_hlc))? {
            Claim::Free => {}
            Claim::Answered(outcome) => return Ok(outcome),
            Claim::Owned(owner) if owner.owner == Some(Owner::Part(owned_by.clone())) => {
                return match find_part(self.kv, place, upload, number)? {
                    Some((_, part)) => Ok(committed_part(&part)),
                    None => {
                        let key = key::part(place.bucket, place.slot, upload, number);
                        Err(row::corrupt(&key, "absent, but it owns a write").into())
                    }
                };
            }
            Claim::Owned(_) => return wire::malformed("the write belongs to something else"),
        }
        self.check_age(command)?;
        if given.size > PUT_BYTES_MAX {
            return refuse(Refusal::ObjectTooLarge, format!("a part of {} bytes", given.size));
        }
        if let Err(stop) = bucket::check_writable(&bucket).and_then(|()| find(self.kv, spot, upload)) {
            return self.give_up(place, write, stop);
        }

        let mut counters = self.counters(id, spot.slot)?;
        if let Some((attempt, old)) = find_part(self.kv, place, upload, number)? {
            counters.part_bytes -= old.size;
            self.remove_part(place, upload, number, attempt, &old)?;
        }
        let part = Part { modified_ms: self.hlc.ms(), ..given.clone() };
        row::write(self.kv, key::part_attempt(id, spot.slot, upload, number, self.hlc), &part);
        counters.part_bytes += part.size;
        self.put_counters(id, spot.slot, &counters);
        let owner = WriteOwner { owner: Some(Owner::Part(owned_by)), ..WriteOwner::default() };
        self.own(place, write, &owner, body, &op.missed);
        Ok(committed_part(&part))
    }

    pub(crate) fn abort_upload(&mut self, op: &AbortUpload) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        // Also while the bucket is being deleted: its uploads are aborted then.
        let bucket = bucket::find(self.kv, id)?;
        let spot = wire::spot(id, &bucket, &op.key)?;
        let upload: UploadId = wire::id(&op.upload)?;
        find(self.kv, spot, upload)?;
        if op.if_match_initiated_ms.is_some_and(|ms| !condition::same_second(ms, upload.hlc.ms())) {
            return refuse(Refusal::PreconditionFailed, "x-amz-if-match-initiated-time");
        }
        let place = Place { bucket: id, slot: spot.slot };
        self.kv.delete(&key::upload(spot, upload));
        let mut counters = self.counters(id, spot.slot)?;
        counters.uploads -= 1;
        for (number, attempt, part) in version::parts(self.kv, place, upload)? {
            counters.part_bytes -= part.size;
            self.remove_part(place, upload, number, attempt, &part)?;
        }
        self.put_counters(id, spot.slot, &counters);
        Ok(Outcome::default())
    }

    /// Frees the uploads of a bucket without versions, `parts_max` rows of parts at most. Whether none is left.
    pub(crate) fn drop_uploads(&mut self, bucket: BucketId, parts_max: usize) -> Step<bool> {
        let prefix = key::of_bucket(key::PRT, bucket);
        let rows: Vec<_> =
            self.kv.scan(&prefix, &key::prefix_end(&prefix)).take(parts_max).collect::<Result<_, _>>()?;
        let mut all = rows.len() < parts_max;
        for (key, value) in rows {
            let parsed = key::parse_place(key::PRT, &key).zip(key::parse_part(&key));
            let ((_, slot, _), (upload, number, attempt)) =
                parsed.ok_or_else(|| row::corrupt(&key, "no part"))?;
            let part: Part = row::decode(&key, value)?;
            self.remove_part(Place { bucket, slot }, upload, number, attempt, &part)?;
            let mut counters = self.counters(bucket, slot)?;
            counters.part_bytes -= part.size;
            self.put_counters(bucket, slot, &counters);
        }
        let prefix = key::of_bucket(key::UPL, bucket);
        if all {
            let rows: Vec<_> =
                self.kv.scan(&prefix, &key::prefix_end(&prefix)).take(parts_max).collect::<Result<_, _>>()?;
            all = rows.len() < parts_max;
            for (key, _) in rows {
                let (_, slot, _) =
                    key::parse_place(key::UPL, &key).ok_or_else(|| row::corrupt(&key, "no upload"))?;
                self.kv.delete(&key);
                let mut counters = self.counters(bucket, slot)?;
                counters.uploads -= 1;
                self.put_counters(bucket, slot, &counters);
            }
        }
        Ok(all)
    }
}

pub(crate) fn get(kv: &impl KvRead, query: &GetUpload) -> Step<Upload> {
    let id: BucketId = wire::id(&query.bucket)?;
    let bucket = bucket::find(kv, id)?;
    find(kv, wire::spot(id, &bucket, &query.key)?, wire::id(&query.upload)?)
}

/// The parts of an upload in progress, bodies left out.
pub(crate) fn list_parts(kv: &impl KvRead, query: &ListParts) -> Step<ListPartsPage> {
    let id: BucketId = wire::id(&query.bucket)?;
    let bucket = bucket::find(kv, id)?;
    let spot = wire::spot(id, &bucket, &query.key)?;
    let upload: UploadId = wire::id(&query.upload)?;
    let mut page = ListPartsPage { upload: Some(find(kv, spot, upload)?), ..ListPartsPage::default() };
    let limit = (query.limit as usize).min(LIST_PAGE_MAX);
    let Some(first) = u16::try_from(query.after).ok().and_then(|after| after.checked_add(1)) else {
        return Ok(page);
    };
    if limit == 0 {
        return Ok(page);
    }
    let end = key::prefix_end(&key::parts(id, spot.slot, upload));
    for row in kv.scan(&key::part(id, spot.slot, upload, first), &end) {
        let (key, value) = row.map_err(Stop::from)?;
        if page.parts.len() == limit {
            page.more = true;
            break;
        }
        let (_, number, _) = key::parse_part(&key).ok_or_else(|| row::corrupt(&key, "no part"))?;
        let mut part: Part = row::decode(&key, value)?;
        part.body = part.body.filter(|_| query.bodies);
        page.parts.push(ListedPart { part: number.into(), row: Some(part) });
    }
    Ok(page)
}
