//! Listings: objects (both forms), uploads, parts. Order is that of S3, by bytes of UTF-8; the cluster client merges the
//! slots.
//!
//! A continuation token holds the last key or common prefix of its page (see `token`); a listing is no snapshot.

use std::borrow::Cow;

use holdfast_proto::id::{AccountId, UploadId};
use holdfast_proto::meta::{self, ListObjectsPage, ListedKey};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::multipart::upload_id;
use super::{Store, caller, corrupt, page_limit, size_shown};
use crate::auth::{Caller, canonical_id};
use crate::checksum::{self, Algorithm};
use crate::error::{self, S3Result, invalid_argument};
use crate::headers::{STANDARD, shown_time};
use crate::token::{self, Kind};

/// What `encoding-type=url` leaves as it is.
const UNENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'*').remove(b'/');

/// How names are written into an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Encoding {
    url: bool,
}

impl Encoding {
    fn new(given: Option<&EncodingType>) -> S3Result<Self> {
        match given.map(EncodingType::as_str) {
            None => Ok(Self { url: false }),
            Some("url") => Ok(Self { url: true }),
            Some(_) => Err(invalid_argument("Invalid Encoding Method specified in Request")),
        }
    }

    fn shown(self) -> Option<EncodingType> {
        self.url.then(|| EncodingType::from_static(EncodingType::URL))
    }

    fn text(self, text: String) -> String {
        match self.url {
            false => text,
            true => match Cow::from(utf8_percent_encode(&text, &UNENCODED)) {
                Cow::Borrowed(_) => text,
                Cow::Owned(encoded) => encoded,
            },
        }
    }

    fn key(self, key: bytes::Bytes) -> S3Result<String> {
        Ok(self.text(String::from_utf8(key.into()).map_err(|_| corrupt("a key"))?))
    }

    fn prefixes(self, prefixes: Vec<bytes::Bytes>) -> S3Result<Option<Vec<CommonPrefix>>> {
        let shown: S3Result<Vec<_>> =
            prefixes.into_iter().map(|prefix| Ok(CommonPrefix { prefix: Some(self.key(prefix)?) })).collect();
        Ok(Some(shown?).filter(|shown| !shown.is_empty()))
    }
}

fn owner(caller: Caller) -> Owner {
    Owner { id: Some(canonical_id(caller.account)), ..Default::default() }
}

fn object(listed: ListedKey, encoding: Encoding, owner: Option<&Owner>) -> S3Result<Object> {
    let row = listed.row.ok_or_else(|| corrupt("a listed object"))?;
    let algorithm = Algorithm::from_stored(row.checksum_algorithm());
    let class = match row.storage_class.is_empty() {
        true => ObjectStorageClass::from_static(STANDARD),
        false => ObjectStorageClass::from(row.storage_class.clone()),
    };
    Ok(Object {
        checksum_algorithm: algorithm.map(|algorithm| vec![ChecksumAlgorithm::from_static(algorithm.name())]),
        checksum_type: checksum::kind_name(row.checksum_type()).map(ChecksumType::from_static),
        key: Some(encoding.key(listed.key)?),
        last_modified: Some(shown_time(row.modified_ms)),
        e_tag: Some(ETag::Strong(row.etag)),
        owner: owner.cloned(),
        size: Some(size_shown(row.size)),
        storage_class: Some(class),
        ..Default::default()
    })
}

/// One page, and where the next one starts.
struct Page {
    objects: Vec<Object>,
    prefixes: Option<Vec<CommonPrefix>>,
    count: usize,
    next: Option<bytes::Bytes>,
}

async fn page(
    store: &Store,
    bucket: &meta::Bucket,
    request: meta::ListObjects,
    encoding: Encoding,
    owner: Option<Owner>,
) -> S3Result<Page> {
    if request.limit == 0 {
        return Ok(Page { objects: Vec::new(), prefixes: None, count: 0, next: None });
    }
    let found = list_from_inside(store, bucket, request).await?;
    let next = last_of(&found);
    let count = found.keys.len() + found.common_prefixes.len();
    let objects: S3Result<Vec<Object>> =
        found.keys.into_iter().map(|key| object(key, encoding, owner.as_ref())).collect();
    Ok(Page { objects: objects?, prefixes: encoding.prefixes(found.common_prefixes)?, count, next })
}

