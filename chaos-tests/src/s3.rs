//! A small S3 client that hides nothing: every header, digest, signature and byte of a request can be set, and wrong.
//!
//! Path style unless a call names a host, HTTP/1.1 with keep-alive or HTTP/2, over TCP or TLS. It never retries: what a server answered is what a test sees.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::chunked::{Chunked, one_digit_off};
use crate::sigv4::{self, Credentials, Signer};
use crate::xml::Element;

/// Longer than any answer should take on a busy machine in the dev profile.
const DEADLINE: Duration = Duration::from_secs(120);
/// Protocols as TLS names them (ALPN).
const HTTP_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";

/// One endpoint and one identity, with its idle connections. They belong to the runtime that opened them.
#[derive(Clone)]
pub struct S3 {
    inner: Arc<Inner>,
    /// One connection for every call, when they go over HTTP/2.
    h2: Option<http2::SendRequest<Full<Bytes>>>,
    pub credentials: Credentials,
}

struct Inner {
    host: String,
    addr: SocketAddr,
    tls: Option<rustls::ClientConfig>,
    idle: std::sync::Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("host", &self.inner.host).finish_non_exhaustive()
    }
}

impl S3 {
    /// `url` is `http://127.0.0.1:9000`, or `https://...` with the CA that signed its certificate, in PEM.
    pub fn new(url: &str, ca: Option<&[u8]>, credentials: Credentials) -> anyhow::Result<Self> {
        let (tls, host) = match url.split_once("://") {
            Some(("http", host)) => (None, host),
            Some(("https", host)) => (Some(tls_config(ca.context("a CA for https")?)?), host),
            _ => bail!("no http or https URL: {url}"),
        };
        let host = host.trim_end_matches('/').to_owned();
        let addr = host.parse().with_context(|| format!("an address and port: {host}"))?;
        let inner = Inner { host, addr, tls, idle: std::sync::Mutex::default() };
        Ok(Self { inner: Arc::new(inner), h2: None, credentials })
    }

    /// The same endpoint under other credentials.
    pub fn with_credentials(&self, credentials: Credentials) -> Self {
        Self { credentials, ..self.clone() }
    }

    /// The same endpoint over one HTTP/2 connection, with prior knowledge or as TLS agrees, which all calls share.
    pub async fn http2(&self) -> anyhow::Result<Self> {
        let io = TokioIo::new(self.connect(HTTP_2).await.context("connecting")?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Self { h2: Some(sender), ..self.clone() })
    }

    /// The port of the endpoint.
    pub fn port(&self) -> u16 {
        self.inner.addr.port()
    }

    /// A call on the service itself, a bucket (`key` empty) or an object.
    pub fn call(&self, method: &'static str, bucket: &str, key: impl AsRef<[u8]>) -> Call {
        let key = key.as_ref();
        let path = match (bucket, key) {
            ("", _) => "/".to_owned(),
            (bucket, b"") => format!("/{bucket}"),
            (bucket, key) => format!("/{bucket}/{}", sigv4::encode_path(key)),
        };
        self.call_path(method, path)
    }

    /// A call on an encoded path.
    pub fn call_path(&self, method: &'static str, path: impl Into<String>) -> Call {
        Call {
            s3: self.clone(),
            method,
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            host: self.inner.host.clone(),
            body: Bytes::new(),
            payload: Payload::Signed,
            at: OffsetDateTime::now_utc(),
            sign: Sign::Header,
        }
    }

    pub fn get(&self, bucket: &str, key: impl AsRef<[u8]>) -> Call {
        self.call("GET", bucket, key)
    }

    pub fn head(&self, bucket: &str, key: impl AsRef<[u8]>) -> Call {
        self.call("HEAD", bucket, key)
    }

    pub fn put(&self, bucket: &str, key: impl AsRef<[u8]>, body: impl Into<Bytes>) -> Call {
        self.call("PUT", bucket, key).body(body)
    }

    pub fn delete(&self, bucket: &str, key: impl AsRef<[u8]>) -> Call {
        self.call("DELETE", bucket, key)
    }

