//! How workers reach the targets of the zone: one connection per node, kept, and a deadline for each call.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_proto::data::shards_client::ShardsClient;
use holdfast_proto::data::{DeleteShards, ListShards, ListShardsDone, ScrubTarget, StatShards};
use holdfast_proto::limits::MESSAGE_BYTES_MAX;
use holdfast_proto::meta::ClusterMap;
use tonic::transport::Channel;

use crate::node::contact::connect_lazy;

/// Shards named in one call to a target, which takes 10,000.
const SHARDS_PER_CALL: usize = 8_000;
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections by node, with the address each is to.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    channels: HashMap<u64, (String, Channel)>,
}

impl Reach {
    fn client(&mut self, map: &ClusterMap, target: u32) -> anyhow::Result<ShardsClient<Channel>> {
        let row = map.targets.iter().find(|row| row.id == target);
        let node = row.and_then(|row| map.nodes.iter().find(|node| node.id == row.node));
        let node = node.ok_or_else(|| anyhow::anyhow!("target {target} has no node"))?;
        let channel = match self.channels.get(&node.id) {
            Some((known, channel)) if *known == node.addr => channel.clone(),
            _ => {
                let channel = connect_lazy(&node.addr)?;
                self.channels.insert(node.id, (node.addr.clone(), channel.clone()));
                channel
            }
        };
        Ok(ShardsClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Deletes shards of one target; those that are not there are no error. Idempotent.
    pub(super) async fn delete(
        &mut self,
        map: &ClusterMap,
        target: u32,
        shards: &[bytes::Bytes],
    ) -> anyhow::Result<()> {
        let mut client = self.client(map, target)?;
        for shards in shards.chunks(SHARDS_PER_CALL) {
            let request = DeleteShards { target, shards: shards.to_vec() };
            tokio::time::timeout(CALL_TIMEOUT, client.delete(request)).await??;
        }
        Ok(())
    }

    /// Which of these shards a target has, in order. Cancel-safe.
    pub(super) async fn stat(
        &mut self,
        map: &ClusterMap,
        target: u32,
        shards: &[bytes::Bytes],
    ) -> anyhow::Result<Vec<bool>> {
        let mut client = self.client(map, target)?;
        let mut present = Vec::with_capacity(shards.len());
        for shards in shards.chunks(SHARDS_PER_CALL) {
            let request = StatShards { target, shards: shards.to_vec() };
            let answer = tokio::time::timeout(CALL_TIMEOUT, client.stat(request)).await??.into_inner();
            if answer.present.len() != shards.len() {
                anyhow::bail!("target {target} was asked for {} shards and told of fewer", shards.len());
            }
            present.extend(answer.present);
        }
        Ok(present)
    }

    /// Has a target read through. Cancel-safe.
    pub(crate) async fn scrub(&mut self, map: &ClusterMap, target: u32) -> anyhow::Result<()> {
        let mut client = self.client(map, target)?;
        tokio::time::timeout(CALL_TIMEOUT, client.scrub(ScrubTarget { target })).await??;
        Ok(())
    }

    /// A page of what a target holds, in id order. Cancel-safe.
    pub(super) fn list(
        &mut self,
        map: &ClusterMap,
        target: u32,
        after: bytes::Bytes,
        limit: u32,
    ) -> impl Future<Output = anyhow::Result<ListShardsDone>> + use<> {
        let client = self.client(map, target);
        async move {
            let request = ListShards { target, after, limit };
            let mut client = client?.max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(tokio::time::timeout(CALL_TIMEOUT, client.list(request)).await??.into_inner())
        }
    }
}
