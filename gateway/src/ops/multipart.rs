//! Multipart uploads: start, parts, completion, abort. Listings of uploads and parts are in `list`.
//!
//! A part's checksum is always computed in the upload's algorithm, sent by the client or not, so that completion can
//! make the object's checksum from the parts'.

use std::sync::Arc;

use holdfast_client::{StoredBody, WriteIntent};
use holdfast_proto::id::{PartNumber, UploadId};
use holdfast_proto::meta::{self, Bucket, CompletePart, CompleteUpload, Part, Upload};
use md5::{Digest as _, Md5};
use s3s::dto::*;
use s3s::{S3Request, S3Response};

use super::{Store, bucket_id, caller, decoder, put_failed, ticket, version_shown};
use crate::body::{Declared, Digests, UploadBody, verify_xml};
use crate::checksum::{self, Algorithm, Value};
use crate::condition::write_preconditions;
use crate::error::{self, S3Error, S3ErrorCode, S3Result, invalid_argument, invalid_request, refuse};
use crate::headers::{Given, storage_class};
use crate::name::check_key;

/// An upload's id as clients name it.
///
/// # Errors
/// NoSuchUpload for anything that is none.
pub(super) fn upload_id(text: &str) -> S3Result<UploadId> {
    text.parse().map_err(|_| {
        error::cluster(holdfast_client::Error::Refused {
            refusal: meta::Refusal::NoSuchUpload,
            detail: String::new(),
        })
    })
}

fn part_number(number: i32) -> S3Result<PartNumber> {
    u32::try_from(number)
        .ok()
        .and_then(PartNumber::new)
        .ok_or_else(|| invalid_argument("Part number must be an integer between 1 and 10000, inclusive"))
}

fn malformed() -> S3Error {
    refuse(
        S3ErrorCode::MalformedXML,
        "The XML you provided was not well-formed or did not validate against our published schema",
    )
}

fn checksum_kind(name: &str) -> S3Result<meta::ChecksumType> {
    match name {
        "FULL_OBJECT" => Ok(meta::ChecksumType::FullObject),
        "COMPOSITE" => Ok(meta::ChecksumType::Composite),
        _ => Err(invalid_request("Value for x-amz-checksum-type header is invalid.")),
    }
}

/// The checksum that an upload will carry.
fn upload_checksum(
    algorithm: Option<&str>,
    kind: Option<&str>,
) -> S3Result<(meta::ChecksumAlgorithm, meta::ChecksumType)> {
    let kind = kind.map(checksum_kind).transpose()?;
    let Some(algorithm) = algorithm.map(checksum::named).transpose()? else {
        return match kind {
            None => Ok((meta::ChecksumAlgorithm::ChecksumNone, meta::ChecksumType::None)),
            Some(_) => Err(invalid_request(
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )),
        };
    };
    let kind = kind.unwrap_or_else(|| algorithm.multipart_type());
    if !algorithm.allows(kind) {
        return Err(invalid_request(format!(
            "The {} checksum type cannot be used with the {} checksum algorithm.",
            checksum::kind_name(kind).unwrap_or_default(),
            algorithm.name().to_lowercase(),
        )));
    }
    Ok((algorithm.to_stored(), kind))
}

