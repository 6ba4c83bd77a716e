//! Nodes, targets, placement and groups: ids, generations, what is refused.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use bytes::Bytes;
use holdfast_machine::{FEATURE_LEVEL, FEATURE_LEVEL_FIRST, admit, feature_level};
use holdfast_proto::id::{GroupId, NodeId, ZoneId};
use holdfast_proto::meta::{
    ClusterMap, Event, EventSeverity, GetMap, Group, InitZone, ListEvents, MovingPlace, Node, NodeState,
    Outcome, PlacementGroup, PutGroups, PutNode, PutPlacement, PutTarget, RaiseFeatureLevel, RecordEvents,
    Refusal, RemoveTarget, SetNodeState, SetTargetStates, StorageClass, Target, TargetState,
    TargetStateChange, answer, command::Op, outcome, query::Of,
};
use holdfast_proto::v1::{Codec, Scheme};
use support::{Machine, ZONE, id};

const GROUP: GroupId = GroupId::zone_group(ZONE);

fn init(realm: u64, zone: u32) -> InitZone {
    InitZone {
        realm: id(0xaa, realm),
        zone,
        name: "north".into(),
        partitions: 2,
        groups: vec![Group { id: GROUP.get(), generation: 1, ..Group::default() }],
        first_node: Some(Node { addr: "h1:1".into(), incarnation: 1, ..Node::default() }),
        ..InitZone::default()
    }
}

fn zone() -> Machine {
    let mut machine = Machine::new(GROUP);
    let first = machine.done(Op::InitZone(init(1, 1)));
    assert_eq!(machine.done(Op::InitZone(init(1, 1))), first, "starting it again is no change");
    machine
}

fn map(machine: &Machine) -> ClusterMap {
    match machine.answer(Of::GetMap(GetMap::default())) {
        answer::Ok::Map(map) => map,
        other => panic!("{other:?}"),
    }
}

fn put_node(node: Node) -> Op {
    Op::PutNode(PutNode { node: Some(node) })
}

fn put_target(id_: u32, node: u64, uuid: u64) -> Op {
    let target = Target { id: id_, node, uuid: id(0x77, uuid), capacity_bytes: 1 << 40, ..Target::default() };
    Op::PutTarget(PutTarget { target: Some(target) })
}

fn node_of(outcome: Outcome) -> u64 {
    match outcome.ok {
        Some(outcome::Ok::Node(node)) => node,
        other => panic!("{other:?}"),
    }
}

fn number(number: u64) -> u64 {
    NodeId::in_zone(ZONE, number).unwrap().get()
}

#[test]
fn a_zone_starts_once() {
    let mut machine = zone();
    assert_eq!(machine.refusal(Op::InitZone(init(2, 1))), Refusal::AlreadyExists);
    let map = map(&machine);
    assert_eq!((map.generation, map.zone, map.zone_name.as_str()), (1, 1, "north"));
    assert_eq!((map.nodes[0].id, map.nodes[0].state()), (number(1), NodeState::NodeActive));
    assert_eq!((map.slot_table.len(), map.slot_table[..3].to_vec()), (1024, vec![0, 1, 0]));
    assert_eq!(map.groups.len(), 1);
    let mut other = Machine::new(GroupId::zone_group(ZoneId::new(2)));
    assert_eq!(other.refusal(Op::InitZone(init(1, 1))), Refusal::Malformed);
    assert_eq!(other.ask(Of::GetMap(GetMap::default())).refusal(), Refusal::NotFound);
    assert_eq!(other.refusal(put_node(Node { addr: "a".into(), ..Node::default() })), Refusal::NotFound);
}

#[test]
fn the_map_is_sent_only_when_it_is_newer() {
    let machine = zone();
    assert!(machine.ask(Of::GetMap(GetMap { have_generation: 1 })).ok.is_none());
    assert!(machine.ask(Of::GetMap(GetMap { have_generation: 7 })).ok.is_some());
}

