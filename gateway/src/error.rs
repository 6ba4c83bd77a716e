//! The one place where an outcome becomes an S3 error: what the cluster refused, what a body broke, what a request asked
//! in vain. Codes and statuses are those of the S3 API reference, "Error responses".
//!
//! Every variant of the client's errors and every refusal is matched by name: a new one does not compile until it has
//! its S3 code here.

use holdfast_client::Error as ClusterError;
use holdfast_proto::meta::Refusal;
use http::{HeaderMap, HeaderValue, StatusCode, header};
pub(crate) use s3s::{S3Error, S3ErrorCode, S3Result};

use crate::body::BodyError;

/// Seconds in `Retry-After` when nothing better is known.
const RETRY_AFTER_SECONDS: u32 = 1;

/// An error with S3's code and a sentence.
pub(crate) fn refuse(code: S3ErrorCode, message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, message)
}

/// An argument that S3 would not take.
pub(crate) fn invalid_argument(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    refuse(S3ErrorCode::InvalidArgument, message)
}

/// A request that S3 would not take.
pub(crate) fn invalid_request(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    refuse(S3ErrorCode::InvalidRequest, message)
}

/// Something of S3 that is not here yet: refused, never ignored.
pub(crate) fn not_implemented(message: impl Into<std::borrow::Cow<'static, str>>) -> S3Error {
    refuse(S3ErrorCode::NotImplemented, message)
}

/// An error whose code the protocol library does not know by name.
pub(crate) fn custom(
    code: &'static str,
    status: StatusCode,
    message: impl Into<std::borrow::Cow<'static, str>>,
) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut error = S3Error::with_message(code, message);
    error.set_status_code(status);
    error
}

/// Too much in flight here: 503 with `Retry-After`.
pub(crate) fn slow_down() -> S3Error {
    retry_later(S3ErrorCode::SlowDown, "please reduce your request rate", 0)
}

fn retry_later(code: S3ErrorCode, message: &'static str, retry_after_ms: u32) -> S3Error {
    let seconds = if retry_after_ms == 0 { RETRY_AFTER_SECONDS } else { retry_after_ms.div_ceil(1000) };
    let mut error = refuse(code, message);
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    error.set_headers(headers);
    error
}

/// What the cluster said, as S3 says it. Logs what an operator has to see; a client's own mistakes are not logged here.
pub(crate) fn cluster(error: ClusterError) -> S3Error {
    log(&error);
    unlogged(error)
}

/// Logs what an operator should know of.
pub(crate) fn log(error: &ClusterError) {
    match error {
        ClusterError::Refused { .. } => {}
        ClusterError::Unavailable { unknown, detail, .. } => {
            tracing::warn!(detail, unknown, "the cluster is unavailable for this request");
        }
        ClusterError::Full { detail } => tracing::warn!(detail, "the zone has no room for this request"),
        ClusterError::Lost { detail } => tracing::error!(detail, "object data is lost"),
        ClusterError::Invalid { detail } => tracing::warn!(detail, "the cluster client refused a call"),
        ClusterError::Internal { detail } => tracing::error!(detail, "internal error"),
    }
}

/// As [`cluster`], for one of many failures whose first was logged.
pub(crate) fn unlogged(error: ClusterError) -> S3Error {
    match error {
        ClusterError::Refused { refusal, detail } => refused(refusal, &detail),
        ClusterError::Unavailable { retry_after_ms, .. } => retry_later(
            S3ErrorCode::ServiceUnavailable,
            "the service is unavailable, please retry",
            retry_after_ms,
        ),
        ClusterError::Full { .. } => {
            custom("InsufficientStorage", StatusCode::INSUFFICIENT_STORAGE, "the zone has no space left")
        }
        ClusterError::Lost { .. } => refuse(S3ErrorCode::InternalError, "the object's data cannot be read"),
        ClusterError::Invalid { .. } => refuse(S3ErrorCode::InvalidRequest, "the request cannot be served"),
        ClusterError::Internal { .. } => {
            refuse(S3ErrorCode::InternalError, "we encountered an internal error, please try again")
        }
    }
}

