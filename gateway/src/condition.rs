//! Conditional reads as S3 evaluates them (RFC 9110, section 13, with S3's order: "GetObject", conditional headers), and
//! ranges. Conditions of writes are evaluated by the partition; here they are only carried over.

use std::ops::Range;

use holdfast_proto::meta::Preconditions;
use s3s::dto::{self, ETag, ETagCondition, Timestamp};

use crate::error::{S3Error, S3ErrorCode, refuse};

/// What a read's conditions say of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Proceed,
    NotModified,
    Failed,
}

/// The four conditions of a read.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadConditions {
    pub if_match: Option<ETagCondition>,
    pub if_none_match: Option<ETagCondition>,
    pub if_modified_since: Option<Timestamp>,
    pub if_unmodified_since: Option<Timestamp>,
}

impl ReadConditions {
    /// Evaluates them for an object with this ETag (without quotes) that was modified then.
    pub(crate) fn evaluate(&self, etag: &str, modified_ms: u64) -> Verdict {
        let modified = i64::try_from(modified_ms / 1000).unwrap_or(i64::MAX);
        let failed = match (&self.if_match, &self.if_unmodified_since) {
            (Some(condition), _) => !strongly_matches(condition, etag),
            (None, Some(since)) => modified > seconds(since),
            (None, None) => false,
        };
        if failed {
            return Verdict::Failed;
        }
        let unmodified = match (&self.if_none_match, &self.if_modified_since) {
            (Some(condition), _) => weakly_matches(condition, etag),
            (None, Some(since)) => modified <= seconds(since),
            (None, None) => false,
        };
        if unmodified { Verdict::NotModified } else { Verdict::Proceed }
    }
}

fn seconds(timestamp: &Timestamp) -> i64 {
    time::OffsetDateTime::from(timestamp.clone()).unix_timestamp()
}

fn strongly_matches(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(given) => given.as_strong() == Some(etag),
    }
}

fn weakly_matches(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(given) => given.value() == etag,
    }
}

/// Whether `If-Range` lets the range stand: the ETag or the date is still that of the object.
pub(crate) fn if_range_holds(value: &str, etag: &str, modified_ms: u64) -> bool {
    if value.starts_with('"') || value.starts_with("W/") {
        return ETag::parse_http_header(value.as_bytes()).is_ok_and(|given| given.as_strong() == Some(etag));
    }
    Timestamp::parse(dto::TimestampFormat::HttpDate, value)
        .is_ok_and(|date| seconds(&date) == i64::try_from(modified_ms / 1000).unwrap_or(i64::MAX))
}

