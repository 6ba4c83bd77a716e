//! The cluster map, parsed once per generation and looked things up in many times.

use std::collections::HashMap;

use holdfast_proto::id::{
    BucketId, Epoch, GroupId, NodeId, PgId, RealmId, Slot, TargetId, ZoneId, slot_entry, slot_of,
};
use holdfast_proto::limits::{SLOT_TABLE_LEN, STRIPE_WIDTH_MAX};
use holdfast_proto::meta::{self, ClusterMap, NodeState, StorageClass, TargetState};
use holdfast_proto::v1::Scheme;

use crate::error::Error;

/// The storage class of a write that names none.
pub const CLASS_DEFAULT: &str = "STANDARD";

/// A placement group: targets in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pg {
    /// Its id.
    pub id: PgId,
    /// Fences requests made under an older membership.
    pub epoch: Epoch,
    /// Its members in order; shard `i` of an erasure-coded stripe is on the `i`-th.
    pub targets: Vec<TargetId>,
    /// By place: targets that may still hold what is being brought to the member there. Empty while nothing moves.
    pub from: HashMap<usize, Vec<TargetId>>,
}

/// One version of the map, with indexes.
#[derive(Debug)]
pub struct Map {
    raw: ClusterMap,
    realm: RealmId,
    nodes: HashMap<NodeId, usize>,
    targets: HashMap<TargetId, usize>,
    pgs: HashMap<PgId, Pg>,
    classes: HashMap<String, ClassPgs>,
    groups: HashMap<GroupId, usize>,
    meta_nodes: Vec<NodeId>,
}

#[derive(Debug)]
struct ClassPgs {
    class: usize,
    pgs: Vec<PgId>,
}

impl Map {
    /// Checks and indexes a map.
    ///
    /// # Errors
    /// [`Error::Internal`] when it contradicts itself.
    pub fn parse(raw: ClusterMap) -> Result<Self, Error> {
        let fault = |what: String| Error::internal(format!("cluster map {}: {what}", raw.generation));
        let realm = RealmId::from_wire(&raw.realm).map_err(|bad| fault(bad.to_string()))?;
        if !raw.slot_table.is_empty() && raw.slot_table.len() != SLOT_TABLE_LEN {
            return Err(fault(format!("a slot table of {} entries", raw.slot_table.len())));
        }
        let nodes: HashMap<_, _> =
            raw.nodes.iter().enumerate().map(|(at, n)| (NodeId::new(n.id), at)).collect();
        let targets: HashMap<_, _> =
            raw.targets.iter().enumerate().map(|(at, t)| (TargetId::new(t.id), at)).collect();
        let mut classes: HashMap<String, ClassPgs> = HashMap::new();
        for (class, row) in raw.classes.iter().enumerate() {
            classes.insert(row.name.clone(), ClassPgs { class, pgs: Vec::new() });
        }
        let mut pgs = HashMap::with_capacity(raw.pgs.len());
        for pg in &raw.pgs {
            let id = PgId::new(pg.id);
            if pg.targets.is_empty() || pg.targets.len() > STRIPE_WIDTH_MAX {
                return Err(fault(format!("placement group {id} has {} targets", pg.targets.len())));
            }
            if let Some(class) = classes.get_mut(&pg.class) {
                class.pgs.push(id);
            }
            let targets = pg.targets.iter().copied().map(TargetId::new).collect();
            let before =
                |moving: &meta::MovingPlace| moving.from.iter().copied().map(TargetId::new).collect();
            let from = pg.moving.iter().map(|moving| (moving.place as usize, before(moving))).collect();
            pgs.insert(id, Pg { id, epoch: Epoch::new(pg.epoch), targets, from });
        }
        let mut groups = HashMap::new();
        for (at, group) in raw.groups.iter().enumerate() {
            groups.insert(GroupId::from_u64(group.id).map_err(|bad| fault(bad.to_string()))?, at);
        }
        let meta_nodes = raw
            .nodes
            .iter()
            .filter(|node| {
                node.state() != NodeState::NodeRemoved && node.roles.iter().any(|role| role == "meta")
            })
            .map(|node| NodeId::new(node.id))
            .collect();
        Ok(Self { realm, nodes, targets, pgs, classes, groups, meta_nodes, raw })
    }

