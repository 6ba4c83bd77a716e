//! The zone: nodes, targets, placement groups, storage classes, Raft groups, and the slot table. Together they are the
//! cluster map, whose generation rises with every change.
//!
//! Ids are given here and never reused. A node whose incarnation went back is refused: its disk may have gone back too.

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_proto::id::{GroupId, NodeId, RealmId, ZoneId};
use holdfast_proto::limits::{PARTITIONS_MAX, SLOT_TABLE_LEN, STRIPE_WIDTH_MAX};
use holdfast_proto::meta::EventSeverity::{EventError, EventInfo, EventWarning};
use holdfast_proto::meta::{
    ClusterMap, Group, InitZone, Node, NodeState, Outcome, PlacementGroup, PutGroups, PutNode, PutPlacement,
    PutTarget, Refusal, RemoveTarget, SetNodeState, SetTargetStates, SlotTable, StorageClass, Target,
    TargetState, Zone, outcome,
};
use prost::Message;

use crate::Halt;
use crate::bucket::generation;
use crate::key::{self, Family};
use crate::kv::{Kv, KvRead};
use crate::recover;
use crate::row::{self, Step, refuse};
use crate::session::{self, Session};
use crate::wire;

/// Media of a target that names none.
const MEDIA_DEFAULT: &str = "default";

pub(crate) fn rows<M: Message + Default>(kv: &impl KvRead, family: Family) -> Result<Vec<M>, Halt> {
    Ok(row::read_prefix(kv, family)?.into_iter().map(|(_, row)| row).collect())
}

pub(crate) fn node_key(id: u64) -> Vec<u8> {
    key::of_id(key::NOD, &id.to_be_bytes())
}

pub(crate) fn target_key(id: u32) -> Vec<u8> {
    key::of_id(key::TGT, &id.to_be_bytes())
}

