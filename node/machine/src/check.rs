//! The rules that hold between the rows of a group after every command. For tests and for operators; it reads everything.
//!
//! Partition: the current version follows from the version set; every stored body has exactly one owner and its `wrt` row
//! says which; counters equal a recount; an upload's parts are in progress or in exactly one version. Realm: names, ids
//! and owners agree. Zone: what is named exists, and ids are below the next one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{BucketId, GroupId, GroupKind, Slot, UploadId, VersionId, WriteId, slot_of};
use holdfast_proto::limits::EVENTS_MAX;
use holdfast_proto::meta::{
    Bucket, BucketName, Counters, Event, Garbage, Group, Listed, Missed, Node, Part, PlacementGroup,
    Remembered, StorageClass, Target, Upload, Version, Versioning, WriteOwner, write_owner::Owner,
};
use prost::Message;

use crate::Halt;
use crate::digest::ROWS;
use crate::key::{self, Family, Spot};
use crate::kv::KvRead;
use crate::row;
use crate::session;
use crate::version;

/// Every broken rule in words; none when all is well.
///
/// # Errors
/// [`Halt`]: a row does not decode or the store failed.
pub fn check(kv: &impl KvRead, group: GroupId) -> Result<Vec<String>, Halt> {
    match group.kind() {
        GroupKind::Partition => partition(kv),
        GroupKind::Realm => realm(kv),
        GroupKind::Zone => zone(kv),
    }
}

type Place = (BucketId, Slot);

/// What the rows of a partition say, collected to be compared.
#[derive(Default)]
struct Partition {
    broken: Vec<String>,
    buckets: BTreeMap<BucketId, Bucket>,
    counters: BTreeMap<Place, Counters>,
    /// What the `wrt` row of a write must say.
    owners: BTreeMap<(Place, WriteId), Owned>,
    uploads: BTreeMap<(Place, UploadId), PartsOf>,
}

#[derive(Debug, PartialEq, Eq)]
enum Owned {
    Version(Bytes, VersionId),
    Part(UploadId, u16),
    Garbage,
}

/// An upload in progress, or the parts that a version claims and that were found.
#[derive(Default)]
struct PartsOf {
    in_progress: bool,
    versions: u32,
    claimed: (u32, u64),
    found: (u32, u64),
}

fn partition(kv: &impl KvRead) -> Result<Vec<String>, Halt> {
    let mut this = Partition::default();
    for (key, bucket) in rows::<Bucket>(kv, key::BKT)? {
        let id = parse(&key, key.get(4..).and_then(|id| BucketId::from_wire(id).ok()))?;
        this.buckets.insert(id, bucket);
    }
    this.versions(kv)?;
    this.uploads(kv)?;
    this.parts(kv)?;
    this.writes(kv)?;
    this.count(kv)?;
    let known = [
        key::BKT,
        key::DRP,
        key::CUR,
        key::VER,
        key::UPL,
        key::PRT,
        key::WRT,
        key::GC,
        key::MIS,
        key::REQ,
        key::CNT,
        session::STATE_KEY,
    ];
    strangers(kv, &known, &mut this.broken)?;
    requests(kv, &mut this.broken)?;
    Ok(this.broken)
}

impl Partition {
    fn wrong(&mut self, key: &[u8], what: impl std::fmt::Display) {
        self.broken.push(format!("{}: {what}", key.escape_ascii()));
    }

    fn own(&mut self, key: &[u8], place: Place, write: &[u8], owner: Owned) -> Result<(), Halt> {
        let write = parse(key, WriteId::from_wire(write).ok())?;
        if let Some(other) = self.owners.insert((place, write), owner) {
            self.wrong(key, format!("write {write} also belongs to {other:?}"));
        }
        Ok(())
    }

    /// Keys live in their slot of a bucket that is here.
    fn placed(&mut self, row_key: &[u8], place: Place, key: &[u8]) {
        match self.buckets.get(&place.0) {
            None => self.wrong(row_key, "its bucket is not here"),
            Some(bucket) if slot_of(key, bucket.slots as u16) != place.1 => {
                self.wrong(row_key, "another slot")
            }
            Some(_) => {}
        }
    }

