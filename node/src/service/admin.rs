//! `Admin`: the operator's questions, on every node. The zone's leader answers; other nodes send the question on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use holdfast_client::Cluster;
use holdfast_proto::admin::admin_client::AdminClient;
use holdfast_proto::admin::admin_server::Admin;
use holdfast_proto::admin::{
    AcceptLossRequest, AcceptLossResponse, AdminListBucketsRequest, AdminListBucketsResponse, BucketStatus,
    ChangeRequest, ChangeResponse, EventsRequest, EventsResponse, FsckEvent, FsckRequest, MayIRequest,
    MayIResponse, ReadGroupRequest, RebuildIndexEvent, RebuildIndexRequest, StartScrubRequest,
    StartScrubResponse, StatObjectRequest, StatObjectResponse, StatusRequest, StatusResponse,
};
use holdfast_proto::error::Fault;
use holdfast_proto::id::{GroupId, ZoneId};
use holdfast_proto::meta::{
    Bucket, ClusterMap, CountBucket, Counters, EventSeverity, ListEvents, Query, answer, query,
};
use holdfast_proto::raft::SnapshotPart;
use holdfast_proto::v1::FaultKind;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::change;
use super::fsck;
use super::object_stat;
use super::scrub;
use super::status;
use super::zone_head::ZoneHead;
use crate::node::contact::{Contact, FORWARDED, MAP_BYTES_MAX, forwarded};
use crate::worker::repair::salvage::{self, Asked};

const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE: u32 = 1000;
/// Events of a check that wait for whoever asked.
const FSCK_EVENTS: usize = 64;
/// Buckets whose counters are asked for at one time.
const COUNTED_AT_ONCE: usize = 32;

/// The service of one node.
#[derive(Debug, Clone)]
pub(crate) struct AdminService {
    /// Meta nodes only.
    pub(crate) head: Option<Arc<ZoneHead>>,
    pub(crate) contact: Arc<Contact>,
    /// `None` until the zone has been reached.
    pub(crate) cluster: watch::Receiver<Option<Cluster>>,
}

impl AdminService {
    fn cluster(&self) -> Result<Cluster, Fault> {
        let cluster = self.cluster.borrow().clone();
        cluster
            .ok_or_else(|| Fault::new(FaultKind::FaultUnavailable, "this node has not reached the zone yet"))
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let Some(head) = &self.head else {
            return Ok(Response::new(self.contact.status().await?));
        };
        if !head.leads()
            && !sent_on
            && let Ok(channel) = head.leader_channel()
        {
            let mut client = AdminClient::new(channel).max_decoding_message_size(MAP_BYTES_MAX);
            let asked =
                tokio::time::timeout(FORWARD_TIMEOUT, client.status(forwarded(StatusRequest {}))).await;
            if let Ok(Ok(answer)) = asked {
                return Ok(answer);
            }
        }
        // Without a leader an operator needs to see all the more what this node knows.
        let cluster = self.cluster.borrow().clone();
        Ok(Response::new(status::status(head, cluster.as_ref()).await?))
    }

    async fn list_buckets(
        &self,
        _request: Request<AdminListBucketsRequest>,
    ) -> Result<Response<AdminListBucketsResponse>, Status> {
        let cluster = self.cluster()?;
        Ok(Response::new(buckets(&cluster).await?))
    }

    async fn stat_object(
        &self,
        request: Request<StatObjectRequest>,
    ) -> Result<Response<StatObjectResponse>, Status> {
        let cluster = self.cluster()?;
        Ok(Response::new(object_stat::stat(&cluster, request.into_inner()).await?))
    }

