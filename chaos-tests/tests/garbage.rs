//! What was deleted is freed, and not before those who read it have ended.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::cluster::{Options, Zone};
use holdfast_chaos::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::block_in_place;

const SOON: Duration = Duration::from_secs(120);
/// Larger than what a gateway reads ahead of a slow reader, and the buffers of sockets.
const BYTES: usize = 96 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_being_read_is_not_freed() {
    let env = vec![("HOLDFAST_META_GARBAGE_GRACE", "1s")];
    let zone = block_in_place(|| Zone::start(Options { env, ..Options::default() }));
    let s3 = zone.s3();
    let bucket = s3.bucket("garbage").await;
    let body: Bytes = (0..BYTES).map(|at| (at / 7 % 253) as u8).collect::<Vec<u8>>().into();
    s3.put(&bucket, "read slowly", body.clone()).expect(200).await;
    s3.put(&bucket, "not read", body.slice(..1 << 20)).expect(200).await;

    let path = s3.get(&bucket, "read slowly").presign(600);
    let host = zone.zone().s3.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = vec![0; 64 << 10];
    stream.read_exact(&mut read).await.unwrap();
    assert!(read.starts_with(b"HTTP/1.1 200"));

    for key in ["read slowly", "not read"] {
        s3.delete(&bucket, key).expect(204).await;
    }
    // Both are due, and one of them is not being read: but garbage is freed in the order in which it came about.
    let garbage = || zone.status().ok()?["garbage_writes"].as_u64();
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(block_in_place(garbage), Some(2));
    stream.read_to_end(&mut read).await.unwrap();
    let head = read.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert!(read[head..] == body[..], "other bytes, of {} {}", body.len(), read.len() - head);
    block_in_place(|| wait::until("garbage to be freed", SOON, || (garbage()? == 0).then_some(())));
}
