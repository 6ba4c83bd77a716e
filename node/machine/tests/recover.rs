//! A zone that goes on from older rows: who is taken in again, what is kept, what a backup holds.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use holdfast_machine::{GENERATIONS_SKIPPED, NODES_SKIPPED, TARGETS_SKIPPED};
use holdfast_proto::hlc::Hlc;
use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{
    BeginBackup, ClusterMap, FinishBackup, GetMap, Group, InitZone, Node, NodeState, PutNode, PutTarget,
    RecoverZone, Refusal, ReleaseOrphans, RemoveTarget, Target, answer, command::Op, outcome, query::Of,
};
use support::{Machine, ZONE, id};

const GROUP: GroupId = GroupId::zone_group(ZONE);

fn number(number: u64) -> u64 {
    NodeId::in_zone(ZONE, number).unwrap().get()
}

fn node(number_: u64, role: &str) -> Node {
    let id = if number_ == 0 { 0 } else { number(number_) };
    Node { id, addr: "h:1".into(), roles: vec![role.into()], incarnation: 3, ..Node::default() }
}

fn put_node(node: Node) -> Op {
    Op::PutNode(PutNode { node: Some(node) })
}

fn put_target(id_: u32, node: u64, uuid: u64) -> Op {
    let target = Target { id: id_, node, uuid: id(0x77, uuid), ..Target::default() };
    Op::PutTarget(PutTarget { target: Some(target) })
}

fn init() -> InitZone {
    InitZone {
        realm: id(0xaa, 1),
        zone: 1,
        partitions: 2,
        groups: vec![Group { id: GROUP.get(), voters: vec![number(1)], generation: 1, ..Group::default() }],
        first_node: Some(node(1, "meta")),
        ..InitZone::default()
    }
}

/// Three meta nodes, of which each votes, and a data node with one target.
fn zone() -> Machine {
    let mut machine = Machine::new(GROUP);
    machine.done(Op::InitZone(init()));
    for role in ["meta", "meta", "data"] {
        machine.done(put_node(node(0, role)));
    }
    machine.done(put_target(0, number(4), 1));
    machine
}

fn map(machine: &Machine) -> ClusterMap {
    match machine.answer(Of::GetMap(GetMap::default())) {
        answer::Ok::Map(map) => map,
        other => panic!("{other:?}"),
    }
}

fn recover(node: Node) -> Op {
    Op::RecoverZone(RecoverZone { node: Some(node), from: "a replica".into() })
}

fn states(map: &ClusterMap) -> Vec<NodeState> {
    map.nodes.iter().map(Node::state).collect()
}

#[test]
fn one_replica_goes_on_alone_and_takes_in_who_was_let_in_by_the_others() {
    let mut machine = zone();
    let before = map(&machine).generation;
    machine.done(recover(node(2, "meta")));
    let after = map(&machine);
    let (gone, here) = (NodeState::NodeRemoved, NodeState::NodeActive);
    assert_eq!(states(&after), [gone, here, gone, here]);
    assert!(after.groups.iter().all(|group| group.voters == [number(2)]));
    assert!(after.generation > before + GENERATIONS_SKIPPED);
    assert_ne!(after.orphans_held, 0);

    // A data node and its disk that the others had let in; a meta node may not come so.
    assert_eq!(machine.refusal(put_node(node(5, "meta"))), Refusal::NotFound);
    assert_eq!(machine.refusal(put_target(2, number(4), 9).clone()), Refusal::None);
    machine.done(put_node(node(5, "data")));
    machine.done(put_target(7, number(5), 2));
    assert_eq!(
        machine.refusal(put_target(7, number(5), 3)),
        Refusal::NotFound,
        "it is another disk's by now"
    );
    // Who was removed stays so, and what never was is not.
    assert_eq!(machine.refusal(put_node(node(1, "meta"))), Refusal::NotFound);
    assert_eq!(machine.refusal(put_node(node(5 + NODES_SKIPPED, "data"))), Refusal::NotFound);
    assert_eq!(machine.refusal(put_target(2 + TARGETS_SKIPPED, number(4), 4)), Refusal::NotFound);
    // New ones get numbers behind the gap.
    match machine.done(put_node(node(0, "data"))).ok {
        Some(outcome::Ok::Node(id)) => assert_eq!(id, number(5 + NODES_SKIPPED)),
        other => panic!("{other:?}"),
    }
    machine.done(put_target(0, number(4), 5));
    assert!(map(&machine).targets.iter().any(|target| target.id == 2 + TARGETS_SKIPPED));

    // One of those that came back and is removed does not come back again.
    machine.done(Op::RemoveTarget(RemoveTarget { target: 7 }));
    assert_eq!(machine.refusal(put_target(7, number(5), 2)), Refusal::NotFound);

    machine.done(Op::ReleaseOrphans(ReleaseOrphans {}));
    assert_eq!(map(&machine).orphans_held, 0);
}

