//! Conditions of a write, evaluated where they are honest: inside apply, against the current version.
//!
//! AWS: "How to prevent object overwrites with conditional writes", "How to perform conditional deletes".

use holdfast_proto::meta::{Listed, Preconditions, Refusal};

use crate::row::{Step, refuse};

const ANY: &str = "*";

/// Checks `conditions` against the visible current version, if there is one.
///
/// If-Match on a key without one is NO_SUCH_KEY; the conditions on size and time pass on it, as deleting nothing does.
pub(crate) fn check(conditions: &Preconditions, current: Option<&Listed>) -> Step<()> {
    let matches = |etags: &[String], row: &Listed| etags.iter().any(|etag| etag == ANY || *etag == row.etag);
    let failed = |what: &str| refuse(Refusal::PreconditionFailed, what);
    let Some(row) = current else {
        if conditions.if_match.is_empty() {
            return Ok(());
        }
        return refuse(Refusal::NoSuchKey, "If-Match on a key that has no object");
    };
    if !conditions.if_match.is_empty() && !matches(&conditions.if_match, row) {
        return failed("If-Match");
    }
    if matches(&conditions.if_none_match, row) {
        return failed("If-None-Match");
    }
    if conditions.if_match_size.is_some_and(|size| size != row.size) {
        return failed("x-amz-if-match-size");
    }
    if conditions.if_match_modified_ms.is_some_and(|ms| !same_second(ms, row.modified_ms)) {
        return failed("x-amz-if-match-last-modified-time");
    }
    Ok(())
}

/// HTTP dates have whole seconds.
pub(crate) fn same_second(a_ms: u64, b_ms: u64) -> bool {
    a_ms / 1000 == b_ms / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Stop;

    fn refusal(conditions: Preconditions, current: Option<&Listed>) -> Refusal {
        match check(&conditions, current) {
            Ok(()) => Refusal::None,
            Err(Stop::Refused(refusal, _)) => refusal,
            Err(Stop::Halt(halt)) => panic!("{halt}"),
        }
    }

    #[test]
    fn conditions_are_s3s() {
        let row = Listed { etag: "e1".into(), size: 4, modified_ms: 5_700, ..Listed::default() };
        let etags = |etags: &[&str]| etags.iter().map(|etag| (*etag).to_owned()).collect::<Vec<_>>();
        let if_match = |list: &[&str]| Preconditions { if_match: etags(list), ..Preconditions::default() };
        let if_none =
            |list: &[&str]| Preconditions { if_none_match: etags(list), ..Preconditions::default() };
        assert_eq!(refusal(if_match(&["e0", "e1"]), Some(&row)), Refusal::None);
        assert_eq!(refusal(if_match(&["*"]), Some(&row)), Refusal::None);
        assert_eq!(refusal(if_match(&["e0"]), Some(&row)), Refusal::PreconditionFailed);
        assert_eq!(refusal(if_match(&["*"]), None), Refusal::NoSuchKey);
        assert_eq!(refusal(if_none(&["*"]), Some(&row)), Refusal::PreconditionFailed);
        assert_eq!(refusal(if_none(&["e0", "e1"]), Some(&row)), Refusal::PreconditionFailed);
        assert_eq!(refusal(if_none(&["e0"]), Some(&row)), Refusal::None);
        assert_eq!(refusal(if_none(&["*"]), None), Refusal::None);
        let size = |size| Preconditions { if_match_size: Some(size), ..Preconditions::default() };
        assert_eq!(refusal(size(4), Some(&row)), Refusal::None);
        assert_eq!(refusal(size(5), Some(&row)), Refusal::PreconditionFailed);
        assert_eq!(refusal(size(5), None), Refusal::None);
        let time = |ms| Preconditions { if_match_modified_ms: Some(ms), ..Preconditions::default() };
        assert_eq!(refusal(time(5_000), Some(&row)), Refusal::None);
        assert_eq!(refusal(time(6_000), Some(&row)), Refusal::PreconditionFailed);
    }
}
