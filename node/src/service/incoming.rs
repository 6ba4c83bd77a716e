//! Listening sockets: bound with one clear line when they cannot be, TCP_NODELAY on everything accepted.

use std::net::SocketAddr;
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::resolve;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("{what}: {address} is in use by another process")]
    InUse { what: &'static str, address: String },
    #[error("{what}: cannot listen on {address}: {error}")]
    Other { what: &'static str, address: String, error: std::io::Error },
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A bound socket that does not listen yet: the port is taken and known, and who connects is refused at once instead of
/// waiting for a node that waits itself.
#[derive(Debug)]
pub(crate) struct Bound {
    what: &'static str,
    address: String,
    socket: TcpSocket,
}

/// Binds `address`, the value of the configuration key `what`.
///
/// # Errors
/// One clear line.
pub(crate) fn bind(what: &'static str, address: &str) -> Result<Bound, ListenError> {
    let fault = |error| listen_error(what, address, error);
    let resolved = resolve(address).map_err(fault)?;
    let socket = if resolved.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(fault)?;
    // A restart must not wait for connections of its former life to be forgotten.
    socket.set_reuseaddr(true).and_then(|()| socket.bind(resolved)).map_err(fault)?;
    Ok(Bound { what, address: address.to_owned(), socket })
}

impl Bound {
    /// The address with the port that was taken.
    ///
    /// # Errors
    /// When the socket is not usable.
    pub(crate) fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Lets connections in.
    ///
    /// # Errors
    /// One clear line.
    pub(crate) fn listen(self) -> Result<TcpListener, ListenError> {
        self.socket.listen(BACKLOG).map_err(|error| listen_error(self.what, &self.address, error))
    }
}

fn listen_error(what: &'static str, address: &str, error: std::io::Error) -> ListenError {
    let address = address.to_owned();
    match error.kind() {
        std::io::ErrorKind::AddrInUse => ListenError::InUse { what, address },
        _ => ListenError::Other { what, address, error },
    }
}

/// Accepted connections, without delay. Failures to accept (out of descriptors, a peer gone already) are waited out.
pub(crate) fn connections(
    listener: TcpListener,
) -> impl Stream<Item = Result<TcpStream, std::convert::Infallible>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_one_clear_line() {
        let first = bind("node.listen", "127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap().to_string();
        let _first = first.listen().unwrap();
        let error = bind("node.listen", &address).and_then(Bound::listen).unwrap_err();
        assert_eq!(error.to_string(), format!("node.listen: {address} is in use by another process"));
    }

    #[tokio::test]
    async fn a_bound_socket_refuses_until_it_listens() {
        let bound = bind("node.listen", "127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
        let _listener = bound.listen().unwrap();
        TcpStream::connect(address).await.unwrap();
    }
}
