//! The zone's map as this meta node has applied it, for everything in the node that follows it.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::id::{GroupId, NodeId};
use holdfast_proto::meta::{ClusterMap, GetMap, Query, answer, query};
use tokio::sync::watch;

use crate::meta::{AddressBook, Groups};
use crate::node::contact::Contact;

const NOT_HOSTED_PAUSE: Duration = Duration::from_millis(100);

/// Cheap to clone; all clones see the same map.
#[derive(Debug, Clone)]
pub(crate) struct MapFeed {
    maps: Arc<watch::Sender<Option<Arc<ClusterMap>>>>,
}

impl MapFeed {
    /// A feed that begins with `first`, where the node was told one when it joined.
    pub(crate) fn new(first: Option<ClusterMap>) -> Self {
        Self { maps: Arc::new(watch::Sender::new(first.map(Arc::new))) }
    }

    /// The newest map; `None` before there is one.
    pub(crate) fn current(&self) -> Option<Arc<ClusterMap>> {
        self.maps.borrow().clone()
    }

    /// Follows the maps.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<ClusterMap>>> {
        self.maps.subscribe()
    }

    /// Takes in a map; older ones are ignored.
    pub(crate) fn offer(&self, map: ClusterMap) {
        self.maps.send_if_modified(|have| {
            let newer = have.as_ref().is_none_or(|have| have.generation < map.generation);
            if newer {
                *have = Some(Arc::new(map));
            }
            newer
        });
    }

    /// Keeps the feed, the address book and the contact up to date with the zone group until the node stops.
    ///
    /// # Errors
    /// When the zone group can no longer be read.
    pub(crate) async fn follow(
        self,
        groups: Arc<Groups>,
        zone_group: GroupId,
        addresses: Arc<AddressBook>,
        contact: Arc<Contact>,
    ) -> anyhow::Result<()> {
        loop {
            // The group comes to this node with its leader's first call.
            let Some(mut applied) = groups.applied(zone_group) else {
                tokio::time::sleep(NOT_HOSTED_PAUSE).await;
                continue;
            };
            loop {
                applied.borrow_and_update();
                let have_generation = self.current().map_or(0, |map| map.generation);
                let get = Query { of: Some(query::Of::GetMap(GetMap { have_generation })) };
                if let Ok(answer) = groups.read_local(zone_group, &get)
                    && let Some(answer::Ok::Map(map)) = answer.ok
                {
                    remember(&map, &addresses, &contact);
                    self.offer(map);
                }
                if applied.changed().await.is_err() {
                    break;
                }
            }
        }
    }
}

/// Takes the addresses of a map into what the groups and this node's own calls use.
pub(crate) fn remember(map: &ClusterMap, addresses: &AddressBook, contact: &Contact) {
    for node in &map.nodes {
        addresses.set(NodeId::new(node.id), node.addr.clone());
    }
    contact.learn(map);
}
