//! Completing a multipart upload: the listed parts become one version.
//!
//! The version names the upload, and its parts stay in their rows: none is rewritten. Parts that were uploaded but not
//! listed are freed. AWS: "CompleteMultipartUpload", "Multipart upload limits".

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, UploadId};
use holdfast_proto::limits::{OBJECT_BYTES_MAX, PART_BYTES_MIN, PARTS_MAX};
use holdfast_proto::meta::{
    Checksum, ChecksumAlgorithm, ChecksumType, CompletePart, CompleteUpload, MultipartRef, Outcome, Part,
    Preconditions, Refusal, Upload, Version, Versioning,
};
use md5::{Digest, Md5};

use crate::checksum;
use crate::key;
use crate::kv::Kv;
use crate::row::{Step, refuse};
use crate::session::Session;
use crate::writes::Place;
use crate::{bucket, condition, multipart, version, wire};

type Parts = BTreeMap<u16, (Hlc, Part)>;

impl<K: Kv> Session<'_, K> {
    pub(crate) fn complete_upload(&mut self, op: &CompleteUpload) -> Step<Outcome> {
        let id: BucketId = wire::id(&op.bucket)?;
        let bucket = self.writable(id)?;
        let none = Preconditions::default();
        let conditions = op.conditions.as_ref().unwrap_or(&none);
        bucket::check_generation(&bucket, conditions.bucket_generation)?;
        let spot = wire::spot(id, &bucket, &op.key)?;
        let place = Place { bucket: id, slot: spot.slot };
        let upload_id: UploadId = wire::id(&op.upload)?;
        let upload = multipart::find(self.kv, spot, upload_id)?;
        let current = version::current(self.kv, spot)?;
        condition::check(conditions, current.as_ref())?;
        let mut parts: Parts = version::parts(self.kv, place, upload_id)?
            .into_iter()
            .map(|(number, attempt, part)| (number, (attempt, part)))
            .collect();
        let part_bytes: u64 = parts.values().map(|(_, part)| part.size).sum();
        let listed = take_listed(&mut parts, &op.parts)?;
        let size = check_sizes(&listed, op.object_size)?;
        let checksum = whole_checksum(&upload, &listed, op.checksum.as_ref())?;

        let version = Version {
            null: bucket.versioning() != Versioning::Enabled,
            size,
            etag: etag(&listed),
            headers: upload.headers.clone(),
            checksums: checksum.into_iter().collect(),
            multipart: Some(MultipartRef { upload: op.upload.clone(), parts: op.parts.len() as u32 }),
            owner: upload.owner.clone(),
            begin_hlc: upload_id.hlc.get(),
            // S3 dates a multipart object by the start of its upload.
            modified_ms: upload_id.hlc.ms(),
            ..Version::default()
        };
        let mut counters = self.counters(id, spot.slot)?;
        counters.uploads -= 1;
        counters.part_bytes -= part_bytes;
        self.kv.delete(&key::upload(spot, upload_id));
        for (number, (attempt, part)) in &parts {
            self.remove_part(place, upload_id, *number, *attempt, part)?;
        }
        let version_id = self.insert_version(&bucket, spot, current.as_ref(), &version, &mut counters)?;
        self.put_counters(id, spot.slot, &counters);
        Ok(version::committed(version_id, &version))
    }
}

