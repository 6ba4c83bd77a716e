//! What the gateway is told when it starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Settings of one gateway. `new` gives the defaults of the design.
#[derive(Clone)]
pub struct GatewayConfig {
    /// The region that this zone answers for: `x-amz-bucket-region` and LocationConstraint.
    pub region: String,
    /// Base domains of virtual-host style, `s3.example.com`; a port may follow. Any other host is path style.
    pub domains: Vec<String>,
    /// What seals the secrets of access keys.
    pub realm_key: [u8; 32],
    /// Object data in flight, bytes: more is answered 503 SlowDown.
    pub inflight_bytes: usize,
    /// How long a request waits for room among the bytes in flight.
    pub inflight_wait: Duration,
    /// Serves TLS where it is given.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Connections at a time; further ones wait in the listener's backlog.
    pub connections_max: usize,
    /// How long a client may take for a request's head.
    pub header_timeout: Duration,
    /// How long a client may send nothing of a body that it announced, or take nothing of one that it asked for.
    pub idle_timeout: Duration,
    /// How long requests in flight may take once the gateway is told to stop.
    pub drain_timeout: Duration,
}

impl GatewayConfig {
    /// The defaults, for a region and the realm's key.
    pub fn new(region: impl Into<String>, realm_key: [u8; 32]) -> Self {
        Self {
            region: region.into(),
            domains: Vec::new(),
            realm_key,
            inflight_bytes: 512 << 20,
            inflight_wait: Duration::from_secs(5),
            tls: None,
            connections_max: 4096,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayConfig")
            .field("region", &self.region)
            .field("domains", &self.domains)
            .field("inflight_bytes", &self.inflight_bytes)
            .field("tls", &self.tls.is_some())
            .field("connections_max", &self.connections_max)
            .finish_non_exhaustive()
    }
}