#[test]
fn node_ids_are_given_once_and_incarnations_go_forward() {
    let mut machine = zone();
    let new = Node { addr: "h2:1".into(), host: "h2".into(), incarnation: 5, ..Node::default() };
    let command = machine.command(put_node(new.clone()));
    let first = machine.apply(&command);
    assert_eq!(machine.apply(&command), first, "a repeat gets the same id");
    let second = node_of(first);
    assert_eq!(second, number(2));
    assert_eq!(node_of(machine.done(put_node(new.clone()))), number(3), "who has lost its id is a new node");
    let generation = map(&machine).generation;
    let same = Node { id: second, ..new.clone() };
    machine.done(put_node(same.clone()));
    assert_eq!(map(&machine).generation, generation, "nothing changed");
    machine.done(put_node(Node { incarnation: 6, addr: "h2:2".into(), ..same.clone() }));
    assert_eq!(map(&machine).generation, generation + 1);
    assert_eq!(machine.refusal(put_node(same)), Refusal::StaleIncarnation);
    assert_eq!(machine.refusal(put_node(Node { id: number(9), ..new })), Refusal::NotFound);
}

/// The answer to a join can be lost, and the join repeated at any time: by another request, after the first one was
/// forgotten.
#[test]
fn a_repeated_join_is_the_same_node() {
    let mut machine = zone();
    let join = Node { addr: "h2:1".into(), nonce: id(0x40, 1), ..Node::default() };
    let first = node_of(machine.done(put_node(join.clone())));
    let generation = map(&machine).generation;
    machine.now_ms += 24 * 3_600_000;
    assert_eq!(node_of(machine.done(put_node(join.clone()))), first);
    assert_eq!((map(&machine).generation, map(&machine).nodes.len()), (generation, 2), "nothing changed");
    let moved = Node { addr: "h2:2".into(), ..join.clone() };
    assert_eq!(node_of(machine.done(put_node(moved))), first);
    assert_eq!(map(&machine).nodes[1].addr, "h2:2");
    let other = Node { nonce: id(0x40, 2), ..join.clone() };
    assert_eq!(node_of(machine.done(put_node(other))), number(3));

    // Once it has its id it says no nonce, and the row keeps it: a copy of the join that comes now is too late.
    machine.done(put_node(Node { id: first, incarnation: 1, nonce: Bytes::new(), ..join.clone() }));
    assert_eq!(map(&machine).nodes[1].nonce, join.nonce);
    assert_eq!(machine.refusal(put_node(join)), Refusal::StaleIncarnation);
    assert_eq!(map(&machine).nodes.len(), 3);
}

#[test]
fn a_removed_node_does_not_come_back() {
    let mut machine = zone();
    let state = |state: NodeState| Op::SetNodeState(SetNodeState { node: number(1), state: state.into() });
    machine.done(state(NodeState::NodeMaintenance));
    machine.done(state(NodeState::NodeRemoved));
    assert_eq!(machine.refusal(state(NodeState::NodeActive)), Refusal::NotFound);
    let node = Node { id: number(1), addr: "h1:1".into(), incarnation: 9, ..Node::default() };
    assert_eq!(machine.refusal(put_node(node)), Refusal::NotFound);
}

#[test]
fn targets_are_known_by_their_uuid() {
    let mut machine = zone();
    let target = |outcome: Outcome| match outcome.ok {
        Some(outcome::Ok::Target(target)) => target,
        other => panic!("{other:?}"),
    };
    assert_eq!(target(machine.done(put_target(0, number(1), 1))), 1);
    assert_eq!(target(machine.done(put_target(0, number(1), 2))), 2);
    let generation = map(&machine).generation;
    assert_eq!(target(machine.done(put_target(0, number(1), 1))), 1);
    assert_eq!(map(&machine).generation, generation, "nothing changed");
    assert_eq!(machine.refusal(put_target(2, number(1), 1)), Refusal::AlreadyExists);
    assert_eq!(machine.refusal(put_target(7, number(1), 9)), Refusal::NotFound);
    assert_eq!(machine.refusal(put_target(0, number(4), 9)), Refusal::NotFound);
    let found = map(&machine).targets[0].clone();
    assert_eq!((found.state(), found.media.as_str()), (TargetState::TargetUp, "default"));
    let down = |target| {
        let change =
            TargetStateChange { target, state: TargetState::TargetDown.into(), why: "silence".into() };
        Op::SetTargetStates(SetTargetStates { changes: vec![change] })
    };
    machine.done(down(1));
    machine.done(down(1));
    assert_eq!(map(&machine).generation, generation + 1);
    machine.done(put_target(0, number(1), 1));
    assert_eq!(
        map(&machine).targets[0].state(),
        TargetState::TargetDown,
        "announcing itself does not bring it up"
    );
    assert_eq!(machine.refusal(down(9)), Refusal::NotFound);
}

