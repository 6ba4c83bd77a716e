//! Makes objects of shards that nobody owns, in a zone whose metadata was lost: the last resort, and best effort.
//!
//! A shard's header says whose it is: bucket, key, when its write began, how long it is, and, of an upload, which part; that of
//! the first stripe has the S3 headers, that of the last one the MD5, which is there only when the whole body was. So a write
//! all of whose stripes can be read is a body that was stored whole. Whether it was committed is not known, nor whether it was
//! deleted since: objects made of it are marked. Bodies inline in metadata have no shards, and are lost.
//!
//! Where placement is lost, too, it is made first, of which target holds which shards of a placement group.
//!
//! One walk over what all targets hold. Everything that is done is a commit like a client's, so a run that breaks off is begun
//! again: what was made has an owner by then. In memory are a page of each target's list, and what is known of parts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::geometry::Geometry;
use holdfast_client::{Cluster, Error, FoundStripe, bucket_id, extents};
use holdfast_proto::admin::rebuild_index_event::What;
use holdfast_proto::admin::{BucketNamed, RebuildIndexEvent, RebuildIndexFound, RebuildIndexSummary};
use holdfast_proto::data::ObjectRef;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{AccountId, PartNumber, PgId, UploadId, WriteId};
use holdfast_proto::limits::SLOTS_DEFAULT;
use holdfast_proto::meta::{
    Body, Bucket, BucketState, ClusterMap, Command, CompletePart, CompleteUpload, EventSeverity, GetObject,
    ObjectHeaders, Pair, Part, PlacementGroup, Preconditions, PutPlacement, Refusal, RenewWrite,
    StorageClass, Upload, Version, command, write_owner::Owner,
};
use holdfast_proto::v1::{Codec, Scheme};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::Status;

use super::inventory::{Inventory, Stripe};
use super::owners::Owners;
use super::verdict::Places;
use super::{Reach, listable};
use crate::placement::class::{choose, width};
use crate::placement::keeper::candidates;
use crate::service::zone_head::ZoneHead;

/// User metadata of an object that was made of shards.
const MARK: (&str, &str) = ("holdfast-recovered", "unproven");
/// Placement made of shards fences what was under way before the loss.
const EPOCH: u64 = 1 << 32;
/// Writes told by name.
const TOLD_MAX: u64 = 10_000;
/// Writes between two words of progress.
const PROGRESS_EVERY: u64 = 1000;

/// How long the client's map may take to follow the zone's.
const MAP_PATIENCE: Duration = Duration::from_secs(30);
const MAP_POLL: Duration = Duration::from_millis(50);

/// Where events go. Who asked may be gone; then the walk ends.
pub(crate) type Events = mpsc::Sender<Result<RebuildIndexEvent, Status>>;

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) only_look: bool,
    pub(crate) names: Vec<BucketNamed>,
}

/// A write, as far as it was seen.
struct Seen {
    write: WriteId,
    scheme: Scheme,
    /// In order from 0, as long as there is no hole.
    groups: Vec<PgId>,
    first: FoundStripe,
    last: FoundStripe,
    /// Stripes that can be read.
    readable: u32,
}

/// A body that was stored whole.
struct Whole {
    body: Body,
    begin: Hlc,
    md5: Bytes,
    headers: ObjectHeaders,
}

type Place = (Bytes, Bytes);

struct Salvage<'a> {
    head: &'a ZoneHead,
    cluster: &'a Cluster,
    owners: Owners,
    asked: Asked,
    /// Writes begun before this may have had an owner that is lost.
    held: Hlc,
    events: Events,
    told: u64,
    sum: RebuildIndexSummary,
    buckets: HashMap<Bytes, Bucket>,
    /// Of each upload that is not in progress here, the newest body of each part.
    uploads: BTreeMap<(Place, UploadId), BTreeMap<u32, Whole>>,
}

