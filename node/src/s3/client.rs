//! One S3 endpoint and one keep-alive connection for each that asks: nothing is shared, nothing waits for another.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::sigv4::{self, Keys, Signer};

/// No single request takes longer unless the endpoint hangs.
const REQUEST_DEADLINE: Duration = Duration::from_secs(120);
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where requests go and who they are from, as somebody said it.
#[derive(Clone)]
pub(crate) struct EndpointConfig {
    /// http or https URL.
    pub(crate) endpoint: String,
    pub(crate) keys: Keys,
    /// PEM file of the CA to trust for https, instead of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// Bodies are covered by the signature.
    pub(crate) sign_bodies: bool,
}

/// Where requests go and who they are from.
pub(crate) struct Endpoint {
    /// As in the Host header.
    host: String,
    addr: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    keys: Keys,
    sign_bodies: bool,
}

impl Endpoint {
    /// # Errors
    /// When the URL or the CA makes no sense.
    pub(crate) fn new(config: &EndpointConfig) -> anyhow::Result<Self> {
        let uri: http::Uri = config.endpoint.parse().context("the endpoint")?;
        let authority = uri.authority().context("the endpoint names no host")?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("the endpoint is no http or https URL: {}", config.endpoint),
        };
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let tls = https.then(|| tls(config.ca.as_deref(), authority.host())).transpose()?;
        Ok(Self {
            host: authority.as_str().to_owned(),
            addr: format!("{}:{port}", authority.host()),
            tls,
            keys: config.keys.clone(),
            sign_bodies: config.sign_bodies,
        })
    }
}

fn tls(ca: Option<&Path>, host: &str) -> anyhow::Result<(TlsConnector, ServerName<'static>)> {
    let path = ca.unwrap_or(Path::new(SYSTEM_ROOTS));
    let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    Ok((Arc::new(config).into(), name))
}

/// What came back, its body read to the end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    /// Bytes of body received.
    pub(crate) bytes: u64,
    /// The body, where it was asked for.
    pub(crate) body: Vec<u8>,
}

/// A connection, made when it is first used.
pub(crate) struct Connection {
    endpoint: Arc<Endpoint>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    pub(crate) fn new(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, sender: None }
    }

    /// Sends one request and reads its answer; the body is kept only if `keep`.
    ///
    /// Not cancel-safe: a dropped exchange closes the connection.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        query: &str,
        body: Bytes,
        keep: bool,
    ) -> anyhow::Result<Answer> {
        // A failed or abandoned exchange leaves no connection behind.
        let sender = self.sender.take();
        let exchange = self.exchange(sender, method, path, query, body, keep);
        let (answer, sender) =
            tokio::time::timeout(REQUEST_DEADLINE, exchange).await.context("no answer")??;
        self.sender = Some(sender);
        Ok(answer)
    }

    async fn exchange(
        &self,
        sender: Option<SendRequest<Full<Bytes>>>,
        method: &str,
        path: &str,
        query: &str,
        body: Bytes,
        keep: bool,
    ) -> anyhow::Result<(Answer, SendRequest<Full<Bytes>>)> {
        let mut sender = match sender.filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        sender.ready().await?;
        let request = self.request(method, path, query, body)?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let (bytes, body) = drain(body, keep || parts.status.is_client_error()).await?;
        Ok((Answer { status: parts.status.as_u16(), headers: parts.headers, bytes, body }, sender))
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        query: &str,
        body: Bytes,
    ) -> anyhow::Result<http::Request<Full<Bytes>>> {
        let endpoint = &self.endpoint;
        let hashed;
        let payload_hash = if endpoint.sign_bodies {
            hashed = sigv4::sha256_hex(&body);
            &hashed
        } else {
            sigv4::UNSIGNED
        };
        let now = OffsetDateTime::now_utc();
        let signed =
            Signer::new(&endpoint.keys, now).sign(now, method, &endpoint.host, path, query, payload_hash);
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        Ok(http::Request::builder()
            .method(method)
            .uri(target)
            .header("host", &endpoint.host)
            .header("x-amz-date", signed.date)
            .header("x-amz-content-sha256", payload_hash)
            .header("authorization", signed.authorization)
            .header("content-length", body.len())
            .body(Full::new(body))?)
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let addr = &self.endpoint.addr;
        let stream = TcpStream::connect(addr).await.with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        // A connection's task ends with its connection.
        match &self.endpoint.tls {
            None => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(sender)
            }
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await.context("TLS")?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(sender)
            }
        }
    }
}

async fn drain(mut body: Incoming, keep: bool) -> anyhow::Result<(u64, Vec<u8>)> {
    let (mut bytes, mut kept) = (0, Vec::new());
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            bytes += data.len() as u64;
            if keep {
                kept.extend_from_slice(data);
            }
        }
    }
    Ok((bytes, kept))
}
