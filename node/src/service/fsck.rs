//! `fsck`: the zone's metadata against its shards, both ways.
//!
//! From metadata: every body of every object and of every upload in progress, and whether each of its shards is where it belongs.
//! From shards: every write that any target has a shard of, and whether somebody owns it. Bounded memory: a page of keys, a page of
//! each target's list. Nothing is a snapshot, so what looks wrong is asked again, linearizably, before it counts: a write under
//! way, or an object that was deleted meanwhile, is no fault.
//!
//! Nothing is changed here. With `repair` the zone's repair worker and its collector of orphans are asked to make a pass, and then
//! everything is looked at again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use holdfast_client::{Cluster, Error, Located};
use holdfast_proto::admin::fsck_event::What;
use holdfast_proto::admin::{FsckEvent, FsckFault, FsckProgress, FsckRequest, FsckSummary};
use holdfast_proto::error::Fault;
use holdfast_proto::id::TargetId;
use holdfast_proto::meta::{Body, Bucket, GetObject, ListObjects, ListParts, ListUploads};
use holdfast_proto::v1::FaultKind;
use tokio::sync::mpsc;
use tonic::Status;

use super::zone_head::ZoneHead;
use crate::worker::repair::look_for_orphans;

/// Keys read and located together.
const PAGE: u32 = 256;
/// Objects read at a time.
const READ_AT_ONCE: usize = 16;
/// Faults told by name; the rest are counted.
const FAULTS_TOLD_MAX: u64 = 1000;
/// How long the repair that was asked for is waited for: its own deadlines end what cannot be done.
const REPAIR_PATIENCE: Duration = Duration::from_secs(3600);
const REPAIR_POLL: Duration = Duration::from_millis(200);

/// Where events go. Who asked may be gone; then the walk ends.
type Events = mpsc::Sender<Result<FsckEvent, Status>>;

struct Gone;

/// A body in the metadata.
struct Owned {
    bucket: Arc<Bucket>,
    key: Bytes,
    /// Of an upload in progress.
    upload: Option<Bytes>,
    body: Body,
}

struct Check {
    head: Arc<ZoneHead>,
    cluster: Cluster,
    events: Events,
    summary: FsckSummary,
}

/// Runs until everything was looked at, or nobody listens.
pub(super) async fn run(head: Arc<ZoneHead>, cluster: Cluster, asked: FsckRequest, events: Events) {
    let mut check = Check { head, cluster, events, summary: FsckSummary::default() };
    let ended = check.all(&asked).await;
    let last = match ended {
        Ok(()) => Ok(FsckEvent { what: Some(What::Summary(check.summary)) }),
        Err(fault) => Err(fault.into()),
    };
    // Who asked may be gone.
    let _ = check.events.send(last).await;
}

fn fault(error: Error) -> Fault {
    let kind = match error {
        Error::Refused { .. } | Error::Invalid { .. } => FaultKind::Invalid,
        _ => FaultKind::FaultUnavailable,
    };
    Fault::new(kind, error.to_string())
}

impl From<Gone> for Fault {
    fn from(_: Gone) -> Self {
        Self::new(FaultKind::FaultUnavailable, "nobody listens any more")
    }
}

impl Check {
    async fn all(&mut self, asked: &FsckRequest) -> Result<(), Fault> {
        if asked.repair {
            self.repair().await?;
        }
        self.check_metadata(&asked.bucket).await?;
        if asked.bucket.is_empty() {
            self.check_shards(asked.repair).await?;
        }
        Ok(())
    }

    /// A pass of the zone's repair, from its beginning to its end.
    async fn repair(&self) -> Result<(), Fault> {
        let before = {
            let state = self.head.repair.lock();
            // One that is under way began before this.
            state.passes + u64::from(state.running)
        };
        self.head.repair_wanted.store(true, Ordering::SeqCst);
        let ended = async {
            loop {
                self.progress("repairing").await?;
                if self.head.repair.lock().passes > before {
                    return Ok(());
                }
                if !self.head.leads() {
                    return Err(Fault::new(FaultKind::FaultUnavailable, "another node leads the zone now"));
                }
                tokio::time::sleep(REPAIR_POLL).await;
            }
        };
        match tokio::time::timeout(REPAIR_PATIENCE, ended).await {
            Ok(ended) => ended,
            Err(_) => Err(Fault::new(FaultKind::FaultUnavailable, "repair did not end in time")),
        }
    }

