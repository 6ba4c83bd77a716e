//! Three nodes in one process, over loopback.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::error::Fault;
use holdfast_proto::id::{AccountId, GroupId, NodeId, RealmId, RequestId, ZoneId};
use holdfast_proto::meta::{
    AccessKey, Account, Answer, Command, CreateAccount, GetAccount, GetDigest, InitRealm, Query, Refusal,
    answer, command, query,
};
use holdfast_proto::v1::FaultKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::peer_clocks::tests::moved_env;
use super::upkeep::UpkeepConfig;
use super::{AddressBook, Groups, GroupsConfig};
use crate::env::Env;

pub(super) const GROUP: GroupId = GroupId::REALM;
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) fn node(number: u64) -> NodeId {
    NodeId::in_zone(ZoneId::new(1), number).unwrap()
}

fn realm() -> RealmId {
    RealmId::from_bytes([7; 16])
}

pub(super) fn config(dir: &Path, number: u64) -> GroupsConfig {
    let mut config = GroupsConfig::new(dir, node(number), 1, realm(), ZoneId::new(1));
    config.heartbeat = Duration::from_millis(100);
    config.election = (Duration::from_millis(500), Duration::from_millis(1000));
    config
}

pub(super) struct Node {
    pub(super) groups: Arc<Groups>,
    cancel: CancellationToken,
    server: JoinHandle<()>,
}

impl Node {
    pub(super) async fn start(config: GroupsConfig, addresses: &Arc<AddressBook>) -> Self {
        Self::start_in(config, addresses, Env::real()).await
    }

    async fn start_in(config: GroupsConfig, addresses: &Arc<AddressBook>, env: Env) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.set(config.node, listener.local_addr().unwrap().to_string());
        let cancel = CancellationToken::new();
        let groups = open(config, addresses, &cancel, env).await;
        let serving =
            tonic::transport::Server::builder().add_service(groups.service()).serve_with_incoming_shutdown(
                tokio_stream::wrappers::TcpListenerStream::new(listener),
                cancel.clone().cancelled_owned(),
            );
        let server = tokio::spawn(async move { serving.await.unwrap() });
        Self { groups, cancel, server }
    }

    /// As near to a killed process as one process gets: nothing is handed over and nothing made durable.
    pub(super) async fn kill(self) {
        self.server.abort();
        self.cancel.cancel();
        for group in self.groups.all() {
            group.raft().shutdown().await.unwrap();
        }
        self.groups.abandon().await;
        let _ = self.server.await;
        let weak = Arc::downgrade(&self.groups);
        drop(self.groups);
        wait("the node's files are free", || weak.strong_count() == 0).await;
    }

    pub(super) async fn stop(self) {
        self.groups.shutdown().await;
        self.cancel.cancel();
        let _ = self.server.await;
        let weak = Arc::downgrade(&self.groups);
        drop(self.groups);
        wait("the node's files are free", || weak.strong_count() == 0).await;
    }
}

/// Within one process the tasks of a node's former life may hold its files a little longer than its owner.
async fn open(
    config: GroupsConfig,
    addresses: &Arc<AddressBook>,
    cancel: &CancellationToken,
    env: Env,
) -> Arc<Groups> {
    let opened = async {
        loop {
            match Groups::open(config.clone(), env.clone(), Arc::clone(addresses), cancel.clone()).await {
                Ok(groups) => return groups,
                Err(error) => assert!(error.to_string().to_lowercase().contains("lock"), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, opened).await.expect("the files are free in time")
}

pub(super) async fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let polled = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, polled).await.is_ok(), "{what}: not in time");
}

pub(super) fn account_id(number: u64) -> AccountId {
    let mut raw = [0; 16];
    raw[8..].copy_from_slice(&number.to_be_bytes());
    AccountId::from_bytes(raw)
}

pub(super) fn request(number: u64, op: command::Op, groups: &Groups) -> Command {
    let mut raw = [1; 16];
    raw[8..].copy_from_slice(&number.to_be_bytes());
    let now = groups.hlc();
    Command {
        request: RequestId::from_bytes(raw).to_wire(),
        first_attempt_hlc: now.get(),
        op: Some(op),
        ..Command::default()
    }
}

