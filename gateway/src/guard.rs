//! The layer in front of the protocol library. Every request gets an id here, every answer carries it, and whatever the
//! library would let through or get wrong is caught here: see `preflight` for what is refused, and below for what is
//! mended on the way out.
//!
//! The data of an object never passes through the library: it stays on the request's ticket until the operation takes it
//! and verifies it (`body`). XML documents pass through it and are kept on the ticket, for their digests.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use s3s::service::S3Service;
use sha2::Digest as _;
use tracing::Instrument as _;

use crate::access_log::Entry;
use crate::error::{S3Error, S3ErrorCode, not_implemented, refuse};
use crate::host::Domains;
use crate::inflight::{Inflight, Room};
use crate::ticket::Ticket;
use crate::{body, preflight, xml};

/// Largest XML document of a request, bytes: 10,000 parts with their checksums, or 1,000 keys of 1,024 bytes in escapes.
pub(crate) const XML_BYTES_MAX: usize = 4 << 20;
/// Unread data that is drained, so that a client that is still sending gets to read why it was refused.
const DRAIN_BYTES_MAX: usize = 8 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// The service of one listener. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Guard {
    inner: Arc<Inner>,
}

struct Inner {
    s3: S3Service,
    domains: Domains,
    inflight: Inflight,
    /// How long the next piece of a document may take.
    idle: Duration,
    host_id: HeaderValue,
}

/// What path style and virtual-host style have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Service,
    Bucket,
    Object,
}

impl Guard {
    pub(crate) fn new(s3: S3Service, domains: Domains, inflight: Inflight, idle: Duration) -> Self {
        let host_id = hex::encode(rand::random::<[u8; 24]>());
        let host_id =
            HeaderValue::from_str(&host_id).unwrap_or_else(|_| HeaderValue::from_static("holdfast"));
        Self { inner: Arc::new(Inner { s3, domains, inflight, idle, host_id }) }
    }

