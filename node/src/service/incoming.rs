//! Listening sockets: bound with one clear line when they cannot be, TCP_NODELAY on everything accepted.

use std::net::SocketAddr;
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("{what}: {address} is in use by another process")]
    InUse { what: &'static str, address: String },
    #[error("{what}: cannot listen on {address}: {error}")]
    Other { what: &'static str, address: String, error: std::io::Error },
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds `address`, the value of the configuration key `what`.
///
/// # Errors
/// One clear line.
pub(crate) async fn bind(what: &'static str, address: &str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|error| {
        let address = address.to_owned();
        match error.kind() {
            std::io::ErrorKind::AddrInUse => ListenError::InUse { what, address },
            _ => ListenError::Other { what, address, error },
        }
    })
}

/// Accepted connections, without delay. Failures to accept (out of descriptors, a peer gone already) are waited out.
pub(crate) fn connections(listener: TcpListener) -> impl Stream<Item = Result<TcpStream, std::convert::Infallible>> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.set_nodelay(true) {
                    Ok(()) => return Some((Ok(stream), listener)),
                    // The peer has gone.
                    Err(_) => continue,
                },
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// What others are told: the advertised host where there is one, with the port that was bound.
pub(crate) fn advertised(configured: &str, bound: SocketAddr) -> String {
    if configured.is_empty() { bound.to_string() } else { configured.to_owned() }
}
