//! Which life of each other node is known here, durably: its incarnation, which rises with every start, and a random
//! number of that start. A node whose directory went back in time comes with a lower incarnation, or with an equal one
//! and another number: nothing is taken from it, for it may vote twice and has lost what it acknowledged.
//!
//! Both ends of a stream show their life: who connects in its first request, who answers in the head of the reply.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_machine::kv::KvError;
use holdfast_proto::error::Fault;
use holdfast_proto::id::{NodeId, RealmId};
use holdfast_proto::raft::{PeerHello, PeerSeen};
use holdfast_proto::v1::FaultKind;
use parking_lot::Mutex;

use super::kv::Store;

/// Key of the encoded [`PeerHello`] in the head of a stream's reply.
pub(super) const HELLO: &str = "holdfast-hello-bin";

/// Seen of a node that was given up when its group went on without it: no life of it is higher.
pub(super) const GIVEN_UP: u64 = u64::MAX;

/// Who this node is to the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) realm: RealmId,
    pub(super) node: NodeId,
    pub(super) incarnation: u64,
    /// Random with each incarnation; 0: not told.
    pub(super) life: u64,
}

impl Identity {
    pub(super) fn hello(&self, target: NodeId) -> PeerHello {
        PeerHello {
            realm: self.realm.to_wire(),
            sender: self.node.get(),
            incarnation: self.incarnation,
            life: self.life,
            target: target.get(),
        }
    }
}

/// The newest life seen of a node.
#[derive(Debug)]
struct Seen {
    /// Its incarnation, shared with the streams that are open.
    highest: Arc<AtomicU64>,
    /// 0: it did not tell.
    life: u64,
}

impl Seen {
    fn new(seen: &PeerSeen) -> Self {
        Self { highest: Arc::new(AtomicU64::new(seen.incarnation)), life: seen.life }
    }
}

/// The lives of the other nodes.
#[derive(Debug)]
pub(super) struct Lives {
    own: Identity,
    store: Store,
    seen: Mutex<HashMap<NodeId, Seen>>,
}

impl Lives {
    /// What was seen before. Blocks.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn open(own: Identity, store: Store) -> Result<Self, KvError> {
        let seen = store.incarnations()?.into_iter().map(|(node, seen)| (node, Seen::new(&seen))).collect();
        Ok(Self { own, store, seen: Mutex::new(seen) })
    }

    pub(super) fn own(&self) -> &Identity {
        &self.own
    }

    /// Checks who speaks, and answers where the highest incarnation seen of it is kept.
    ///
    /// # Errors
    /// `Foreign`, `NotHere`, `StaleEpoch`; `FaultUnavailable` when the store fails.
    pub(super) async fn admit(&self, hello: &PeerHello) -> Result<Arc<AtomicU64>, Fault> {
        if RealmId::from_wire(&hello.realm) != Ok(self.own.realm) {
            return Err(Fault::new(FaultKind::Foreign, "this node belongs to another realm"));
        }
        if hello.target != self.own.node.get() {
            let message = format!("this is node {}, not {}", self.own.node, NodeId::new(hello.target));
            return Err(Fault::new(FaultKind::NotHere, message));
        }
        let sender = NodeId::new(hello.sender);
        let (highest, is_news) = self.take(sender, hello)?;
        if is_news {
            let (store, incarnation, life) = (self.store.clone(), hello.incarnation, hello.life);
            let saving = move || store.saw_incarnation(sender, incarnation, life);
            let saved = tokio::task::spawn_blocking(saving).await;
            let unavailable =
                |error: &dyn std::fmt::Display| Fault::new(FaultKind::FaultUnavailable, error.to_string());
            saved.map_err(|error| unavailable(&error))?.map_err(|error| unavailable(&error))?;
        }
        Ok(highest)
    }

    fn take(&self, sender: NodeId, hello: &PeerHello) -> Result<(Arc<AtomicU64>, bool), Fault> {
        let stale = |message: String| Err(Fault::new(FaultKind::StaleEpoch, message));
        let mut seen = self.seen.lock();
        let seen = seen.entry(sender).or_insert_with(|| Seen::new(&PeerSeen::default()));
        let before = seen.highest.load(Ordering::Acquire);
        if before == GIVEN_UP {
            return stale(format!(
                "node {sender} was given up when the zone was recovered: give it a new data_dir, so that it joins under a \
                 new id"
            ));
        }
        if before > hello.incarnation {
            let message =
                format!("incarnation {before} of node {sender} is known here, not {}", hello.incarnation);
            return stale(message);
        }
        let untold = seen.life == 0 || hello.life == 0;
        if before == hello.incarnation && !untold && seen.life != hello.life {
            return stale(format!(
                "incarnation {before} of node {sender} is known here in another life: its directory was copied or went \
                 back in time"
            ));
        }
        let is_news = before < hello.incarnation || (seen.life == 0 && hello.life != 0);
        if is_news {
            seen.life = hello.life;
            seen.highest.store(hello.incarnation, Ordering::Release);
        }
        Ok((Arc::clone(&seen.highest), is_news))
    }
}