/// The common prefix that `after` lies in, strictly: keys behind `after` may fold into it, which sorts before `after`.
fn prefix_around(request: &meta::ListObjects) -> Option<bytes::Bytes> {
    let (after, prefix, delimiter) = (&request.after, &request.prefix, &request.delimiter);
    if delimiter.is_empty() || !after.starts_with(prefix) {
        return None;
    }
    let at = after[prefix.len()..].windows(delimiter.len()).position(|window| window == delimiter)?;
    let end = prefix.len() + at + delimiter.len();
    (end < after.len()).then(|| after.slice(..end))
}

/// A page as S3 gives it when a client starts inside a common prefix: the prefix is listed if any key behind the start
/// folds into it. The cluster's listing gives only what sorts behind the start.
async fn list_from_inside(
    store: &Store,
    bucket: &meta::Bucket,
    request: meta::ListObjects,
) -> S3Result<ListObjectsPage> {
    let list = async |request| store.cluster.list_objects(bucket, request).await.map_err(error::cluster);
    let Some(around) = prefix_around(&request) else { return list(request).await };
    let inside = meta::ListObjects {
        prefix: around.clone(),
        delimiter: bytes::Bytes::new(),
        limit: 1,
        ..request.clone()
    };
    if list(inside).await?.keys.is_empty() {
        return list(request).await;
    }
    let limit = request.limit as usize;
    let mut page = list(request).await?;
    put_first(&mut page, around, limit);
    Ok(page)
}

/// Puts a prefix that sorts before all entries into a page, which stays within its limit.
fn put_first(page: &mut ListObjectsPage, prefix: bytes::Bytes, limit: usize) {
    if page.common_prefixes.first() == Some(&prefix) {
        return;
    }
    if page.keys.len() + page.common_prefixes.len() >= limit {
        page.more = true;
        let last_key = page.keys.last().map(|listed| &listed.key);
        match page.common_prefixes.last() {
            Some(last) if last_key.is_none_or(|key| key < last) => drop(page.common_prefixes.pop()),
            _ => drop(page.keys.pop()),
        }
    }
    page.common_prefixes.insert(0, prefix);
}

/// Where the next page starts: behind the greatest entry of this one. Nothing without a next page.
fn last_of(page: &ListObjectsPage) -> Option<bytes::Bytes> {
    if !page.more {
        return None;
    }
    let last_key = page.keys.last().map(|listed| &listed.key);
    let greatest = last_key.into_iter().chain(page.common_prefixes.last()).max().cloned();
    greatest.or_else(|| (!page.last.is_empty()).then(|| page.last.clone()))
}

pub(super) async fn objects_v2(
    store: &Store,
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let caller = caller(&request)?;
    let input = request.input;
    let encoding = Encoding::new(input.encoding_type.as_ref())?;
    let limit = page_limit(input.max_keys, "max-keys")?;
    let after = match (&input.continuation_token, &input.start_after) {
        (Some(given), _) => token::decode(Kind::Objects, given)?,
        (None, Some(start_after)) => start_after.clone().into_bytes(),
        (None, None) => Vec::new(),
    };
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let query = meta::ListObjects {
        prefix: prefix.clone().into(),
        delimiter: delimiter.clone().unwrap_or_default().into(),
        after: after.into(),
        limit: limit.unsigned_abs(),
        ..Default::default()
    };
    let shown_owner = input.fetch_owner.unwrap_or(false).then(|| owner(caller));
    let page = page(store, &bucket, query, encoding, shown_owner).await?;
    Ok(S3Response::new(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encoding.text(prefix)),
        delimiter: delimiter.map(|delimiter| encoding.text(delimiter)),
        start_after: input.start_after.map(|start_after| encoding.text(start_after)),
        max_keys: Some(limit),
        key_count: i32::try_from(page.count).ok(),
        continuation_token: input.continuation_token,
        is_truncated: Some(page.next.is_some()),
        next_continuation_token: page.next.map(|next| token::encode(Kind::Objects, &next)),
        contents: Some(page.objects),
        common_prefixes: page.prefixes,
        encoding_type: encoding.shown(),
        ..Default::default()
    }))
}