    /// Creates a bucket of a fresh name that begins with `prefix`.
    pub async fn bucket(&self, prefix: &str) -> String {
        let name = format!("{prefix}-{:08x}", rand::random::<u32>());
        self.call("PUT", &name, "").expect(200).await;
        name
    }

    /// Every key of a bucket, through pages of `page`, with ListObjectsV2.
    pub async fn keys(&self, bucket: &str, page: usize) -> anyhow::Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut token = None;
        loop {
            let mut call = self.get(bucket, "").query("list-type", "2").query("max-keys", page.to_string());
            if let Some(token) = &token {
                call = call.query("continuation-token", token);
            }
            let answer = call.send().await?;
            if answer.status != 200 {
                bail!("{answer:?}");
            }
            let listing = answer.xml()?;
            keys.extend(listing.texts("Contents", "Key"));
            if listing.get("IsTruncated") != "true" {
                return Ok(keys);
            }
            token = Some(listing.get("NextContinuationToken").to_owned());
        }
    }

    /// Sends exactly these bytes on a new connection, optionally ends the sending side, and returns all that comes
    /// back until the server closes or falls silent for `quiet`.
    pub async fn raw(&self, request: &[u8], end: bool, quiet: Duration) -> anyhow::Result<Vec<u8>> {
        let mut stream = self.connect(HTTP_1).await?;
        // A server may refuse and close before it has read everything.
        let sent = stream.write_all(request).await;
        if end {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let mut buffer = [0_u8; 16 << 10];
        loop {
            match tokio::time::timeout(quiet, stream.read(&mut buffer)).await {
                Ok(Ok(0)) | Ok(Err(_)) | Err(_) => break,
                Ok(Ok(n)) => answer.extend_from_slice(&buffer[..n]),
            }
        }
        if answer.is_empty() {
            sent.context("sending the request")?;
        }
        Ok(answer)
    }

    /// A new connection; over TLS the server has to agree to `protocol`.
    async fn connect(&self, protocol: &[u8]) -> anyhow::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.inner.addr).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.inner.tls else { return Ok(Box::new(stream)) };
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = connector.connect(self.inner.addr.ip().into(), stream).await?;
        let agreed = stream.get_ref().1.alpn_protocol();
        anyhow::ensure!(agreed == Some(protocol), "the server agrees to {agreed:?}");
        Ok(Box::new(stream))
    }

    async fn connection(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        loop {
            let idle = self.inner.idle.lock().expect("no holder panics").pop();
            let Some(mut sender) = idle else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let io = TokioIo::new(self.connect(HTTP_1).await.context("connecting")?);
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn tls_config(ca: &[u8]) -> anyhow::Result<rustls::ClientConfig> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

#[derive(Clone, Debug)]
enum Payload {
    Signed,
    Literal(String),
    Chunked(Chunked),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Header,
    WrongHeader,
    Anonymous,
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Call {
    s3: S3,
    method: &'static str,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    host: String,
    body: Bytes,
    payload: Payload,
    at: OffsetDateTime,
    sign: Sign,
}

impl Call {
    pub fn query(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.query.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.headers.push((name.to_ascii_lowercase(), value.as_ref().to_owned()));
        self
    }

    /// The host that the request names and signs, instead of the endpoint's address.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// `UNSIGNED-PAYLOAD` instead of the body's digest.
    pub fn unsigned_payload(self) -> Self {
        self.payload_hash("UNSIGNED-PAYLOAD")
    }

    /// Any value of `x-amz-content-sha256`.
    pub fn payload_hash(mut self, value: &str) -> Self {
        self.payload = Payload::Literal(value.to_owned());
        self
    }

    /// Sends the body aws-chunked.
    pub fn chunked(mut self, framing: Chunked) -> Self {
        self.payload = Payload::Chunked(framing);
        self
    }

    /// The time that the signature claims.
    pub fn at(mut self, at: OffsetDateTime) -> Self {
        self.at = at;
        self
    }

    /// Changes the signature's last digit.
    pub fn wrong_signature(mut self) -> Self {
        self.sign = Sign::WrongHeader;
        self
    }

    pub fn anonymous(mut self) -> Self {
        self.sign = Sign::Anonymous;
        self
    }

    /// The path and query of a presigned URL of this call, valid for `seconds`.
    pub fn presign(&self, seconds: u64) -> String {
        let signer = Signer::new(&self.s3.credentials, self.at);
        let mut headers = self.headers.clone();
        headers.push(("host".into(), self.host.clone()));
        headers.sort();
        let mut query = self.query.clone();
        for (name, value) in [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
            ("X-Amz-Credential", format!("{}/{}", self.s3.credentials.access_key, signer.scope)),
            ("X-Amz-Date", signer.date.clone()),
            ("X-Amz-Expires", seconds.to_string()),
            ("X-Amz-SignedHeaders", sigv4::signed_names(&headers)),
        ] {
            query.push((name.to_owned(), value));
        }
        let query = sigv4::canonical_query(&query);
        let request = sigv4::canonical_request(self.method, &self.path, &query, &headers, "UNSIGNED-PAYLOAD");
        let signature = signer.sign(&request);
        let signature = if self.sign == Sign::WrongHeader { one_digit_off(&signature) } else { signature };
        format!("{}?{query}&X-Amz-Signature={signature}", self.path)
    }

    /// Path with query, all headers, and the body as it goes out.
    fn finish(&self) -> (String, Vec<(String, String)>, Bytes) {
        let query = sigv4::canonical_query(&self.query);
        let target = if query.is_empty() { self.path.clone() } else { format!("{}?{query}", self.path) };
        let mut headers = self.headers.clone();
        headers.push(("host".into(), self.host.clone()));
        if self.sign == Sign::Anonymous {
            return (target, headers, self.body.clone());
        }

        let signer = Signer::new(&self.s3.credentials, self.at);
        let hash = match &self.payload {
            Payload::Signed => sigv4::sha256_hex(&self.body),
            Payload::Literal(value) => value.clone(),
            Payload::Chunked(framing) => {
                let encoding = match headers.iter().position(|(name, _)| name == "content-encoding") {
                    Some(at) => format!("aws-chunked,{}", headers.remove(at).1),
                    None => "aws-chunked".to_owned(),
                };
                headers.push(("content-encoding".into(), encoding));
                let declared = framing.declared.unwrap_or(self.body.len());
                headers.push(("x-amz-decoded-content-length".into(), declared.to_string()));
                if let Some((name, _)) = &framing.trailer {
                    headers.push(("x-amz-trailer".into(), name.clone()));
                }
                framing.payload_hash().to_owned()
            }
        };
        headers.push(("x-amz-content-sha256".into(), hash.clone()));
        headers.push(("x-amz-date".into(), signer.date.clone()));
        headers.sort();
        let request = sigv4::canonical_request(self.method, &self.path, &query, &headers, &hash);
        let seed = signer.sign(&request);
        let shown = if self.sign == Sign::WrongHeader { one_digit_off(&seed) } else { seed.clone() };
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={shown}",
            self.s3.credentials.access_key,
            signer.scope,
            sigv4::signed_names(&headers)
        );
        headers.push(("authorization".into(), authorization));
        let body = match &self.payload {
            Payload::Chunked(framing) => framing.frame(&self.body, &signer, &seed),
            _ => self.body.clone(),
        };
        (target, headers, body)
    }

    /// The whole request as HTTP/1.1 bytes, and where its body begins, for those who cut it short.
    pub fn wire(&self) -> (Vec<u8>, usize) {
        let (target, headers, body) = self.finish();
        let mut text = format!("{} {target} HTTP/1.1\r\n", self.method);
        for (name, value) in &headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut bytes = text.into_bytes();
        let head = bytes.len();
        bytes.extend_from_slice(&body);
        (bytes, head)
    }

    /// Sends the request once.
    pub async fn send(&self) -> anyhow::Result<Answer> {
        let (target, headers, body) = self.finish();
        tokio::time::timeout(DEADLINE, self.exchange(&target, &headers, body))
            .await
            .with_context(|| format!("{} {target}: no answer within {DEADLINE:?}", self.method))?
            .with_context(|| format!("{} {target}", self.method))
    }

    /// Sends the body to a presigned path and query, with this call's own headers.
    pub async fn send_to(&self, presigned: &str) -> anyhow::Result<Answer> {
        let mut headers = self.headers.clone();
        headers.push(("host".into(), self.host.clone()));
        tokio::time::timeout(DEADLINE, self.exchange(presigned, &headers, self.body.clone())).await?
    }

    async fn exchange(
        &self,
        target: &str,
        headers: &[(String, String)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let request = http::Request::builder().method(self.method);
        let mut request = match &self.s3.h2 {
            None => request.uri(target),
            // HTTP/2 has no `Host` but an authority.
            Some(_) => {
                let scheme = if self.s3.inner.tls.is_some() { "https" } else { "http" };
                request.version(http::Version::HTTP_2).uri(format!("{scheme}://{}{target}", self.host))
            }
        };
        for (name, value) in headers.iter().filter(|(name, _)| self.s3.h2.is_none() || name != "host") {
            request = request.header(name, http::HeaderValue::from_bytes(value.as_bytes())?);
        }
        if body.is_empty() && matches!(self.method, "PUT" | "POST") {
            request = request.header("content-length", "0");
        }
        let request = request.body(Full::new(body))?;
        let (parts, body) = match self.s3.h2.clone() {
            Some(mut sender) => {
                let (parts, body) = sender.send_request(request).await?.into_parts();
                (parts, body.collect().await?.to_bytes())
            }
            None => {
                let mut sender = self.s3.connection().await?;
                let (parts, body) = sender.send_request(request).await?.into_parts();
                let body = body.collect().await?.to_bytes();
                self.s3.inner.idle.lock().expect("no holder panics").push(sender);
                (parts, body)
            }
        };
        Ok(Answer {
            request: format!("{} {target}", self.method),
            version: parts.version,
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        })
    }

    /// Sends, and panics unless the answer has this status.
    pub async fn expect(self, status: u16) -> Answer {
        let answer = self.send().await.unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(answer.status, status, "{answer:?}");
        answer
    }

    /// Sends, and panics unless it is refused the way S3 refuses: this status, an XML error with this code, a message
    /// and a request id that the headers repeat.
    pub async fn refused(self, status: u16, code: &str) -> Answer {
        let head = self.method == "HEAD";
        let answer = self.send().await.unwrap_or_else(|error| panic!("{error:#}"));
        if head {
            assert_eq!(answer.status, status, "{answer:?}");
        } else {
            answer.assert_refused(status, code);
        }
        answer
    }
}

/// What a server answered.
#[derive(Clone)]
pub struct Answer {
    request: String,
    pub version: http::Version,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.body[..self.body.len().min(2000)];
        write!(f, "{} -> {} {:?} {}", self.request, self.status, self.headers, String::from_utf8_lossy(shown))
    }
}

impl Answer {
    /// A header's value; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("(not ASCII)"))
    }

    pub fn xml(&self) -> anyhow::Result<Element> {
        Element::parse(&self.body).with_context(|| format!("{self:?}"))
    }

    /// The body as XML; panics if it is none.
    pub fn tree(&self) -> Element {
        self.xml().unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The error code in the body; empty if there is none.
    pub fn code(&self) -> String {
        self.xml().map(|root| root.get("Code").to_owned()).unwrap_or_default()
    }

    /// See [`Call::refused`].
    #[track_caller]
    pub fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{self:?}");
        let root = self.tree();
        assert_eq!(root.name, "Error", "{self:?}");
        assert!(!root.get("Message").is_empty(), "an error says what is wrong: {self:?}");
        assert!(!self.header("x-amz-request-id").is_empty(), "every answer has a request id: {self:?}");
        assert_eq!(root.get("RequestId"), self.header("x-amz-request-id"), "{self:?}");
        assert_eq!(self.header("content-type"), "application/xml", "{self:?}");
    }
}
