//! Replicas whose rows went wrong, found and rebuilt; three nodes in one process, over loopback.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_machine::kv::KvRead;
use holdfast_proto::id::AccountId;
use holdfast_proto::meta::{AccessKey, PutAccessKey, command};

use super::groups_test::{
    GROUP, Node, account_id, config, digest, dirs, equal_digests, node, propose, request, three, wait,
};
use super::rebuild::Parts;
use super::state::{GroupState, MACHINE_ROWS, ROWS_END};

fn state(of: &Node) -> Arc<GroupState> {
    Arc::clone(of.groups.group(GROUP).unwrap().state())
}

/// A row that no command made.
fn plant(of: &Node, value: &'static str) {
    state(of).plant(b"zzz|planted", Some(Bytes::from(value)));
}

/// Removes the row that has `id` in its key, or makes it one that does not decode.
fn spoil(of: &Node, id: &[u8], value: Option<Bytes>) {
    let state = state(of);
    let key = state.view().scan(MACHINE_ROWS, ROWS_END).find_map(|row| {
        let (key, _) = row.unwrap();
        key.windows(id.len()).any(|window| window == id).then_some(key)
    });
    state.plant(&key.expect("there is such a row"), value);
}

async fn scrub(leader: &Node) -> holdfast_proto::meta::GroupScrubReport {
    leader.groups.scrub(GROUP).await.unwrap()
}