pub(super) async fn objects_v1(
    store: &Store,
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let encoding = Encoding::new(input.encoding_type.as_ref())?;
    let limit = page_limit(input.max_keys, "max-keys")?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let prefix = input.prefix.unwrap_or_default();
    let marker = input.marker.unwrap_or_default();
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let query = meta::ListObjects {
        prefix: prefix.clone().into(),
        delimiter: delimiter.clone().unwrap_or_default().into(),
        after: marker.clone().into(),
        limit: limit.unsigned_abs(),
        ..Default::default()
    };
    let page = page(store, &bucket, query, encoding, Some(owner(caller))).await?;
    let is_truncated = page.next.is_some();
    // S3 names the next marker with a delimiter only; without one it is the last key.
    let next_marker = match (&delimiter, page.next) {
        (Some(_), Some(next)) => Some(encoding.key(next)?),
        _ => None,
    };
    Ok(S3Response::new(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.text(prefix)),
        marker: Some(encoding.text(marker)),
        delimiter: delimiter.map(|delimiter| encoding.text(delimiter)),
        max_keys: Some(limit),
        is_truncated: Some(is_truncated),
        next_marker,
        contents: Some(page.objects),
        common_prefixes: page.prefixes,
        encoding_type: encoding.shown(),
        ..Default::default()
    }))
}

/// Whoever started an upload, as the answers name them.
fn starter(row: &meta::Upload) -> (Option<Owner>, Option<Initiator>) {
    let id = AccountId::from_wire(&row.owner).ok().map(canonical_id);
    (Some(Owner { id: id.clone(), ..Default::default() }), Some(Initiator { id, ..Default::default() }))
}

fn class_of(row: &meta::Upload) -> StorageClass {
    match row.headers.as_ref().map(|headers| headers.storage_class.as_str()) {
        None | Some("") => StorageClass::from_static(STANDARD),
        Some(class) => StorageClass::from(class.to_owned()),
    }
}

fn algorithm_of(row: &meta::Upload) -> Option<ChecksumAlgorithm> {
    Algorithm::from_stored(row.checksum_algorithm())
        .map(|algorithm| ChecksumAlgorithm::from_static(algorithm.name()))
}

fn upload(listed: meta::ListedUpload, encoding: Encoding) -> S3Result<MultipartUpload> {
    let row = listed.row.unwrap_or_default();
    let id = UploadId::from_wire(&listed.upload).map_err(|_| corrupt("an upload's id"))?;
    let (owner, initiator) = starter(&row);
    Ok(MultipartUpload {
        key: Some(encoding.key(listed.key)?),
        upload_id: Some(id.to_string()),
        initiated: Some(shown_time(id.hlc.ms())),
        owner,
        initiator,
        storage_class: Some(class_of(&row)),
        checksum_algorithm: algorithm_of(&row),
        checksum_type: checksum::kind_name(row.checksum_type()).map(ChecksumType::from_static),
    })
}

/// The key and the upload behind which the next page starts.
fn next_upload(page: &meta::ListUploadsPage) -> Option<(bytes::Bytes, Option<UploadId>)> {
    if !page.more {
        return None;
    }
    let last = page.uploads.last();
    let prefix = page.common_prefixes.last();
    match (last, prefix) {
        (Some(last), Some(prefix)) if *prefix > last.key => Some((prefix.clone(), None)),
        (Some(last), _) => Some((last.key.clone(), UploadId::from_wire(&last.upload).ok())),
        (None, Some(prefix)) => Some((prefix.clone(), None)),
        (None, None) => None,
    }
}