    fn versions(&mut self, kv: &impl KvRead) -> Result<(), Halt> {
        let mut current: BTreeMap<Vec<u8>, Listed> = BTreeMap::new();
        let mut before: Option<(Place, Vec<u8>)> = None;
        let mut null_seen = false;
        for (row_key, row) in rows::<Version>(kv, key::VER)? {
            let (bucket, slot, tail) = parse(&row_key, key::parse_place(key::VER, &row_key))?;
            let (key, suffix) = parse(&row_key, key::unescape_key(tail))?;
            let id = parse(&row_key, key::parse_version_suffix(suffix))?;
            let place = (bucket, slot);
            self.placed(&row_key, place, &key);
            let newest = before.as_ref() != Some(&(place, key.clone()));
            if newest {
                null_seen = false;
            }
            if row.null && std::mem::replace(&mut null_seen, true) {
                self.wrong(&row_key, "a second null version");
            }
            let never_versioned = self.buckets.get(&bucket).map(Bucket::versioning) == Some(Versioning::Off);
            if never_versioned && (!newest || row.delete_marker || !row.null) {
                self.wrong(&row_key, "a history in a bucket that never had versioning");
            }
            let counters = self.counters.entry(place).or_default();
            if row.delete_marker {
                counters.markers += 1;
            } else {
                counters.versions += 1;
                counters.bytes += row.size;
                counters.objects += u64::from(newest);
                if newest {
                    let spot = Spot { bucket, slot, key: &key };
                    current.insert(key::of_key(key::CUR, spot), version::listed(id, &row));
                }
            }
            match (&row.body, &row.multipart, row.delete_marker) {
                (Some(body), None, false) => {
                    self.own(&row_key, place, &body.write, Owned::Version(key.clone().into(), id))?;
                }
                (None, Some(multipart), false) => {
                    let upload = parse(&row_key, UploadId::from_wire(&multipart.upload).ok())?;
                    let parts = self.uploads.entry((place, upload)).or_default();
                    parts.versions += 1;
                    parts.claimed = (multipart.parts, row.size);
                }
                (None, None, true) => {}
                _ => self.wrong(&row_key, "a version has a body or parts, a marker neither"),
            }
            before = Some((place, key));
        }
        for (row_key, row) in rows::<Listed>(kv, key::CUR)? {
            if current.remove(row_key.as_ref()).as_ref() != Some(&row) {
                self.wrong(&row_key, "not what the versions say");
            }
        }
        for row_key in current.keys() {
            self.wrong(row_key, "absent, but the versions have a visible one");
        }
        Ok(())
    }

    fn uploads(&mut self, kv: &impl KvRead) -> Result<(), Halt> {
        for (row_key, _) in rows::<Upload>(kv, key::UPL)? {
            let (bucket, slot, tail) = parse(&row_key, key::parse_place(key::UPL, &row_key))?;
            let (key, suffix) = parse(&row_key, key::unescape_key(tail))?;
            let upload = parse(&row_key, UploadId::from_wire(suffix).ok())?;
            self.placed(&row_key, (bucket, slot), &key);
            self.counters.entry((bucket, slot)).or_default().uploads += 1;
            self.uploads.entry(((bucket, slot), upload)).or_default().in_progress = true;
        }
        Ok(())
    }

    fn parts(&mut self, kv: &impl KvRead) -> Result<(), Halt> {
        let mut before = None;
        for (row_key, part) in rows::<Part>(kv, key::PRT)? {
            let (bucket, slot, _) = parse(&row_key, key::parse_place(key::PRT, &row_key))?;
            let (upload, number, _) = parse(&row_key, key::parse_part(&row_key))?;
            let place = (bucket, slot);
            if before.replace((place, upload, number)) == Some((place, upload, number)) {
                self.wrong(&row_key, "a second attempt of this part");
            }
            let parts = self.uploads.entry((place, upload)).or_default();
            parts.found.0 += 1;
            parts.found.1 += part.size;
            if parts.in_progress {
                self.counters.entry(place).or_default().part_bytes += part.size;
            }
            let write = part.body.as_ref().map_or(&[][..], |body| &body.write);
            self.own(&row_key, place, write, Owned::Part(upload, number))?;
        }
        for (((bucket, _), upload), parts) in std::mem::take(&mut self.uploads) {
            let owners = parts.versions + u32::from(parts.in_progress);
            if owners != 1 || (parts.versions == 1 && parts.claimed != parts.found) {
                self.broken.push(format!(
                    "upload {upload} of {bucket}: {owners} owners, {:?} parts and bytes claimed, {:?} found",
                    parts.claimed, parts.found
                ));
            }
        }
        Ok(())
    }