#[test]
fn a_restored_zone_goes_on_on_a_node_of_the_gap() {
    let mut machine = zone();
    assert_eq!(machine.refusal(recover(node(3 + 1, "meta"))), Refusal::None, "known");
    let mut machine = zone();
    let new = 5 + NODES_SKIPPED;
    machine.done(Op::BeginBackup(BeginBackup {}));
    let held = map(&machine).garbage_held;
    machine.done(recover(node(new, "meta")));
    let after = map(&machine);
    assert_eq!((after.garbage_held, after.backup_begun), (held, held), "it may be restored again");
    assert_eq!(after.nodes.last().unwrap().id, number(new));
    assert!(after.groups.iter().all(|group| group.voters == [number(new)]));
    machine.done(put_node(node(new - 1, "data")));
    match machine.done(put_node(node(0, "meta"))).ok {
        Some(outcome::Ok::Node(id)) => assert_eq!(id, number(new + 1)),
        other => panic!("{other:?}"),
    }
    // Again, from the same rows: the gap grows.
    machine.done(recover(node(new + 2 + NODES_SKIPPED, "meta")));
    machine.done(put_node(node(6, "data")));
}

#[test]
fn a_zone_founded_for_old_data_leaves_numbers_out() {
    let mut machine = Machine::new(GROUP);
    let first = InitZone { first_node_number: 100, first_target_number: 50, ..init() };
    machine.done(Op::InitZone(first));
    let made = map(&machine);
    assert_eq!((made.nodes[0].id, made.generation), (number(100), GENERATIONS_SKIPPED));
    assert_ne!(made.orphans_held, 0);
    machine.done(put_node(node(4, "data")));
    machine.done(put_target(49, number(4), 1));
    assert_eq!(machine.refusal(put_target(50, number(4), 2)), Refusal::NotFound);
}

#[test]
fn garbage_is_held_for_the_newest_finished_backup() {
    let mut machine = zone();
    let begin = |machine: &mut Machine| match machine.done(Op::BeginBackup(BeginBackup {})).ok {
        Some(outcome::Ok::Generation(id)) => id,
        other => panic!("{other:?}"),
    };
    assert_eq!(map(&machine).garbage_held, 0);
    let first = begin(&mut machine);
    let held = map(&machine).garbage_held;
    assert_ne!(held, 0, "while the first one is being made");
    assert_eq!(map(&machine).backup_begun, 0);
    machine.done(Op::FinishBackup(FinishBackup { id: first }));
    machine.done(Op::FinishBackup(FinishBackup { id: first }));
    assert_eq!((map(&machine).garbage_held, map(&machine).backup_begun), (held, held));
    let broken_off = begin(&mut machine);
    let second = begin(&mut machine);
    assert_eq!(map(&machine).garbage_held, held, "until the next one is finished");
    machine.done(Op::FinishBackup(FinishBackup { id: second }));
    assert!(Hlc::from_u64(map(&machine).garbage_held) > Hlc::from_u64(held));
    assert_eq!(machine.refusal(Op::FinishBackup(FinishBackup { id: broken_off })), Refusal::NotFound);
    for _ in 0..20 {
        begin(&mut machine);
    }
    assert_ne!(map(&machine).backup_begun, 0, "those that were broken off do not push it out");
}
