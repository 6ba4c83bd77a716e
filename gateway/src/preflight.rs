//! What is checked of a request before the protocol library sees it: authorization schemes that are not served, signed
//! requests that leave out what must be signed, and presigned URLs that live too long.

use holdfast_proto::limits::{CLOCK_SKEW_SECONDS_MAX, KEY_BYTES_MAX, PRESIGN_SECONDS_MAX};
use http::{HeaderMap, Method, Uri};

use crate::error::{S3ErrorCode, S3Result, invalid_argument, invalid_request, not_implemented, refuse};
use crate::sigv4::{Authorization, scope_of};
use crate::surface::{query_keys, query_value};

/// Longest request target, bytes: a key of 1,024 bytes percent-encoded, a presigned URL's parameters and room.
const TARGET_BYTES_MAX: usize = 3 * KEY_BYTES_MAX + 13 * 1024;
/// Longest head of a request in names and values, bytes. AWS takes 8 KiB.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Headers of `x-amz-` that clients add after they sign.
const UNSIGNED_ALLOWED: &[&str] = &["x-amz-content-sha256", "x-amz-user-agent", "x-amz-cf-id", "x-amz-te"];

const AMZ_DATE: &[time::format_description::FormatItem<'_>] =
    time::macros::format_description!("[year][month][day]T[hour][minute][second]Z");
const PRESIGNED_FIELDS: [&str; 6] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
];
const FIELDS_MISSING: &str = "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.";

/// Refuses what must not go further.
///
/// # Errors
/// As S3 words each of them.
pub(crate) fn check(method: &Method, uri: &Uri, headers: &HeaderMap) -> S3Result<()> {
    let query = uri.query().unwrap_or_default();
    if uri.path().len() + query.len() > TARGET_BYTES_MAX {
        return Err(refuse(S3ErrorCode::InvalidURI, "the request's URI is too long"));
    }
    let head: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if head > HEADER_BYTES_MAX {
        return Err(refuse(
            S3ErrorCode::RequestHeaderSectionTooLarge,
            "your request header section exceeds the maximum allowed size",
        ));
    }
    if headers.contains_key("x-amz-security-token")
        || query_keys(query).any(|key| key.eq_ignore_ascii_case("x-amz-security-token"))
    {
        return Err(refuse(S3ErrorCode::InvalidToken, "session tokens are not issued here"));
    }
    if *method == Method::POST
        && headers.get(http::header::CONTENT_TYPE).is_some_and(|value| {
            value.as_bytes().get(..19).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/form-data"))
        })
    {
        return Err(not_implemented("POST of a form is not implemented"));
    }
    let presigned = query_keys(query).any(|key| key == "X-Amz-Signature");
    match headers.get(http::header::AUTHORIZATION) {
        Some(_) if presigned => Err(invalid_argument(
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the Authorization header should be specified",
        )),
        Some(value) => check_header(value.to_str().unwrap_or_default(), headers),
        None if presigned => check_presigned(query, headers),
        None if query_keys(query).any(|key| matches!(key, "Signature" | "AWSAccessKeyId")) => {
            Err(old_scheme())
        }
        None if query_keys(query).any(|key| matches!(key, "X-Amz-Algorithm" | "X-Amz-Credential")) => {
            Err(query_fault(FIELDS_MISSING))
        }
        None => Ok(()),
    }
}

fn old_scheme() -> crate::error::S3Error {
    invalid_request(
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )
}

fn query_fault(message: &'static str) -> crate::error::S3Error {
    refuse(S3ErrorCode::AuthorizationQueryParametersError, message)
}

fn check_header(value: &str, headers: &HeaderMap) -> S3Result<()> {
    if value.starts_with("AWS ") || value.starts_with("AWS4-ECDSA") {
        return Err(old_scheme());
    }
    if !value.starts_with("AWS4-HMAC-SHA256") {
        return Err(invalid_argument("Unsupported Authorization Type"));
    }
    let malformed = || {
        refuse(
            S3ErrorCode::AuthorizationHeaderMalformed,
            "the authorization header that you provided is not valid",
        )
    };
    let authorization = Authorization::parse(value).ok_or_else(malformed)?;
    if !is_s3_scope(authorization.scope) {
        return Err(malformed());
    }
    check_signature(authorization.signature)?;
    check_signed(authorization.signed_headers, headers)
}

fn check_presigned(query: &str, headers: &HeaderMap) -> S3Result<()> {
    let field = |key| {
        percent_encoding::percent_decode_str(query_value(query, key).unwrap_or_default()).decode_utf8_lossy()
    };
    match field("X-Amz-Expires").parse::<u64>() {
        Ok(1..=PRESIGN_SECONDS_MAX) => {}
        Ok(0) => return Err(query_fault("X-Amz-Expires must be greater than 0")),
        Ok(_) => {
            return Err(query_fault(
                "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds",
            ));
        }
        Err(_) => return Err(query_fault("X-Amz-Expires should be a number")),
    }
    if PRESIGNED_FIELDS.iter().any(|name| query_value(query, name).is_none()) {
        return Err(query_fault(FIELDS_MISSING));
    }
    let Ok(date) = time::PrimitiveDateTime::parse(&field("X-Amz-Date"), AMZ_DATE) else {
        return Err(query_fault("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\""));
    };
    let ahead = date.assume_utc() - time::OffsetDateTime::now_utc();
    if ahead.whole_seconds() > CLOCK_SKEW_SECONDS_MAX as i64 {
        return Err(refuse(S3ErrorCode::AccessDenied, "Request is not yet valid"));
    }
    if !scope_of(&field("X-Amz-Credential")).is_some_and(is_s3_scope) {
        return Err(query_fault("Error parsing the X-Amz-Credential parameter"));
    }
    check_signature(&field("X-Amz-Signature"))?;
    check_signed(&field("X-Amz-SignedHeaders"), headers)
}

