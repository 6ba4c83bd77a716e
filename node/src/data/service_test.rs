//! The service over a real connection: every call, and faults that arrive as data.

use bytes::Bytes;
use holdfast_proto::data::shards_client::ShardsClient;
use holdfast_proto::data::{
    DeleteShards, GetShard, ListShards, ListShardsDone, PutShard, StatShards, StoredShard,
};
use holdfast_proto::error::Fault;
use holdfast_proto::id::TargetId;
use holdfast_proto::limits::{MESSAGE_BYTES_MAX, SHARD_BYTES_MAX};
use holdfast_proto::v1::{FaultKind, Scheme};
use tonic::transport::server::TcpIncoming;

use super::ShardService;
use super::service::{LIST_MAX, STORED_SHARD_BYTES_MAX};
use super::testing::{Machine, shard, wire};

fn kind(status: &tonic::Status) -> FaultKind {
    Fault::from_status(status).kind
}

#[tokio::test]
async fn a_client_puts_gets_lists_and_deletes_over_a_connection() {
    let machine = Machine::new();
    let target = machine.open().await;
    let service = ShardService::new();
    service.add(TargetId::new(3), target.clone());
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap().with_nodelay(Some(true));
    let address = incoming.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder().add_service(service.into_server());
    let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }));
    let channel =
        tonic::transport::Endpoint::new(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = ShardsClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);

    for (number, length) in [(1, SHARD_BYTES_MAX), (2, 0), (3, 4096)] {
        let (meta, data) = shard(number, length);
        let put = PutShard { target: 3, pg_epoch: 9, meta: Some(meta.clone()), data: data.clone() };
        client.put(put.clone()).await.unwrap();
        client.put(put).await.unwrap();
        let get = GetShard { target: 3, shard: wire(number), offset: 0, length: 0 };
        let found = client.get(get).await.unwrap().into_inner();
        assert_eq!((found.meta, found.offset, found.data), (Some(meta), 0, data));
    }
    let stat = StatShards { target: 3, shards: vec![wire(1), wire(9), wire(3)] };
    assert_eq!(client.stat(stat).await.unwrap().into_inner().present, [true, false, true]);
    client.delete(DeleteShards { target: 3, shards: vec![wire(1), wire(9)] }).await.unwrap();
    let list =
        client.list(ListShards { target: 3, after: Bytes::new(), limit: 0 }).await.unwrap().into_inner();
    let mut expected = vec![wire(2), wire(3)];
    expected.sort_unstable();
    assert_eq!(list.shards.iter().map(|row| row.shard.clone()).collect::<Vec<_>>(), expected);
    assert!(!list.more && list.shards.iter().all(|row| row.pg == 7 && row.scheme == shard(0, 0).0.scheme));
    assert_eq!(list.last, expected[1]);
    let list = ListShards { target: 3, after: expected[0].clone(), limit: 1 };
    let page = client.list(list).await.unwrap().into_inner();
    assert_eq!(page.shards[0].shard, expected[1]);

    let get = |target, shard| GetShard { target, shard, offset: 0, length: 0 };
    assert_eq!(kind(&client.get(get(3, wire(1))).await.unwrap_err()), FaultKind::ShardAbsent);
    assert_eq!(kind(&client.get(get(4, wire(2))).await.unwrap_err()), FaultKind::NotHere);
    assert_eq!(kind(&client.get(get(3, Bytes::from_static(b"x"))).await.unwrap_err()), FaultKind::Invalid);
    let empty = PutShard { target: 3, ..PutShard::default() };
    assert_eq!(kind(&client.put(empty).await.unwrap_err()), FaultKind::Invalid);

    drop(client);
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    target.shutdown().await;
    let (meta, data) = shard(5, 1);
    assert_eq!(target.put(meta, data).await.unwrap_err().kind, FaultKind::FaultUnavailable, "it has stopped");
}

#[test]
fn a_full_page_of_the_longest_rows_fits_a_message() {
    let scheme = Scheme { codec: 255, data: 255, parity: 255 };
    let row = StoredShard { shard: wire(1), pg: u32::MAX, scheme: Some(scheme), length: u32::MAX, bad: true };
    let page = ListShardsDone { shards: vec![row; LIST_MAX], more: true, last: wire(2) };
    let bytes = prost::Message::encoded_len(&page);
    assert!(bytes <= LIST_MAX * STORED_SHARD_BYTES_MAX + 64, "{bytes}");
    assert!(bytes > LIST_MAX * STORED_SHARD_BYTES_MAX, "the bound is of these fields");
}
