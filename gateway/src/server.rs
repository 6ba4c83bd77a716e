//! The listener: connections, TLS, HTTP/1.1 and HTTP/2 on one port, and an orderly end.
//!
//! Every connection is a task of one tracker. When `cancel` is cancelled no further connection is taken, those at rest are
//! closed, and requests in flight have the drain timeout to end; what is left then is dropped.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_client::Cluster;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::S3ServiceBuilder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Auth;
use crate::config::GatewayConfig;
use crate::guard::{Guard, XML_BYTES_MAX};
use crate::host::Domains;
use crate::idle::IdleIo;
use crate::ignored_range::{IgnoredRange, Verified};
use crate::inflight::Inflight;
use crate::ops::Store;

const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept, which is most often a want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const H2_STREAMS_MAX: u32 = 256;
const H2_STREAM_WINDOW_BYTES: u32 = 1 << 20;
const H2_CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const H2_HEADER_BYTES_MAX: u32 = 32 << 10;

/// Why a gateway could not serve.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The listener's own address cannot be read.
    #[error("the listener is not usable: {0}")]
    Listener(#[from] io::Error),
}

/// Serves S3 on `listener` until `cancel` is cancelled and connections are drained.
///
/// # Errors
/// When the listener is not usable. Faults of single connections end those alone.
pub async fn serve(
    listener: TcpListener,
    cluster: Cluster,
    config: GatewayConfig,
    cancel: CancellationToken,
) -> Result<(), GatewayError> {
    let address = listener.local_addr()?;
    let connections = Arc::new(Semaphore::new(config.connections_max));
    let graceful = GracefulShutdown::new();
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    let streams = Streams { tasks: tasks.clone(), abort: abort.clone() };
    let server = Arc::new(Server::new(cluster, &config, streams));
    tracing::info!(%address, region = config.region, tls = config.tls.is_some(), "the S3 gateway serves");
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        let (server, watcher, abort) = (server.clone(), graceful.watcher(), abort.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                () = server.connection(stream, watcher) => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    tasks.close();
    let drained = tokio::time::timeout(config.drain_timeout, graceful.shutdown()).await;
    if drained.is_err() {
        tracing::warn!("requests were still in flight when the drain timeout passed");
    }
    abort.cancel();
    tasks.wait().await;
    Ok(())
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            None
        }
    }
}

/// Runs the streams of HTTP/2 connections as tasks of the listener, which ends them with itself.
#[derive(Clone)]
struct Streams {
    tasks: TaskTracker,
    abort: CancellationToken,
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = abort.cancelled() => {}
                _ = stream => {}
            }
        });
    }
}

struct Server {
    http: auto::Builder<Streams>,
    guard: Guard,
    tls: Option<TlsAcceptor>,
    idle_timeout: Duration,
}

impl Server {
    fn new(cluster: Cluster, config: &GatewayConfig, streams: Streams) -> Self {
        Self {
            http: http(config, streams),
            guard: guard(cluster, config),
            tls: tls(config),
            idle_timeout: config.idle_timeout,
        }
    }

    async fn connection(&self, stream: TcpStream, watcher: hyper_util::server::graceful::Watcher) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let stream = IdleIo::new(stream, self.idle_timeout);
        match &self.tls {
            None => self.http(stream, watcher).await,
            Some(tls) => match tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.http(stream, watcher).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            },
        }
    }

    async fn http<S>(&self, stream: S, watcher: hyper_util::server::graceful::Watcher)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connection = self.http.serve_connection(TokioIo::new(stream), self.guard.clone());
        if let Err(error) = watcher.watch(connection.into_owned()).await {
            tracing::debug!(error, "a connection ended with an error");
        }
    }
}

fn http(config: &GatewayConfig, streams: Streams) -> auto::Builder<Streams> {
    let mut http = auto::Builder::new(streams);
    http.http1().timer(TokioTimer::new()).header_read_timeout(config.header_timeout).half_close(false);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(H2_HEADER_BYTES_MAX)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    http
}

fn tls(config: &GatewayConfig) -> Option<TlsAcceptor> {
    let mut tls = rustls::ServerConfig::clone(config.tls.as_ref()?);
    if tls.alpn_protocols.is_empty() {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Some(TlsAcceptor::from(Arc::new(tls)))
}

fn guard(cluster: Cluster, config: &GatewayConfig) -> Guard {
    let mut limits = S3Config::default();
    limits.xml_max_body_size = XML_BYTES_MAX;
    limits.presigned_url_max_skew_time_secs = holdfast_proto::limits::CLOCK_SKEW_SECONDS_MAX as u32;
    let domains = Domains::new(&config.domains);
    let auth = Auth::new(cluster.clone(), config.realm_key);
    let inflight = Inflight::new(config.inflight_bytes, config.inflight_wait);
    let store = Store::new(cluster, config, inflight.clone());
    let limits = Arc::new(StaticConfigProvider::new(Arc::new(limits)));
    let mut inner = S3ServiceBuilder::new(store.clone());
    inner.set_config(limits.clone());
    inner.set_auth(Verified);
    inner.set_access(Verified);
    inner.set_host(domains.clone());
    let mut builder = S3ServiceBuilder::new(store);
    builder.set_config(limits);
    builder.set_auth(auth.clone());
    builder.set_access(auth.clone());
    builder.set_host(domains.clone());
    builder.set_route(IgnoredRange::new(inner.build(), auth));
    Guard::new(builder.build(), domains, inflight, config.idle_timeout)
}
