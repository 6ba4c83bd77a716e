//! A load like `aws s3 sync` of a source tree: many small files, some large, several at once, retried as the AWS CLI
//! retries. It remembers every promise the server made and checks them all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::s3::S3;
use crate::sums;

/// Attempts of one request: the AWS CLI's default.
const ATTEMPTS: u32 = 5;

/// One file; its bytes follow from its seed.
#[derive(Clone, Debug)]
pub struct File {
    pub key: String,
    pub bytes: usize,
    seed: u64,
}

impl File {
    pub fn content(&self) -> Bytes {
        let mut content = vec![0; self.bytes];
        SmallRng::seed_from_u64(self.seed).fill_bytes(&mut content);
        content.into()
    }
}

/// A tree with the sizes of a source tree: most files of a few KiB, empty ones, and now and then one of some MiB.
#[derive(Clone, Debug)]
pub struct Tree {
    pub files: Arc<Vec<File>>,
}

impl Tree {
    pub fn new(files: usize, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let file = |number| {
            let bytes = match rng.random_range(0..100) {
                0..3 => 0,
                3..30 => rng.random_range(1..2 << 10),
                30..85 => rng.random_range(2 << 10..32 << 10),
                85..97 => rng.random_range(32 << 10..512 << 10),
                97..99 => rng.random_range(512 << 10..2 << 20),
                _ => rng.random_range(4 << 20..9 << 20),
            };
            let key = format!("src/{:02}/{}/file {number}.rs", rng.random_range(0..40), number % 7);
            File { key, bytes, seed: rng.next_u64() }
        };
        Self { files: Arc::new((0..files).map(file).collect()) }
    }
}

/// A load in progress.
#[derive(Clone, Debug)]
pub struct Sync {
    s3: S3,
    bucket: String,
    tree: Tree,
    /// Files acknowledged so far.
    pub done: Arc<AtomicUsize>,
    /// Attempts that failed and were repeated.
    pub repeated: Arc<AtomicUsize>,
}

impl Sync {
    pub fn new(s3: &S3, bucket: &str, tree: &Tree) -> Self {
        Self {
            s3: s3.clone(),
            bucket: bucket.to_owned(),
            tree: tree.clone(),
            done: Arc::default(),
            repeated: Arc::default(),
        }
    }

    /// Uploads the tree, `concurrency` files at once. An error is a file that the AWS CLI would have given up on.
    pub async fn upload(self, concurrency: usize) -> anyhow::Result<()> {
        let this = &self;
        stream::iter(this.tree.files.iter().cloned())
            .map(|file| async move {
                let content = file.content();
                let etag = sums::etag(&content);
                let answered = this
                    .attempt(&file.key, async || {
                        let answer = this.s3.put(&this.bucket, &file.key, content.clone()).send().await?;
                        match answer.status {
                            200 => Ok(answer.header("etag").to_owned()),
                            _ => bail!("{answer:?}"),
                        }
                    })
                    .await?;
                anyhow::ensure!(answered == etag, "{}: ETag {answered}, not {etag}", file.key);
                this.done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
            .buffer_unordered(concurrency)
            .try_collect()
            .await
    }

    /// Reads everything back: the listing is exactly the tree, and every file has its bytes.
    pub async fn verify(&self, concurrency: usize) -> anyhow::Result<()> {
        let mut expected: Vec<&str> = self.tree.files.iter().map(|file| file.key.as_str()).collect();
        expected.sort_unstable();
        let listed = self.attempt("listing", async || self.s3.keys(&self.bucket, 1000).await).await?;
        if listed != expected {
            let seen: BTreeMap<&str, ()> = listed.iter().map(|key| (key.as_str(), ())).collect();
            let missing: Vec<&&str> =
                expected.iter().filter(|key| !seen.contains_key(**key)).take(5).collect();
            bail!("{} keys listed, {} expected; missing: {missing:?}", listed.len(), expected.len());
        }

        stream::iter(self.tree.files.iter())
            .map(|file| async move {
                let body = self
                    .attempt(&file.key, async || {
                        let answer = self.s3.get(&self.bucket, &file.key).send().await?;
                        match answer.status {
                            200 => Ok(answer.body),
                            _ => bail!("{answer:?}"),
                        }
                    })
                    .await?;
                anyhow::ensure!(body == file.content(), "{}: other bytes came back", file.key);
                Ok(())
            })
            .buffer_unordered(concurrency)
            .try_collect()
            .await
    }

    async fn attempt<T>(&self, what: &str, call: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut pause = Duration::from_millis(500);
        for attempt in 1.. {
            match call().await {
                Ok(value) => return Ok(value),
                Err(error) if attempt >= ATTEMPTS => {
                    return Err(error).with_context(|| format!("{what}: {ATTEMPTS} attempts failed"));
                }
                Err(_) => {
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        bail!("no attempt was made")
    }
}

/// How many files a fault test loads: a few hundred, or with `HOLDFAST_FULL` set as many as it says (10,000 by default).
pub fn files(short: usize) -> usize {
    match std::env::var("HOLDFAST_FULL") {
        Ok(number) => number.parse().ok().filter(|number| *number > 1).unwrap_or(10_000),
        Err(_) => short,
    }
}
