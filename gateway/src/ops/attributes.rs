//! GetObjectAttributes: what is known of an object without its data.

use holdfast_proto::meta::{GetObject, PlacedPart};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::{Store, caller, corrupt, page_limit, size_shown, version_query, version_shown};
use crate::checksum;
use crate::error::{self, S3Result, invalid_argument, invalid_request};
use crate::headers::{STANDARD, shown_time};

const ATTRIBUTES: [&str; 5] = ["Checksum", "ETag", "ObjectParts", "ObjectSize", "StorageClass"];

/// The attributes asked for; they may come in one header with commas or in several.
fn asked(given: &[ObjectAttributes]) -> S3Result<Vec<&str>> {
    let names: Vec<&str> = given
        .iter()
        .flat_map(|value| value.as_str().split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if names.is_empty() {
        return Err(invalid_request(
            "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty",
        ));
    }
    match names.iter().all(|name| ATTRIBUTES.contains(name)) {
        true => Ok(names),
        false => Err(invalid_argument("Invalid attribute name specified.")),
    }
}

fn part(placed: &PlacedPart, with_checksums: bool) -> ObjectPart {
    let row = placed.row.as_ref();
    let sums = match row {
        Some(row) if with_checksums => checksum::shown(&row.checksums),
        _ => checksum::Shown::default(),
    };
    ObjectPart {
        part_number: i32::try_from(placed.ordinal).ok(),
        size: row.map(|row| size_shown(row.size)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
    }
}

/// One page of the parts. S3 lists them one by one only for objects that carry a checksum.
fn parts(placed: &[PlacedPart], marker: i32, limit: i32, checksummed: bool) -> GetObjectAttributesParts {
    let after = marker.unsigned_abs();
    let limit_parts = limit.unsigned_abs() as usize;
    let rest: Vec<&PlacedPart> = placed.iter().filter(|placed| placed.ordinal > after).collect();
    let page: Vec<ObjectPart> =
        rest.iter().take(limit_parts).map(|placed| part(placed, checksummed)).collect();
    GetObjectAttributesParts {
        total_parts_count: i32::try_from(placed.len()).ok(),
        part_number_marker: Some(marker),
        next_part_number_marker: page.last().and_then(|part| part.part_number).or(Some(0)),
        max_parts: Some(limit),
        is_truncated: Some(limit > 0 && rest.len() > limit_parts),
        parts: checksummed.then_some(page),
    }
}

pub(super) async fn get(
    store: &Store,
    request: S3Request<GetObjectAttributesInput>,
) -> S3Result<S3Response<GetObjectAttributesOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let asked = asked(&input.object_attributes)?;
    let is_asked = |name| asked.contains(&name);
    let limit = page_limit(input.max_parts, "x-amz-max-parts")?;
    let marker = input.part_number_marker.unwrap_or(0);
    if marker < 0 {
        return Err(invalid_argument("Argument x-amz-part-number-marker must not be negative"));
    }
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let (version, version_null) = version_query(input.version_id.as_deref())?;
    let no_parts = !is_asked("ObjectParts");
    let query = GetObject { key: input.key.into(), version, version_null, no_parts, ..Default::default() };
    let mut found = store.cluster.get_object(&bucket, query).await.map_err(error::cluster)?;
    let version = found.version.take().ok_or_else(|| corrupt("an object"))?;
    let sums = checksum::shown(&version.checksums);
    let class = version
        .headers
        .as_ref()
        .map(|headers| headers.storage_class.clone())
        .filter(|class| !class.is_empty());
    let multipart = version.multipart.is_some();
    Ok(S3Response::new(GetObjectAttributesOutput {
        checksum: (is_asked("Checksum") && !version.checksums.is_empty()).then(|| Checksum {
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_crc64nvme: sums.crc64nvme,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_type: sums.kind.map(ChecksumType::from_static),
        }),
        object_parts: (is_asked("ObjectParts") && multipart)
            .then(|| parts(&found.parts, marker, limit, !version.checksums.is_empty())),
        object_size: is_asked("ObjectSize").then(|| size_shown(version.size)),
        storage_class: is_asked("StorageClass")
            .then(|| class.map_or_else(|| StorageClass::from_static(STANDARD), StorageClass::from)),
        last_modified: Some(shown_time(version.modified_ms)),
        version_id: version_shown(found.versioned, version.null, &found.version_id),
        // Without quotes, unlike everywhere else.
        e_tag: is_asked("ETag").then_some(ETag::Strong(version.etag)),
        ..Default::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_with_commas_or_in_several_headers() {
        let list = |texts: &[&str]| {
            texts.iter().map(|text| ObjectAttributes::from((*text).to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(
            asked(&list(&["ETag,ObjectSize", "Checksum"])).unwrap(),
            ["ETag", "ObjectSize", "Checksum"]
        );
        assert!(asked(&list(&[""])).is_err());
        assert!(asked(&list(&["Etag"])).is_err());
    }

    #[test]
    fn parts_are_paged() {
        let placed: Vec<PlacedPart> =
            (1..=5).map(|ordinal| PlacedPart { part: ordinal * 2, ordinal, offset: 0, row: None }).collect();
        let page = parts(&placed, 2, 2, true);
        let numbers: Vec<_> = page.parts.unwrap().iter().filter_map(|part| part.part_number).collect();
        assert_eq!(numbers, [3, 4]);
        assert_eq!(
            (page.total_parts_count, page.next_part_number_marker, page.is_truncated),
            (Some(5), Some(4), Some(true))
        );
        assert!(parts(&placed, 0, 2, false).parts.is_none());
    }
}