pub(super) async fn create(
    store: &Store,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let caller = caller(&request)?;
    let input = request.input;
    check_key(&input.key)?;
    let (algorithm, kind) = upload_checksum(
        input.checksum_algorithm.as_ref().map(ChecksumAlgorithm::as_str),
        input.checksum_type.as_ref().map(ChecksumType::as_str),
    )?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let class = storage_class(&store.cluster, input.storage_class.as_ref().map(StorageClass::as_str))?;
    let headers = Given {
        content_type: input.content_type,
        content_encoding: input.content_encoding,
        content_language: input.content_language,
        content_disposition: input.content_disposition,
        cache_control: input.cache_control,
        expires: input.expires,
        metadata: input.metadata,
    }
    .into_stored(class)?;
    let row = Upload {
        headers: Some(headers),
        owner: caller.account.to_wire(),
        checksum_algorithm: algorithm.into(),
        checksum_type: kind.into(),
    };
    let upload =
        store.cluster.create_upload(&bucket, input.key.as_bytes(), row).await.map_err(error::cluster)?;
    Ok(S3Response::new(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(upload.to_string()),
        checksum_algorithm: Algorithm::from_stored(algorithm)
            .map(|algorithm| ChecksumAlgorithm::from_static(algorithm.name())),
        checksum_type: checksum::kind_name(kind).map(ChecksumType::from_static),
        ..Default::default()
    }))
}

/// A part's place in an upload that exists.
pub(super) struct PartSpot {
    bucket: Arc<Bucket>,
    key: String,
    id: UploadId,
    number: PartNumber,
    upload: Upload,
}

impl PartSpot {
    /// # Errors
    /// NoSuchUpload, InvalidArgument for a number out of range.
    pub(super) async fn find(
        store: &Store,
        bucket: Arc<Bucket>,
        key: String,
        upload: &str,
        number: i32,
    ) -> S3Result<Self> {
        let (id, number) = (upload_id(upload)?, part_number(number)?);
        check_key(&key)?;
        let upload = store.cluster.get_upload(&bucket, key.as_bytes(), id).await.map_err(error::cluster)?;
        Ok(Self { bucket, key, id, number, upload })
    }

    /// The algorithm in which every part of the upload has a checksum.
    pub(super) fn algorithm(&self) -> Option<Algorithm> {
        Algorithm::from_stored(self.upload.checksum_algorithm())
    }

    pub(super) fn intent(&self, length: u64) -> S3Result<WriteIntent> {
        let headers = self.upload.headers.clone();
        Ok(WriteIntent {
            bucket: bucket_id(&self.bucket)?,
            key: self.key.clone().into(),
            upload: Some((self.id, self.number)),
            length,
            storage_class: headers.as_ref().map(|headers| headers.storage_class.clone()).unwrap_or_default(),
            headers,
        })
    }
}

/// Makes a stored body the part.
pub(super) async fn commit_part(
    store: &Store,
    spot: &PartSpot,
    stored: StoredBody,
    digests: &Digests,
    length: u64,
) -> S3Result<()> {
    let row = Part {
        body: Some(stored.body.clone()),
        size: length,
        md5: bytes::Bytes::copy_from_slice(&digests.md5),
        checksums: digests.checksums.iter().map(Value::to_stored).collect(),
        modified_ms: 0,
    };
    let key = spot.key.as_bytes();
    let committed = store
        .cluster
        .put_part(&spot.bucket, key, spot.id, spot.number, row, stored.begin, stored.missed)
        .await;
    match committed {
        Ok(()) => Ok(()),
        Err(failure) => Err(store.commit_failed(&stored.body, failure)),
    }
}

pub(super) async fn part(
    store: &Store,
    request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let caller = caller(&request)?;
    let ticket = ticket(&request)?;
    let declared = Declared::from_headers(&request.headers)?;
    let decoder = decoder(&request, &declared)?;
    let input = request.input;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    let spot = PartSpot::find(store, bucket, input.key, &input.upload_id, input.part_number).await?;
    let algorithm = spot.algorithm();
    if let (Some(expected), Some(sent)) = (algorithm, declared.algorithm())
        && expected != sent
    {
        return Err(invalid_request(format!(
            "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {}",
            expected.name().to_lowercase(),
            sent.name().to_lowercase(),
        )));
    }
    let length = declared.length;
    let sent = declared.algorithm();
    let _room = store.inflight.enter(length).await?;
    let mut source = UploadBody::new(ticket, declared, decoder, algorithm, store.idle);
    let stored = store.cluster.put_body(spot.intent(length)?, &mut source).await.map_err(put_failed)?;
    let digests = source.digests().ok_or_else(|| {
        refuse(S3ErrorCode::InternalError, "the body was stored before it had been verified")
    })?;
    commit_part(store, &spot, stored, &digests, length).await?;
    let shown: Vec<_> = digests
        .checksums
        .iter()
        .filter(|value| sent.or(algorithm) == Some(value.algorithm))
        .map(Value::to_stored)
        .collect();
    let sums = checksum::shown(&shown);
    Ok(S3Response::new(UploadPartOutput {
        e_tag: Some(ETag::Strong(hex::encode(digests.md5))),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        ..Default::default()
    }))
}

