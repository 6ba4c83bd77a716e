//! Where a backup lies: a directory, or a prefix of an S3 bucket. Names are flat; what was put is durable.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::node::atomic_file;
use crate::s3::{Answer, Connection, Endpoint, EndpointConfig};

/// A request that got no answer, or was told to come again, is repeated so often.
const ATTEMPTS: u32 = 6;
const PAUSE_MIN: Duration = Duration::from_millis(200);
const SCHEME: &str = "s3://";
/// What SigV4 leaves as it is in a path, and the slash.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// See the module.
pub(crate) enum Depot {
    Directory(PathBuf),
    Bucket { connection: Box<Connection>, path: String },
}

impl Depot {
    /// `place` is a directory or `s3://bucket/prefix`; `s3` says how the latter is reached.
    ///
    /// # Errors
    /// When it makes no sense. Nothing is asked yet.
    pub(crate) fn new(place: &str, s3: impl FnOnce() -> EndpointConfig) -> anyhow::Result<Self> {
        let Some(rest) = place.strip_prefix(SCHEME) else {
            ensure!(!place.is_empty(), "a backup lies in a directory or at s3://bucket/prefix");
            return Ok(Self::Directory(PathBuf::from(place)));
        };
        let rest = rest.trim_end_matches('/');
        ensure!(!rest.is_empty(), "{place} names no bucket");
        let endpoint = Endpoint::new(&s3())?;
        let path = format!("/{}", utf8_percent_encode(rest, PATH));
        Ok(Self::Bucket { connection: Box::new(Connection::new(Arc::new(endpoint))), path })
    }

    /// Stores `bytes` under `name`, in place of what was there.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub(crate) async fn put(&mut self, name: &str, bytes: Bytes) -> anyhow::Result<()> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                let written = tokio::task::spawn_blocking(move || {
                    make_dir(path.parent())?;
                    atomic_file::write(&path, &bytes, 0o600)
                });
                written.await?.with_context(|| format!("writing {name}"))
            }
            Self::Bucket { connection, path } => {
                let answer = repeated(connection, "PUT", &format!("{path}/{name}"), bytes).await?;
                ensure!(answer.status == 200, "PUT {path}/{name}: {}", told(&answer));
                Ok(())
            }
        }
    }

    /// What lies under `name`; `None` when nothing does.
    ///
    /// # Errors
    /// When that is not known.
    pub(crate) async fn get(&mut self, name: &str) -> anyhow::Result<Option<Bytes>> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await?;
                match read {
                    Ok(bytes) => Ok(Some(bytes.into())),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error).with_context(|| format!("reading {name}")),
                }
            }
            Self::Bucket { connection, path } => {
                let path = format!("{path}/{name}");
                let answer = repeated(connection, "GET", &path, Bytes::new()).await?;
                match answer.status {
                    200 => Ok(Some(answer.body.into())),
                    // A bucket that is not there is a mistake; a key that is not there is an answer.
                    404 if !told(&answer).contains("NoSuchBucket") => Ok(None),
                    _ => bail!("GET {path}: {}", told(&answer)),
                }
            }
        }
    }
}

/// Makes a directory and what is above it, durably.
fn make_dir(dir: Option<&Path>) -> std::io::Result<()> {
    let Some(dir) = dir.filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) else { return Ok(()) };
    make_dir(dir.parent())?;
    std::fs::create_dir(dir)?;
    match dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        Some(above) => std::fs::File::open(above)?.sync_all(),
        None => Ok(()),
    }
}

fn told(answer: &Answer) -> String {
    format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))
}

async fn repeated(
    connection: &mut Connection,
    method: &str,
    path: &str,
    body: Bytes,
) -> anyhow::Result<Answer> {
    let mut pause = PAUSE_MIN;
    for attempt in 1.. {
        let answer = connection.send(method, path, "", body.clone(), true).await;
        match answer {
            Ok(answer) if answer.status < 500 && answer.status != 429 => return Ok(answer),
            answer if attempt == ATTEMPTS => return answer.with_context(|| format!("{method} {path}")),
            _ => {}
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    unreachable!("the last attempt answers")
}
