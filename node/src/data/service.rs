//! The gRPC service `Shards` over the targets of a node.
//!
//! Placement-group epochs are accepted as they come: a shard at a former member is found there by readers, and moved by
//! repair (docs/decisions/placement-moves.md).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proto::data::shards_server::{Shards, ShardsServer};
use holdfast_proto::data::{
    DeleteShards, DeleteShardsDone, GetShard, ListShards, ListShardsDone, PutShard, PutShardDone,
    ScrubTarget, ScrubTargetDone, ShardBlocks, StatShards, StatShardsDone,
};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{ShardId, TargetId};
use holdfast_proto::limits::MESSAGE_BYTES_MAX;
use holdfast_proto::v1::FaultKind;
use parking_lot::RwLock;
use tonic::{Request, Response, Status};

use super::target::{ShardPage, Target};

/// Shards in one page of a listing, at most.
pub(super) const LIST_MAX: usize = 4000;
/// Bytes of one of them in a message, at most: its tag and length, and the same and the value of each field.
pub(super) const STORED_SHARD_BYTES_MAX: usize = 2 + (2 + ShardId::LEN) + 6 + (2 + 3 * 3) + 6 + 2;

/// Serves every target that was added. Cheap to clone; clones share the targets.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardService {
    targets: Arc<RwLock<HashMap<TargetId, Arc<Target>>>>,
}

impl ShardService {
    /// Without targets.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Serves `target` under `id`.
    pub(crate) fn add(&self, id: TargetId, target: Arc<Target>) {
        self.targets.write().insert(id, target);
    }

    /// Serves `id` no longer.
    #[cfg(test)]
    pub(crate) fn remove(&self, id: TargetId) {
        self.targets.write().remove(&id);
    }

    /// The tonic service, sized for one shard to a message.
    pub(crate) fn into_server(self) -> ShardsServer<Self> {
        ShardsServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn target(&self, id: u32) -> Result<Arc<Target>, Fault> {
        let id = TargetId::new(id);
        let found = self.targets.read().get(&id).cloned();
        found.ok_or_else(|| Fault::new(FaultKind::NotHere, format!("target {id} is not here")))
    }
}

#[tonic::async_trait]
impl Shards for ShardService {
    async fn put(&self, request: Request<PutShard>) -> Result<Response<PutShardDone>, Status> {
        let PutShard { target, pg_epoch: _, meta, data } = request.into_inner();
        let meta = meta.ok_or_else(|| Fault::new(FaultKind::Invalid, "a shard without its description"))?;
        self.target(target)?.put(meta, data).await?;
        Ok(Response::new(PutShardDone {}))
    }

    async fn get(&self, request: Request<GetShard>) -> Result<Response<ShardBlocks>, Status> {
        let GetShard { target, shard, offset, length } = request.into_inner();
        let found = self.target(target)?.get(&shard, offset, length).await?;
        Ok(Response::new(ShardBlocks { meta: Some(found.meta), offset: found.offset, data: found.data }))
    }

    async fn delete(&self, request: Request<DeleteShards>) -> Result<Response<DeleteShardsDone>, Status> {
        let DeleteShards { target, shards } = request.into_inner();
        self.target(target)?.delete(&shards).await?;
        Ok(Response::new(DeleteShardsDone {}))
    }

    async fn stat(&self, request: Request<StatShards>) -> Result<Response<StatShardsDone>, Status> {
        let StatShards { target, shards } = request.into_inner();
        let present = self.target(target)?.stat(&shards)?;
        Ok(Response::new(StatShardsDone { present }))
    }

    async fn scrub(&self, request: Request<ScrubTarget>) -> Result<Response<ScrubTargetDone>, Status> {
        self.target(request.into_inner().target)?.ask_scrub();
        Ok(Response::new(ScrubTargetDone {}))
    }

    async fn list(&self, request: Request<ListShards>) -> Result<Response<ListShardsDone>, Status> {
        let ListShards { target, after, limit } = request.into_inner();
        let after = parse_after(&after)?;
        let limit = if limit == 0 { LIST_MAX } else { (limit as usize).min(LIST_MAX) };
        let ShardPage { shards, more, last } = self.target(target)?.list(after, limit).await?;
        let last = last.map(|last| Bytes::copy_from_slice(&last.to_bytes())).unwrap_or_default();
        Ok(Response::new(ListShardsDone { shards, more, last }))
    }
}

fn parse_after(after: &Bytes) -> Result<Option<ShardId>, Fault> {
    if after.is_empty() {
        return Ok(None);
    }
    ShardId::from_slice(after).map(Some).map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))
}

const _: () = assert!(
    LIST_MAX * STORED_SHARD_BYTES_MAX + STORED_SHARD_BYTES_MAX <= MESSAGE_BYTES_MAX,
    "a full page and its envelope fit a message"
);
