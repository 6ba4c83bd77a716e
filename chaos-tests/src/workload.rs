//! A load like `aws s3 sync` of a source tree: many small files, some large, several at once, retried as the AWS CLI
//! retries. It remembers every promise the server made and checks them all.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use tokio::task::JoinSet;

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
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
}

impl Sync {
    pub fn new(s3: &S3, bucket: &str, tree: &Tree) -> Self {
        Self {
            s3: s3.clone(),
            bucket: bucket.to_owned(),
            tree: tree.clone(),
            done: Arc::default(),
            repeated: Arc::default(),
            acknowledged: Arc::default(),
        }
    }

    /// Uploads the tree, `concurrency` files at once. An error is a file that the AWS CLI would have given up on.
    ///
    /// Dropped, it stops where it is.
    pub async fn upload(self, concurrency: usize) -> anyhow::Result<()> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for _ in 0..concurrency {
            let (this, next) = (self.clone(), next.clone());
            workers.spawn(async move {
                while let Some(file) = this.tree.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    this.upload_one(file).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(())
    }

    async fn upload_one(&self, file: &File) -> anyhow::Result<()> {
        let content = file.content();
        let etag = sums::etag(&content);
        let answered = self
            .attempt(&file.key, || async {
                let answer = self.s3.put(&self.bucket, &file.key, content.clone()).send().await?;
                match answer.status {
                    200 => Ok(answer.header("etag").to_owned()),
                    _ => bail!("{answer:?}"),
                }
            })
            .await?;
        anyhow::ensure!(answered == etag, "{}: ETag {answered}, not {etag}", file.key);
        self.acknowledged.lock().expect("no holder panics").insert(file.key.clone());
        self.done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The same load and its promises on another endpoint: the zone's after a restart.
    pub fn on(&self, s3: &S3) -> Self {
        Self { s3: s3.clone(), ..self.clone() }
    }

    /// Reads everything back: the listing is exactly the tree, and every file has its bytes.
    pub async fn verify(&self, concurrency: usize) -> anyhow::Result<()> {
        let expected: BTreeSet<String> = self.tree.files.iter().map(|file| file.key.clone()).collect();
        let listed = self.listed().await?;
        let extra: Vec<_> = listed.difference(&expected).take(5).collect();
        anyhow::ensure!(extra.is_empty(), "keys that nobody wrote: {extra:?}");
        self.verify_keys(&expected, &listed, concurrency).await
    }

    /// Reads back what was acknowledged before the load was cut short. What was not may be there or not.
    pub async fn verify_acknowledged(&self, concurrency: usize) -> anyhow::Result<()> {
        let acknowledged = self.acknowledged.lock().expect("no holder panics").clone();
        let listed = self.listed().await?;
        self.verify_keys(&acknowledged, &listed, concurrency).await
    }

    async fn listed(&self) -> anyhow::Result<BTreeSet<String>> {
        let keys = self.attempt("listing", || self.s3.keys(&self.bucket, 1000)).await?;
        anyhow::ensure!(keys.is_sorted(), "a listing out of order");
        let (count, keys) = (keys.len(), BTreeSet::from_iter(keys));
        anyhow::ensure!(keys.len() == count, "a listing with a key twice");
        Ok(keys)
    }

    async fn verify_keys(
        &self,
        expected: &BTreeSet<String>,
        listed: &BTreeSet<String>,
        concurrency: usize,
    ) -> anyhow::Result<()> {
        let missing: Vec<_> = expected.difference(listed).take(5).collect();
        anyhow::ensure!(missing.is_empty(), "{} listed; missing: {missing:?}", listed.len());
        stream::iter(self.tree.files.iter().filter(|file| expected.contains(&file.key)))
            .map(|file| async move {
                let body = self
                    .attempt(&file.key, || async {
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

    async fn attempt<T, F>(&self, what: &str, call: impl Fn() -> F) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
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