    async fn change(&self, request: Request<ChangeRequest>) -> Result<Response<ChangeResponse>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let asked = request.into_inner();
        let Some(head) = &self.head else { return Ok(Response::new(self.contact.change(asked).await?)) };
        if !head.leads() && !sent_on {
            let mut client = AdminClient::new(head.leader_channel()?);
            return within(client.change(forwarded(asked))).await;
        }
        let what = asked.what.ok_or_else(|| Fault::new(FaultKind::Invalid, "an unknown change"))?;
        Ok(Response::new(change::change(head, what).await?))
    }

    async fn accept_loss(
        &self,
        request: Request<AcceptLossRequest>,
    ) -> Result<Response<AcceptLossResponse>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let asked = request.into_inner();
        let Some(head) = &self.head else { return Ok(Response::new(self.contact.accept_loss(asked).await?)) };
        if !head.leads() && !sent_on {
            let mut client = AdminClient::new(head.leader_channel()?);
            return within(client.accept_loss(forwarded(asked))).await;
        }
        let (bucket, key) = (asked.bucket.clone(), asked.key.clone());
        let answer = object_stat::accept_loss(&self.cluster()?, asked).await?;
        if answer.deleted {
            let id =
                self.cluster()?.bucket(&bucket).await.map(|bucket| bucket.id.clone()).unwrap_or_default();
            head.repair.lock().lost.retain(|lost| lost.key != key || lost.bucket != id);
            let text = format!(
                "{bucket}/{} was given up: {} of its stripes were lost",
                key.escape_ascii(),
                answer.lost_stripes
            );
            tracing::warn!(bucket, key = %key.escape_ascii(), lost_stripes = answer.lost_stripes, "an operator accepted a loss");
            head.tell(
                EventSeverity::EventWarning,
                "LOSS_ACCEPTED",
                "zone",
                text,
                "an operator said so".to_owned(),
            )
            .await;
        }
        Ok(Response::new(answer))
    }

    type FsckStream = Pin<Box<dyn Stream<Item = Result<FsckEvent, Status>> + Send>>;

    async fn fsck(&self, request: Request<FsckRequest>) -> Result<Response<Self::FsckStream>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let asked = request.into_inner();
        let Some(head) = &self.head else {
            return Ok(Response::new(Box::pin(self.contact.fsck(asked).await?)));
        };
        if !head.leads() {
            if sent_on {
                let none = Fault::new(FaultKind::FaultUnavailable, "the zone has no leader at the moment");
                return Err(none.into());
            }
            let mut client = AdminClient::new(head.leader_channel()?);
            let events = within(client.fsck(forwarded(asked))).await?.into_inner();
            return Ok(Response::new(Box::pin(events)));
        }
        // The stream does the work: it ends with whoever listens.
        let (events, receiver) = tokio::sync::mpsc::channel(FSCK_EVENTS);
        let work = futures::stream::once(fsck::run(head.clone(), self.cluster()?, asked, events));
        let told = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(futures::stream::select(told, work.filter_map(async |()| None)))))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<EventsResponse>, Status> {
        let EventsRequest { from, limit, newest } = request.into_inner();
        let cluster = self.cluster()?;
        let of = query::Of::ListEvents(ListEvents { from, limit, newest });
        let zone = u16::try_from(cluster.map().raw().zone).unwrap_or_default();
        let group = GroupId::zone_group(ZoneId::new(zone));
        let answer = cluster.query(group, Query { of: Some(of) }).await;
        let answer = answer.map_err(|error| Fault::new(FaultKind::FaultUnavailable, error.to_string()))?;
        match answer.ok {
            Some(answer::Ok::Events(page)) => Ok(Response::new(EventsResponse { page: Some(page) })),
            _ => Err(Fault::new(FaultKind::Invalid, "the zone's leader does not know events yet").into()),
        }
    }

    async fn start_scrub(
        &self,
        request: Request<StartScrubRequest>,
    ) -> Result<Response<StartScrubResponse>, Status> {
        let asked = request.into_inner();
        let Some(head) = &self.head else { return Ok(Response::new(self.contact.start_scrub(asked).await?)) };
        let unmade = || Fault::new(FaultKind::FaultUnavailable, "this node has not seen the zone's map yet");
        let map = head.feed.current().ok_or_else(unmade)?;
        Ok(Response::new(match asked.meta {
            true => scrub::start_meta(head, &map).await,
            false => scrub::start(&map, asked.targets).await?,
        }))
    }

    type RebuildStream = Pin<Box<dyn Stream<Item = Result<RebuildIndexEvent, Status>> + Send>>;

    async fn rebuild(
        &self,
        request: Request<RebuildIndexRequest>,
    ) -> Result<Response<Self::RebuildStream>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let asked = request.into_inner();
        let Some(head) = &self.head else {
            return Ok(Response::new(Box::pin(self.contact.rebuild(asked).await?)));
        };
        if !head.leads() {
            if sent_on {
                let none = Fault::new(FaultKind::FaultUnavailable, "the zone has no leader at the moment");
                return Err(none.into());
            }
            let mut client = AdminClient::new(head.leader_channel()?);
            let events = within(client.rebuild(forwarded(asked))).await?.into_inner();
            return Ok(Response::new(Box::pin(events)));
        }
        let (events, receiver) = tokio::sync::mpsc::channel(FSCK_EVENTS);
        let asked = Asked { only_look: asked.only_look, names: asked.buckets };
        let (head, cluster) = (head.clone(), self.cluster()?);
        let work = async move { salvage::run(&head, &cluster, asked, events).await };
        let work = futures::stream::once(work);
        let told = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(futures::stream::select(told, work.filter_map(async |()| None)))))
    }

    type ReadGroupStream = Pin<Box<dyn Stream<Item = Result<SnapshotPart, Status>> + Send>>;

    async fn read_group(
        &self,
        request: Request<ReadGroupRequest>,
    ) -> Result<Response<Self::ReadGroupStream>, Status> {
        let asked = request.into_inner();
        let not_here = || Fault::new(FaultKind::NotHere, "this node holds no metadata");
        let head = self.head.as_ref().ok_or_else(not_here)?;
        let id = GroupId::from_u64(asked.group)
            .map_err(|error| Fault::new(FaultKind::Invalid, error.to_string()))?;
        // Who gives rows away keeps what they own: the collector of garbage here follows the same map.
        let mut maps = head.feed.subscribe();
        let knows = |map: &Option<Arc<ClusterMap>>| {
            map.as_ref().is_some_and(|map| map.generation >= asked.map_generation)
        };
        let late = |_| Fault::new(FaultKind::FaultUnavailable, "this node has not seen that map yet");
        tokio::time::timeout(FORWARD_TIMEOUT, maps.wait_for(knows)).await.map_err(late)?.map(drop).ok();
        let parts = head.groups.read_rows(id).await?;
        Ok(Response::new(Box::pin(parts.map(Ok))))
    }

    async fn may_i(&self, request: Request<MayIRequest>) -> Result<Response<MayIResponse>, Status> {
        let sent_on = request.metadata().contains_key(FORWARDED);
        let asked = request.into_inner();
        let Some(head) = &self.head else { return Ok(Response::new(self.contact.may_i(asked).await?)) };
        if !head.leads() {
            // Only who leads hears the nodes.
            if sent_on {
                return Err(
                    Fault::new(FaultKind::FaultUnavailable, "the zone has no leader at the moment").into()
                );
            }
            let mut client = AdminClient::new(head.leader_channel()?);
            return within(client.may_i(forwarded(asked))).await;
        }
        let what = asked.what.ok_or_else(|| Fault::new(FaultKind::Invalid, "an unknown question"))?;
        Ok(Response::new(change::may_i(head, what).await?))
    }
}