#[test]
fn placement_is_compared_and_swapped() {
    let mut machine = zone();
    for uuid in 1..=3 {
        machine.done(put_target(0, number(1), uuid));
    }
    let scheme = Scheme { codec: Codec::Copies.into(), data: 1, parity: 2 };
    let class = StorageClass { name: "STANDARD".into(), scheme: Some(scheme), ..StorageClass::default() };
    let pg = |id, targets: &[u32]| PlacementGroup {
        id,
        epoch: 1,
        targets: targets.to_vec(),
        class: "STANDARD".into(),
        moving: Vec::new(),
    };
    let placement = |generation, pgs: Vec<PlacementGroup>, classes: &[StorageClass]| {
        let classes = classes.to_vec();
        Op::PutPlacement(PutPlacement { expected_generation: generation, classes, pgs })
    };
    let generation = map(&machine).generation;
    let classes = [class];
    assert_eq!(machine.refusal(placement(generation - 1, vec![], &classes)), Refusal::StaleGeneration);
    assert_eq!(machine.refusal(placement(generation, vec![pg(1, &[1, 1])], &classes)), Refusal::Malformed);
    assert_eq!(machine.refusal(placement(generation, vec![pg(1, &[1, 9])], &classes)), Refusal::NotFound);
    let moving = |place, from: &[u32]| PlacementGroup {
        moving: vec![MovingPlace { place, from: from.to_vec() }],
        ..pg(1, &[1, 2])
    };
    assert_eq!(machine.refusal(placement(generation, vec![moving(2, &[3])], &classes)), Refusal::Malformed);
    assert_eq!(machine.refusal(placement(generation, vec![moving(1, &[9])], &classes)), Refusal::NotFound);
    assert_eq!(
        machine.refusal(placement(generation, vec![pg(1, &[1, 2])], &[])),
        Refusal::NotFound,
        "no class"
    );
    machine.done(placement(generation, vec![pg(1, &[1, 2, 3]), pg(2, &[3, 2, 1])], &classes));
    let made = map(&machine);
    assert_eq!((made.pgs.len(), made.classes.len(), made.generation), (2, 1, generation + 1));
    machine.done(placement(generation + 1, vec![pg(2, &[2, 1, 3])], &[]));
    let made = map(&machine);
    assert_eq!((made.pgs.len(), made.pgs[0].targets.clone(), made.classes.len()), (1, vec![2, 1, 3], 1));
}

#[test]
fn groups_have_generations() {
    let mut machine = zone();
    let group = |generation, voters: &[u64]| {
        let group = Group {
            id: GroupId::partition(ZONE, 1).get(),
            generation,
            voters: voters.to_vec(),
            learners: vec![],
        };
        Op::PutGroups(PutGroups { groups: vec![group] })
    };
    machine.done(group(2, &[1]));
    machine.done(group(3, &[1, 2]));
    assert_eq!(machine.refusal(group(2, &[1])), Refusal::StaleGeneration);
    assert_eq!(map(&machine).groups.len(), 2);
    let bad = Op::PutGroups(PutGroups { groups: vec![Group::default()] });
    assert_eq!(machine.refusal(bad), Refusal::Malformed);
}

