//! Connections to peers: one for metadata and one for data per node, so that bulk never delays a small call.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_proto::id::NodeId;
use holdfast_proto::limits::{H2_FRAME_BYTES, H2_WINDOW_BYTES, SHARD_BYTES_MAX};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Traffic {
    Meta,
    Data,
}

/// Received in one piece: a full shard and its header.
const SHARD_FRAME_BYTES: u32 = 2 * H2_FRAME_BYTES;
const _: () = assert!(SHARD_BYTES_MAX + (64 << 10) < SHARD_FRAME_BYTES as usize, "a shard fits a frame");

/// Connections by node and kind; they connect when first used and again after a failure.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    open: Mutex<HashMap<(NodeId, Traffic), (String, Channel)>>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer whose host vanished without a word is noticed after these two.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

impl Channels {
    /// The connection to `node`, which is at `addr` now.
    pub(crate) fn to(&self, node: NodeId, addr: &str, traffic: Traffic) -> Result<Channel, Error> {
        let mut open = self.open.lock();
        match open.get(&(node, traffic)) {
            Some((at, channel)) if at == addr => return Ok(channel.clone()),
            _ => {}
        }
        let channel = lazy(addr, traffic)?;
        open.insert((node, traffic), (addr.to_owned(), channel.clone()));
        Ok(channel)
    }

    /// Forgets nodes that are no longer in the map.
    pub(crate) fn retain(&self, known: impl Fn(NodeId) -> bool) {
        self.open.lock().retain(|(node, _), _| known(*node));
    }
}

/// A connection to `addr` ("host:port") that is made when it is first used.
pub(crate) fn lazy(addr: &str, traffic: Traffic) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|bad| Error::internal(format!("address {addr:?}: {bad}")))?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(H2_WINDOW_BYTES);
    let endpoint = match traffic {
        Traffic::Meta => {
            endpoint.initial_connection_window_size(H2_WINDOW_BYTES).max_frame_size(H2_FRAME_BYTES)
        }
        // Many streams share the connection: its window must not be the least of theirs. A whole shard with its header
        // comes in one frame, which is then not copied again.
        Traffic::Data => {
            endpoint.initial_connection_window_size(8 * H2_WINDOW_BYTES).max_frame_size(SHARD_FRAME_BYTES)
        }
    };
    Ok(endpoint.connect_lazy())
}
