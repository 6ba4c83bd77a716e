//! One operation, and the objects that operations find.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use bytes::Bytes;
use parking_lot::RwLock;
use rand::Rng;
use serde::Deserialize;

use super::args::Op;
use super::body::Source;
use crate::s3::{Answer, Connection};

/// The objects of one size: numbered keys, and which of them the endpoint acknowledged.
pub(super) struct Objects {
    bucket: String,
    prefix: String,
    /// Of one object.
    pub(super) bytes: u64,
    part_bytes: u64,
    next: AtomicU64,
    stored: RwLock<Vec<u64>>,
}

impl Objects {
    pub(super) fn new(bucket: &str, prefix: &str, bytes: u64, part_bytes: u64) -> Self {
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        Self { bucket, prefix, bytes, part_bytes, next: AtomicU64::new(0), stored: RwLock::default() }
    }

    pub(super) fn stored(&self) -> usize {
        self.stored.read().len()
    }

    /// Counts keys as stored that nobody stored: for a server that answers every key.
    pub(super) fn pretend(&self, count: usize) {
        *self.stored.write() = (0..count as u64).collect();
    }

    fn path(&self, number: u64) -> String {
        format!("/{}/{}/{number:09}", self.bucket, self.prefix)
    }

    fn fresh(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn any(&self) -> anyhow::Result<u64> {
        let stored = self.stored.read();
        ensure!(!stored.is_empty(), "no object is stored");
        Ok(stored[rand::rng().random_range(0..stored.len())])
    }
}

/// One worker: it has one request in flight.
pub(super) struct Worker {
    connection: Connection,
    objects: Arc<Objects>,
    source: Source,
}

#[derive(Deserialize)]
struct Initiated {
    #[serde(rename = "UploadId")]
    upload_id: String,
}

impl Worker {
    pub(super) fn new(connection: Connection, objects: Arc<Objects>, source: Source) -> Self {
        Self { connection, objects, source }
    }

    /// Does one operation; the object bytes it moved, or `None` when there is nothing left to do it to.
    pub(super) async fn once(&mut self, op: Op) -> anyhow::Result<Option<u64>> {
        match op {
            Op::Put => self.put().await.map(Some),
            Op::Get => self.get().await.map(Some),
            Op::Mixed if rand::rng().random_ratio(7, 10) => self.get().await.map(Some),
            Op::Mixed => self.put().await.map(Some),
            Op::Head => self.head().await.map(Some),
            Op::List => self.list().await.map(Some),
            Op::Delete => self.delete().await,
        }
    }

    async fn put(&mut self) -> anyhow::Result<u64> {
        let (number, bytes) = (self.objects.fresh(), self.objects.bytes);
        let path = self.objects.path(number);
        if bytes > self.objects.part_bytes {
            self.put_parts(&path).await?;
        } else {
            let body = self.source.cut(bytes);
            expect(self.connection.send("PUT", &path, "", body, false).await?, 200)?;
        }
        self.objects.stored.write().push(number);
        Ok(bytes)
    }

    async fn put_parts(&mut self, path: &str) -> anyhow::Result<()> {
        let created = expect(self.connection.send("POST", path, "uploads=", Bytes::new(), true).await?, 200)?;
        let upload: Initiated =
            quick_xml::de::from_reader(created.body.as_slice()).context("an upload id")?;
        let upload = percent_encoding::utf8_percent_encode(
            &upload.upload_id,
            // Unreserved characters stay as they are, as the signature wants it.
            &UPLOAD_ID_RESERVED,
        )
        .to_string();

        let mut complete = String::from("<CompleteMultipartUpload>");
        let (mut left, mut number) = (self.objects.bytes, 1);
        while left > 0 {
            let bytes = left.min(self.objects.part_bytes);
            let query = format!("partNumber={number}&uploadId={upload}");
            let body = self.source.cut(bytes);
            let part = expect(self.connection.send("PUT", path, &query, body, false).await?, 200)?;
            let etag =
                part.headers.get("etag").and_then(|value| value.to_str().ok()).context("a part's ETag")?;
            complete.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"));
            left -= bytes;
            number += 1;
        }
        complete.push_str("</CompleteMultipartUpload>");
        let query = format!("uploadId={upload}");
        let done = expect(self.connection.send("POST", path, &query, complete.into(), true).await?, 200)?;
        // A completion may turn out to fail after its status went out.
        ensure!(!contains(&done.body, b"<Error>"), "{}", String::from_utf8_lossy(&done.body));
        Ok(())
    }

    async fn get(&mut self) -> anyhow::Result<u64> {
        let path = self.objects.path(self.objects.any()?);
        let answer = expect(self.connection.send("GET", &path, "", Bytes::new(), false).await?, 200)?;
        ensure!(answer.bytes == self.objects.bytes, "{} bytes came back", answer.bytes);
        Ok(answer.bytes)
    }

    async fn head(&mut self) -> anyhow::Result<u64> {
        let path = self.objects.path(self.objects.any()?);
        expect(self.connection.send("HEAD", &path, "", Bytes::new(), false).await?, 200)?;
        Ok(0)
    }

    async fn list(&mut self) -> anyhow::Result<u64> {
        let path = format!("/{}", self.objects.bucket);
        let query = format!("list-type=2&max-keys=1000&prefix={}%2F", self.objects.prefix);
        let answer = expect(self.connection.send("GET", &path, &query, Bytes::new(), true).await?, 200)?;
        ensure!(contains(&answer.body, b"<Key>"), "a listing without keys");
        Ok(0)
    }

    async fn delete(&mut self) -> anyhow::Result<Option<u64>> {
        let Some(number) = self.objects.stored.write().pop() else { return Ok(None) };
        let path = self.objects.path(number);
        let deleted = self.connection.send("DELETE", &path, "", Bytes::new(), false).await;
        match deleted.and_then(|answer| expect(answer, 204)) {
            Ok(_) => Ok(Some(0)),
            Err(error) => {
                self.objects.stored.write().push(number);
                Err(error)
            }
        }
    }
}

const UPLOAD_ID_RESERVED: percent_encoding::AsciiSet =
    percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn expect(answer: Answer, status: u16) -> anyhow::Result<Answer> {
    ensure!(answer.status == status, "status {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(answer)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