/// The checksum of the object that a completion claims: `-N` behind a composite one.
fn claimed_whole(
    texts: [(Algorithm, Option<&str>); 5],
    kind: Option<&str>,
) -> S3Result<Option<meta::Checksum>> {
    let kind = kind.map(checksum_kind).transpose()?;
    let mut given = texts.into_iter().filter_map(|(algorithm, text)| Some((algorithm, text?)));
    let Some((algorithm, text)) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(invalid_request(
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        ));
    }
    let bad = || invalid_request(format!("Value for {} header is invalid.", algorithm.header()));
    let (value, parts) = match text.split_once('-') {
        Some((value, parts)) => (value, parts.parse::<u32>().map_err(|_| bad())?),
        None => (text, 0),
    };
    let mut stored = Value::parse(algorithm, value).ok_or_else(bad)?.to_stored();
    let kind =
        kind.unwrap_or(if parts > 0 { meta::ChecksumType::Composite } else { meta::ChecksumType::None });
    stored.r#type = kind.into();
    stored.parts = parts;
    Ok(Some(stored))
}

pub(super) async fn complete(
    store: &Store,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let caller = caller(&request)?;
    let mut md5_alone = http::HeaderMap::new();
    if let Some(md5) = request.headers.get("content-md5") {
        md5_alone.insert("content-md5", md5.clone());
    }
    // The checksums among the headers are those of the object.
    verify_xml(&md5_alone, &ticket(&request)?.take_xml(), false)?;
    let input = request.input;
    check_key(&input.key)?;
    let conditions = write_preconditions(input.if_match.as_ref(), input.if_none_match.as_ref())?;
    let id = upload_id(&input.upload_id)?;
    let given = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    if given.is_empty() || given.len() > holdfast_proto::limits::PARTS_MAX as usize {
        return Err(malformed());
    }
    let mut parts = Vec::with_capacity(given.len());
    for part in given {
        let number = part.part_number.ok_or_else(malformed)?;
        parts.push(CompletePart {
            part: u32::from(part_number(number)?.get()),
            etag: part.e_tag.ok_or_else(malformed)?.into_value(),
            checksums: checksum::repeated([
                (Algorithm::Crc32, part.checksum_crc32.as_deref()),
                (Algorithm::Crc32c, part.checksum_crc32c.as_deref()),
                (Algorithm::Crc64Nvme, part.checksum_crc64nvme.as_deref()),
                (Algorithm::Sha1, part.checksum_sha1.as_deref()),
                (Algorithm::Sha256, part.checksum_sha256.as_deref()),
            ])?,
        });
    }
    let kind = input.checksum_type.as_ref().map(ChecksumType::as_str);
    let whole = claimed_whole(
        [
            (Algorithm::Crc32, input.checksum_crc32.as_deref()),
            (Algorithm::Crc32c, input.checksum_crc32c.as_deref()),
            (Algorithm::Crc64Nvme, input.checksum_crc64nvme.as_deref()),
            (Algorithm::Sha1, input.checksum_sha1.as_deref()),
            (Algorithm::Sha256, input.checksum_sha256.as_deref()),
        ],
        kind,
    )?;
    let object_size = input
        .mpu_object_size
        .map(|size| {
            u64::try_from(size)
                .map_err(|_| invalid_request("Value for x-amz-mp-object-size header is invalid."))
        })
        .transpose()?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    if whole.is_some() || kind.is_some() {
        match store.cluster.get_upload(&bucket, input.key.as_bytes(), id).await {
            Ok(upload) => check_against_upload(&upload, whole.as_ref(), kind)?,
            // It may have been completed before: the command will tell.
            Err(failure) if failure.refusal() == Some(meta::Refusal::NoSuchUpload) => {}
            Err(failure) => return Err(error::cluster(failure)),
        }
    }
    let etag = whole_etag(&parts);
    let command = CompleteUpload {
        key: input.key.clone().into(),
        upload: id.to_wire(),
        parts,
        conditions: Some(conditions),
        checksum: whole,
        object_size,
        ..Default::default()
    };
    let committed = match store.cluster.complete_upload(&bucket, command).await {
        Ok(committed) => committed,
        Err(failure) if failure.refusal() == Some(meta::Refusal::NoSuchUpload) => {
            match completed_before(store, &bucket, &input.key, id, etag.as_deref()).await {
                Some(committed) => committed,
                None => return Err(error::cluster(failure)),
            }
        }
        Err(failure) => return Err(error::cluster(failure)),
    };
    let sums = checksum::shown(&committed.checksums);
    Ok(S3Response::new(CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(ETag::Strong(committed.etag)),
        checksum_crc32: sums.crc32,
        checksum_crc32c: sums.crc32c,
        checksum_crc64nvme: sums.crc64nvme,
        checksum_sha1: sums.sha1,
        checksum_sha256: sums.sha256,
        checksum_type: sums.kind.map(ChecksumType::from_static),
        version_id: version_shown(committed.versioned, committed.null, &committed.version),
        ..Default::default()
    }))
}

