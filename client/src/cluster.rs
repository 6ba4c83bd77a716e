//! A handle on one zone: what the gateway and the tools hold. Cheap to clone; all clones share connections and caches.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, RealmId, ZoneId};
use holdfast_proto::meta::{Answer, Query, query};
use rand::RngCore;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cache::RealmCache;
use crate::channel::Channels;
use crate::error::Error;
use crate::health::Health;
use crate::map::Map;
use crate::reads::OpenReads;
use crate::renew::Renewals;
use crate::route::{Lanes, Proposals, Reads, attempt_until};
use crate::verify::BadShards;
use crate::view::View;

/// Stripes left behind with shards under way, over all writes: at most 4 MiB each.
const STRAGGLERS_MAX: usize = 16;

/// Stripes mended at the same time for readers; more are left to the next reader or to scrub.
const MENDING_MAX: usize = 2;

/// How a client finds its zone and how long it waits.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `host:port` of meta nodes; any one that answers is enough.
    pub seeds: Vec<String>,
    /// Refuse every other realm.
    pub realm: Option<RealmId>,
    /// Refuse every other zone.
    pub local_zone: Option<ZoneId>,
    /// How long [`Cluster::connect`] waits for a first map.
    pub connect_deadline: Duration,
    /// How long one metadata call may take, all its attempts together.
    pub call_deadline: Duration,
    /// How long one stripe may take to be stored, all its attempts together.
    pub stripe_deadline: Duration,
    /// How long one read of a stripe may take, all its attempts together.
    pub read_deadline: Duration,
    /// Bytes of stripes in flight, parity included, beyond the first of every body, over all writes.
    pub write_ahead_bytes: usize,
    /// Bytes read ahead beyond the current stripe of every body, over all reads.
    pub read_ahead_bytes: usize,
    /// How often a write that takes long tells the zone that it is still under way.
    pub renew_every: Duration,
}

impl ClientConfig {
    /// Defaults, with these seeds.
    pub fn new(seeds: Vec<String>) -> Self {
        Self {
            seeds,
            realm: None,
            local_zone: None,
            connect_deadline: Duration::from_secs(30),
            call_deadline: Duration::from_secs(15),
            stripe_deadline: Duration::from_secs(20),
            read_deadline: Duration::from_secs(15),
            write_ahead_bytes: 32 << 20,
            read_ahead_bytes: 32 << 20,
            renew_every: Duration::from_secs(3600),
        }
    }
}

/// One zone, as a client sees it.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: ClientConfig,
    pub(crate) view: View,
    pub(crate) channels: Channels,
    pub(crate) proposals: Lanes<Proposals>,
    pub(crate) reads: Lanes<Reads>,
    pub(crate) cache: RealmCache,
    pub(crate) health: Health,
    pub(crate) bad_shards: BadShards,
    /// KiB of stripes in flight beyond the first of each body.
    pub(crate) write_ahead: Arc<Semaphore>,
    /// KiB of bodies read ahead beyond the current stripe of each.
    pub(crate) read_ahead: Arc<Semaphore>,
    /// Stripes whose bad shards are being written again because a reader found them.
    pub(crate) mending: Arc<Semaphore>,
    /// Stripes whose last shards go on after their write was committed.
    pub(crate) stragglers: Arc<Semaphore>,
    pub(crate) renewals: Renewals,
    pub(crate) open_reads: Arc<OpenReads>,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    /// The map of before the first one came: never seen by callers, since `connect` waits.
    empty_map: Arc<Map>,
}

impl Cluster {
    /// Finds the zone through its seeds and waits for a first map and the zone's time. When `cancel` is cancelled every task of the client
    /// ends.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no seed gave a map before the connect deadline or `cancel` was cancelled;
    /// [`Error::Invalid`] without seeds.
    pub async fn connect(config: ClientConfig, cancel: CancellationToken) -> Result<Self, Error> {
        if config.seeds.is_empty() {
            return Err(Error::invalid("no seed address was given"));
        }
        let deadline = Instant::now() + config.connect_deadline;
        let inner = Arc::new(Inner {
            view: View::new(),
            channels: Channels::default(),
            proposals: Lanes::default(),
            reads: Lanes::default(),
            cache: RealmCache::default(),
            health: Health::default(),
            bad_shards: BadShards::default(),
            write_ahead: Arc::new(Semaphore::new(config.write_ahead_bytes >> 10)),
            read_ahead: Arc::new(Semaphore::new(config.read_ahead_bytes >> 10)),
            mending: Arc::new(Semaphore::new(MENDING_MAX)),
            stragglers: Arc::new(Semaphore::new(STRAGGLERS_MAX)),
            renewals: Renewals::default(),
            open_reads: Arc::default(),
            tasks: TaskTracker::new(),
            empty_map: Arc::new(Map::parse(holdfast_proto::meta::ClusterMap {
                realm: RealmId::default().to_wire(),
                ..Default::default()
            })?),
            config,
            cancel: cancel.child_token(),
        });
        inner.tasks.spawn(crate::watch::follow(inner.clone()));
        inner.tasks.spawn(crate::renew::run(Self { inner: inner.clone() }));
        let mut ready = inner.view.ready();
        let first = tokio::select! {
            () = inner.cancel.cancelled() => None,
            first = tokio::time::timeout_at(deadline, ready.wait_for(|ready| *ready)) => {
                first.ok().and_then(Result::ok).map(|_| ())
            }
        };
        if first.is_none() {
            inner.cancel.cancel();
            return Err(Error::unavailable(format!("no meta node of {:?} gave a map", inner.config.seeds)));
        }
        Ok(Self { inner })
    }

    /// The newest map.
    pub fn map(&self) -> Arc<Map> {
        self.inner.map()
    }

    /// The zone's time: the highest timestamp any meta node has sent. At most a few hundred milliseconds old while the
    /// zone can be reached; never this machine's clock.
    pub fn now(&self) -> Hlc {
        self.inner.view.now()
    }

    /// Ends every task of this client and waits for them: stragglers of writes are given up, calls in flight fail.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Asks a group's leader, linearizably. A refusal is in the answer. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Internal`].
    pub async fn query(&self, group: GroupId, query: Query) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.inner.config.call_deadline;
        let answers = if is_small(&query) {
            self.inner.reads.call(&self.inner, group, vec![query], deadline).await?.replies
        } else {
            attempt_until::<Reads>(&self.inner, group, &[query], deadline, &mut false).await?
        };
        answers.into_iter().next().ok_or_else(|| Error::internal("no answer to a query"))
    }
}

impl Inner {
    pub(crate) fn map(&self) -> Arc<Map> {
        self.view.map().unwrap_or_else(|| self.empty_map.clone())
    }
}

/// Queries whose work and answers are small travel together; scans go alone, so that they delay nobody.
fn is_small(query: &Query) -> bool {
    use query::Of;
    matches!(
        &query.of,
        Some(
            Of::GetObject(_)
                | Of::GetUpload(_)
                | Of::GetBucket(_)
                | Of::GetAccessKey(_)
                | Of::GetAccount(_)
                | Of::GetBucketRow(_)
                | Of::OwnerOfWrite(_)
                | Of::CountBucket(_),
        )
    )
}

pub(crate) fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}