pub(super) async fn uploads(
    store: &Store,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let encoding = Encoding::new(input.encoding_type.as_ref())?;
    let limit = page_limit(input.max_uploads, "max-uploads")?;
    let key_marker = input.key_marker.unwrap_or_default();
    // S3 ignores an upload marker that has no key marker.
    let upload_marker = match (&input.upload_id_marker, key_marker.is_empty()) {
        (Some(marker), false) if !marker.is_empty() => {
            let marker =
                marker.parse::<UploadId>().map_err(|_| invalid_argument("Invalid uploadId marker"))?;
            marker.to_wire()
        }
        _ => bytes::Bytes::new(),
    };
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let prefix = input.prefix.unwrap_or_default();
    let delimiter = input.delimiter.filter(|delimiter| !delimiter.is_empty());
    let query = meta::ListUploads {
        prefix: prefix.clone().into(),
        delimiter: delimiter.clone().unwrap_or_default().into(),
        key_marker: key_marker.clone().into(),
        upload_marker,
        limit: limit.unsigned_abs(),
        ..Default::default()
    };
    let page = match limit {
        0 => meta::ListUploadsPage::default(),
        _ => store.cluster.list_uploads(&bucket, query).await.map_err(error::cluster)?,
    };
    let next = next_upload(&page);
    let is_truncated = Some(next.is_some());
    let (next_key, next_id) = next.unzip();
    let found: S3Result<Vec<_>> = page.uploads.into_iter().map(|row| upload(row, encoding)).collect();
    Ok(S3Response::new(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: Some(encoding.text(prefix)),
        delimiter: delimiter.map(|delimiter| encoding.text(delimiter)),
        key_marker: Some(encoding.text(key_marker)),
        upload_id_marker: Some(input.upload_id_marker.unwrap_or_default()),
        next_key_marker: next_key.map(|key| encoding.key(key)).transpose()?,
        next_upload_id_marker: next_id.flatten().map(|id| id.to_string()),
        max_uploads: Some(limit),
        is_truncated,
        uploads: Some(found?),
        common_prefixes: encoding.prefixes(page.common_prefixes)?,
        encoding_type: encoding.shown(),
        ..Default::default()
    }))
}

