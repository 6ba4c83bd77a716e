//! The headers that are stored with an object and given back: what a request gives, checked, and what an answer shows.

use holdfast_client::Cluster;
use holdfast_proto::limits::USER_METADATA_BYTES_MAX;
use holdfast_proto::meta::{ObjectHeaders, Pair};
use s3s::dto::{Metadata, Timestamp, TimestampFormat};

use crate::body::stored_encoding;
use crate::error::{S3ErrorCode, S3Result, refuse};

/// What S3 answers for an object that was stored without a type.
pub(crate) const CONTENT_TYPE_DEFAULT: &str = "binary/octet-stream";
/// The storage class that needs no header.
pub(crate) const STANDARD: &str = "STANDARD";

/// The headers of a request, as the protocol library parsed them.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_language: Option<String>,
    pub content_disposition: Option<String>,
    pub cache_control: Option<String>,
    pub expires: Option<Timestamp>,
    pub metadata: Option<Metadata>,
}

impl Given {
    /// The stored form, in this storage class.
    ///
    /// # Errors
    /// MetadataTooLarge.
    pub(crate) fn into_stored(self, storage_class: String) -> S3Result<ObjectHeaders> {
        let mut user: Vec<Pair> =
            self.metadata.unwrap_or_default().into_iter().map(|(name, value)| Pair { name, value }).collect();
        user.sort_by(|a, b| a.name.cmp(&b.name));
        let bytes: usize = user.iter().map(|pair| pair.name.len() + pair.value.len()).sum();
        if bytes > USER_METADATA_BYTES_MAX {
            return Err(refuse(
                S3ErrorCode::MetadataTooLarge,
                "your metadata headers exceed the maximum allowed metadata size",
            ));
        }
        Ok(ObjectHeaders {
            content_type: self.content_type.unwrap_or_default(),
            content_encoding: self.content_encoding.map(|value| stored_encoding(&value)).unwrap_or_default(),
            content_language: self.content_language.unwrap_or_default(),
            content_disposition: self.content_disposition.unwrap_or_default(),
            cache_control: self.cache_control.unwrap_or_default(),
            expires: self.expires.and_then(|expires| http_date(&expires)).unwrap_or_default(),
            storage_class,
            user,
            ..ObjectHeaders::default()
        })
    }
}

fn http_date(timestamp: &Timestamp) -> Option<String> {
    let mut out = Vec::with_capacity(32);
    timestamp.format(TimestampFormat::HttpDate, &mut out).ok()?;
    String::from_utf8(out).ok()
}

/// The storage class as it is stored: empty for STANDARD.
///
/// # Errors
/// InvalidStorageClass for one that the zone does not have.
pub(crate) fn storage_class(cluster: &Cluster, given: Option<&str>) -> S3Result<String> {
    match given {
        None | Some("" | STANDARD) => Ok(String::new()),
        Some(name) if cluster.map().class(name).is_some() => Ok(name.to_owned()),
        Some(_) => {
            Err(refuse(S3ErrorCode::InvalidStorageClass, "the storage class you specified is not valid"))
        }
    }
}

/// A stored header; `None` when it was not given.
pub(crate) fn shown(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

/// The stored `Expires`.
pub(crate) fn shown_expires(value: &str) -> Option<Timestamp> {
    Timestamp::parse(TimestampFormat::HttpDate, value).ok()
}

/// The stored user metadata.
pub(crate) fn shown_metadata(user: &[Pair]) -> Option<Metadata> {
    (!user.is_empty()).then(|| user.iter().map(|pair| (pair.name.clone(), pair.value.clone())).collect())
}

/// A time as S3 shows it, in whole seconds.
pub(crate) fn shown_time(ms: u64) -> Timestamp {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_sorted_and_bounded() {
        let given = |value: usize| Given {
            metadata: Some([("b".to_owned(), "1".to_owned()), ("a".to_owned(), "x".repeat(value))].into()),
            ..Given::default()
        };
        let stored = given(2045).into_stored(String::new()).unwrap();
        assert_eq!(stored.user[0].name, "a");
        let error = given(2046).into_stored(String::new()).unwrap_err();
        assert_eq!(error.code().as_str(), "MetadataTooLarge");
    }

    #[test]
    fn stored_headers_come_back() {
        let expires = Timestamp::parse(TimestampFormat::HttpDate, "Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        let given = Given {
            content_encoding: Some("aws-chunked,gzip".to_owned()),
            expires: Some(expires.clone()),
            ..Given::default()
        };
        let stored = given.into_stored(String::new()).unwrap();
        assert_eq!(stored.content_encoding, "gzip");
        assert_eq!(stored.expires, "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(shown_expires(&stored.expires), Some(expires));
        assert_eq!(shown(&stored.content_type), None);
    }

    #[test]
    fn times_have_whole_seconds() {
        assert_eq!(shown_time(1_999), shown_time(1_000));
    }
}
