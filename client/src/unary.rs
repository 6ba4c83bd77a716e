//! One unary gRPC call whose bulk is not copied; see [`crate::frame`].

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http_body_util::BodyExt;
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use crate::frame::{Framed, GRPC, Rope};

/// Sends a message of `head` then `tail`, and gives the answer's. Not cancel-safe: a dropped call may have been done.
///
/// # Errors
/// The peer's status; `Unavailable` when it could not be reached or the answer was cut short.
pub(crate) async fn call<M: Message + Default>(
    mut channel: Channel,
    path: &'static str,
    head: BytesMut,
    tail: Bytes,
    answer_bytes_max: usize,
) -> Result<M, Status> {
    let unreachable = |error: tonic::transport::Error| Status::unavailable(format!("{error:?}"));
    let mut request = http::Request::new(tonic::body::Body::new(Framed::new(head, tail)?));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(path);
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(CONTENT_TYPE, GRPC);
    let response = channel.ready().await.map_err(unreachable)?.call(request).await.map_err(unreachable)?;
    if let Some(status) =
        Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok)
    {
        return Err(status);
    }
    if response.status() != http::StatusCode::OK {
        return Err(Status::unavailable(format!("HTTP status {}", response.status())));
    }
    let mut body = response.into_body();
    let mut message = Rope::default();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => message.push(data),
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return match Status::from_header_map(&trailers) {
                    Some(status) if status.code() == Code::Ok => message.decode(),
                    Some(status) => Err(status),
                    None => Err(Status::unavailable("trailers without a status")),
                };
            }
        }
        if message.len() > answer_bytes_max {
            return Err(Status::out_of_range("the answer is too long"));
        }
    }
    Err(Status::unavailable("the answer was cut short"))
}