    async fn answer(self, request: Request<Incoming>) -> Response<GuardedBody> {
        let started = Instant::now();
        let ticket = Arc::new(Ticket::new());
        let method = request.method().clone();
        let uri = request.uri().clone();
        let expects = request.headers().contains_key(header::EXPECT);
        let nothing_to_expect =
            expects && request.body().is_end_stream() && request.version() <= Version::HTTP_11;
        let span = tracing::error_span!("s3", request_id = ticket.tag.as_str());
        let response = self.serve(request, &ticket).instrument(span).await;
        let mut response = self.finish(response, &method, uri.path(), &ticket);
        // A client that waits for 100-continue has sent nothing; HTTP/2 resets the stream by itself.
        if response.status().is_client_error() || response.status().is_server_error() {
            match ticket.take_body() {
                Some(rest) if !expects => drain(rest).await,
                _ => {}
            }
        }
        // RFC 9110 10.1.1 lets a server leave out the 100 where there is no content. The AWS CLI (v1) takes the answer
        // well, and the status line of the connection's next answer for a header: it then waits for ever.
        if nothing_to_expect {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let entry = Entry::new(ticket, method, uri, response.status(), started);
        response.body_mut().entry = Some(entry);
        response
    }

    async fn serve(&self, request: Request<Incoming>, ticket: &Arc<Ticket>) -> Response<s3s::Body> {
        match self.admit(request, ticket).await {
            Ok((request, digest)) => match self.inner.s3.call(request).await {
                Ok(response) => mend_digest(mend_empty(response), digest, ticket),
                Err(error) => {
                    let error: s3s::StdError = error.into();
                    tracing::error!(%error, "an answer could not be written");
                    error_response(refuse(S3ErrorCode::InternalError, "we encountered an internal error"))
                }
            },
            Err(error) => error_response(error),
        }
    }

    /// Checks the request and parts it from its data.
    async fn admit(
        &self,
        request: Request<Incoming>,
        ticket: &Arc<Ticket>,
    ) -> Result<(Request<s3s::Body>, Option<[u8; 32]>), S3Error> {
        preflight::check(request.method(), request.uri(), request.headers())?;
        let level = self.level(&request);
        let (mut head, incoming) = request.into_parts();
        head.extensions.insert(ticket.clone());
        let mut digest = None;
        let body = match (&head.method, level) {
            (&Method::PUT, Level::Object) => {
                ticket.return_body(incoming);
                s3s::Body::empty()
            }
            (&Method::PUT | &Method::POST, _) => {
                let (claimed, room) = self.admit_xml(&head.headers).await?;
                digest = claimed;
                head.extensions.insert(Arc::new(room));
                let captured = Captured {
                    inner: incoming,
                    ticket: ticket.clone(),
                    patience: self.inner.idle,
                    stalled: None,
                };
                s3s::Body::http_body_unsync(captured)
            }
            _ => s3s::Body::from(incoming),
        };
        Ok((Request::from_parts(head, body), digest))
    }

    /// An XML document has to be whole, small and unframed. Its SHA-256, where it is claimed, and room for it.
    async fn admit_xml(&self, headers: &HeaderMap) -> Result<(Option<[u8; 32]>, Room), S3Error> {
        let digest = match body::Payload::from_headers(headers)? {
            body::Payload::Streaming { .. } => {
                return Err(not_implemented("a streaming payload is implemented for object data only"));
            }
            body::Payload::Sha256(digest) => Some(digest),
            body::Payload::Unsigned => None,
        };
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > XML_BYTES_MAX as u64) {
            return Err(refuse(S3ErrorCode::MaxMessageLengthExceeded, "your request was too big"));
        }
        if length.is_none() && headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(refuse(
                S3ErrorCode::MissingContentLength,
                "you must provide the Content-Length HTTP header",
            ));
        }
        Ok((digest, self.inner.inflight.enter(length.unwrap_or_default()).await?))
    }

    fn level(&self, request: &Request<Incoming>) -> Level {
        let host = match request.headers().get(header::HOST) {
            Some(host) => host.to_str().unwrap_or_default(),
            None => request.uri().authority().map_or("", |authority| authority.as_str()),
        };
        // The library splits what is decoded: `/bucket%2Fkey` is an object.
        let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy();
        level(self.inner.domains.bucket(host).is_some(), &path)
    }

    /// Ids on everything, errors with what S3 puts into them, no body where HTTP has none.
    fn finish(
        &self,
        response: Response<s3s::Body>,
        method: &Method,
        path: &str,
        ticket: &Ticket,
    ) -> Response<GuardedBody> {
        let (mut head, mut body) = response.into_parts();
        let is_xml = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/xml");
        // The answer to a HEAD has the length of what GET would send.
        if is_xml && let Some(document) = body.bytes().filter(|document| !document.is_empty()) {
            let failed = head.status.is_client_error() || head.status.is_server_error();
            let mended = match failed {
                true => {
                    let host_id = self.inner.host_id.to_str().unwrap_or_default();
                    xml::complete_error(&document, path, ticket.tag.as_str(), host_id)
                }
                false if ticket.operation() == "GetObjectAttributes" => xml::unquote_etag(&document),
                false => None,
            };
            let document = mended.unwrap_or(document);
            body = s3s::Body::from(xml::escape_controls(document));
            head.headers.remove(header::CONTENT_LENGTH);
        }
        if head.status == StatusCode::NOT_MODIFIED
            || head.status == StatusCode::NO_CONTENT
            || *method == Method::HEAD
        {
            body = s3s::Body::empty();
        }
        if *method == Method::HEAD
            && head.status == StatusCode::OK
            && head.headers.contains_key(header::CONTENT_RANGE)
        {
            head.status = StatusCode::PARTIAL_CONTENT;
        }
        if let Ok(tag) = HeaderValue::from_str(ticket.tag.as_str()) {
            head.headers.insert("x-amz-request-id", tag);
        }
        head.headers.insert("x-amz-id-2", self.inner.host_id.clone());
        head.headers.insert(header::SERVER, HeaderValue::from_static("Holdfast"));
        Response::from_parts(head, GuardedBody { inner: body, entry: None })
    }
}