/// The ETag that a completion of these parts makes; `None` when one of theirs is no MD5.
fn whole_etag(parts: &[CompletePart]) -> Option<String> {
    let mut md5 = Md5::new();
    for part in parts {
        let mut raw = [0; 16];
        hex::decode_to_slice(&part.etag, &mut raw).ok()?;
        md5.update(raw);
    }
    Some(format!("{}-{}", hex::encode(md5.finalize()), parts.len()))
}

/// The object that this very upload became, when the first answer was lost on its way and the client asks again.
async fn completed_before(
    store: &Store,
    bucket: &Bucket,
    key: &str,
    id: UploadId,
    etag: Option<&str>,
) -> Option<meta::Committed> {
    let key = bytes::Bytes::copy_from_slice(key.as_bytes());
    let query = meta::GetObject { key, no_parts: true, ..Default::default() };
    let found = store.cluster.get_object(bucket, query).await.ok()?;
    let version = found.version?;
    let is_it = version.multipart.as_ref().is_some_and(|of| of.upload == id.to_wire());
    (is_it && etag == Some(version.etag.as_str())).then(|| meta::Committed {
        version: found.version_id,
        null: version.null,
        versioned: found.versioned,
        etag: version.etag,
        modified_ms: version.modified_ms,
        checksums: version.checksums,
        size: version.size,
    })
}

/// A completion must not speak of another kind of checksum than its upload.
fn check_against_upload(upload: &Upload, whole: Option<&meta::Checksum>, kind: Option<&str>) -> S3Result<()> {
    if upload.checksum_algorithm() == meta::ChecksumAlgorithm::ChecksumNone {
        return Ok(());
    }
    let kind_differs = kind.is_some_and(|kind| Some(kind) != checksum::kind_name(upload.checksum_type()));
    let algorithm_differs = whole.is_some_and(|whole| whole.algorithm() != upload.checksum_algorithm());
    if kind_differs || algorithm_differs {
        return Err(invalid_request(
            "The upload was created using another checksum mode. The complete request must use the same checksum mode.",
        ));
    }
    Ok(())
}

