//! `Meta`: proposals and reads of the groups that are here, and the watch that every client follows.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use holdfast_proto::error::Fault;
use holdfast_proto::id::GroupId;
use holdfast_proto::meta::meta_server::Meta;
use holdfast_proto::meta::{
    GroupLeader, ProposeRequest, ProposeResponse, ReadRequest, ReadResponse, WatchEvent, WatchRequest,
};
use holdfast_proto::v1::FaultKind;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::zone_head::ZoneHead;

/// Watchers hear at least this often; they take a second of silence for a lost meta node.
const BEAT: Duration = Duration::from_millis(250);
/// Free space changes slowly and concerns only the choice between equals.
const FREE_EVERY: Duration = Duration::from_secs(2);

/// The service over one zone head.
#[derive(Debug, Clone)]
pub(crate) struct MetaService {
    pub(crate) head: Arc<ZoneHead>,
    /// Ends watches when the node stops.
    pub(crate) cancel: CancellationToken,
}

fn group(raw: u64) -> Result<GroupId, Fault> {
    GroupId::from_u64(raw).map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))
}

#[tonic::async_trait]
impl Meta for MetaService {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        let request = request.into_inner();
        let outcomes = self.head.groups.propose(group(request.group)?, request.commands).await?;
        Ok(Response::new(ProposeResponse { outcomes, hlc: self.head.groups.hlc().get() }))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let request = request.into_inner();
        let answers = self.head.groups.read(group(request.group)?, request.queries).await?;
        Ok(Response::new(ReadResponse { answers }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            head: self.head.clone(),
            cancel: self.cancel.clone(),
            have_generation: request.into_inner().have_generation,
            first: true,
            free_at: Instant::now(),
        };
        let events = futures::stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((Ok(event), watcher))
        });
        Ok(Response::new(Box::pin(events)))
    }
}

struct Watcher {
    head: Arc<ZoneHead>,
    cancel: CancellationToken,
    have_generation: u64,
    first: bool,
    free_at: Instant,
}

impl Watcher {
    /// The next event: at once for the first, else when the map or the realm changed or a beat is due. `None` when the
    /// node stops.
    async fn next(&mut self) -> Option<WatchEvent> {
        if !std::mem::take(&mut self.first) {
            let mut maps = self.head.feed.subscribe();
            let have = self.have_generation;
            let mut realm = self.head.groups.applied(GroupId::REALM);
            let realm_changed = async {
                match &mut realm {
                    Some(applied) => {
                        applied.borrow_and_update();
                        // An error says that the group has gone: the beat goes on.
                        if applied.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                () = tokio::time::sleep(BEAT) => {}
                () = realm_changed => {}
                newer = maps.wait_for(|map| map.as_ref().is_some_and(|map| map.generation > have)) => {
                    newer.ok()?;
                }
            }
        }
        if self.cancel.is_cancelled() {
            return None;
        }
        let groups = &self.head.groups;
        let map = self.head.feed.current().filter(|map| map.generation > self.have_generation);
        if let Some(map) = &map {
            self.have_generation = map.generation;
        }
        let now = Instant::now();
        let free = if now >= self.free_at {
            self.free_at = now + FREE_EVERY;
            self.head.free.read().clone()
        } else {
            Vec::new()
        };
        Some(WatchEvent {
            generation: self.head.feed.current().map_or(0, |map| map.generation),
            map: map.map(|map| (*map).clone()),
            hlc: groups.hlc().get(),
            realm_applied: groups.applied(GroupId::REALM).map_or(0, |applied| *applied.borrow()),
            leaders: groups
                .hosted()
                .into_iter()
                .map(|group| GroupLeader {
                    group: group.get(),
                    leader: groups.leader(group).map_or(0, holdfast_proto::id::NodeId::get),
                })
                .collect(),
            free,
        })
    }
}