fn level(virtual_host: bool, path: &str) -> Level {
    let path = path.strip_prefix('/').unwrap_or(path);
    let key = match virtual_host {
        true => Some(path),
        false => path.split_once('/').map(|(_, key)| key),
    };
    match key {
        Some(key) if !key.is_empty() => Level::Object,
        _ if virtual_host || !path.is_empty() => Level::Bucket,
        _ => Level::Service,
    }
}

fn error_response(error: S3Error) -> Response<s3s::Body> {
    error.to_http_response().unwrap_or_else(|_| {
        let mut response = Response::new(s3s::Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// S3 calls an absent document malformed.
fn mend_empty(response: Response<s3s::Body>) -> Response<s3s::Body> {
    let is_empty = response.status() == StatusCode::BAD_REQUEST
        && response
            .body()
            .bytes()
            .is_some_and(|document| xml::is_error(&document, "MissingRequestBodyError"));
    match is_empty {
        true => error_response(S3ErrorCode::MalformedXML.into()),
        false => response,
    }
}

/// The library answers 500 when an XML document does not have the SHA-256 that was claimed for it, or was cut short.
fn mend_digest(
    response: Response<s3s::Body>,
    digest: Option<[u8; 32]>,
    ticket: &Ticket,
) -> Response<s3s::Body> {
    let Some(digest) = digest.filter(|_| response.status() == StatusCode::INTERNAL_SERVER_ERROR) else {
        return response;
    };
    let mut actual = sha2::Sha256::new();
    ticket.take_xml().iter().for_each(|piece| actual.update(piece));
    match actual.finalize()[..] == digest {
        true => response,
        false => error_response(crate::error::body(body::BodyError::Sha256)),
    }
}

async fn drain(rest: Incoming) {
    let mut rest = http_body_util::Limited::new(rest, DRAIN_BYTES_MAX);
    let all = async { while let Some(Ok(_)) = rest.frame().await {} };
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, all).await;
}

impl hyper::service::Service<Request<Incoming>> for Guard {
    type Response = Response<GuardedBody>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let guard = self.clone();
        Box::pin(async move { Ok(guard.answer(request).await) })
    }
}

/// An XML document on its way through the library; the pieces are kept on the ticket.
struct Captured {
    inner: Incoming,
    ticket: Arc<Ticket>,
    patience: Duration,
    /// Runs while the next piece is awaited.
    stalled: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// The client stopped in the middle of a document.
#[derive(Debug, thiserror::Error)]
#[error("the document's next piece did not come in time")]
struct Stalled;

impl http_body::Body for Captured {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        let Poll::Ready(polled) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let patience = self.patience;
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
            return stalled.as_mut().poll(cx).map(|()| Some(Err(Stalled.into())));
        };
        self.stalled = None;
        if let Some(Ok(frame)) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.ticket.add_bytes_in(data.len() as u64);
            self.ticket.push_xml(data.clone());
        }
        Poll::Ready(polled.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer's body; when it is dropped, sent or not, the request is logged and counted.
pub(crate) struct GuardedBody {
    inner: s3s::Body,
    entry: Option<Entry>,
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, s3s::StdError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(frame)) = &polled
            && let Some(entry) = &mut self.entry
        {
            match frame {
                Ok(frame) => entry.add_bytes_out(frame.data_ref().map_or(0, Bytes::len)),
                Err(_) => entry.set_broken(),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_styles_tell_buckets_from_objects() {
        for (virtual_host, path, expected) in [
            (false, "/", Level::Service),
            (false, "/b", Level::Bucket),
            (false, "/b/", Level::Bucket),
            (false, "/b/k", Level::Object),
            (false, "/b//", Level::Object),
            (true, "/", Level::Bucket),
            (true, "/k", Level::Object),
            (true, "//", Level::Object),
        ] {
            assert_eq!(level(virtual_host, path), expected, "{virtual_host} {path}");
        }
    }
}