    /// The message it was made of.
    pub fn raw(&self) -> &ClusterMap {
        &self.raw
    }
    /// Rises with every change.
    pub fn generation(&self) -> u64 {
        self.raw.generation
    }
    /// The realm.
    pub fn realm(&self) -> RealmId {
        self.realm
    }
    /// The zone.
    pub fn zone(&self) -> ZoneId {
        ZoneId::new(self.raw.zone as u16)
    }
    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&meta::Node> {
        self.nodes.get(&id).map(|at| &self.raw.nodes[*at])
    }
    /// Nodes with the meta role that were not removed.
    pub fn meta_nodes(&self) -> &[NodeId] {
        &self.meta_nodes
    }
    /// A target.
    pub fn target(&self, id: TargetId) -> Option<&meta::Target> {
        self.targets.get(&id).map(|at| &self.raw.targets[*at])
    }
    /// The node that has a target.
    pub fn node_of(&self, id: TargetId) -> Option<NodeId> {
        self.target(id).map(|target| NodeId::new(target.node))
    }
    /// Whether the zone believes that a target takes writes.
    pub fn is_writable(&self, id: TargetId) -> bool {
        self.target(id).is_some_and(|target| target.state() == TargetState::TargetUp)
    }
    /// Whether the zone believes that a target answers reads.
    pub fn is_readable(&self, id: TargetId) -> bool {
        self.target(id).is_some_and(|target| {
            matches!(target.state(), TargetState::TargetUp | TargetState::TargetDraining)
        })
    }
    /// Targets that the zone believes answer reads.
    pub fn readable(&self) -> impl Iterator<Item = TargetId> + '_ {
        self.raw.targets.iter().map(|target| TargetId::new(target.id)).filter(|id| self.is_readable(*id))
    }
    /// A placement group.
    pub fn pg(&self, id: PgId) -> Option<&Pg> {
        self.pgs.get(&id)
    }
    /// A storage class by name; empty is the default one.
    pub fn class(&self, name: &str) -> Option<&StorageClass> {
        let name = if name.is_empty() { CLASS_DEFAULT } else { name };
        self.classes.get(name).map(|class| &self.raw.classes[class.class])
    }
    /// The placement groups of a storage class.
    pub fn pgs_of_class(&self, name: &str) -> &[PgId] {
        let name = if name.is_empty() { CLASS_DEFAULT } else { name };
        self.classes.get(name).map_or(&[], |class| &class.pgs)
    }
    /// The voters of a group; all meta nodes when the map does not list the group.
    pub fn voters(&self, group: GroupId) -> Vec<NodeId> {
        match self.groups.get(&group) {
            Some(at) if !self.raw.groups[*at].voters.is_empty() => {
                self.raw.groups[*at].voters.iter().copied().map(NodeId::new).collect()
            }
            _ => self.meta_nodes.clone(),
        }
    }
    /// The partition that owns a slot of a bucket.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the zone has no slot table.
    pub fn partition_of_slot(&self, bucket: BucketId, slot: Slot) -> Result<GroupId, Error> {
        let number = self
            .raw
            .slot_table
            .get(slot_entry(bucket, slot))
            .ok_or_else(|| Error::unavailable("the zone has no slot table yet"))?;
        Ok(GroupId::partition(self.zone(), *number))
    }
    /// The partition that owns a key of a bucket.
    ///
    /// # Errors
    /// As [`Self::partition_of_slot`]; [`Error::Internal`] when the bucket has no slots.
    pub fn partition_of_key(&self, bucket: &meta::Bucket, key: &[u8]) -> Result<GroupId, Error> {
        let slots = slots_of(bucket)?;
        self.partition_of_slot(bucket_id(bucket)?, slot_of(key, slots))
    }
    /// The partitions that own slots of a bucket, each with its slots, in order of partition number.
    ///
    /// # Errors
    /// As [`Self::partition_of_key`].
    pub fn partitions_of_bucket(&self, bucket: &meta::Bucket) -> Result<Vec<(GroupId, Vec<u32>)>, Error> {
        let id = bucket_id(bucket)?;
        let mut owners: std::collections::BTreeMap<GroupId, Vec<u32>> = std::collections::BTreeMap::new();
        for slot in 0..slots_of(bucket)? {
            owners.entry(self.partition_of_slot(id, Slot::new(slot))?).or_default().push(u32::from(slot));
        }
        Ok(owners.into_iter().collect())
    }
    /// The scheme of a write of `length` bytes in `class`: copies while a shard would be too small to code.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the class has no scheme.
    pub fn scheme_for(&self, class: &StorageClass, length: u64) -> Result<Scheme, Error> {
        let missing = || Error::unavailable(format!("storage class {} has no scheme yet", class.name));
        let scheme = class.scheme.ok_or_else(missing)?;
        let data = u64::from(scheme.data.max(1));
        if length.div_ceil(data) < holdfast_proto::limits::EC_SHARD_BYTES_MIN as u64 {
            return Ok(class.small.unwrap_or(scheme));
        }
        Ok(scheme)
    }
}

/// The id of a bucket row.
///
/// # Errors
/// [`Error::Internal`] when it is not an id.
pub fn bucket_id(bucket: &meta::Bucket) -> Result<BucketId, Error> {
    BucketId::from_wire(&bucket.id).map_err(|bad| Error::internal(bad.to_string()))
}

fn slots_of(bucket: &meta::Bucket) -> Result<u16, Error> {
    match u16::try_from(bucket.slots) {
        Ok(slots) if slots > 0 => Ok(slots),
        _ => Err(Error::internal(format!("bucket {} has {} slots", bucket.name, bucket.slots))),
    }
}