    async fn check_metadata(&mut self, only: &str) -> Result<(), Fault> {
        let mut after = String::new();
        loop {
            let page = self.cluster.list_buckets(None, "", &after, PAGE).await.map_err(fault)?;
            for bucket in &page.buckets {
                after.clone_from(&bucket.name);
                if only.is_empty() || *only == bucket.name {
                    let bucket = Arc::new(bucket.clone());
                    self.objects(&bucket).await?;
                    self.uploads(&bucket).await?;
                }
            }
            if !page.more {
                break;
            }
        }
        if !only.is_empty() {
            self.cluster.bucket(only).await.map_err(fault)?;
        }
        Ok(())
    }

    async fn objects(&mut self, bucket: &Arc<Bucket>) -> Result<(), Fault> {
        let mut after = Bytes::new();
        loop {
            let list = ListObjects { after: after.clone(), limit: PAGE, ..ListObjects::default() };
            let page = self.cluster.list_objects(bucket, list).await.map_err(fault)?;
            let keys: Vec<Bytes> = page.keys.iter().map(|listed| listed.key.clone()).collect();
            if let Some(last) = keys.last() {
                after = last.clone();
            }
            self.summary.objects += keys.len() as u64;
            let cluster = &self.cluster;
            let read = futures::stream::iter(keys)
                .map(|key| object_bodies(cluster, bucket, key))
                .buffered(READ_AT_ONCE)
                .try_concat()
                .await?;
            self.bodies(read).await?;
            self.progress("objects").await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn uploads(&mut self, bucket: &Arc<Bucket>) -> Result<(), Fault> {
        let (mut key_marker, mut upload_marker) = (Bytes::new(), Bytes::new());
        loop {
            let list = ListUploads {
                key_marker: key_marker.clone(),
                upload_marker: upload_marker.clone(),
                limit: PAGE,
                ..ListUploads::default()
            };
            let page = self.cluster.list_uploads(bucket, list).await.map_err(fault)?;
            for upload in &page.uploads {
                (key_marker, upload_marker) = (upload.key.clone(), upload.upload.clone());
                let read = upload_bodies(&self.cluster, bucket, &upload.key, &upload.upload).await?;
                self.bodies(read).await?;
            }
            self.progress("uploads").await?;
            if !page.more {
                return Ok(());
            }
        }
    }

    /// Locates bodies together; each that is not as it should be is asked for again alone.
    async fn bodies(&mut self, owned: Vec<Owned>) -> Result<(), Fault> {
        let bodies: Vec<&Body> = owned.iter().map(|owned| &owned.body).collect();
        let located = self.cluster.locate_bodies(&bodies).await.map_err(fault)?;
        for (owned, located) in owned.iter().zip(located) {
            self.summary.bodies += 1;
            self.silent(&located);
            self.summary.shards += located.stripes.iter().map(|(_, homes)| homes.len() as u64).sum::<u64>();
            if !is_well(&located) && self.is_still_owned(owned).await? {
                let again = self.cluster.locate_bodies(&[&owned.body]).await.map_err(fault)?;
                for located in &again {
                    self.judge(owned, located).await?;
                }
            }
        }
        Ok(())
    }

    fn silent(&mut self, located: &Located) {
        self.summary.silent.extend(located.silent.iter().map(|target| target.get()));
        self.summary.silent.sort_unstable();
        self.summary.silent.dedup();
    }

    async fn is_still_owned(&self, owned: &Owned) -> Result<bool, Fault> {
        let now = match &owned.upload {
            None => object_bodies(&self.cluster, &owned.bucket, owned.key.clone()).await?,
            Some(upload) => upload_bodies(&self.cluster, &owned.bucket, &owned.key, upload).await?,
        };
        Ok(now.iter().any(|now| now.body.write == owned.body.write))
    }

    /// Counts and tells what is wrong with a body.
    async fn judge(&mut self, owned: &Owned, located: &Located) -> Result<(), Fault> {
        for (found, homes) in &located.stripes {
            let alive = found.holders.iter().filter(|holders| !holders.is_empty()).count();
            let mut faults: Vec<(&str, String)> = Vec::new();
            if alive < found.scheme.data as usize {
                self.summary.lost += 1;
                faults.push(("LOST", format!("{alive} of {} shards that it needs", found.scheme.data)));
            }
            for (index, (holders, home)) in found.holders.iter().zip(homes).enumerate() {
                let others: Vec<&TargetId> = holders.iter().filter(|target| *target != home).collect();
                match (holders.contains(home), others.is_empty()) {
                    (true, true) => {}
                    (true, false) => {
                        self.summary.surplus += others.len() as u64;
                        faults.push((
                            "SURPLUS",
                            format!("shard {index} is on {others:?} besides target {home}"),
                        ));
                    }
                    // It may be on the one that does not answer.
                    (false, true) if located.silent.contains(home) => {}
                    (false, true) => {
                        self.summary.missing += 1;
                        faults.push((
                            "MISSING",
                            format!("shard {index} is not on target {home}, nor anywhere"),
                        ));
                    }
                    (false, false) => {
                        self.summary.misplaced += 1;
                        faults.push((
                            "MISPLACED",
                            format!("shard {index} is on {others:?}, not on target {home}"),
                        ));
                    }
                }
            }
            for (kind, detail) in faults {
                let fault = FsckFault {
                    kind: kind.to_owned(),
                    bucket: owned.bucket.name.clone(),
                    key: owned.key.clone(),
                    write: found.write.to_wire(),
                    stripe: found.stripe,
                    detail,
                };
                self.tell(fault).await?;
            }
        }
        Ok(())
    }

    async fn check_shards(&mut self, repair: bool) -> Result<(), Fault> {
        self.progress("orphans").await?;
        let (writes, orphans) =
            look_for_orphans(&self.head, &self.cluster, repair).await.map_err(|error| {
                Fault::new(FaultKind::FaultUnavailable, format!("looking for orphans: {error:#}"))
            })?;
        self.summary.writes = writes;
        // What was an orphan is deleted.
        self.summary.orphans = if repair { 0 } else { orphans.len() as u64 };
        for write in orphans.into_iter().filter(|_| !repair) {
            let detail = "nobody owns it, and it is older than meta.orphan_after".to_owned();
            self.tell(FsckFault { kind: "ORPHAN".to_owned(), write, detail, ..FsckFault::default() }).await?;
        }
        Ok(())
    }

    async fn tell(&mut self, fault: FsckFault) -> Result<(), Gone> {
        self.summary.told += 1;
        if self.summary.told > FAULTS_TOLD_MAX {
            return Ok(());
        }
        self.send(What::Fault(fault)).await
    }

    async fn progress(&self, phase: &str) -> Result<(), Gone> {
        let FsckSummary { objects, shards, .. } = self.summary;
        self.send(What::Progress(FsckProgress { phase: phase.to_owned(), objects, shards })).await
    }

    async fn send(&self, what: What) -> Result<(), Gone> {
        self.events.send(Ok(FsckEvent { what: Some(what) })).await.map_err(|_| Gone)
    }
}

fn is_well(located: &Located) -> bool {
    located.stripes.iter().all(|(found, homes)| {
        found
            .holders
            .iter()
            .zip(homes)
            .all(|(holders, home)| holders.as_slice() == std::slice::from_ref(home))
    })
}

/// The bodies of a current object; none when it is gone.
async fn object_bodies(cluster: &Cluster, bucket: &Arc<Bucket>, key: Bytes) -> Result<Vec<Owned>, Fault> {
    let query = GetObject { key: key.clone(), ..GetObject::default() };
    let found = match cluster.get_object(bucket, query).await {
        Ok(found) => found,
        Err(Error::Refused { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(fault(error)),
    };
    let parts = found.parts.into_iter().filter_map(|part| part.row.and_then(|row| row.body));
    let bodies = found.version.and_then(|version| version.body).into_iter().chain(parts);
    Ok(bodies.map(|body| Owned { bucket: bucket.clone(), key: key.clone(), upload: None, body }).collect())
}

/// The bodies of an upload in progress; none when it is gone.
async fn upload_bodies(
    cluster: &Cluster,
    bucket: &Arc<Bucket>,
    key: &Bytes,
    upload: &Bytes,
) -> Result<Vec<Owned>, Fault> {
    let mut bodies = Vec::new();
    let mut after = 0;
    loop {
        let list = ListParts {
            key: key.clone(),
            upload: upload.clone(),
            after,
            limit: PAGE,
            bodies: true,
            ..ListParts::default()
        };
        let page = match cluster.list_parts(bucket, list).await {
            Ok(page) => page,
            Err(Error::Refused { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(fault(error)),
        };
        for part in page.parts {
            after = part.part;
            if let Some(body) = part.row.and_then(|row| row.body) {
                bodies.push(Owned {
                    bucket: bucket.clone(),
                    key: key.clone(),
                    upload: Some(upload.clone()),
                    body,
                });
            }
        }
        if !page.more {
            return Ok(bodies);
        }
    }
}