fn refused(refusal: Refusal, detail: &str) -> S3Error {
    use S3ErrorCode as Code;
    match refusal {
        Refusal::NoSuchBucket => refuse(Code::NoSuchBucket, "the specified bucket does not exist"),
        Refusal::BucketExists => {
            refuse(Code::BucketAlreadyExists, "the requested bucket name is not available; it is taken")
        }
        Refusal::BucketExistsOwned => refuse(
            Code::BucketAlreadyOwnedByYou,
            "your previous request to create the named bucket succeeded",
        ),
        Refusal::BucketNotEmpty => {
            refuse(Code::BucketNotEmpty, "the bucket you tried to delete is not empty")
        }
        Refusal::BucketBusy => refuse(
            Code::OperationAborted,
            "a conflicting operation is in progress on this bucket, please retry",
        ),
        Refusal::NoSuchKey => refuse(Code::NoSuchKey, "the specified key does not exist"),
        Refusal::NoSuchVersion => refuse(Code::NoSuchVersion, "the specified version does not exist"),
        Refusal::NoSuchUpload => refuse(
            Code::NoSuchUpload,
            "the specified upload does not exist; its id may be invalid, or it was aborted or completed",
        ),
        Refusal::PreconditionFailed => {
            refuse(Code::PreconditionFailed, "at least one of the preconditions you specified did not hold")
        }
        Refusal::ConditionConflict => refuse(
            Code::ConditionalRequestConflict,
            "a conflicting operation occurred during this conditional request, please retry",
        ),
        Refusal::InvalidPart => refuse(
            Code::InvalidPart,
            "one or more of the specified parts could not be found, or its ETag or checksum does not match",
        ),
        Refusal::InvalidPartOrder => {
            refuse(Code::InvalidPartOrder, "the list of parts was not in ascending order of part number")
        }
        Refusal::PartTooSmall => refuse(
            Code::EntityTooSmall,
            "your proposed upload is smaller than the minimum allowed object size",
        ),
        Refusal::ChecksumMismatch => {
            refuse(Code::BadDigest, "the checksum you specified did not match the calculated checksum")
        }
        Refusal::SizeMismatch => {
            refuse(Code::InvalidRequest, "the size you specified does not match the size of the object")
        }
        Refusal::ObjectTooLarge => {
            refuse(Code::EntityTooLarge, "your proposed upload exceeds the maximum allowed object size")
        }
        Refusal::TooMany => {
            refuse(Code::TooManyBuckets, "you have attempted to create more buckets than allowed")
        }
        Refusal::MethodNotAllowed => {
            refuse(Code::MethodNotAllowed, "the specified method is not allowed against this resource")
        }
        Refusal::WriteTooOld => {
            refuse(Code::RequestTimeout, "the upload took longer than a write may, please try again")
        }
        // The client refreshes and repeats these; what still comes through resolves itself in a moment.
        Refusal::StaleBucket | Refusal::RequestTooOld | Refusal::WriteFenced => {
            tracing::warn!(?refusal, detail, "a request was overtaken");
            retry_later(Code::ServiceUnavailable, "the service is unavailable, please retry", 0)
        }
        Refusal::None
        | Refusal::StaleGeneration
        | Refusal::StaleIncarnation
        | Refusal::AlreadyExists
        | Refusal::NotFound
        | Refusal::InUse
        | Refusal::Malformed => {
            tracing::error!(?refusal, detail, "a refusal that no S3 request should meet");
            refuse(Code::InternalError, "we encountered an internal error, please try again")
        }
    }
}

/// What was wrong with an uploaded body, as S3 says it.
pub(crate) fn body(error: BodyError) -> S3Error {
    use S3ErrorCode as Code;
    match error {
        BodyError::Short | BodyError::Disconnected => refuse(
            Code::IncompleteBody,
            "you did not provide the number of bytes specified by the Content-Length HTTP header",
        ),
        BodyError::Long => {
            refuse(Code::IncompleteBody, "the request body is longer than its declared decoded length")
        }
        BodyError::Stalled => refuse(
            Code::RequestTimeout,
            "your socket connection to the server was not read from or written to within the timeout period",
        ),
        BodyError::Md5 => {
            refuse(Code::BadDigest, "the Content-MD5 you specified did not match what we received")
        }
        BodyError::Sha256 => custom(
            "XAmzContentSHA256Mismatch",
            StatusCode::BAD_REQUEST,
            "the provided 'x-amz-content-sha256' header does not match what was computed",
        ),
        BodyError::Checksum(algorithm) => refuse(
            Code::BadDigest,
            format!("the {} you specified did not match the calculated checksum", algorithm.name()),
        ),
        BodyError::Trailer(what) => custom("MalformedTrailerError", StatusCode::BAD_REQUEST, what),
        BodyError::Framing(what) => invalid_request(what),
        BodyError::ChunkSignature => refuse(
            Code::SignatureDoesNotMatch,
            "the chunk signature we calculated does not match the signature you provided",
        ),
        BodyError::Cluster(error) => cluster(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: &S3Error) -> u16 {
        error.status_code().map_or(0, |status| status.as_u16())
    }

    #[test]
    fn every_refusal_has_an_error_status() {
        for raw in 0..=27 {
            let refusal = Refusal::try_from(raw).unwrap();
            let error = refused(refusal, "");
            assert!(status(&error) >= 400, "{refusal:?} became {}", status(&error));
        }
    }

    #[test]
    fn an_overload_says_when_to_come_back() {
        let error = slow_down();
        assert_eq!(status(&error), 503);
        assert_eq!(error.headers().and_then(|headers| headers.get("retry-after")).unwrap(), "1");
        let error = retry_later(S3ErrorCode::ServiceUnavailable, "", 2_500);
        assert_eq!(error.headers().and_then(|headers| headers.get("retry-after")).unwrap(), "3");
    }

    #[test]
    fn codes_unknown_to_the_library_keep_their_name() {
        let error = body(BodyError::Sha256);
        assert_eq!(error.code().as_str(), "XAmzContentSHA256Mismatch");
        assert_eq!(status(&error), 400);
    }
}