    fn writes(&mut self, kv: &impl KvRead) -> Result<(), Halt> {
        for (row_key, garbage) in rows::<Garbage>(kv, key::GC)? {
            let (bucket, slot, rest) = parse(&row_key, key::parse_place(key::GC, &row_key))?;
            let write = parse(&row_key, rest.get(8..))?;
            if garbage.body.is_none_or(|body| body.write != write || body.extents.is_empty()) {
                self.wrong(&row_key, "not the body it names");
            }
            self.own(&row_key, (bucket, slot), write, Owned::Garbage)?;
        }
        let mut stored = BTreeSet::new();
        for (row_key, row) in rows::<WriteOwner>(kv, key::WRT)? {
            let (bucket, slot, write) = parse(&row_key, key::parse_place(key::WRT, &row_key))?;
            let id = ((bucket, slot), parse(&row_key, WriteId::from_wire(write).ok())?);
            let says = match &row.owner {
                Some(Owner::Key(key)) => {
                    let version = <[u8; 10]>::try_from(row.version.as_ref()).ok().map(VersionId::from_bytes);
                    Some(Owned::Version(key.clone(), parse(&row_key, version)?))
                }
                Some(Owner::Part(part)) => {
                    let upload = parse(&row_key, UploadId::from_wire(&part.upload).ok())?;
                    Some(Owned::Part(upload, part.part as u16))
                }
                Some(Owner::Garbage(_)) => Some(Owned::Garbage),
                Some(Owner::Fenced(_) | Owner::Renewed(_)) => None,
                None => return Err(row::corrupt(&row_key, "no owner")),
            };
            if says.is_some() {
                stored.insert(id);
            }
            let is = self.owners.remove(&id);
            if is != says {
                self.wrong(&row_key, format!("says {says:?}, is {is:?}"));
            }
        }
        for ((_, write), owner) in std::mem::take(&mut self.owners) {
            self.broken.push(format!("write {write} of {owner:?} has no `wrt` row"));
        }
        let mut missed = 0;
        for (row_key, _) in rows::<Missed>(kv, key::MIS)? {
            let (bucket, slot, write) = parse(&row_key, key::parse_place(key::MIS, &row_key))?;
            missed += 1;
            if !stored.contains(&((bucket, slot), parse(&row_key, WriteId::from_wire(write).ok())?)) {
                self.wrong(&row_key, "shards are missed of a write that nothing stores");
            }
        }
        let state = session::state(kv)?;
        if state.missed != missed {
            self.broken.push(format!("{missed} `mis` rows, {} counted", state.missed));
        }
        Ok(())
    }

    fn count(&mut self, kv: &impl KvRead) -> Result<(), Halt> {
        for (row_key, row) in rows::<Counters>(kv, key::CNT)? {
            let (bucket, slot, _) = parse(&row_key, key::parse_place(key::CNT, &row_key))?;
            let counted = self.counters.remove(&(bucket, slot)).unwrap_or_default();
            if counted != row {
                self.wrong(&row_key, format!("says {row:?}, a recount {counted:?}"));
            }
        }
        for ((bucket, slot), counted) in std::mem::take(&mut self.counters) {
            self.broken.push(format!("bucket {bucket} slot {slot}: no counters, a recount {counted:?}"));
        }
        Ok(())
    }
}

fn realm(kv: &impl KvRead) -> Result<Vec<String>, Halt> {
    let mut broken = Vec::new();
    let mut ids = BTreeMap::new();
    let mut owned = BTreeSet::new();
    for (row_key, bucket) in rows::<Bucket>(kv, key::BKN)? {
        if key::of_text(key::BKN, &bucket.name) != row_key {
            broken.push(format!("{}: names {:?}", row_key.escape_ascii(), bucket.name));
        }
        let owner = parse(&row_key, holdfast_proto::id::AccountId::from_wire(&bucket.owner).ok())?;
        owned.insert(key::bucket_of_owner(owner, &bucket.name));
        if ids.insert(key::of_id(key::BKI, &bucket.id), bucket.name.clone()).is_some() {
            broken.push(format!("{}: its id is another bucket's", row_key.escape_ascii()));
        }
    }
    let named: BTreeMap<Vec<u8>, String> =
        rows::<BucketName>(kv, key::BKI)?.into_iter().map(|(key, row)| (key.to_vec(), row.name)).collect();
    let index: BTreeSet<Vec<u8>> =
        rows::<()>(kv, key::BKO)?.into_iter().map(|(key, ())| key.to_vec()).collect();
    if named != ids {
        broken.push("`bki` and `bkn` disagree".to_owned());
    }
    if index != owned {
        broken.push("`bko` and `bkn` disagree".to_owned());
    }
    let known = [key::RLM, key::ACC, key::KEY, key::BKN, key::BKI, key::BKO, key::REQ, session::STATE_KEY];
    strangers(kv, &known, &mut broken)?;
    requests(kv, &mut broken)?;
    Ok(broken)
}