/// What is not even a signature matches nothing.
fn check_signature(signature: &str) -> S3Result<()> {
    if signature.len() == 64 && signature.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(refuse(
        S3ErrorCode::SignatureDoesNotMatch,
        "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
    ))
}

/// `date/region/s3/aws4_request`: a signature made for another service is none for this one.
fn is_s3_scope(scope: &str) -> bool {
    scope.ends_with("/s3/aws4_request")
}

/// Whoever passes a signed request on must not be able to add to it.
fn check_signed(signed: &str, headers: &HeaderMap) -> S3Result<()> {
    let is_signed = |name: &str| signed.split(';').any(|each| each == name);
    let must = |name: &str| name.starts_with("x-amz-") && !UNSIGNED_ALLOWED.contains(&name);
    if !is_signed("host") || headers.keys().any(|name| must(name.as_str()) && !is_signed(name.as_str())) {
        return Err(refuse(
            S3ErrorCode::AccessDenied,
            "There were headers present in the request which were not signed",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const SIGNED: &str = "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9";

    fn code(method: Method, uri: &str, pairs: &[(&'static str, &str)]) -> String {
        let headers = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        match check(&method, &uri.parse().unwrap(), &headers) {
            Ok(()) => String::new(),
            Err(error) => error.code().as_str().to_owned(),
        }
    }

    fn presigned(expires: &str, credential: &str) -> String {
        format!(
            "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date=20200101T000000Z&X-Amz-Expires={expires}&X-Amz-SignedHeaders=host&X-Amz-Signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"
        )
    }

    #[test]
    fn only_signature_version_4_is_served() {
        let get = |value: &str| code(Method::GET, "/b/k", &[("authorization", value)]);
        assert_eq!(get("AWS AKID:c2ln"), "InvalidRequest");
        assert_eq!(get("AWS4-ECDSA-P256-SHA256 x"), "InvalidRequest");
        assert_eq!(get("Basic dTpw"), "InvalidArgument");
        assert_eq!(get("AWS4-HMAC-SHA256 nonsense"), "AuthorizationHeaderMalformed");
        assert_eq!(get(SIGNED), "");
        assert_eq!(get(&SIGNED.replace("/s3/", "/sts/")), "AuthorizationHeaderMalformed");
        assert_eq!(code(Method::GET, "/b/k?AWSAccessKeyId=a&Signature=b&Expires=1", &[]), "InvalidRequest");
        assert_eq!(code(Method::GET, "/b/k", &[]), "");
        assert_eq!(get(&SIGNED.replace("b6c6", "b6c")), "SignatureDoesNotMatch");
    }

    #[test]
    fn presigned_urls_live_a_week_at_most() {
        let credential = "AK%2F20260101%2Fus-east-1%2Fs3%2Faws4_request";
        let get = |expires| code(Method::GET, &presigned(expires, credential), &[]);
        assert_eq!(get("604800"), "");
        for expires in ["604801", "0", "-1", "x", "99999999999999999999999"] {
            assert_eq!(get(expires), "AuthorizationQueryParametersError", "{expires}");
        }
        assert_eq!(code(Method::GET, &presigned("60", "AK%2Fx"), &[]), "AuthorizationQueryParametersError");
        let url = presigned("60", credential);
        assert_eq!(code(Method::GET, &format!("{url}0"), &[]), "SignatureDoesNotMatch");
        let far = url.replace("X-Amz-Date=2020", "X-Amz-Date=9026");
        assert_eq!(code(Method::GET, &far, &[]), "AccessDenied");
        let odd = url.replace("X-Amz-Date=2020", "X-Amz-Date=x");
        assert_eq!(code(Method::GET, &odd, &[]), "AuthorizationQueryParametersError");
        let url = url.replace("X-Amz-Date", "x-date");
        assert_eq!(code(Method::GET, &url, &[]), "AuthorizationQueryParametersError");
        assert_eq!(
            code(Method::GET, &presigned("60", credential), &[("authorization", SIGNED)]),
            "InvalidArgument"
        );
        assert_eq!(
            code(Method::GET, "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=60", &[]),
            "AuthorizationQueryParametersError"
        );
    }

    #[test]
    fn headers_added_after_signing_are_refused() {
        let put = |name| code(Method::PUT, "/b/k", &[("authorization", SIGNED), (name, "x")]);
        assert_eq!(put("x-amz-acl"), "AccessDenied");
        assert_eq!(put("x-amz-meta-a"), "AccessDenied");
        assert_eq!(put("x-amz-date"), "");
        assert_eq!(put("x-amz-content-sha256"), "");
        assert_eq!(put("content-type"), "");
        assert_eq!(
            code(Method::GET, "/b", &[("authorization", &SIGNED.replace("host;", ""))]),
            "AccessDenied"
        );
    }

    #[test]
    fn session_tokens_forms_and_oversized_heads_are_refused() {
        assert_eq!(code(Method::GET, "/b", &[("x-amz-security-token", "t")]), "InvalidToken");
        assert_eq!(code(Method::GET, "/b?X-Amz-Security-Token=t", &[]), "InvalidToken");
        assert_eq!(
            code(Method::POST, "/b", &[("content-type", "Multipart/Form-Data; boundary=x")]),
            "NotImplemented"
        );
        assert_eq!(code(Method::GET, &format!("/b/{}", "a".repeat(17_000)), &[]), "InvalidURI");
        assert_eq!(
            code(Method::GET, "/b", &[("x-custom", &"a".repeat(17_000))]),
            "RequestHeaderSectionTooLarge"
        );
    }
}