pub(super) async fn abort(
    store: &Store,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let caller = caller(&request)?;
    let input = &request.input;
    let id = upload_id(&input.upload_id)?;
    let bucket = store.bucket(&input.bucket, caller, input.expected_bucket_owner.as_deref()).await?;
    store.cluster.abort_upload(&bucket, input.key.as_bytes(), id).await.map_err(error::cluster)?;
    Ok(S3Response::new(AbortMultipartUploadOutput::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_carry_what_s3_allows() {
        use meta::{ChecksumAlgorithm as A, ChecksumType as T};
        let kinds = |algorithm, kind| upload_checksum(algorithm, kind).ok();
        assert_eq!(kinds(None, None), Some((A::ChecksumNone, T::None)));
        assert_eq!(kinds(Some("CRC32"), None), Some((A::Crc32, T::Composite)));
        assert_eq!(kinds(Some("CRC32"), Some("FULL_OBJECT")), Some((A::Crc32, T::FullObject)));
        assert_eq!(kinds(Some("CRC64NVME"), None), Some((A::Crc64nvme, T::FullObject)));
        assert_eq!(kinds(Some("CRC64NVME"), Some("COMPOSITE")), None);
        assert_eq!(kinds(Some("SHA256"), Some("FULL_OBJECT")), None);
        assert_eq!(kinds(Some("MD4"), None), None);
        assert_eq!(kinds(None, Some("COMPOSITE")), None);
    }

    #[test]
    fn claims_of_a_whole_object_may_be_composite() {
        let claim = |text| {
            claimed_whole(
                [
                    (Algorithm::Crc32, text),
                    (Algorithm::Crc32c, None),
                    (Algorithm::Crc64Nvme, None),
                    (Algorithm::Sha1, None),
                    (Algorithm::Sha256, None),
                ],
                None,
            )
        };
        assert_eq!(claim(None).unwrap(), None);
        let composite = claim(Some("y/Q5Jg==-3")).unwrap().unwrap();
        assert_eq!((composite.parts, composite.r#type()), (3, meta::ChecksumType::Composite));
        assert_eq!(claim(Some("y/Q5Jg==")).unwrap().unwrap().r#type(), meta::ChecksumType::None);
        assert!(claim(Some("y/Q5Jg==-x")).is_err());
        assert!(claim(Some("AAAA")).is_err());
    }

    #[test]
    fn a_whole_etag_is_the_md5_of_the_parts_md5s() {
        let part = |etag: &str| CompletePart { part: 1, etag: etag.to_owned(), checksums: Vec::new() };
        let empty = "d41d8cd98f00b204e9800998ecf8427e";
        assert_eq!(whole_etag(&[part(empty)]).as_deref(), Some("59adb24ef3cdbe0297f05b395827453f-1"));
        assert_eq!(whole_etag(&[part("x")]), None);
    }

    #[test]
    fn ids_that_are_none_are_unknown_uploads() {
        assert_eq!(upload_id("nonsense").unwrap_err().code().as_str(), "NoSuchUpload");
        assert!(upload_id(&UploadId::default().to_string()).is_ok());
        assert!(part_number(0).is_err());
        assert!(part_number(10_001).is_err());
        assert!(part_number(10_000).is_ok());
    }

    #[test]
    fn a_completion_speaks_of_its_uploads_checksum() {
        let upload = Upload {
            checksum_algorithm: meta::ChecksumAlgorithm::Crc32.into(),
            checksum_type: meta::ChecksumType::FullObject.into(),
            ..Default::default()
        };
        assert!(check_against_upload(&upload, None, Some("FULL_OBJECT")).is_ok());
        assert!(check_against_upload(&upload, None, Some("COMPOSITE")).is_err());
        let other = Value::parse(Algorithm::Crc32c, "y/Q5Jg==").unwrap().to_stored();
        assert!(check_against_upload(&upload, Some(&other), None).is_err());
    }
}