/// Runs until everything was looked at, or nobody listens.
pub(crate) async fn run(head: &ZoneHead, cluster: &Cluster, asked: Asked, events: Events) {
    let ended = salvage(head, cluster, asked, &events).await;
    let last = match ended {
        Ok(sum) => Ok(RebuildIndexEvent { what: Some(What::Summary(sum)) }),
        Err(error) => Err(Status::failed_precondition(format!("{error:#}"))),
    };
    // Who asked may be gone.
    let _ = events.send(last).await;
}

async fn salvage(
    head: &ZoneHead,
    cluster: &Cluster,
    asked: Asked,
    events: &Events,
) -> anyhow::Result<RebuildIndexSummary> {
    let mut map = head.read_map().await?;
    anyhow::ensure!(map.orphans_held != 0, "the zone was not recovered: nothing of it is held for this");
    let mut sum = RebuildIndexSummary::default();
    if map.pgs.is_empty() {
        let made = place(head, &map, asked.only_look).await?;
        sum.placement_groups = made;
        if asked.only_look {
            return Ok(sum);
        }
        map = head.read_map().await?;
        let begun = tokio::time::Instant::now();
        while cluster.map().generation() < map.generation {
            anyhow::ensure!(
                begun.elapsed() < MAP_PATIENCE,
                "the new placement is not seen yet: say it again"
            );
            tokio::time::sleep(MAP_POLL).await;
        }
    }
    let mut salvage = Salvage {
        head,
        cluster,
        owners: Owners::default(),
        asked,
        held: Hlc::from_u64(map.orphans_held),
        events: events.clone(),
        told: 0,
        sum,
        buckets: HashMap::new(),
        uploads: BTreeMap::new(),
    };
    salvage.walk(&map).await?;
    salvage.finish_uploads().await?;
    let sum = salvage.sum;
    if !salvage.asked.only_look && sum.objects > 0 {
        let text = format!("{} object(s) were made of shards that nobody owned", sum.objects);
        let why = "their metadata was lost".to_owned();
        head.tell(EventSeverity::EventWarning, "INDEX_REBUILT", "zone", text, why).await;
    }
    Ok(sum)
}