async fn within<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<Response<T>, Status> {
    match tokio::time::timeout(FORWARD_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Fault::new(FaultKind::FaultUnavailable, "the zone's leader gave no answer").into()),
    }
}

async fn buckets(cluster: &Cluster) -> Result<AdminListBucketsResponse, Fault> {
    let mut response = AdminListBucketsResponse::default();
    let mut after = String::new();
    loop {
        let page = cluster.list_buckets(None, "", &after, PAGE).await.map_err(unavailable)?;
        let more = page.more;
        if let Some(last) = page.buckets.last() {
            after.clone_from(&last.name);
        }
        let counted = page.buckets.into_iter().map(|bucket| async move {
            let counters = count(cluster, &bucket).await?;
            Ok::<_, Fault>(BucketStatus { bucket: Some(bucket), counters: Some(counters) })
        });
        let counted = futures::stream::iter(counted).buffered(COUNTED_AT_ONCE);
        response.buckets.append(&mut counted.try_collect::<Vec<_>>().await?);
        if !more {
            return Ok(response);
        }
    }
}

/// The sum over the partitions that own slots of the bucket.
async fn count(cluster: &Cluster, bucket: &Bucket) -> Result<Counters, Fault> {
    let mut sum = Counters::default();
    for (group, _) in cluster.map().partitions_of_bucket(bucket).map_err(unavailable)? {
        let ask = Query { of: Some(query::Of::CountBucket(CountBucket { bucket: bucket.id.clone() })) };
        // A bucket that is being made or deleted has no row here.
        if let Some(answer::Ok::Counters(part)) = cluster.query(group, ask).await.map_err(unavailable)?.ok {
            sum.objects += part.objects;
            sum.versions += part.versions;
            sum.markers += part.markers;
            sum.bytes += part.bytes;
            sum.uploads += part.uploads;
            sum.part_bytes += part.part_bytes;
        }
    }
    Ok(sum)
}

fn unavailable(error: holdfast_client::Error) -> Fault {
    Fault::new(FaultKind::FaultUnavailable, error.to_string())
}