#[test]
fn malformed_targets_and_nodes_are_refused() {
    let mut machine = zone();
    assert_eq!(machine.refusal(put_node(Node::default())), Refusal::Malformed);
    let target = Target { node: number(1), uuid: Bytes::from_static(b"short"), ..Target::default() };
    assert_eq!(machine.refusal(Op::PutTarget(PutTarget { target: Some(target) })), Refusal::Malformed);
}

#[test]
fn targets_and_nodes_leave_when_nothing_needs_them() {
    let mut machine = zone();
    for uuid in 1..=3 {
        machine.done(put_target(0, number(1), uuid));
    }
    let scheme = Scheme { codec: Codec::Copies.into(), data: 1, parity: 1 };
    let class = StorageClass { name: "STANDARD".into(), scheme: Some(scheme), ..StorageClass::default() };
    let placement = |machine: &Machine, targets: &[u32], from: &[u32]| {
        let moving = MovingPlace { place: 0, from: from.to_vec() };
        let pg = PlacementGroup {
            id: 1,
            epoch: 1,
            targets: targets.to_vec(),
            class: "STANDARD".into(),
            moving: if from.is_empty() { vec![] } else { vec![moving] },
        };
        let classes = vec![class.clone()];
        Op::PutPlacement(PutPlacement {
            expected_generation: map(machine).generation,
            classes,
            pgs: vec![pg],
        })
    };
    let remove = |target| Op::RemoveTarget(RemoveTarget { target });
    let set = |target, state: TargetState| {
        let changes = vec![TargetStateChange { target, state: state.into(), why: String::new() }];
        Op::SetTargetStates(SetTargetStates { changes })
    };
    let removed = Op::SetNodeState(SetNodeState { node: number(1), state: NodeState::NodeRemoved.into() });
    assert_eq!(machine.refusal(remove(9)), Refusal::NotFound);
    machine.done(placement(&machine, &[1, 2], &[]));
    assert_eq!(machine.refusal(remove(1)), Refusal::InUse);
    assert_eq!(machine.refusal(removed.clone()), Refusal::InUse);
    machine.done(placement(&machine, &[3, 2], &[1]));
    machine.done(set(1, TargetState::TargetDraining));
    assert_eq!(machine.refusal(remove(1)), Refusal::InUse, "its shards are still there");
    machine.done(set(1, TargetState::TargetOut));
    machine.done(remove(1));
    let left = map(&machine);
    assert_eq!((left.targets.len(), left.pgs[0].moving[0].from.len(), left.pgs[0].epoch), (2, 0, 2));
    assert_eq!(machine.refusal(remove(1)), Refusal::NotFound);
    // The same disk comes back as another target.
    machine.done(put_target(0, number(1), 1));
    assert_eq!(map(&machine).targets.iter().map(|target| target.id).max(), Some(4));
}

#[test]
fn what_an_older_replica_would_not_know_waits_for_the_feature_level() {
    let mut machine = zone();
    assert_eq!((feature_level(&machine.rows).unwrap(), map(&machine).feature_level), (1, 1));
    let group = machine.group;
    let moving = PlacementGroup { moving: vec![MovingPlace::default()], ..PlacementGroup::default() };
    let moves = |pgs| Op::PutPlacement(PutPlacement { pgs, ..PutPlacement::default() });
    let removed = |state: NodeState| Op::SetNodeState(SetNodeState { node: 1, state: state.into() });
    let newer =
        [Op::RemoveTarget(RemoveTarget { target: 1 }), moves(vec![moving]), removed(NodeState::NodeRemoved)];
    for op in newer {
        let command = machine.command(op);
        let refused = admit(group, FEATURE_LEVEL_FIRST, &command).unwrap_err();
        assert!(refused.contains("older version"), "{refused}");
        assert_eq!(admit(group, FEATURE_LEVEL, &command), Ok(2));
    }
    for op in [moves(vec![PlacementGroup::default()]), removed(NodeState::NodeMaintenance)] {
        assert_eq!(admit(group, FEATURE_LEVEL_FIRST, &machine.command(op)), Ok(1));
    }

    let raise = |level| Op::RaiseFeatureLevel(RaiseFeatureLevel { level });
    let generation = map(&machine).generation;
    let command = machine.command(raise(2));
    assert_eq!(admit(group, FEATURE_LEVEL_FIRST, &command), Ok(2), "a replica that does not know it halts");
    assert!(admit(group, FEATURE_LEVEL_FIRST, &machine.command(raise(FEATURE_LEVEL + 1))).is_err());
    machine.done(raise(2));
    assert_eq!((map(&machine).feature_level, map(&machine).generation), (2, generation + 1));
    machine.done(raise(1));
    assert_eq!(
        (map(&machine).feature_level, map(&machine).generation),
        (2, generation + 1),
        "it never falls"
    );
}

