//! A `Range` header that is no valid range is no range (RFC 9110, section 14.2), and neither is one of several pieces, which
//! S3 does not serve: the whole object is answered. The protocol library refuses such headers, and they cannot be taken
//! off before the signature that covers them is verified.
//!
//! So this runs behind the signature check: the header and the signature are taken off, and the request goes through a
//! second service, which has no keys of its own and takes the caller from here alone.

use http::{Extensions, HeaderMap, Method, Request, Uri, header};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::route::S3Route;
use s3s::service::S3Service;
use s3s::{Body, S3Request, S3Response};

use crate::auth::{Auth, Caller, check_surface};
use crate::error::{S3Error, S3ErrorCode, S3Result, refuse};

/// Whether the header is one that is answered with the whole object.
fn is_ignored(headers: &HeaderMap) -> bool {
    headers
        .get(header::RANGE)
        .is_some_and(|value| value.to_str().map_or(true, |text| s3s::dto::Range::parse(text).is_err()))
}

/// Takes requests with such a header out of the protocol library's way.
pub(crate) struct IgnoredRange {
    /// Verifies nothing; reached from here only.
    inner: S3Service,
    auth: Auth,
}

impl IgnoredRange {
    pub(crate) fn new(inner: S3Service, auth: Auth) -> Self {
        Self { inner, auth }
    }
}

#[async_trait::async_trait]
impl S3Route for IgnoredRange {
    fn is_match(&self, method: &Method, _uri: &Uri, headers: &HeaderMap, _: &mut Extensions) -> bool {
        matches!(*method, Method::GET | Method::HEAD) && is_ignored(headers)
    }

    async fn check_access(&self, request: &mut S3Request<Body>) -> S3Result<()> {
        let Some(credentials) = &request.credentials else { return Err(denied()) };
        let caller = self.auth.caller(&credentials.access_key).await?;
        request.extensions.insert(caller);
        Ok(())
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let mut plain = Request::new(request.input);
        *plain.method_mut() = request.method;
        *plain.uri_mut() = without_signature(&request.uri);
        *plain.headers_mut() = request.headers;
        *plain.extensions_mut() = request.extensions;
        plain.headers_mut().remove(header::RANGE);
        plain.headers_mut().remove(header::AUTHORIZATION);
        let response = self.inner.call(plain).await.map_err(|failure| {
            let failure: s3s::StdError = failure.into();
            tracing::error!(error = failure, "an answer could not be written");
            refuse(S3ErrorCode::InternalError, "we encountered an internal error")
        })?;
        let (head, body) = response.into_parts();
        let mut answer = S3Response::with_headers(body, head.headers);
        answer.status = Some(head.status);
        answer.extensions = head.extensions;
        Ok(answer)
    }
}

fn denied() -> S3Error {
    refuse(S3ErrorCode::AccessDenied, "access denied")
}

/// The URI without the parameters of a presigned one. The authority goes too: the Host header has it.
fn without_signature(uri: &Uri) -> Uri {
    let kept: Vec<&str> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("X-Amz-"))
        .collect();
    let target = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    target.parse().unwrap_or_else(|_| uri.clone())
}

/// The second service's access: whoever the first one verified.
pub(crate) struct Verified;

#[async_trait::async_trait]
impl S3Auth for Verified {
    async fn get_secret_key(&self, _access_key: &str) -> S3Result<SecretKey> {
        Err(denied())
    }
}

#[async_trait::async_trait]
impl S3Access for Verified {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        match cx.extensions_mut().get::<Caller>() {
            Some(_) => check_surface(cx),
            None => Err(denied()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_single_range_is_ignored() {
        let ignored = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            is_ignored(&headers)
        };
        for text in ["bytes=9-1", "lines=1-2", "bytes=a-b", "bytes=0-1,5-6", ""] {
            assert!(ignored(text), "{text}");
        }
        for text in ["bytes=0-0", "bytes=5-", "bytes=-5", "bytes=-0"] {
            assert!(!ignored(text), "{text}");
        }
        assert!(!is_ignored(&HeaderMap::new()));
    }

    #[test]
    fn a_presigned_uri_keeps_its_own_parameters() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let plain = without_signature(&uri("/b/k%20?partNumber=1&X-Amz-Signature=0&X-Amz-Date=1"));
        assert_eq!(plain, "/b/k%20?partNumber=1");
        assert_eq!(without_signature(&uri("http://h/b/k?X-Amz-Date=1")), "/b/k");
    }
}