impl Salvage<'_> {
    async fn walk(&mut self, map: &ClusterMap) -> anyhow::Result<()> {
        let listed = listable(map);
        self.sum.silent = map.targets.iter().map(|row| row.id).filter(|id| !listed.contains(id)).collect();
        let places = Places::new(map, listed.clone());
        let (mut reach, mut inventory) = (Reach::default(), Inventory::over(listed));
        let mut seen: Option<Seen> = None;
        loop {
            anyhow::ensure!(self.head.leads(), "another node leads the zone now");
            let next = inventory.next(&mut reach, map).await;
            if let Some(stripe) = &next
                && let Some(seen) = seen.as_mut().filter(|seen| seen.write == stripe.write)
            {
                seen.add(&places, stripe);
                continue;
            }
            if let Some(seen) = seen.take() {
                self.write(seen).await?;
            }
            let Some(stripe) = next else { break };
            seen = Seen::new(&places, &stripe);
        }
        self.sum.silent.extend(&inventory.broken);
        Ok(())
    }

    async fn tell(&self, what: What) -> anyhow::Result<()> {
        let sent = self.events.send(Ok(RebuildIndexEvent { what: Some(what) })).await;
        sent.map_err(|_| anyhow::anyhow!("nobody listens any more"))
    }

    async fn found(&mut self, kind: &str, place: &Place, size: u64, detail: String) -> anyhow::Result<()> {
        self.told += 1;
        if self.told > TOLD_MAX {
            return Ok(());
        }
        let name = self.buckets.get(&place.0).map(|bucket| bucket.name.clone()).unwrap_or_default();
        let (bucket, key) = place.clone();
        let kind = kind.to_owned();
        self.tell(What::Found(RebuildIndexFound { kind, bucket, bucket_name: name, key, size, detail })).await
    }

    /// Looks at one write, and makes an object of it when it is one.
    async fn write(&mut self, seen: Seen) -> anyhow::Result<()> {
        self.sum.writes += 1;
        if self.sum.writes.is_multiple_of(PROGRESS_EVERY) {
            self.tell(What::Progress(self.sum.clone())).await?;
        }
        let object = match self.cluster.describe_stripe(&seen.first).await {
            Ok(object) => object,
            // Deleted since it was listed, or its targets are gone for now.
            Err(Error::Unavailable { .. }) => {
                self.sum.incomplete += 1;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let place = (object.bucket.clone(), object.key.clone());
        let begin = Hlc::from_u64(object.begin_hlc);
        let owner = self.owners.of(self.cluster, seen.write, &object).await?;
        let is_free = owner.is_none_or(|(_, owner)| matches!(owner.owner, None | Some(Owner::Renewed(_))));
        if begin >= self.held || !is_free {
            self.sum.owned += 1;
            return Ok(());
        }
        let whole = match self.whole(seen, object.clone()).await? {
            Ok(whole) => whole,
            Err(why) => {
                self.sum.incomplete += 1;
                return self.found("INCOMPLETE", &place, object.declared_length, why).await;
            }
        };
        if object.upload.is_empty() {
            return self.object(place, whole).await;
        }
        let upload = UploadId::from_wire(&object.upload)?;
        let parts = self.uploads.entry((place, upload)).or_default();
        match parts.get(&object.part) {
            Some(newer) if newer.begin >= whole.begin => self.sum.older += 1,
            other => {
                self.sum.older += u64::from(other.is_some());
                parts.insert(object.part, whole);
            }
        }
        Ok(())
    }

    /// The body of a write, or why there is none.
    async fn whole(&self, seen: Seen, object: ObjectRef) -> anyhow::Result<Result<Whole, String>> {
        let geometry = Geometry::new(&seen.scheme, object.declared_length)?;
        let stripes = geometry.stripes();
        if seen.groups.len() as u32 != stripes || seen.readable != stripes {
            return Ok(Err(format!("{} of its {stripes} stripes can be read", seen.readable)));
        }
        let md5 = match stripes {
            1 => object.md5.clone(),
            _ => match self.cluster.describe_stripe(&seen.last).await {
                Ok(last) => last.md5,
                Err(Error::Unavailable { detail, .. }) => return Ok(Err(detail)),
                Err(error) => return Err(error.into()),
            },
        };
        if md5.len() != 16 {
            return Ok(Err("its MD5 was not stored".to_owned()));
        }
        let headers = ObjectHeaders::decode(object.headers)?;
        let body = Body {
            write: seen.write.to_wire(),
            length: object.declared_length,
            inline: None,
            extents: extents(&seen.write, seen.scheme, &geometry, &seen.groups),
        };
        Ok(Ok(Whole { body, begin: Hlc::from_u64(object.begin_hlc), md5, headers }))
    }

    /// The bucket of an id; made where the realm does not know it.
    async fn bucket(&mut self, id: &Bytes) -> anyhow::Result<Bucket> {
        if let Some(bucket) = self.buckets.get(id) {
            return Ok(bucket.clone());
        }
        let bucket = match self.cluster.bucket_of_id(id.clone()).await {
            Ok(bucket) => bucket,
            Err(Error::Refused { refusal: Refusal::NoSuchBucket, .. }) => {
                let given = self.asked.names.iter().find(|named| named.id == *id);
                let hex = hex::encode(&id[..id.len().min(8)]);
                let name = given.map_or_else(|| format!("recovered-{hex}"), |named| named.name.clone());
                self.sum.buckets += 1;
                let bucket = Bucket {
                    id: id.clone(),
                    name,
                    owner: self.owner().await?.to_wire(),
                    state: BucketState::BucketCreating.into(),
                    generation: 1,
                    slots: SLOTS_DEFAULT.into(),
                    created_ms: self.cluster.now().ms(),
                    ..Bucket::default()
                };
                match self.asked.only_look {
                    true => bucket,
                    false => self.cluster.create_bucket_as(bucket).await?,
                }
            }
            Err(error) => return Err(error.into()),
        };
        self.owners.forget();
        self.buckets.insert(id.clone(), bucket.clone());
        Ok(bucket)
    }

    /// Who owns what nobody is known to own.
    async fn owner(&self) -> anyhow::Result<AccountId> {
        self.cluster.root_account().await.map_err(Into::into)
    }

    /// When what a key has began; `None` when it has nothing, or a marker.
    async fn current(&self, bucket: &Bucket, key: &Bytes) -> anyhow::Result<Option<Hlc>> {
        if bucket.state() != BucketState::BucketActive {
            // It is to be made.
            return Ok(None);
        }
        let get = GetObject { key: key.clone(), no_parts: true, ..GetObject::default() };
        match self.cluster.get_object(bucket, get).await {
            Ok(found) => Ok(found.version.map(|version| Hlc::from_u64(version.begin_hlc))),
            Err(Error::Refused { refusal: Refusal::NoSuchKey | Refusal::NoSuchBucket, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn object(&mut self, place: Place, whole: Whole) -> anyhow::Result<()> {
        let bucket = self.bucket(&place.0).await?;
        let size = whole.body.length;
        if self.current(&bucket, &place.1).await?.is_some_and(|begun| begun >= whole.begin) {
            self.sum.older += 1;
            return self.found("OLDER", &place, size, "the key has a newer object".to_owned()).await;
        }
        if !self.asked.only_look {
            self.renew(&bucket, &place.1, &whole.body).await?;
            let version = Version {
                size,
                etag: hex::encode(&whole.md5),
                headers: Some(marked(whole.headers)),
                body: Some(whole.body),
                owner: bucket.owner.clone(),
                begin_hlc: whole.begin.get(),
                ..Version::default()
            };
            let put =
                self.cluster.put_object(&bucket, &place.1, version, Preconditions::default(), Vec::new());
            if let Err(error) = put.await {
                return self.refused(&place, size, error).await;
            }
        }
        self.sum.objects += 1;
        self.found("OBJECT", &place, size, String::new()).await
    }

    async fn refused(&mut self, place: &Place, size: u64, error: Error) -> anyhow::Result<()> {
        match error {
            Error::Refused { .. } => {
                self.sum.refused += 1;
                self.found("REFUSED", place, size, error.to_string()).await
            }
            error => Err(error.into()),
        }
    }

    /// Says that somebody is at a write that began long ago, so that it may be committed.
    async fn renew(&self, bucket: &Bucket, key: &Bytes, body: &Body) -> anyhow::Result<()> {
        let slots = u16::try_from(bucket.slots)?;
        let slot = holdfast_proto::id::slot_of(key, slots);
        let group = self.cluster.map().partition_of_slot(bucket_id(bucket)?, slot)?;
        let renew =
            RenewWrite { bucket: bucket.id.clone(), slot: slot.get().into(), write: body.write.clone() };
        let command = Command { op: Some(command::Op::RenewWrite(renew)), ..Command::default() };
        self.cluster.propose(group, vec![command]).await?;
        Ok(())
    }

    /// Uploads whose parts were found: those in progress get what they miss; of the others, the newest of each key becomes
    /// an object.
    async fn finish_uploads(&mut self) -> anyhow::Result<()> {
        let mut newest: BTreeMap<Place, (UploadId, BTreeMap<u32, Whole>)> = BTreeMap::new();
        for ((place, upload), parts) in std::mem::take(&mut self.uploads) {
            let bucket = self.bucket(&place.0).await?;
            let is_active = bucket.state() == BucketState::BucketActive;
            if is_active && self.cluster.get_upload(&bucket, &place.1, upload).await.is_ok() {
                self.add_parts(&bucket, &place, upload, parts).await?;
                continue;
            }
            match newest.get(&place) {
                Some((other, _)) if other.hlc >= upload.hlc => self.sum.older += parts.len() as u64,
                other => {
                    self.sum.older += other.map_or(0, |(_, parts)| parts.len() as u64);
                    newest.insert(place, (upload, parts));
                }
            }
        }
        for (place, (_, parts)) in newest {
            self.upload(place, parts).await?;
        }
        Ok(())
    }

    async fn add_parts(
        &mut self,
        bucket: &Bucket,
        place: &Place,
        upload: UploadId,
        parts: BTreeMap<u32, Whole>,
    ) -> anyhow::Result<()> {
        let list = holdfast_proto::meta::ListParts {
            key: place.1.clone(),
            upload: upload.to_wire(),
            limit: holdfast_proto::limits::PARTS_MAX,
            ..Default::default()
        };
        let known = self.cluster.list_parts(bucket, list).await?;
        let known: BTreeSet<u32> = known.parts.iter().map(|listed| listed.part).collect();
        for (number, whole) in parts {
            let size = whole.body.length;
            if known.contains(&number) {
                self.sum.older += 1;
                continue;
            }
            if !self.asked.only_look
                && let Err(error) = self.put_part(bucket, &place.1, upload, number, whole).await
            {
                self.refused(place, size, error).await?;
                continue;
            }
            self.sum.uploads += 1;
            self.found("UPLOAD", place, size, format!("part {number} of an upload in progress")).await?;
        }
        Ok(())
    }

    async fn put_part(
        &self,
        bucket: &Bucket,
        key: &Bytes,
        upload: UploadId,
        number: u32,
        whole: Whole,
    ) -> Result<(), Error> {
        let internal = |detail: String| Error::Internal { detail };
        self.renew(bucket, key, &whole.body).await.map_err(|error| internal(format!("{error:#}")))?;
        let number = PartNumber::new(number).ok_or_else(|| internal("a part number".to_owned()))?;
        let row = Part { size: whole.body.length, md5: whole.md5, body: Some(whole.body), ..Part::default() };
        self.cluster.put_part(bucket, key, upload, number, row, whole.begin, Vec::new()).await
    }

    async fn upload(&mut self, place: Place, parts: BTreeMap<u32, Whole>) -> anyhow::Result<()> {
        let bucket = self.bucket(&place.0).await?;
        let size = parts.values().map(|part| part.body.length).sum();
        let count = parts.len();
        // Whether it was completed is not known: it takes the place of nothing.
        if self.current(&bucket, &place.1).await?.is_some() {
            self.sum.older += count as u64;
            let why = format!("{count} part(s) of an upload, and the key has an object");
            return self.found("OLDER", &place, size, why).await;
        }
        if !self.asked.only_look {
            let headers = parts.values().next().map(|part| part.headers.clone()).unwrap_or_default();
            let row =
                Upload { headers: Some(marked(headers)), owner: bucket.owner.clone(), ..Upload::default() };
            let new = self.cluster.create_upload(&bucket, &place.1, row).await?;
            let mut listed = Vec::with_capacity(count);
            for (part, whole) in parts {
                listed.push(CompletePart { part, etag: hex::encode(&whole.md5), ..CompletePart::default() });
                if let Err(error) = self.put_part(&bucket, &place.1, new, part, whole).await {
                    return self.refused(&place, size, error).await;
                }
            }
            let complete = CompleteUpload {
                key: place.1.clone(),
                upload: new.to_wire(),
                parts: listed,
                ..CompleteUpload::default()
            };
            if let Err(error) = self.cluster.complete_upload(&bucket, complete).await {
                // It stays an upload in progress, for whoever can tell what is missing.
                return self.refused(&place, size, error).await;
            }
        }
        self.sum.objects += 1;
        self.sum.uploads += 1;
        self.found("OBJECT", &place, size, format!("of {count} part(s)")).await
    }
}

fn marked(mut headers: ObjectHeaders) -> ObjectHeaders {
    let (name, value) = MARK;
    if !headers.user.iter().any(|pair| pair.name == name) {
        headers.user.push(Pair { name: name.to_owned(), value: value.to_owned() });
    }
    headers
}

impl Seen {
    fn new(places: &Places<'_>, stripe: &Stripe) -> Option<Self> {
        // What makes no sense is told by repair.
        let verdict = places.judge(stripe).ok()?;
        let readable = verdict.spare() >= 0;
        let found = verdict.found;
        let mut seen = Self {
            write: stripe.write,
            scheme: found.scheme,
            groups: Vec::new(),
            first: found.clone(),
            last: found.clone(),
            readable: 0,
        };
        seen.count(stripe.number, &found, readable);
        Some(seen)
    }

    fn add(&mut self, places: &Places<'_>, stripe: &Stripe) {
        let Ok(verdict) = places.judge(stripe) else { return };
        let readable = verdict.spare() >= 0;
        self.count(stripe.number, &verdict.found, readable);
        self.last = verdict.found;
    }

    fn count(&mut self, number: u32, found: &FoundStripe, readable: bool) {
        if self.groups.len() as u32 == number && found.scheme == self.scheme {
            self.groups.push(found.pg);
            self.readable += u32::from(readable);
        }
    }
}

/// Makes placement of what targets hold; how many groups. With `only_look` nothing is changed.
async fn place(head: &ZoneHead, map: &ClusterMap, only_look: bool) -> anyhow::Result<u64> {
    let targets = candidates(map, "default");
    let wanted = head.config.initial_targets as usize;
    anyhow::ensure!(
        targets.len() >= wanted,
        "{} of {wanted} targets are here (meta.initial_targets): start the data nodes first",
        targets.len()
    );
    let listed = listable(map);
    let (mut reach, mut inventory) = (Reach::default(), Inventory::over(listed));
    let mut held = Held::default();
    while let Some(stripe) = inventory.next(&mut reach, map).await {
        held.add(&stripe);
    }
    anyhow::ensure!(inventory.broken.is_empty(), "targets {:?} did not say what they hold", inventory.broken);
    let choice = choose(&head.config, &targets).map_err(anyhow::Error::msg)?;
    let (class, pgs) = held.placement(choice.class, &targets.iter().map(|row| row.id).collect::<Vec<_>>());
    let count = pgs.len() as u64;
    anyhow::ensure!(count > 0, "the targets hold no shard: let placement be made anew by a zone of its own");
    if !only_look {
        let put = PutPlacement { expected_generation: map.generation, classes: vec![class], pgs };
        let outcome = head.propose(head.request_id(), command::Op::PutPlacement(put)).await?;
        anyhow::ensure!(outcome.refusal() == Refusal::None, "placement is refused: {}", outcome.detail);
    }
    Ok(count)
}

/// Who holds how many shards of which index of a placement group.
#[derive(Debug, Default)]
struct Held {
    /// Of coded stripes: by group, index and target.
    coded: BTreeMap<u32, BTreeMap<usize, BTreeMap<u32, u64>>>,
    /// Of copies: by group, write and index; which member has one depends on how wide groups are.
    copies: BTreeMap<u32, BTreeMap<(WriteId, usize), Vec<u32>>>,
    scheme: Option<Scheme>,
    small: Option<Scheme>,
}

/// Writes in copies that are remembered of each group: enough to know every member.
const COPIES_KEPT: usize = 64;

impl Held {
    fn add(&mut self, stripe: &Stripe) {
        for shard in &stripe.shards {
            let Some(scheme) = shard.stored.scheme else { continue };
            let index = usize::from(shard.index);
            if scheme.codec() == Codec::Copies {
                self.small = Some(scheme);
                let of = self.copies.entry(shard.stored.pg).or_default();
                if of.len() < COPIES_KEPT || of.contains_key(&(stripe.write, index)) {
                    of.entry((stripe.write, index)).or_default().push(shard.target);
                }
            } else {
                self.scheme = Some(scheme);
                let of = self.coded.entry(shard.stored.pg).or_default();
                *of.entry(index).or_default().entry(shard.target).or_default() += 1;
            }
        }
    }

    /// The class, and every group that has a shard, each place with the target that has most of it.
    fn placement(&self, chosen: StorageClass, targets: &[u32]) -> (StorageClass, Vec<PlacementGroup>) {
        let small = self.small.or(chosen.small);
        let scheme = self.scheme.or(if self.coded.is_empty() { chosen.scheme } else { None });
        let class = StorageClass { scheme, small, ..chosen };
        let wide = width(&class);
        let ids: BTreeSet<u32> = self.coded.keys().chain(self.copies.keys()).copied().collect();
        let pgs = ids.into_iter().map(|id| {
            let mut votes: Vec<BTreeMap<u32, u64>> = vec![BTreeMap::new(); wide];
            for (index, held) in self.coded.get(&id).into_iter().flatten() {
                if let Some(votes) = votes.get_mut(*index) {
                    held.iter().for_each(|(target, count)| *votes.entry(*target).or_default() += count);
                }
            }
            if let Some(geometry) = small.and_then(|scheme| Geometry::new(&scheme, 1).ok()) {
                for ((write, index), held) in self.copies.get(&id).into_iter().flatten() {
                    let member = geometry.member(write, *index, wide);
                    held.iter().for_each(|target| *votes[member].entry(*target).or_default() += 1);
                }
            }
            PlacementGroup {
                id,
                epoch: EPOCH,
                targets: members(&votes, targets),
                class: class.name.clone(),
                moving: Vec::new(),
            }
        });
        let pgs = pgs.filter(|pg| pg.targets.len() == wide).collect();
        (class, pgs)
    }
}

/// One target for each place, each target at most once: who has most first; places that nobody votes for get what is left.
fn members(votes: &[BTreeMap<u32, u64>], targets: &[u32]) -> Vec<u32> {
    let mut ballots: Vec<(u64, usize, u32)> = votes
        .iter()
        .enumerate()
        .flat_map(|(place, votes)| votes.iter().map(move |(target, count)| (*count, place, *target)))
        .collect();
    ballots.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.cmp(b)));
    let mut chosen: Vec<Option<u32>> = vec![None; votes.len()];
    let mut used = BTreeSet::new();
    for (_, place, target) in ballots {
        if chosen[place].is_none() && targets.contains(&target) && used.insert(target) {
            chosen[place] = Some(target);
        }
    }
    let mut free = targets.iter().copied().filter(|target| !used.contains(target)).collect::<Vec<_>>();
    free.reverse();
    chosen.into_iter().filter_map(|target| target.or_else(|| free.pop())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_most_of_a_place_gets_it() {
        let votes = |all: &[(u32, u64)]| all.iter().copied().collect::<BTreeMap<u32, u64>>();
        // Target 3 has strays of place 0; of place 2 nobody has anything.
        let all = [votes(&[(1, 9), (3, 2)]), votes(&[(3, 8)]), BTreeMap::new()];
        assert_eq!(members(&all, &[1, 2, 3, 4]), [1, 3, 2]);
        assert_eq!(members(&all, &[1, 3]).len(), 2, "too few targets");
        // One target cannot have two places.
        assert_eq!(members(&[votes(&[(1, 5)]), votes(&[(1, 7)])], &[1, 2]), [2, 1]);
    }

    #[test]
    fn a_mark_says_that_nothing_is_proven() {
        let once = marked(ObjectHeaders::default());
        assert_eq!(once.user.len(), 1);
        assert_eq!(marked(once.clone()), once);
    }
}
