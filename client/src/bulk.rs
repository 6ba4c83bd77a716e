//! The server's side of the framing without copies: the `Shards` service, with `Put` and `Get` served without copying the shard. What
//! comes and goes on the wire is the same as tonic's.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use holdfast_proto::data::shards_server::{Shards, ShardsServer};
use holdfast_proto::data::{GetShard, PutShard, ShardBlocks};
use holdfast_proto::limits::MESSAGE_BYTES_MAX;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use prost::Message;
use tonic::server::NamedService;
use tonic::{Request, Status};
use tower::Service;

use crate::frame::{Framed, GRPC, Rope, put_bytes_key};
use crate::shard::{GET_DATA_FIELD, GET_PATH, PUT_PATH};

/// Serves a [`Shards`]; add it to a router in place of [`ShardsServer`].
#[derive(Debug)]
pub struct BulkShards<S> {
    shards: Arc<S>,
    others: ShardsServer<S>,
}

impl<S> Clone for BulkShards<S> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), others: self.others.clone() }
    }
}

impl<S: Shards> BulkShards<S> {
    /// Over an implementation of the service.
    pub fn new(shards: S) -> Self {
        let shards = Arc::new(shards);
        let others = ShardsServer::from_arc(shards.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { shards, others }
    }
}

impl<S: Shards> NamedService for BulkShards<S> {
    const NAME: &'static str = ShardsServer::<S>::NAME;
}

type Answer = http::Response<tonic::body::Body>;

impl<S: Shards> Service<http::Request<tonic::body::Body>> for BulkShards<S> {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Neither this nor the generated service has a limit of its own.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let shards = self.shards.clone();
        match request.uri().path() {
            PUT_PATH => Box::pin(async move { Ok(answer(put(&*shards, request).await)) }),
            GET_PATH => Box::pin(async move { Ok(answer(get(&*shards, request).await)) }),
            _ => self.others.call(request),
        }
    }
}

async fn put<S: Shards>(shards: &S, request: http::Request<tonic::body::Body>) -> Result<Framed, Status> {
    let put: Request<PutShard> = receive(request).await?;
    let done = shards.put(put).await?.into_inner();
    Framed::new(BytesMut::from(&done.encode_to_vec()[..]), Bytes::new())
}

async fn get<S: Shards>(shards: &S, request: http::Request<tonic::body::Body>) -> Result<Framed, Status> {
    let get: Request<GetShard> = receive(request).await?;
    let mut found: ShardBlocks = shards.get(get).await?.into_inner();
    // The data is the last field: the rest is encoded without it and its key.
    let data = std::mem::take(&mut found.data);
    let mut head = BytesMut::with_capacity(found.encoded_len() + 16);
    found.encode(&mut head).map_err(|full| Status::internal(full.to_string()))?;
    if !data.is_empty() {
        put_bytes_key(&mut head, GET_DATA_FIELD, data.len());
    }
    Framed::new(head, data)
}

async fn receive<M: Message + Default>(
    request: http::Request<tonic::body::Body>,
) -> Result<Request<M>, Status> {
    let mut body = request.into_body();
    let mut message = Rope::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            message.push(data);
        }
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(Status::out_of_range("the message is too long"));
        }
    }
    message.decode().map(Request::new)
}

fn answer(outcome: Result<Framed, Status>) -> Answer {
    match outcome {
        Ok(message) => {
            let mut response = http::Response::new(tonic::body::Body::new(message.with_status_ok()));
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(status) => status.into_http(),
    }
}