impl<K: Kv> Session<'_, K> {
    pub(crate) fn init_zone(&mut self, op: &InitZone) -> Step<Outcome> {
        let realm: RealmId = wire::id(&op.realm)?;
        let Some(first) = &op.first_node else { return wire::malformed("a zone starts with a node") };
        if op.zone == 0 || op.zone != u32::from(self.zone.get()) {
            return wire::malformed(format!("zone {} in the group of zone {}", op.zone, self.zone));
        }
        if op.partitions == 0 || op.partitions > PARTITIONS_MAX {
            return wire::malformed(format!("{} partitions", op.partitions));
        }
        let table = match op.slot_table.len() {
            0 => (0..SLOT_TABLE_LEN as u32).map(|entry| entry % op.partitions).collect(),
            _ => op.slot_table.clone(),
        };
        if table.len() != SLOT_TABLE_LEN || table.iter().any(|&partition| partition >= op.partitions) {
            return wire::malformed(format!("a slot table of {} entries", table.len()));
        }
        check_groups(&op.groups)?;
        let id = node_id(self.zone, op.first_node_number.max(1))?;
        if let Some(known) = row::read::<Zone>(self.kv, key::ZON)? {
            if known.realm == op.realm && known.id == op.zone {
                return Ok(node_outcome(id));
            }
            return refuse(
                Refusal::AlreadyExists,
                format!("this is zone {} of another realm than {realm}", known.id),
            );
        }
        let zone = Zone {
            realm: op.realm.clone(),
            id: op.zone,
            name: op.name.clone(),
            partitions: op.partitions,
            created_ms: self.hlc.ms(),
            lost: recover::numbers_below(op),
            orphans_held: if op.first_node_number == 0 { 0 } else { self.hlc.get() },
            ..Zone::default()
        };
        row::write(self.kv, key::ZON.to_vec(), &zone);
        row::write(self.kv, key::SLT.to_vec(), &SlotTable { partitions: table });
        for class in &op.classes {
            row::write(self.kv, key::of_text(key::CLS, &class.name), class);
        }
        for group in &op.groups {
            row::write(self.kv, key::of_id(key::GRP, &group.id.to_be_bytes()), group);
        }
        let first = Node { id, state: NodeState::NodeActive.into(), ..first.clone() };
        row::write(self.kv, node_key(id), &first);
        self.state.next_node = op.first_node_number.max(1) + 1;
        self.state.next_target = op.first_target_number.max(1);
        self.state.map_generation = match op.first_node_number {
            0 => 1,
            // Clients of the lost zone keep the highest they have seen.
            _ => recover::GENERATIONS_SKIPPED,
        };
        Ok(node_outcome(id))
    }

    pub(crate) fn zone_exists(&self) -> Step<()> {
        if self.state.map_generation == 0 {
            return refuse(Refusal::NotFound, "the zone has not been initialised");
        }
        Ok(())
    }

    pub(crate) fn changed(&mut self) -> Outcome {
        self.state.map_generation += 1;
        generation(self.state.map_generation)
    }

    fn node(&self, id: u64) -> Step<Node> {
        match row::read(self.kv, &node_key(id))? {
            Some(node) => Ok(node),
            None => refuse(Refusal::NotFound, format!("no node {}", NodeId::new(id))),
        }
    }

    /// The node whose first join carried this nonce. Its answer may have been lost long ago, so the row remembers it and
    /// not the table of requests.
    fn joined_by(&self, nonce: &[u8]) -> Step<Option<Node>> {
        if nonce.is_empty() {
            return Ok(None);
        }
        Ok(rows::<Node>(self.kv, key::NOD)?.into_iter().find(|node| node.nonce == nonce))
    }

    pub(crate) fn put_node(&mut self, op: &PutNode) -> Step<Outcome> {
        self.zone_exists()?;
        let Some(given) = &op.node else { return wire::malformed("no node") };
        if given.addr.is_empty() {
            return wire::malformed("a node has an address");
        }
        let mut node = given.clone();
        let known = match node.id {
            0 => self.joined_by(&node.nonce)?,
            id if self.is_lost_node(&node)? => {
                let name = NodeId::new(id);
                self.tell_back(format!("node {name}"), format!("node {name} is known again"));
                row::write(self.kv, node_key(id), &Node { incarnation: 0, ..node.clone() });
                Some(self.node(id)?)
            }
            id => Some(self.node(id)?),
        };
        let mut started = "NODE_JOINED";
        if let Some(known) = known {
            // The first start is the join.
            started = if known.incarnation == 0 { "" } else { "NODE_STARTED" };
            if node.incarnation < known.incarnation {
                let detail = format!("incarnation {} came, {} is known", node.incarnation, known.incarnation);
                return refuse(Refusal::StaleIncarnation, detail);
            }
            if known.state() == NodeState::NodeRemoved {
                return refuse(Refusal::NotFound, format!("node {} was removed", NodeId::new(known.id)));
            }
            if node.state() == NodeState::Unspecified {
                node.state = known.state;
            }
            node.id = known.id;
            node.nonce = known.nonce.clone();
            if node == known {
                return Ok(node_outcome(node.id));
            }
        } else {
            node.id = node_id(self.zone, self.state.next_node)?;
            if node.state() == NodeState::Unspecified {
                node.set_state(NodeState::NodeActive);
            }
            self.state.next_node += 1;
        }
        row::write(self.kv, node_key(node.id), &node);
        self.changed();
        if !started.is_empty() {
            self.tell_node(started, &node);
        }
        Ok(node_outcome(node.id))
    }

    pub(crate) fn put_target(&mut self, op: &PutTarget) -> Step<Outcome> {
        self.zone_exists()?;
        let Some(given) = &op.target else { return wire::malformed("no target") };
        if given.uuid.len() != 16 {
            return wire::malformed("a target's uuid has 16 bytes");
        }
        if self.kv.get(&node_key(given.node))?.is_none() {
            return refuse(Refusal::NotFound, format!("no node {}", NodeId::new(given.node)));
        }
        let mut target = given.clone();
        if target.media.is_empty() {
            MEDIA_DEFAULT.clone_into(&mut target.media);
        }
        let known = rows::<Target>(self.kv, key::TGT)?.into_iter().find(|known| known.uuid == target.uuid);
        match known {
            Some(known) => {
                if target.id != 0 && target.id != known.id {
                    return refuse(Refusal::AlreadyExists, format!("this uuid is target {}", known.id));
                }
                target.id = known.id;
                if target.state() == TargetState::Unspecified {
                    target.state = known.state;
                }
                if target == known {
                    return Ok(target_outcome(target.id));
                }
            }
            None if target.id != 0 && self.is_lost_target(target.id)? => {
                if target.state() == TargetState::Unspecified {
                    target.set_state(TargetState::TargetUp);
                }
                let name = target_name(target.id);
                let text = format!("{name} of node {} is known again", NodeId::new(target.node));
                self.tell_back(name, text);
            }
            None if target.id != 0 => {
                return refuse(Refusal::NotFound, format!("target {} has another uuid", target.id));
            }
            None => {
                target.id = self.state.next_target;
                if target.state() == TargetState::Unspecified {
                    target.set_state(TargetState::TargetUp);
                }
                self.state.next_target += 1;
                let text = format!(
                    "target {} of {} GiB on node {} is new",
                    target.id,
                    target.capacity_bytes >> 30,
                    NodeId::new(target.node)
                );
                self.tell(EventInfo, "TARGET_ADDED", target_name(target.id), text, "");
            }
        }
        row::write(self.kv, target_key(target.id), &target);
        self.changed();
        Ok(target_outcome(target.id))
    }

    pub(crate) fn set_target_states(&mut self, op: &SetTargetStates) -> Step<Outcome> {
        let mut changed = Vec::new();
        for change in &op.changes {
            let key = target_key(change.target);
            let Some(target) = row::read::<Target>(self.kv, &key)? else {
                return refuse(Refusal::NotFound, format!("no target {}", change.target));
            };
            if change.state() == TargetState::Unspecified {
                return wire::malformed("no state");
            }
            if target.state != change.state {
                changed.push((key, Target { state: change.state, ..target }, change.why.as_str()));
            }
        }
        if changed.is_empty() {
            return Ok(generation(self.state.map_generation));
        }
        for (key, target, why) in changed {
            row::write(self.kv, key, &target);
            self.tell_target(&target, why);
        }
        Ok(self.changed())
    }

    pub(crate) fn set_node_state(&mut self, op: &SetNodeState) -> Step<Outcome> {
        let node = self.node(op.node)?;
        if op.state() == NodeState::Unspecified {
            return wire::malformed("no state");
        }
        if node.state() == NodeState::NodeRemoved && op.state() != NodeState::NodeRemoved {
            return refuse(Refusal::NotFound, "a removed node does not come back: its id is not used again");
        }
        if node.state == op.state {
            return Ok(generation(self.state.map_generation));
        }
        if op.state() == NodeState::NodeRemoved {
            let id = NodeId::new(op.node);
            if let Some(target) = rows::<Target>(self.kv, key::TGT)?.iter().find(|row| row.node == op.node) {
                return refuse(Refusal::InUse, format!("node {id} still has target {}", target.id));
            }
            let groups = rows::<Group>(self.kv, key::GRP)?;
            if let Some(group) = groups.iter().find(|group| group.voters.contains(&op.node)) {
                return refuse(
                    Refusal::InUse,
                    format!("node {id} still votes in group {}", group_name(group)),
                );
            }
        }
        let node = Node { state: op.state, ..node };
        row::write(self.kv, node_key(op.node), &node);
        let code = match op.state() {
            NodeState::NodeMaintenance => "NODE_MAINTENANCE",
            NodeState::NodeDraining => "NODE_DRAINING",
            NodeState::NodeRemoved => "NODE_REMOVED",
            NodeState::NodeActive | NodeState::Unspecified => "NODE_ACTIVE",
        };
        self.tell_node(code, &node);
        Ok(self.changed())
    }

    /// A target that is out is let go though places remember to have been there: whoever says so knows that it is gone.
    pub(crate) fn remove_target(&mut self, op: &RemoveTarget) -> Step<Outcome> {
        let key = target_key(op.target);
        let Some(target) = row::read::<Target>(self.kv, &key)? else {
            return refuse(Refusal::NotFound, format!("no target {}", op.target));
        };
        let pgs = rows::<PlacementGroup>(self.kv, key::PGS)?;
        let has = pgs.iter().filter(|pg| pg.targets.contains(&op.target)).count();
        if has > 0 {
            return refuse(Refusal::InUse, format!("target {} is in {has} placement group(s)", op.target));
        }
        let was = |pg: &&PlacementGroup| pg.moving.iter().any(|moving| moving.from.contains(&op.target));
        let moving = pgs.iter().filter(was).count();
        if moving > 0 && target.state() != TargetState::TargetOut {
            let detail = format!("shards of {moving} placement group(s) are still on target {}", op.target);
            return refuse(Refusal::InUse, detail);
        }
        for pg in pgs.iter().filter(was) {
            let mut pg = pg.clone();
            pg.moving.iter_mut().for_each(|moving| moving.from.retain(|from| *from != op.target));
            pg.epoch += 1;
            row::write(self.kv, key::of_id(key::PGS, &pg.id.to_be_bytes()), &pg);
        }
        self.kv.delete(&key);
        self.target_gone(op.target)?;
        let text = format!("target {} has left the zone", op.target);
        self.tell(EventInfo, "TARGET_REMOVED", target_name(op.target), text, "an operator said so");
        Ok(self.changed())
    }

    pub(crate) fn put_placement(&mut self, op: &PutPlacement) -> Step<Outcome> {
        self.zone_exists()?;
        if op.expected_generation != self.state.map_generation {
            return refuse(Refusal::StaleGeneration, format!("generation {}", self.state.map_generation));
        }
        let known_classes = rows::<StorageClass>(self.kv, key::CLS)?;
        let classes = if op.classes.is_empty() { &known_classes } else { &op.classes };
        let targets: BTreeSet<u32> =
            rows::<Target>(self.kv, key::TGT)?.iter().map(|target| target.id).collect();
        for pg in &op.pgs {
            let distinct: BTreeSet<u32> = pg.targets.iter().copied().collect();
            if distinct.len() != pg.targets.len()
                || pg.targets.is_empty()
                || pg.targets.len() > STRIPE_WIDTH_MAX
            {
                return wire::malformed(format!("placement group {} of {} targets", pg.id, pg.targets.len()));
            }
            let moving: BTreeSet<u32> = pg.moving.iter().map(|moving| moving.place).collect();
            let is_place = |place: &u32| (*place as usize) < pg.targets.len();
            if moving.len() != pg.moving.len() || !moving.iter().all(is_place) {
                return wire::malformed(format!("placement group {} moves a place it does not have", pg.id));
            }
            let mut named = distinct;
            named.extend(pg.moving.iter().flat_map(|moving| &moving.from));
            if !named.is_subset(&targets) {
                return refuse(
                    Refusal::NotFound,
                    format!("placement group {} names an unknown target", pg.id),
                );
            }
            if !classes.iter().any(|class| class.name == pg.class) {
                return refuse(Refusal::NotFound, format!("no storage class {:?}", pg.class));
            }
        }
        if !op.classes.is_empty() {
            self.replace(key::CLS, &op.classes, |class| key::of_text(key::CLS, &class.name))?;
        }
        let before = rows::<PlacementGroup>(self.kv, key::PGS)?;
        self.replace(key::PGS, &op.pgs, |pg| key::of_id(key::PGS, &pg.id.to_be_bytes()))?;
        self.tell_placement(&before, &op.pgs);
        Ok(self.changed())
    }

    /// Makes the rows of `family` exactly these, touching only what differs.
    fn replace<M: Message>(
        &mut self,
        family: Family,
        messages: &[M],
        key_of: impl Fn(&M) -> Vec<u8>,
    ) -> Result<(), Halt> {
        let mut new: std::collections::BTreeMap<Vec<u8>, Vec<u8>> =
            messages.iter().map(|message| (key_of(message), row::encode(message))).collect();
        let old: Vec<(Bytes, Bytes)> =
            self.kv.scan(family, &key::prefix_end(family)).collect::<Result<_, _>>()?;
        for (key, value) in old {
            match new.get(key.as_ref()) {
                Some(same) if *same == value => drop(new.remove(key.as_ref())),
                Some(_) => {}
                None => self.kv.delete(&key),
            }
        }
        for (key, value) in new {
            self.kv.put(key, value);
        }
        Ok(())
    }

    pub(crate) fn put_groups(&mut self, op: &PutGroups) -> Step<Outcome> {
        self.zone_exists()?;
        check_groups(&op.groups)?;
        let mut changed = Vec::new();
        for group in &op.groups {
            let key = key::of_id(key::GRP, &group.id.to_be_bytes());
            match row::read::<Group>(self.kv, &key)? {
                Some(known) if group.generation < known.generation => {
                    let detail = format!("group {} has generation {}", group.id, known.generation);
                    return refuse(Refusal::StaleGeneration, detail);
                }
                Some(known) if known == *group => {}
                _ => changed.push((key, group)),
            }
        }
        if changed.is_empty() {
            return Ok(generation(self.state.map_generation));
        }
        for (key, group) in changed {
            row::write(self.kv, key, group);
            let voters: Vec<String> = group.voters.iter().map(|id| NodeId::new(*id).to_string()).collect();
            let (name, text) = (group_name(group), format!("its voters are {}", voters.join(", ")));
            self.tell(EventInfo, "VOTERS_CHANGED", format!("group {name}"), text, "");
        }
        Ok(self.changed())
    }

    fn tell_node(&mut self, code: &str, node: &Node) {
        let name = NodeId::new(node.id);
        let text = match code {
            "NODE_JOINED" => format!("node {name} ({}) on host {} is new", node.roles.join(", "), node.host),
            "NODE_STARTED" => format!("node {name} has started for the {}. time", node.incarnation),
            "NODE_MAINTENANCE" => format!("node {name} is under maintenance"),
            "NODE_DRAINING" => format!("node {name} is being drained"),
            "NODE_REMOVED" => format!("node {name} has left the zone"),
            _ => format!("node {name} takes part again"),
        };
        let by_itself = matches!(code, "NODE_JOINED" | "NODE_STARTED");
        let why = if by_itself { "" } else { "an operator said so" };
        self.tell(EventInfo, code, format!("node {name}"), text, why);
    }

    fn tell_target(&mut self, target: &Target, why: &str) {
        let (id, node) = (target.id, NodeId::new(target.node));
        let (severity, code, text) = match target.state() {
            TargetState::TargetUp | TargetState::Unspecified => {
                (EventInfo, "TARGET_UP", format!("target {id} on node {node} is up"))
            }
            TargetState::TargetDown => (
                EventWarning,
                "TARGET_DOWN",
                format!("target {id} on node {node} is down: writes go elsewhere"),
            ),
            TargetState::TargetOut => (
                EventError,
                "TARGET_OUT",
                format!("target {id} on node {node} is out: what it held is rebuilt on others"),
            ),
            TargetState::TargetDraining => (
                EventInfo,
                "TARGET_DRAINING",
                format!("target {id} on node {node} is being drained: what it holds is brought to others"),
            ),
        };
        self.tell(severity, code, target_name(id), text, why);
    }

    fn tell_placement(&mut self, before: &[PlacementGroup], after: &[PlacementGroup]) {
        let was = |pg: &PlacementGroup| before.iter().find(|known| known.id == pg.id);
        let new = after.iter().filter(|pg| was(pg).is_none()).count();
        let places = |pg: &PlacementGroup| {
            let old = was(pg)?;
            Some(pg.targets.iter().zip(&old.targets).filter(|(new, old)| new != old).count())
        };
        let moved: usize = after.iter().filter_map(places).sum();
        let is_complete =
            |pg: &&PlacementGroup| pg.moving.is_empty() && was(pg).is_some_and(|old| !old.moving.is_empty());
        let complete = after.iter().filter(is_complete).count();
        let zone = || "zone".to_owned();
        if new > 0 {
            self.tell(EventInfo, "PLACEMENT_MADE", zone(), format!("{new} placement group(s) are new"), "");
        }
        if moved > 0 {
            let text = format!("{moved} place(s) of placement groups have another target");
            self.tell(EventInfo, "PLACEMENT_CHANGED", zone(), text, "targets came, went or are drained");
        }
        if complete > 0 {
            let text = format!("{complete} placement group(s) are complete at their targets");
            self.tell(EventInfo, "PLACEMENT_SETTLED", zone(), text, "");
        }
    }
}