/// Takes the listed parts out of those uploaded, in the order of the list.
fn take_listed(uploaded: &mut Parts, asked: &[CompletePart]) -> Step<Vec<Part>> {
    if asked.is_empty() {
        return wire::malformed("no parts");
    }
    if asked.len() > PARTS_MAX as usize {
        return refuse(Refusal::TooMany, format!("{} parts", asked.len()));
    }
    if !asked.is_sorted_by(|a, b| a.part < b.part) {
        return refuse(Refusal::InvalidPartOrder, "parts are not in ascending order");
    }
    let invalid = |number, why| refuse(Refusal::InvalidPart, format!("part {number}: {why}"));
    asked
        .iter()
        .map(|asked| {
            let number = asked.part;
            let Some((_, part)) = u16::try_from(number).ok().and_then(|number| uploaded.remove(&number))
            else {
                return invalid(number, "not uploaded");
            };
            if !asked.etag.eq_ignore_ascii_case(&data_encoding::HEXLOWER.encode(&part.md5)) {
                return invalid(number, "another ETag");
            }
            let repeated = |sum: &Checksum| {
                part.checksums.iter().any(|have| have.algorithm == sum.algorithm && have.value == sum.value)
            };
            if !asked.checksums.iter().all(repeated) {
                return invalid(number, "another checksum");
            }
            Ok(part)
        })
        .collect()
}

fn check_sizes(parts: &[Part], claimed: Option<u64>) -> Step<u64> {
    let last = parts.len() - 1;
    if let Some(small) = parts[..last].iter().position(|part| part.size < PART_BYTES_MIN) {
        let detail = format!("the part in place {} has {} bytes", small + 1, parts[small].size);
        return refuse(Refusal::PartTooSmall, detail);
    }
    let size = parts.iter().map(|part| part.size).sum();
    if size > OBJECT_BYTES_MAX {
        return refuse(Refusal::ObjectTooLarge, format!("{size} bytes"));
    }
    if claimed.is_some_and(|claimed| claimed != size) {
        return refuse(Refusal::SizeMismatch, format!("the parts have {size} bytes"));
    }
    Ok(size)
}

/// The checksum of the object in the upload's algorithm, or in the claimed one where the upload named none; compared with
/// the claim.
fn whole_checksum(upload: &Upload, parts: &[Part], claimed: Option<&Checksum>) -> Step<Option<Checksum>> {
    let claimed = claimed.filter(|sum| sum.algorithm() != ChecksumAlgorithm::ChecksumNone);
    let algorithm = match upload.checksum_algorithm() {
        ChecksumAlgorithm::ChecksumNone => {
            claimed.map_or(ChecksumAlgorithm::ChecksumNone, Checksum::algorithm)
        }
        algorithm => algorithm,
    };
    if algorithm == ChecksumAlgorithm::ChecksumNone {
        return Ok(None);
    }
    let asked = match upload.checksum_type() {
        ChecksumType::None => claimed.map_or(ChecksumType::None, Checksum::r#type),
        asked => asked,
    };
    let kind = checksum::type_of(algorithm, asked);
    let mut sums: Vec<(Bytes, u64)> = Vec::with_capacity(parts.len());
    for (place, part) in parts.iter().enumerate() {
        let Some(sum) = part.checksums.iter().find(|sum| sum.algorithm() == algorithm) else {
            let detail =
                format!("the part in place {} has no {} checksum", place + 1, algorithm.as_str_name());
            return refuse(Refusal::InvalidPart, detail);
        };
        sums.push((sum.value.clone(), part.size));
    }
    let Some(whole) = checksum::of_parts(algorithm, kind, &sums) else {
        return wire::malformed(format!("no {} checksum is {}", algorithm.as_str_name(), kind.as_str_name()));
    };
    let differs = |claimed: &Checksum| {
        claimed.algorithm != whole.algorithm
            || claimed.value != whole.value
            || (claimed.parts != 0 && whole.parts != 0 && claimed.parts != whole.parts)
    };
    if claimed.is_some_and(differs) {
        return refuse(Refusal::ChecksumMismatch, "the object's checksum is another");
    }
    Ok(Some(whole))
}

/// The MD5 of the parts' binary MD5s, and how many they are.
fn etag(parts: &[Part]) -> String {
    let md5 = parts.iter().fold(Md5::new(), |md5, part| md5.chain_update(&part.md5)).finalize();
    format!("{}-{}", data_encoding::HEXLOWER.encode(&md5), parts.len())
}