/// Waits until who leads finds all three equal, and that nothing ended a node.
async fn all_agree(nodes: [&Node; 3]) {
    equal_digests(&nodes).await;
    let agreed = async {
        loop {
            for one in nodes {
                if let Ok(report) = one.groups.scrub(GROUP).await
                    && report.agree.len() == 3
                {
                    return;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), agreed).await.expect("all agree in time");
    for one in nodes {
        assert_eq!(*one.groups.failure().borrow(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_differs_is_found_and_takes_the_rows_of_the_others() {
    let dirs = dirs();
    let (_addresses, [first, second, third]) = three(&dirs).await;
    for number in 0..20 {
        propose(&[&first], number).await;
    }
    let well = scrub(&first).await;
    assert_eq!((well.agree.len(), well.diverged.len(), well.no_majority), (3, 0, false));
    assert_eq!(well.rows, digest(&first.groups).2);

    plant(&third, "x");
    spoil(&second, &account_id(3).to_wire(), None);
    let torn = scrub(&first).await;
    assert!(torn.no_majority, "three replicas, three digests");
    assert_eq!((state(&second).live_number(), state(&third).live_number()), (1, 1), "nothing is rebuilt");
    let fault = second.groups.scrub(GROUP).await.unwrap_err();
    assert_eq!(fault.leader, node(1).get());

    state(&third).plant(b"zzz|planted", None);
    let odd = scrub(&first).await;
    assert_eq!((odd.diverged.as_slice(), odd.no_majority), ([node(2).get()].as_slice(), false));
    propose(&[&first, &second, &third], 20).await;
    wait("the follower has other rows", || state_of(&second).is_some_and(|state| state.live_number() > 1))
        .await;
    propose(&[&first, &second, &third], 21).await;
    all_agree([&first, &second, &third]).await;
    assert!(first.groups.is_leader(GROUP), "who was well went on leading");
    // What it took over it has after a restart.
    for node in [first, second, third] {
        node.stop().await;
    }
}

/// While a group is opened again, callers do not reach it.
fn state_of(of: &Node) -> Option<Arc<GroupState>> {
    of.groups.group(GROUP).ok().map(|group| Arc::clone(group.state()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_differs_hands_the_lead_over_and_is_rebuilt() {
    let dirs = dirs();
    let (addresses, [first, second, third]) = three(&dirs).await;
    for number in 0..20 {
        propose(&[&first], number).await;
    }
    equal_digests(&[&first, &second, &third]).await;
    plant(&first, "x");
    let odd = scrub(&first).await;
    assert_eq!(odd.diverged, [node(1).get()]);
    assert!(first.groups.scrub_reports().iter().any(|report| !report.rebuilding.is_empty()));
    wait("the rows are replaced", || state_of(&first).is_some_and(|state| state.live_number() > 1)).await;
    propose(&[&second, &third], 20).await;
    all_agree([&first, &second, &third]).await;
    assert!(!first.groups.is_leader(GROUP));

    // The rebuilt one is whole: it bears the loss of another.
    second.kill().await;
    propose(&[&first, &third], 21).await;
    let second = Node::start(config(dirs[1].path(), 2), &addresses).await;
    all_agree([&first, &second, &third]).await;
    for node in [first, second, third] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_middle_of_a_rebuild_leaves_the_old_rows_or_the_new_ones() {
    let dirs = dirs();
    let (addresses, [first, second, mut third]) = three(&dirs).await;
    for number in 0..20 {
        propose(&[&first], number).await;
    }
    equal_digests(&[&first, &second, &third]).await;
    for named in [false, true] {
        plant(&third, "x");
        third.groups.persist().await.unwrap();
        let others = digest(&first.groups).1;
        {
            let group = third.groups.group(GROUP).unwrap();
            let parts = Parts { state: Arc::clone(group.state()), log: group.log().clone() };
            let (generation, applied) = third.groups.bring(&parts, &[node(1)]).await.unwrap();
            if named {
                group.raft().shutdown().await.unwrap();
                parts.state.replace(generation, applied).unwrap();
            }
        }
        third.kill().await;
        propose(&[&first, &second], 20 + u64::from(named)).await;
        third = Node::start(config(dirs[2].path(), 3), &addresses).await;
        let applied = |of: &Node| digest(&of.groups).0;
        wait("the log is applied", || applied(&third) == applied(&first)).await;
        assert_eq!(digest(&third.groups).1 == digest(&first.groups).1, named);
        assert_ne!(digest(&first.groups).1, others);
        if !named {
            assert_eq!(scrub(&first).await.diverged, [node(3).get()], "it is found again");
            wait("the rows are replaced", || state_of(&third).is_some_and(|s| s.live_number() > 1)).await;
        }
        all_agree([&first, &second, &third]).await;
    }
    for node in [first, second, third] {
        node.stop().await;
    }
}

/// Changes the root key, which reads its row, on whoever leads.
async fn touch(nodes: &[&Node], number: u64) {
    let tried = async {
        loop {
            for node in nodes {
                let account = AccountId::from_bytes([9; 16]).to_wire();
                let key = AccessKey { id: "root".into(), account, ..AccessKey::default() };
                let op = command::Op::PutAccessKey(PutAccessKey { key: Some(key) });
                let command = request(1000 + number, op, &node.groups);
                if node.groups.propose(GROUP, vec![command]).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), tried).await.expect("a proposal in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_decode_are_replaced_when_they_are_met() {
    let dirs = dirs();
    let (addresses, [first, second, mut third]) = three(&dirs).await;
    for number in 0..20 {
        propose(&[&first], number).await;
    }
    equal_digests(&[&first, &second, &third]).await;
    let torn = || Some(Bytes::from_static(b"\xff\xff\xff"));

    // On a follower.
    spoil(&third, b"root", torn());
    touch(&[&first, &second, &third], 5).await;
    wait("the rows are replaced", || state_of(&third).is_some_and(|state| state.live_number() > 1)).await;
    all_agree([&first, &second, &third]).await;

    // The process dies before they are replaced: it starts, and they are replaced then.
    spoil(&second, b"root", torn());
    second.groups.persist().await.unwrap();
    let suspicious = state(&second);
    touch(&[&first, &second, &third], 6).await;
    wait("the row is met", || suspicious.suspicion().is_some() || suspicious.live_number() > 1).await;
    drop(suspicious);
    second.kill().await;
    let second = Node::start(config(dirs[1].path(), 2), &addresses).await;
    all_agree([&first, &second, &third]).await;

    // On the leader.
    let leader = [&first, &second, &third].into_iter().find(|node| node.groups.is_leader(GROUP)).unwrap();
    let before = state(leader).live_number();
    spoil(leader, b"root", torn());
    touch(&[&first, &second, &third], 7).await;
    wait("the rows are replaced", || state_of(leader).is_some_and(|state| state.live_number() > before))
        .await;
    all_agree([&first, &second, &third]).await;
    for node in [first, second, third] {
        node.stop().await;
    }
    third = Node::start(config(dirs[2].path(), 3), &addresses).await;
    assert!(state(&third).suspicion().is_none());
    third.stop().await;
}
