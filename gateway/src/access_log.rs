//! One line and a few counts for every request, when its answer has been sent or given up.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode, Uri};

use crate::ticket::Ticket;

/// A request that is being answered; logged when it is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    ticket: Arc<Ticket>,
    method: Method,
    uri: Uri,
    status: StatusCode,
    started: Instant,
    bytes_out: u64,
    broken: bool,
}

impl Entry {
    pub(crate) fn new(
        ticket: Arc<Ticket>,
        method: Method,
        uri: Uri,
        status: StatusCode,
        started: Instant,
    ) -> Self {
        Self { ticket, method, uri, status, started, bytes_out: 0, broken: false }
    }

    pub(crate) fn add_bytes_out(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    /// The answer broke off after its head was sent.
    pub(crate) fn set_broken(&mut self) {
        self.broken = true;
    }
}

impl Drop for Entry {
    /// The query is left out: a presigned URL's holds a signature.
    fn drop(&mut self) {
        let operation = self.ticket.operation();
        let elapsed = self.started.elapsed();
        let bytes_in = self.ticket.bytes_in();
        let status = status_label(self.status);
        metrics::counter!("holdfast_gateway_requests_total", "op" => operation, "status" => status)
            .increment(1);
        metrics::histogram!("holdfast_gateway_request_seconds", "op" => operation)
            .record(elapsed.as_secs_f64());
        if bytes_in > 0 {
            metrics::counter!("holdfast_gateway_received_bytes_total").increment(bytes_in);
        }
        if self.bytes_out > 0 {
            metrics::counter!("holdfast_gateway_sent_bytes_total").increment(self.bytes_out);
        }
        if self.broken {
            metrics::counter!("holdfast_gateway_broken_answers_total").increment(1);
        }
        tracing::info!(
            target: "holdfast_gateway::access",
            request_id = self.ticket.tag.as_str(),
            op = operation,
            method = self.method.as_str(),
            path = self.uri.path(),
            status = self.status.as_u16(),
            bytes_in,
            bytes_out = self.bytes_out,
            broken = self.broken,
            ms = elapsed.as_secs_f64() * 1e3,
            "request"
        );
    }
}

/// A label without an allocation.
fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        204 => "204",
        206 => "206",
        304 => "304",
        400 => "400",
        403 => "403",
        404 => "404",
        405 => "405",
        409 => "409",
        411 => "411",
        412 => "412",
        416 => "416",
        500 => "500",
        501 => "501",
        503 => "503",
        other if other < 300 => "2xx",
        other if other < 400 => "3xx",
        other if other < 500 => "4xx",
        _ => "5xx",
    }
}
