//! The admin listener: `/health/live`, `/health/ready`, `/metrics` and `/workers`, over plain HTTP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::incoming::connections;
use crate::supervisor::Supervisor;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 64;

/// What the node still waits for before it serves; empty when it is ready.
pub(crate) type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What the listener shows.
#[derive(Clone)]
pub(crate) struct AdminHttp {
    pub(crate) metrics: PrometheusHandle,
    pub(crate) supervisor: Supervisor,
    pub(crate) readiness: Readiness,
}

impl std::fmt::Debug for AdminHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminHttp").finish_non_exhaustive()
    }
}

/// Serves until `cancel` is cancelled.
///
/// # Errors
/// None so far: a listener's failures are waited out.
pub(crate) async fn serve(
    listener: TcpListener,
    shown: AdminHttp,
    cancel: CancellationToken,
) -> Result<(), Infallible> {
    let mut incoming = std::pin::pin!(connections(listener));
    let mut open = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = cancel.cancelled() => break,
            // Bounded: a scraper that opens more waits.
            Some(stream) = incoming.next(), if open.len() < CONNECTIONS_MAX => stream,
            Some(_) = open.join_next() => continue,
        };
        let Ok(stream) = stream;
        let shown = shown.clone();
        open.spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&shown, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // A peer that breaks off is its own business.
            drop(connection.await);
        });
    }
    open.shutdown().await;
    Ok(())
}

fn answer(shown: &AdminHttp, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
    }
    match request.uri().path() {
        "/health/live" => text(StatusCode::OK, "live\n".to_owned()),
        "/health/ready" => match (shown.readiness)() {
            waiting if waiting.is_empty() => text(StatusCode::OK, "ready\n".to_owned()),
            waiting => text(StatusCode::SERVICE_UNAVAILABLE, waiting.join("\n") + "\n"),
        },
        "/metrics" => text(StatusCode::OK, shown.metrics.render()),
        "/workers" => match serde_json::to_string(&shown.supervisor.workers()) {
            Ok(json) => text(StatusCode::OK, json + "\n"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => text(StatusCode::NOT_FOUND, "/health/live /health/ready /metrics /workers\n".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