fn events(machine: &Machine, from: u64, limit: u32, newest: bool) -> Vec<(u64, String)> {
    let answer = machine.answer(Of::ListEvents(ListEvents { from, limit, newest }));
    let answer::Ok::Events(page) = answer else { panic!("{answer:?}") };
    page.events.into_iter().map(|event| (event.seq, format!("{} {}", event.code, event.subject))).collect()
}

fn record(code: &str, text: &str) -> Op {
    let event = Event {
        severity: EventSeverity::EventWarning.into(),
        code: code.into(),
        subject: "zone".into(),
        text: text.into(),
        ..Event::default()
    };
    Op::RecordEvents(RecordEvents { events: vec![event] })
}

#[test]
fn what_a_command_changes_is_told_once_and_not_before_all_replicas_would() {
    let mut machine = zone();
    machine.done(put_target(0, number(1), 1));
    assert_eq!(events(&machine, 0, 100, false), [], "an older replica would not write the row");
    machine.done(Op::RaiseFeatureLevel(RaiseFeatureLevel { level: 2 }));
    machine.done(put_target(0, number(1), 2));
    let down = |machine: &mut Machine| {
        let change =
            TargetStateChange { target: 1, state: TargetState::TargetDown.into(), why: "silence".into() };
        machine.done(Op::SetTargetStates(SetTargetStates { changes: vec![change] }));
    };
    down(&mut machine);
    down(&mut machine);
    let node = SetNodeState { node: number(1), state: NodeState::NodeMaintenance.into() };
    machine.done(Op::SetNodeState(node));
    let told: Vec<String> = events(&machine, 0, 100, false).into_iter().map(|(_, what)| what).collect();
    let node_name = format!("NODE_MAINTENANCE node {}", NodeId::new(number(1)));
    assert_eq!(
        told,
        ["FEATURE_LEVEL_RAISED zone", "TARGET_ADDED target 2", "TARGET_DOWN target 1", node_name.as_str()]
    );
    assert_eq!(events(&machine, 1, 2, false).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(events(&machine, 0, 1, true)[0].0, 3);
}

#[test]
fn the_same_is_not_told_again_and_the_oldest_are_forgotten() {
    let mut machine = zone();
    machine.done(Op::RaiseFeatureLevel(RaiseFeatureLevel { level: 2 }));
    for op in
        [record("A", "one"), record("A", "one"), record("B", "one"), record("A", "one"), record("A", "two")]
    {
        machine.done(op);
    }
    machine.done(record("A", "one"));
    let told = events(&machine, 1, 100, false);
    assert_eq!(told.len(), 4, "A one, B one, A two, and A one again: {told:?}");
    let max = holdfast_proto::limits::EVENTS_MAX;
    for number in 0..max {
        let command = machine.command(record("C", &number.to_string()));
        machine.apply_unchecked(&command);
    }
    let kept = machine.rows.keys().filter(|key| key.starts_with(b"evt|")).count() as u64;
    assert_eq!(kept, max);
    assert_eq!(events(&machine, 0, 1, false)[0].0, 5, "five came before those");
    assert_eq!(machine.refusal(record("", "no code")), Refusal::Malformed);
}
