//! Calls to targets: one shard each, with a deadline. What a call teaches about the target's health is noted here.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_proto::data::shards_client::ShardsClient;
use holdfast_proto::data::{
    DeleteShards, GetShard, PutShard, PutShardDone, ShardBlocks, ShardMeta, StatShards,
};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{Epoch, ShardId, TargetId};
use holdfast_proto::limits::MESSAGE_BYTES_MAX;
use holdfast_proto::v1::FaultKind;
use prost::Message;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::channel::Traffic;
use crate::cluster::Inner;
use crate::health::Work;
use crate::map::Map;
use crate::{frame, unary};

/// A shard that is not stored after this long is given up.
pub(crate) const PUT_MAX: Duration = Duration::from_secs(10);
/// A shard that is not read after this long is given up.
pub(crate) const GET_MAX: Duration = Duration::from_secs(5);
pub(crate) const PUT_PATH: &str = "/holdfast.data.v1.Shards/Put";
pub(crate) const GET_PATH: &str = "/holdfast.data.v1.Shards/Get";
/// `PutShard.data`.
const PUT_DATA_FIELD: u32 = 4;
/// `ShardBlocks.data`.
pub(crate) const GET_DATA_FIELD: u32 = 3;
const DELETE_MAX: Duration = Duration::from_secs(10);

/// The connection to a target.
fn channel(inner: &Inner, map: &Map, target: TargetId) -> Result<Channel, Fault> {
    let nowhere = |what: String| Fault::new(FaultKind::NotHere, what);
    let node = map.node_of(target).ok_or_else(|| nowhere(format!("target {target} is not in the map")))?;
    let addr = &map.node(node).ok_or_else(|| nowhere(format!("node {node} is not in the map")))?.addr;
    inner.channels.to(node, addr, Traffic::Data).map_err(|error| nowhere(error.to_string()))
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Fault> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(Fault::from_status(&status)),
        Err(_) => Err(Fault::new(FaultKind::FaultUnavailable, format!("no answer in {limit:?}"))),
    }
}

/// Notes a failed call. Faults that say nothing about the target's health are left out.
fn note(inner: &Inner, target: TargetId, fault: &Fault) {
    match fault.kind {
        FaultKind::FaultUnavailable | FaultKind::DiskFailed | FaultKind::ShardUnknown => {
            inner.health.failed(target);
        }
        FaultKind::Full => inner.health.full(target),
        FaultKind::Overloaded => inner.health.late(target),
        _ => {}
    }
}

/// Stores one shard; `Ok` means that it is on disk. Dropping the future does not say that it is not.
pub(crate) async fn put(
    inner: &Inner,
    map: &Map,
    target: TargetId,
    epoch: Epoch,
    meta: ShardMeta,
    data: Bytes,
) -> Result<(), Fault> {
    let begin = Instant::now();
    let _writing = inner.health.writing(target);
    let bytes = data.len();
    // All but the data; what is left out is not encoded, and the data is the last field.
    let head = PutShard { target: target.get(), pg_epoch: epoch.get(), meta: Some(meta), data: Bytes::new() };
    let mut message = BytesMut::with_capacity(head.encoded_len() + 10);
    let result = match (channel(inner, map, target), head.encode(&mut message)) {
        (Ok(channel), Ok(())) => {
            frame::put_bytes_key(&mut message, PUT_DATA_FIELD, bytes);
            within(PUT_MAX, unary::call::<PutShardDone>(channel, PUT_PATH, message, data, MESSAGE_BYTES_MAX))
                .await
        }
        (Err(fault), _) => Err(fault),
        (_, Err(full)) => Err(Fault::new(FaultKind::Invalid, full.to_string())),
    };
    match result {
        Ok(PutShardDone {}) => {
            inner.health.succeeded(target, Work::Write, bytes, begin.elapsed());
            Ok(())
        }
        Err(fault) => {
            note(inner, target, &fault);
            Err(fault)
        }
    }
}

/// Reads whole blocks of one shard, unverified. Cancel-safe.
pub(crate) async fn get(
    inner: &Inner,
    map: &Map,
    target: TargetId,
    shard: ShardId,
    offset: u32,
    length: u32,
) -> Result<ShardBlocks, Fault> {
    let begin = Instant::now();
    let request =
        GetShard { target: target.get(), shard: Bytes::copy_from_slice(&shard.to_bytes()), offset, length };
    let message = BytesMut::from(&request.encode_to_vec()[..]);
    let result = match channel(inner, map, target) {
        Ok(channel) => {
            let call =
                unary::call::<ShardBlocks>(channel, GET_PATH, message, Bytes::new(), MESSAGE_BYTES_MAX);
            within(GET_MAX, call).await
        }
        Err(fault) => Err(fault),
    };
    match result {
        Ok(answer) => {
            inner.health.succeeded(target, Work::Read, length as usize, begin.elapsed());
            Ok(answer)
        }
        Err(fault) => {
            note(inner, target, &fault);
            Err(fault)
        }
    }
}

/// Removes shards of one target.
pub(crate) async fn delete(
    inner: &Inner,
    map: &Map,
    target: TargetId,
    shards: Vec<Bytes>,
) -> Result<(), Fault> {
    let mut client = ShardsClient::new(channel(inner, map, target)?);
    within(DELETE_MAX, client.delete(DeleteShards { target: target.get(), shards })).await.map(|_| ())
}

/// Which of these shards a target has, in order. Cancel-safe.
pub(crate) async fn stat(
    inner: &Inner,
    map: &Map,
    target: TargetId,
    shards: &[ShardId],
) -> Result<Vec<bool>, Fault> {
    let mut client = ShardsClient::new(channel(inner, map, target)?);
    let shards = shards.iter().map(|shard| Bytes::copy_from_slice(&shard.to_bytes())).collect();
    let answer = within(GET_MAX, client.stat(StatShards { target: target.get(), shards })).await?;
    Ok(answer.into_inner().present)
}