/// The conditions of a write, for the partition to evaluate.
pub(crate) fn preconditions(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> Preconditions {
    let text = |condition: &ETagCondition| match condition {
        ETagCondition::Any => "*".to_owned(),
        ETagCondition::ETag(ETag::Strong(value)) => value.clone(),
        // No stored ETag is weak: this matches none.
        ETagCondition::ETag(ETag::Weak(value)) => format!("W/{value}"),
    };
    let loosely = |condition: &ETagCondition| match condition {
        ETagCondition::Any => "*".to_owned(),
        ETagCondition::ETag(etag) => etag.value().to_owned(),
    };
    Preconditions {
        if_match: if_match.map(text).into_iter().collect(),
        if_none_match: if_none_match.map(loosely).into_iter().collect(),
        ..Preconditions::default()
    }
}

/// As [`preconditions`], for what makes a version: S3 takes only the asterisk in If-None-Match there.
///
/// # Errors
/// NotImplemented for anything else.
pub(crate) fn write_preconditions(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> Result<Preconditions, S3Error> {
    match if_none_match {
        Some(ETagCondition::ETag(_)) => Err(crate::error::not_implemented(
            "a header you provided implies functionality that is not implemented: if-none-match takes * only",
        )),
        _ => Ok(preconditions(if_match, if_none_match)),
    }
}

/// The bytes that a range asks for of an object of `size` bytes.
///
/// # Errors
/// InvalidRange when none of them exist.
pub(crate) fn resolve_range(range: &dto::Range, size: u64) -> Result<Range<u64>, S3Error> {
    match range.check(size) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(range_error(size)),
    }
}

/// 416 with the size that a client may ask for.
pub(crate) fn range_error(size: u64) -> S3Error {
    let mut error = refuse(S3ErrorCode::InvalidRange, "the requested range is not satisfiable");
    let mut headers = http::HeaderMap::with_capacity(2);
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    if let Ok(value) = http::HeaderValue::from_str(&format!("bytes */{size}")) {
        headers.insert(http::header::CONTENT_RANGE, value);
    }
    error.set_headers(headers);
    error
}

/// `Content-Range` of a part of an object.
pub(crate) fn content_range(bytes: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", bytes.start, bytes.end.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODIFIED_MS: u64 = 1_000_000_000_500;

    fn etag(value: &str) -> Option<ETagCondition> {
        Some(value.parse().unwrap())
    }

    fn date(seconds: i64) -> Option<Timestamp> {
        Some(time::OffsetDateTime::from_unix_timestamp(seconds).unwrap().into())
    }

    fn verdict(conditions: ReadConditions) -> Verdict {
        conditions.evaluate("abc", MODIFIED_MS)
    }

    #[test]
    fn single_conditions() {
        let none = ReadConditions::default();
        assert_eq!(verdict(none.clone()), Verdict::Proceed);
        for (value, expected) in [
            ("\"abc\"", Verdict::Proceed),
            ("abc", Verdict::Proceed),
            ("*", Verdict::Proceed),
            ("\"x\"", Verdict::Failed),
            ("W/\"abc\"", Verdict::Failed),
        ] {
            assert_eq!(
                verdict(ReadConditions { if_match: etag(value), ..none.clone() }),
                expected,
                "{value}"
            );
        }
        for (value, expected) in [
            ("\"abc\"", Verdict::NotModified),
            ("W/\"abc\"", Verdict::NotModified),
            ("*", Verdict::NotModified),
            ("\"x\"", Verdict::Proceed),
        ] {
            assert_eq!(
                verdict(ReadConditions { if_none_match: etag(value), ..none.clone() }),
                expected,
                "{value}"
            );
        }
        // Dates have whole seconds: an object is not modified since its own Last-Modified.
        for (at, since, until) in [
            (1_000_000_000, Verdict::NotModified, Verdict::Proceed),
            (999_999_999, Verdict::Proceed, Verdict::Failed),
            (1_000_000_001, Verdict::NotModified, Verdict::Proceed),
        ] {
            assert_eq!(
                verdict(ReadConditions { if_modified_since: date(at), ..none.clone() }),
                since,
                "{at}"
            );
            assert_eq!(
                verdict(ReadConditions { if_unmodified_since: date(at), ..none.clone() }),
                until,
                "{at}"
            );
        }
    }

    #[test]
    fn etags_go_before_dates() {
        let matching_but_modified = ReadConditions {
            if_match: etag("\"abc\""),
            if_unmodified_since: date(1),
            ..ReadConditions::default()
        };
        assert_eq!(verdict(matching_but_modified), Verdict::Proceed);
        let other_and_unmodified = ReadConditions {
            if_none_match: etag("\"x\""),
            if_modified_since: date(2_000_000_000),
            ..ReadConditions::default()
        };
        assert_eq!(verdict(other_and_unmodified), Verdict::Proceed);
        let same_but_modified = ReadConditions {
            if_none_match: etag("\"abc\""),
            if_modified_since: date(1),
            ..ReadConditions::default()
        };
        assert_eq!(verdict(same_but_modified), Verdict::NotModified);
    }

    #[test]
    fn writes_take_the_asterisk_only() {
        assert!(write_preconditions(etag("\"a\"").as_ref(), etag("*").as_ref()).is_ok());
        let error = write_preconditions(None, etag("\"a\"").as_ref()).unwrap_err();
        assert_eq!(error.code().as_str(), "NotImplemented");
    }

    #[test]
    fn ranges_outside_the_object_are_416() {
        let range = |text: &str| dto::Range::parse(text).unwrap();
        assert_eq!(resolve_range(&range("bytes=0-0"), 5).unwrap(), 0..1);
        assert_eq!(resolve_range(&range("bytes=2-"), 5).unwrap(), 2..5);
        assert_eq!(resolve_range(&range("bytes=2-99"), 5).unwrap(), 2..5);
        assert_eq!(resolve_range(&range("bytes=-2"), 5).unwrap(), 3..5);
        assert_eq!(resolve_range(&range("bytes=-99"), 5).unwrap(), 0..5);
        for (text, size) in
            [("bytes=5-", 5), ("bytes=5-9", 5), ("bytes=-0", 5), ("bytes=0-", 0), ("bytes=-1", 0)]
        {
            let error = resolve_range(&range(text), size).unwrap_err();
            assert_eq!(error.code().as_str(), "InvalidRange", "{text} of {size}");
            assert_eq!(error.headers().unwrap()["content-range"], format!("bytes */{size}"));
        }
    }

    #[test]
    fn if_range_needs_the_very_object() {
        assert!(if_range_holds("\"abc\"", "abc", 0));
        assert!(!if_range_holds("W/\"abc\"", "abc", 0));
        assert!(!if_range_holds("\"abd\"", "abc", 0));
        assert!(if_range_holds("Sun, 09 Sep 2001 01:46:40 GMT", "", MODIFIED_MS));
        assert!(!if_range_holds("Sun, 09 Sep 2001 01:46:41 GMT", "", MODIFIED_MS));
        assert!(!if_range_holds("nonsense", "", MODIFIED_MS));
    }

    #[test]
    fn conditions_of_writes_are_carried_over() {
        let out = preconditions(etag("\"a\"").as_ref(), etag("*").as_ref());
        assert_eq!((out.if_match, out.if_none_match), (vec!["a".to_owned()], vec!["*".to_owned()]));
        assert_eq!(preconditions(etag("W/\"a\"").as_ref(), None).if_match, ["W/a"]);
    }

    proptest! {
        #[test]
        fn a_resolved_range_lies_in_the_object(first in any::<u32>(), length in any::<u32>(), size in any::<u32>()) {
            let last = u64::from(first) + u64::from(length);
            for range in [
                dto::Range::Int { first: first.into(), last: Some(last) },
                dto::Range::Int { first: first.into(), last: None },
                dto::Range::Suffix { length: length.into() },
            ] {
                if let Ok(bytes) = resolve_range(&range, size.into()) {
                    prop_assert!(bytes.start < bytes.end && bytes.end <= u64::from(size));
                }
            }
        }
    }
}