fn create_account(number: u64, groups: &Groups) -> Command {
    let account =
        Account { id: account_id(number).to_wire(), name: format!("account-{number}"), ..Account::default() };
    request(number, command::Op::CreateAccount(CreateAccount { account: Some(account) }), groups)
}

fn get_account(number: u64) -> Query {
    Query { of: Some(query::Of::GetAccount(GetAccount { id: account_id(number).to_wire() })) }
}

fn digest_query() -> Query {
    Query { of: Some(query::Of::GetDigest(GetDigest::default())) }
}

pub(super) fn digest(groups: &Groups) -> (u64, Bytes, u64) {
    try_digest(groups).expect("the group is open")
}

/// `None` while the group is not open.
fn try_digest(groups: &Groups) -> Option<(u64, Bytes, u64)> {
    match groups.read_local(GROUP, &digest_query()).ok()?.ok {
        Some(answer::Ok::Digest(digest)) => Some((digest.applied, digest.blake3, digest.rows)),
        other => panic!("no digest: {other:?}"),
    }
}

fn is_found(answer: &Answer) -> bool {
    answer.refusal() == Refusal::None && matches!(answer.ok, Some(answer::Ok::Account(_)))
}

/// Proposes on whichever node leads, as a client would.
pub(super) async fn propose(nodes: &[&Node], number: u64) {
    let tried = async {
        loop {
            for node in nodes {
                let command = create_account(number, &node.groups);
                match node.groups.propose(GROUP, vec![command]).await {
                    Ok(outcomes) => {
                        assert_eq!(outcomes.len(), 1);
                        assert_eq!(outcomes[0].refusal(), Refusal::None, "{:?}", outcomes[0]);
                        return;
                    }
                    Err(fault) => assert!(fault.is_retryable(), "{fault}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, tried).await.is_ok(), "no proposal in time");
}

async fn read(nodes: &[&Node], number: u64) -> bool {
    let tried = async {
        loop {
            for node in nodes {
                match node.groups.read(GROUP, vec![get_account(number)]).await {
                    Ok(answers) => return is_found(&answers[0]),
                    Err(fault) => assert!(fault.is_retryable(), "{fault}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, tried).await.unwrap()
}

async fn set_members(
    leader: &Node,
    voters: impl IntoIterator<Item = u64>,
    learners: impl IntoIterator<Item = u64>,
) {
    let of = |numbers: Vec<u64>| numbers.into_iter().map(node).collect::<BTreeSet<_>>();
    let (voters, learners) = (of(voters.into_iter().collect()), of(learners.into_iter().collect()));
    leader.groups.set_members(GROUP, voters.clone(), learners.clone()).await.unwrap();
    assert_eq!(leader.groups.members(GROUP).unwrap(), (voters, learners));
}

async fn init(first: &Node) {
    first.groups.bootstrap(GROUP).await.unwrap();
    first.groups.bootstrap(GROUP).await.unwrap();
    let root = Some(Account { id: AccountId::from_bytes([9; 16]).to_wire(), ..Account::default() });
    let root_key = Some(AccessKey { id: "root".into(), ..AccessKey::default() });
    let init = command::Op::InitRealm(InitRealm { realm: realm().to_wire(), root, root_key });
    let outcomes = first.groups.propose(GROUP, vec![request(1 << 40, init, &first.groups)]).await.unwrap();
    assert_eq!(outcomes[0].refusal(), Refusal::None, "{:?}", outcomes[0]);
}

pub(super) async fn three(dirs: &[tempfile::TempDir; 3]) -> (Arc<AddressBook>, [Node; 3]) {
    let addresses = Arc::new(AddressBook::new());
    let first = Node::start(config(dirs[0].path(), 1), &addresses).await;
    let second = Node::start(config(dirs[1].path(), 2), &addresses).await;
    let third = Node::start(config(dirs[2].path(), 3), &addresses).await;
    init(&first).await;
    set_members(&first, [1, 2, 3], []).await;
    (addresses, [first, second, third])
}

pub(super) fn dirs() -> [tempfile::TempDir; 3] {
    std::array::from_fn(|_| tempfile::tempdir().unwrap())
}

pub(super) async fn equal_digests(nodes: &[&Node]) {
    wait("replicas agree", || {
        let all: Vec<_> = nodes.iter().map(|node| try_digest(&node.groups)).collect();
        all[0].is_some() && all.windows(2).all(|pair| pair[0] == pair[1])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_nothing_is_lost() {
    let dirs = dirs();
    let (addresses, [first, second, third]) = three(&dirs).await;
    for number in 0..20 {
        propose(&[&first, &second, &third], number).await;
    }
    equal_digests(&[&first, &second, &third]).await;
    assert!(first.groups.is_leader(GROUP));
    let fault = second.groups.propose(GROUP, vec![create_account(99, &second.groups)]).await.unwrap_err();
    assert_eq!(fault, Fault::not_leader(node(1).get()));

    first.kill().await;
    let left = [&second, &third];
    for number in 20..40 {
        propose(&left, number).await;
    }
    for number in 0..40 {
        assert!(read(&left, number).await, "account {number}");
    }
    assert!(!read(&left, 40).await);

    let first = Node::start(config(dirs[0].path(), 1), &addresses).await;
    equal_digests(&[&first, &second, &third]).await;
    for node in [first, second, third] {
        assert_eq!(*node.groups.failure().borrow(), None);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_loses_nothing() {
    let dirs = dirs();
    let (addresses, nodes) = three(&dirs).await;
    for number in 0..30 {
        propose(&nodes.iter().collect::<Vec<_>>(), number).await;
    }
    let before = digest(&nodes[0].groups);
    for node in nodes {
        node.kill().await;
    }
    let mut again = Vec::new();
    for (dir, number) in dirs.iter().zip(1..) {
        again.push(Node::start(config(dir.path(), number), &addresses).await);
    }
    let all: Vec<_> = again.iter().collect();
    for number in 0..30 {
        assert!(read(&all, number).await, "account {number}");
    }
    equal_digests(&all).await;
    assert_eq!(digest(&again[0].groups).1, before.1);
    for node in again {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_callers_share_entries_and_rounds() {
    let dir = tempfile::tempdir().unwrap();
    let only = Node::start(config(dir.path(), 1), &Arc::new(AddressBook::new())).await;
    init(&only).await;
    let before = only.groups.status()[0].last_log;
    let proposals = (0..400).map(|number| {
        let groups = Arc::clone(&only.groups);
        async move { groups.propose(GROUP, vec![create_account(number, &groups)]).await.unwrap() }
    });
    for outcomes in futures::future::join_all(proposals).await {
        assert_eq!(outcomes.len(), 1);
        assert_eq!(outcomes[0].refusal(), Refusal::None);
    }
    let entries = only.groups.status()[0].last_log - before;
    assert!(entries < 100, "{entries} entries for 400 proposals");
    let reads = (0..400).map(|number| only.groups.read(GROUP, vec![get_account(number)]));
    for answers in futures::future::join_all(reads).await {
        assert!(is_found(&answers.unwrap()[0]));
    }
    only.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_nobody_here_knows_fails_its_call_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let only = Node::start(config(dir.path(), 1), &Arc::new(AddressBook::new())).await;
    init(&only).await;
    // What a newer gateway sends: an operation that decodes to none, and one of a higher level.
    let unknown = Command { op: None, ..create_account(1, &only.groups) };
    let newer =
        Command { feature_level: holdfast_machine::FEATURE_LEVEL + 1, ..create_account(1, &only.groups) };
    let of_the_zone = request(1, command::Op::InitZone(Default::default()), &only.groups);
    for refused in [unknown, newer, of_the_zone] {
        let together = vec![create_account(1, &only.groups), refused];
        let fault = only.groups.propose(GROUP, together).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid, "{fault}");
    }
    assert!(!read(&[&only], 1).await);
    propose(&[&only], 1).await;
    assert_eq!(*only.groups.failure().borrow(), None);
    only.stop().await;
}

/// Purges as soon as it may.
fn eager(dir: &Path, number: u64) -> GroupsConfig {
    let mut config = config(dir, number);
    config.upkeep =
        UpkeepConfig { persist_bytes: 1, persist_interval: Duration::from_millis(1), retain_bytes: 64 << 10 };
    config
}

/// Commits 8 KiB for each number; a few hundred are more than one stride of log offsets, so that something can be purged.
async fn fill(leader: &Node, numbers: std::ops::Range<u64>) {
    let name = "x".repeat(8 << 10);
    for number in numbers {
        let account = Account {
            id: account_id(number).to_wire(),
            name: format!("{name}-{number}"),
            ..Account::default()
        };
        let op = command::Op::CreateAccount(CreateAccount { account: Some(account) });
        let outcomes = leader.groups.propose(GROUP, vec![request(number, op, &leader.groups)]).await.unwrap();
        assert_eq!(outcomes[0].refusal(), Refusal::None, "{:?}", outcomes[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_voter_does_not_hold_the_log() {
    let dirs = dirs();
    let addresses = Arc::new(AddressBook::new());
    let first = Node::start(eager(dirs[0].path(), 1), &addresses).await;
    let second = Node::start(eager(dirs[1].path(), 2), &addresses).await;
    let third = Node::start(eager(dirs[2].path(), 3), &addresses).await;
    init(&first).await;
    set_members(&first, [1, 2, 3], []).await;
    propose(&[&first], 5000).await;
    equal_digests(&[&first, &second, &third]).await;
    third.kill().await;
    for round in 0..4 {
        let before = first.groups.status()[0].purged;
        fill(&first, round * 300..(round + 1) * 300).await;
        wait("the log is purged", || first.groups.status()[0].purged > before).await;
    }
    assert!(first.groups.is_leader(GROUP));
    // It comes back behind what was purged.
    let third = Node::start(eager(dirs[2].path(), 3), &addresses).await;
    equal_digests(&[&first, &second, &third]).await;
    for node in [first, second, third] {
        assert_eq!(*node.groups.failure().borrow(), None);
        node.stop().await;
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// As after a virtual machine was set back to an older image: it counts up to the incarnation that its peers know.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_from_a_node_that_went_back_in_time() {
    let dirs = dirs();
    let image = tempfile::tempdir().unwrap();
    let addresses = Arc::new(AddressBook::new());
    let living =
        |dir: &Path, number, incarnation, life| GroupsConfig { incarnation, life, ..config(dir, number) };
    let first = Node::start(living(dirs[0].path(), 1, 1, 101), &addresses).await;
    let second = Node::start(living(dirs[1].path(), 2, 1, 201), &addresses).await;
    let third = Node::start(living(dirs[2].path(), 3, 1, 301), &addresses).await;
    init(&first).await;
    set_members(&first, [1, 2, 3], []).await;
    propose(&[&first], 0).await;
    equal_digests(&[&first, &second, &third]).await;
    third.kill().await;
    copy(dirs[2].path(), image.path());

    let third = Node::start(living(dirs[2].path(), 3, 2, 302), &addresses).await;
    for number in 1..20 {
        propose(&[&first], number).await;
    }
    equal_digests(&[&first, &second, &third]).await;
    third.kill().await;

    let third = Node::start(living(image.path(), 3, 2, 303), &addresses).await;
    for number in 20..40 {
        propose(&[&first, &second], number).await;
    }
    equal_digests(&[&first, &second]).await;
    let refused = first.groups.peer(node(3)).client().await;
    assert!(refused.is_err_and(|error| error.to_string().contains("another life")));
    assert!(third.groups.status()[0].applied < first.groups.status()[0].applied - 20);
    for node in [first, second, third] {
        assert_eq!(*node.groups.failure().borrow(), None);
        node.kill().await;
    }
}

/// Passes bytes on after a delay, in order.
async fn delayed(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, ms: Arc<AtomicU64>) {
    let (queue, mut due) = tokio::sync::mpsc::unbounded_channel();
    let reading = async move {
        let mut chunk = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut chunk).await {
            let at = tokio::time::Instant::now() + Duration::from_millis(ms.load(Ordering::Relaxed));
            queue.send((at, chunk[..len].to_vec())).unwrap();
        }
    };
    let writing = async move {
        while let Some((at, chunk)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// A way to `node` on which everything takes as many milliseconds as the answer says.
async fn far_away(addresses: &AddressBook, node: NodeId) -> Arc<AtomicU64> {
    let (listener, to) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), addresses.get(node).unwrap());
    addresses.set(node, listener.local_addr().unwrap().to_string());
    let ms = Arc::new(AtomicU64::new(0));
    let delay = Arc::clone(&ms);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = tokio::net::TcpStream::connect(&to).await.unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(delayed(near_in, far_out, Arc::clone(&delay)));
            tokio::spawn(delayed(far_in, near_out, Arc::clone(&delay)));
        }
    });
    ms
}

/// One that answers late is sent less than is written, and does not hold the log for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_voter_does_not_hold_the_log() {
    let dirs = dirs();
    let addresses = Arc::new(AddressBook::new());
    let first = Node::start(eager(dirs[0].path(), 1), &addresses).await;
    let second = Node::start(eager(dirs[1].path(), 2), &addresses).await;
    let third = Node::start(eager(dirs[2].path(), 3), &addresses).await;
    let delay_ms = far_away(&addresses, node(3)).await;
    init(&first).await;
    set_members(&first, [1, 2, 3], []).await;
    propose(&[&first], 1 << 20).await;
    equal_digests(&[&first, &second, &third]).await;
    delay_ms.store(1_200, Ordering::Relaxed);
    let busy = async {
        for round in 0.. {
            let together = (0..32).map(|part| round * 320 + part * 10).map(|at| fill(&first, at..at + 10));
            futures::future::join_all(together).await;
        }
    };
    let group = first.groups.group(GROUP).unwrap();
    let bounded = async {
        for _ in 0..3 {
            let before = first.groups.status()[0].purged;
            wait("the log is purged under load", || first.groups.status()[0].purged > before).await;
        }
        wait("little of it is kept", || group.log().retained() < 16 << 20).await;
    };
    tokio::select! {
        () = bounded => {}
        () = busy => {}
    }
    drop(group);
    delay_ms.store(0, Ordering::Relaxed);
    equal_digests(&[&first, &second, &third]).await;
    for node in [first, second, third] {
        assert_eq!(*node.groups.failure().borrow(), None);
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_library_ends_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let only = Node::start(config(dir.path(), 1), &Arc::new(AddressBook::new())).await;
    init(&only).await;
    let mut failure = only.groups.failure();
    let _ = only.groups.group(GROUP).unwrap().raft().with_raft_state(|_| panic!("as a bug would")).await;
    let failed = failure.wait_for(Option::is_some);
    let failed = tokio::time::timeout(DEADLINE, failed).await.expect("it is noticed").unwrap().clone();
    assert!(failed.is_some_and(|reason| reason.contains("stopped")));
    only.cancel.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_behind_the_purged_log_catches_up_through_a_snapshot() {
    let dirs = dirs();
    let addresses = Arc::new(AddressBook::new());
    let first = Node::start(eager(dirs[0].path(), 1), &addresses).await;
    init(&first).await;
    fill(&first, 0..400).await;
    wait("the log is purged", || first.groups.status()[0].purged > 0).await;

    let second = Node::start(eager(dirs[1].path(), 2), &addresses).await;
    set_members(&first, [1], [2]).await;
    wait("the learner applies", || second.groups.hosted() == [GROUP]).await;
    equal_digests(&[&first, &second]).await;
    let before = digest(&second.groups);
    second.kill().await;

    // What was installed is durable, and the group goes on from it.
    let second = Node::start(eager(dirs[1].path(), 2), &addresses).await;
    assert_eq!(digest(&second.groups).1, before.1);
    for number in 1000..1010 {
        propose(&[&first], number).await;
    }
    equal_digests(&[&first, &second]).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_is_handed_over() {
    let dirs = dirs();
    let (_, [first, second, third]) = three(&dirs).await;
    propose(&[&first], 1).await;
    first.groups.transfer_leader(GROUP, node(2)).await.unwrap();
    wait("the new leader knows", || second.groups.is_leader(GROUP)).await;
    propose(&[&second], 2).await;
    let fault = second.groups.transfer_leader(GROUP, node(9)).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Invalid);
    // A leader that stops hands over first: the others need no election timeout.
    second.stop().await;
    wait("somebody leads", || first.groups.is_leader(GROUP) || third.groups.is_leader(GROUP)).await;
    propose(&[&first, &third], 3).await;
    first.stop().await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_is_handed_over_under_load() {
    let dirs = dirs();
    let addresses = Arc::new(AddressBook::new());
    // Without a hand-over nobody would lead in time.
    let patient = |number: u64| {
        let mut config = config(dirs[number as usize - 1].path(), number);
        config.election = (DEADLINE * 2, DEADLINE * 4);
        config
    };
    let first = Node::start(patient(1), &addresses).await;
    let second = Node::start(patient(2), &addresses).await;
    let third = Node::start(patient(3), &addresses).await;
    init(&first).await;
    set_members(&first, [1, 2, 3], []).await;
    let (done, mut load) = (Arc::new(AtomicU64::new(0)), tokio::task::JoinSet::new());
    for worker in 0..16 {
        let (groups, done) = (Arc::clone(&first.groups), Arc::clone(&done));
        load.spawn(async move {
            for number in 0.. {
                let command = create_account(worker << 32 | number, &groups);
                if groups.propose(GROUP, vec![command]).await.is_err() {
                    return;
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    wait("the load runs", || done.load(Ordering::Relaxed) > 100).await;
    first.groups.shutdown().await;
    wait("somebody leads", || second.groups.is_leader(GROUP) || third.groups.is_leader(GROUP)).await;
    while load.join_next().await.is_some() {}
    first.stop().await;
    propose(&[&second, &third], 1 << 50).await;
    second.stop().await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_neither_stamps_nor_tells_the_time() {
    const OFF_MS: i64 = 3_600_000;
    let dirs = dirs();
    let addresses = Arc::new(AddressBook::new());
    let (moved, env) = moved_env();
    let first = Node::start_in(config(dirs[0].path(), 1), &addresses, env).await;
    let second = Node::start(config(dirs[1].path(), 2), &addresses).await;
    let third = Node::start(config(dirs[2].path(), 3), &addresses).await;
    init(&first).await;
    set_members(&first, [1, 2, 3], []).await;
    let nodes = [&first, &second, &third];
    for number in 0..5 {
        propose(&nodes, number).await;
    }
    wait("both peers were heard", || {
        first.groups.clock().peers().is_near_median(node(2))
            && first.groups.clock().peers().is_near_median(node(3))
    })
    .await;
    moved.0.store(OFF_MS, Ordering::Relaxed);
    match first.groups.propose(GROUP, vec![create_account(5, &second.groups)]).await {
        // It may have handed over already.
        Err(fault) => assert!(matches!(fault.kind, FaultKind::ClockOff | FaultKind::NotLeader), "{fault}"),
        Ok(_) => panic!("a clock that is off has stamped"),
    }
    wait("another leads", || second.groups.is_leader(GROUP) || third.groups.is_leader(GROUP)).await;
    for number in 5..10 {
        propose(&nodes, number).await;
    }
    for node in nodes {
        let ahead = node.groups.hlc().ms().saturating_sub(Env::real().now_ms());
        assert!(ahead < 10_000, "{ahead} ms ahead are told");
        assert!(node.groups.group(GROUP).unwrap().state().hlc().ms() < Env::real().now_ms() + 1_000);
    }

    // Started again, it tells nobody the time before it has heard what time it is.
    first.kill().await;
    let (moved, env) = moved_env();
    moved.0.store(OFF_MS, Ordering::Relaxed);
    let first = Node::start_in(config(dirs[0].path(), 1), &addresses, env).await;
    for _ in 0..100 {
        let ahead = first.groups.hlc().ms().saturating_sub(Env::real().now_ms());
        assert!(ahead < 10_000, "{ahead} ms ahead are told");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    propose(&[&first, &second, &third], 10).await;
    for node in [first, second, third] {
        assert_eq!(*node.groups.failure().borrow(), None);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_attempt_ahead_of_the_group_may_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let only = Node::start(config(dir.path(), 1), &Arc::new(AddressBook::new())).await;
    init(&only).await;
    let ahead = holdfast_proto::hlc::Hlc::from_ms(only.groups.env().now_ms() + 600_000).get();
    let command = Command { first_attempt_hlc: ahead, ..create_account(1, &only.groups) };
    let fault = only.groups.propose(GROUP, vec![command]).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::ClockOff);
    assert!(fault.is_retryable());
    propose(&[&only], 1).await;
    only.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let dirs = dirs();
    let (_, [first, second, third]) = three(&dirs).await;
    set_members(&first, [1, 2], [3]).await;
    propose(&[&first, &second], 1).await;
    set_members(&first, [1], []).await;
    second.stop().await;
    third.stop().await;
    // Alone, it still has a majority.
    propose(&[&first], 2).await;
    assert!(read(&[&first], 2).await);
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let dirs = dirs();
    let addresses = Arc::new(AddressBook::new());
    let first = Node::start(config(dirs[0].path(), 1), &addresses).await;
    init(&first).await;
    let hello = |realm: RealmId, incarnation, target: NodeId| holdfast_proto::raft::PeerHello {
        realm: realm.to_wire(),
        sender: node(2).get(),
        incarnation,
        target: target.get(),
        life: 0,
    };
    let admit = async |hello| first.groups.admit(&hello).await.map(drop).map_err(|fault| fault.kind);
    assert_eq!(admit(hello(RealmId::from_bytes([8; 16]), 1, node(1))).await, Err(FaultKind::Foreign));
    assert_eq!(admit(hello(realm(), 1, node(3))).await, Err(FaultKind::NotHere));
    assert_eq!(admit(hello(realm(), 2, node(1))).await, Ok(()));
    assert_eq!(admit(hello(realm(), 1, node(1))).await, Err(FaultKind::StaleEpoch));

    // Two copies of one directory count alike and are not the same.
    let of_life = |incarnation, life| {
        let hello = hello(realm(), incarnation, node(1));
        holdfast_proto::raft::PeerHello { life, sender: node(9).get(), ..hello }
    };
    assert_eq!(admit(of_life(4, 0)).await, Ok(()), "of a version that does not tell");
    assert_eq!(admit(of_life(4, 11)).await, Ok(()));
    assert_eq!(admit(of_life(4, 11)).await, Ok(()));
    assert_eq!(admit(of_life(4, 12)).await, Err(FaultKind::StaleEpoch));
    assert_eq!(admit(of_life(5, 12)).await, Ok(()));

    // A whole node of another realm: its leader's messages make no group here.
    let mut foreign = config(dirs[1].path(), 2);
    foreign.realm = RealmId::from_bytes([8; 16]);
    foreign.incarnation = 3;
    let second = Node::start(foreign, &addresses).await;
    let zone = GroupId::zone_group(ZoneId::new(1));
    second.groups.bootstrap(zone).await.unwrap();
    let peer = second.groups.peer(node(1));
    let refused =
        peer.send(zone.get(), holdfast_proto::raft::peer_request::Message::Append(Default::default())).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("another realm")));
    assert_eq!(first.groups.hosted(), [GROUP]);

    // What it saw survives a restart.
    first.kill().await;
    let first = Node::start(config(dirs[0].path(), 1), &addresses).await;
    let stale = first.groups.admit(&hello(realm(), 1, node(1))).await.map(drop).map_err(|fault| fault.kind);
    assert_eq!(stale, Err(FaultKind::StaleEpoch));
    let copied = first.groups.admit(&of_life(5, 11)).await.map(drop).map_err(|fault| fault.kind);
    assert_eq!(copied, Err(FaultKind::StaleEpoch));
    first.stop().await;
    second.stop().await;
}