fn target_name(id: u32) -> String {
    format!("target {id}")
}

fn group_name(group: &Group) -> String {
    GroupId::from_u64(group.id).map_or_else(|_| group.id.to_string(), |id| id.to_string())
}

fn check_groups(groups: &[Group]) -> Step<()> {
    match groups.iter().find(|group| GroupId::from_u64(group.id).is_err()) {
        Some(group) => wire::malformed(format!("group id {}", group.id)),
        None => Ok(()),
    }
}

fn node_id(zone: ZoneId, number: u64) -> Step<u64> {
    match NodeId::in_zone(zone, number) {
        Some(id) => Ok(id.get()),
        None => refuse(Refusal::TooMany, "node numbers are used up"),
    }
}

fn node_outcome(id: u64) -> Outcome {
    Outcome { ok: Some(outcome::Ok::Node(id)), ..Outcome::default() }
}

fn target_outcome(id: u32) -> Outcome {
    Outcome { ok: Some(outcome::Ok::Target(id)), ..Outcome::default() }
}

/// The map, or nothing when the caller has this generation.
pub(crate) fn map(kv: &impl KvRead, have_generation: u64) -> Step<Option<ClusterMap>> {
    let state = session::state(kv)?;
    let Some(zone) = row::read::<Zone>(kv, key::ZON)? else {
        return refuse(Refusal::NotFound, "the zone has not been initialised");
    };
    if have_generation == state.map_generation {
        return Ok(None);
    }
    let table: SlotTable = row::read_sure(kv, key::SLT, "the zone is initialised")?;
    Ok(Some(ClusterMap {
        realm: zone.realm,
        zone: zone.id,
        generation: state.map_generation,
        nodes: rows::<Node>(kv, key::NOD)?,
        targets: rows::<Target>(kv, key::TGT)?,
        pgs: rows::<PlacementGroup>(kv, key::PGS)?,
        classes: rows::<StorageClass>(kv, key::CLS)?,
        slot_table: table.partitions,
        groups: rows::<Group>(kv, key::GRP)?,
        zone_name: zone.name,
        feature_level: state.feature_level,
        garbage_held: recover::garbage_held(&zone.backups),
        backup_begun: recover::newest_finished(&zone.backups).map_or(0, |mark| mark.begun),
        orphans_held: zone.orphans_held,
        lost: zone.lost,
    }))
}