fn zone(kv: &impl KvRead) -> Result<Vec<String>, Halt> {
    let mut broken = Vec::new();
    let state = session::state(kv)?;
    let joined = rows::<Node>(kv, key::NOD)?;
    let nodes: BTreeSet<u64> = joined.iter().map(|(_, node)| node.id).collect();
    let mut nonces = BTreeSet::new();
    if !joined.iter().all(|(_, node)| node.nonce.is_empty() || nonces.insert(&node.nonce)) {
        broken.push("two nodes of one join".to_owned());
    }
    let targets = rows::<Target>(kv, key::TGT)?;
    let target_ids: BTreeSet<u32> = targets.iter().map(|(_, target)| target.id).collect();
    let uuids: BTreeSet<&Bytes> = targets.iter().map(|(_, target)| &target.uuid).collect();
    let classes: BTreeSet<String> =
        rows::<StorageClass>(kv, key::CLS)?.into_iter().map(|(_, class)| class.name).collect();
    let number = |id: &u64| holdfast_proto::id::NodeId::new(*id).number();
    if nodes.iter().map(number).any(|number| number >= state.next_node) {
        broken.push(format!("a node id is not below {}", state.next_node));
    }
    if target_ids.iter().any(|&id| id >= state.next_target) || uuids.len() != targets.len() {
        broken.push(format!("target ids are not unique and below {}", state.next_target));
    }
    for (_, target) in &targets {
        if !nodes.contains(&target.node) {
            broken.push(format!("target {} is of an unknown node", target.id));
        }
    }
    for (_, pg) in rows::<PlacementGroup>(kv, key::PGS)? {
        if !pg.targets.iter().all(|target| target_ids.contains(target)) || !classes.contains(&pg.class) {
            broken.push(format!("placement group {} names what does not exist", pg.id));
        }
    }
    rows::<Group>(kv, key::GRP)?;
    // The newest events, without a gap.
    let events = rows::<Event>(kv, key::EVT)?;
    let first = state.next_event.saturating_sub(EVENTS_MAX);
    let wanted = (first..state.next_event).map(|seq| key::of_id(key::EVT, &seq.to_be_bytes()));
    if !events.iter().map(|(key, _)| &key[..]).eq(wanted.collect::<Vec<_>>().iter().map(Vec::as_slice)) {
        broken.push(format!("{} events, of which the next is {}", events.len(), state.next_event));
    }
    let known = [
        key::ZON,
        key::SLT,
        key::NOD,
        key::TGT,
        key::PGS,
        key::CLS,
        key::GRP,
        key::EVT,
        key::REQ,
        session::STATE_KEY,
    ];
    strangers(kv, &known, &mut broken)?;
    requests(kv, &mut broken)?;
    Ok(broken)
}

fn rows<M: Message + Default>(kv: &impl KvRead, family: Family) -> Result<Vec<(Bytes, M)>, Halt> {
    row::read_prefix(kv, family)
}

fn parse<T>(key: &[u8], parsed: Option<T>) -> Result<T, Halt> {
    parsed.ok_or_else(|| row::corrupt(key, "malformed"))
}

/// What is older than the last pruning is gone.
fn requests(kv: &impl KvRead, broken: &mut Vec<String>) -> Result<(), Halt> {
    let floor = key::request_floor(Hlc::from_u64(session::state(kv)?.pruned));
    for (row_key, _) in rows::<Remembered>(kv, key::REQ)? {
        if row_key < floor {
            broken.push(format!("{}: should have been pruned", row_key.escape_ascii()));
        }
    }
    Ok(())
}

fn strangers(kv: &impl KvRead, known: &[&[u8]], broken: &mut Vec<String>) -> Result<(), Halt> {
    for row in kv.scan(ROWS.0, ROWS.1) {
        let (key, _) = row?;
        if !known.iter().any(|family| key.starts_with(family)) {
            broken.push(format!("{}: no row of this kind of group", key.escape_ascii()));
        }
    }
    Ok(())
}