fn part(listed: &meta::ListedPart, algorithm: Option<Algorithm>) -> Part {
    let empty = meta::Part::default();
    let row = listed.row.as_ref().unwrap_or(&empty);
    let of_upload: Vec<_> = row
        .checksums
        .iter()
        .filter(|sum| Algorithm::from_stored(sum.algorithm()) == algorithm)
        .cloned()
        .collect();
    let sums = checksum::shown(&of_upload);
    Part {
        part_number: i32::try_from(listed.part).ok(),
        last_modified: Some(shown_time(row.modified_ms)),
        e_tag: Some(ETag::Strong(hex::encode(&row.md5))),
        size: Some(size_shown(row.size)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
    }
}

pub(super) async fn parts(
    store: &Store,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    let id = upload_id(&input.upload_id)?;
    let limit = page_limit(input.max_parts, "max-parts")?;
    let marker = input.part_number_marker.unwrap_or(0);
    let after = u32::try_from(marker).map_err(|_| {
        invalid_argument("Argument part-number-marker must be an integer between 0 and 2147483647")
    })?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let query = meta::ListParts {
        key: input.key.clone().into(),
        upload: id.to_wire(),
        after,
        limit: limit.unsigned_abs(),
        ..Default::default()
    };
    let page = store.cluster.list_parts(&bucket, query).await.map_err(error::cluster)?;
    let row = page.upload.unwrap_or_default();
    let algorithm = Algorithm::from_stored(row.checksum_algorithm());
    let (owner, initiator) = starter(&row);
    let found: Vec<Part> = page.parts.iter().map(|listed| part(listed, algorithm)).collect();
    Ok(S3Response::new(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        owner,
        initiator,
        storage_class: Some(class_of(&row)),
        checksum_algorithm: algorithm_of(&row),
        checksum_type: checksum::kind_name(row.checksum_type()).map(ChecksumType::from_static),
        part_number_marker: Some(marker),
        next_part_number_marker: found.last().and_then(|part| part.part_number).or(Some(0)),
        max_parts: Some(limit),
        is_truncated: Some(page.more && limit > 0),
        parts: Some(found),
        ..Default::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_encoding_comes_back_whichever_way_it_is_decoded() {
        let url = Encoding { url: true };
        assert_eq!(url.text("a/b c+d(é)\u{1}".to_owned()), "a/b%20c%2Bd%28%C3%A9%29%01");
        assert_eq!(url.text("plain/key-1_2.txt".to_owned()), "plain/key-1_2.txt");
        let plain = Encoding { url: false };
        assert_eq!(plain.text("a b".to_owned()), "a b");
        assert!(Encoding::new(Some(&EncodingType::from("x".to_owned()))).is_err());
    }

    fn key(name: &str) -> ListedKey {
        ListedKey { key: bytes::Bytes::copy_from_slice(name.as_bytes()), row: None }
    }

    #[test]
    fn the_next_page_starts_behind_the_greatest_entry() {
        let page = |keys: &[&str], prefixes: &[&'static str], more| ListObjectsPage {
            keys: keys.iter().map(|name| key(name)).collect(),
            common_prefixes: prefixes.iter().map(|name| bytes::Bytes::from_static(name.as_bytes())).collect(),
            more,
            last: bytes::Bytes::new(),
        };
        assert_eq!(last_of(&page(&["a", "b"], &["a/"], true)).unwrap(), "b");
        assert_eq!(last_of(&page(&["a", "b"], &["c/"], true)).unwrap(), "c/");
        assert_eq!(last_of(&page(&["a"], &[], false)), None);
    }

    fn around(after: &'static str, prefix: &'static str, delimiter: &'static str) -> Option<bytes::Bytes> {
        prefix_around(&meta::ListObjects {
            after: after.into(),
            prefix: prefix.into(),
            delimiter: delimiter.into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_start_inside_a_common_prefix_is_recognised() {
        assert_eq!(around("b/1", "", "/").unwrap(), "b/");
        assert_eq!(around("x/b/1/2", "x/", "/").unwrap(), "x/b/");
        assert_eq!(around("b/", "", "/"), None, "the prefix itself was listed before");
        assert_eq!(around("b", "", "/"), None);
        assert_eq!(around("b/1", "", ""), None);
        assert_eq!(around("b/1", "c", "/"), None);
    }

    #[test]
    fn a_prefix_put_first_keeps_the_page_within_its_limit() {
        let names = |page: &ListObjectsPage| {
            (
                page.keys.iter().map(|listed| listed.key.clone()).collect::<Vec<_>>(),
                page.common_prefixes.clone(),
            )
        };
        let full = || ListObjectsPage {
            keys: vec![key("c")],
            common_prefixes: vec!["d/".into()],
            ..Default::default()
        };
        let mut page = full();
        put_first(&mut page, "b/".into(), 3);
        assert_eq!(names(&page), (vec!["c".into()], vec!["b/".into(), "d/".into()]));
        assert!(!page.more);
        put_first(&mut page, "b/".into(), 3);
        assert_eq!(page.common_prefixes.len(), 2, "once");
        let mut page = full();
        put_first(&mut page, "b/".into(), 2);
        assert_eq!(names(&page), (vec!["c".into()], vec!["b/".into()]));
        assert!(page.more);
        let mut page = ListObjectsPage { keys: vec![key("c")], ..Default::default() };
        put_first(&mut page, "b/".into(), 1);
        assert_eq!(names(&page), (vec![], vec!["b/".into()]));
        assert_eq!(last_of(&page).unwrap(), "b/");
    }

    #[test]
    fn uploads_continue_behind_an_upload_or_a_prefix() {
        let id = UploadId { hlc: holdfast_proto::hlc::Hlc::from_ms(1), random: 2 };
        let row = |name: &'static str| meta::ListedUpload {
            key: bytes::Bytes::from_static(name.as_bytes()),
            upload: id.to_wire(),
            row: None,
        };
        let page = |prefix: &'static str| meta::ListUploadsPage {
            uploads: vec![row("b")],
            common_prefixes: vec![bytes::Bytes::from_static(prefix.as_bytes())],
            more: true,
        };
        assert_eq!(next_upload(&page("a/")), Some((bytes::Bytes::from_static(b"b"), Some(id))));
        assert_eq!(next_upload(&page("c/")), Some((bytes::Bytes::from_static(b"c/"), None)));
        assert_eq!(next_upload(&meta::ListUploadsPage { more: false, ..page("a/") }), None);
    }

    #[test]
    fn a_parts_checksum_is_shown_in_the_uploads_algorithm() {
        let sum = |algorithm, text| checksum::Value::parse(algorithm, text).unwrap().to_stored();
        let row = meta::Part {
            checksums: vec![sum(Algorithm::Crc32, "y/Q5Jg=="), sum(Algorithm::Crc32c, "4waSgw==")],
            ..Default::default()
        };
        let listed = meta::ListedPart { part: 1, row: Some(row) };
        let shown = part(&listed, Some(Algorithm::Crc32c));
        assert_eq!((shown.checksum_crc32, shown.checksum_crc32c.as_deref()), (None, Some("4waSgw==")));
        assert_eq!(part(&listed, None).checksum_crc32, None);
    }
}
