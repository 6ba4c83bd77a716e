//! What the targets of a zone hold, stripe by stripe: one walk over all their lists at once, in the order of shard ids.
//!
//! Each list is a page long in memory. Lists are no snapshots: a shard that is stored or deleted while the walk goes on may be
//! seen or not, so whoever acts on a stripe asks again first.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_proto::data::{ListShardsDone, StoredShard};
use holdfast_proto::id::{ShardId, WriteId};
use holdfast_proto::meta::ClusterMap;

use super::super::reach::Reach;

/// Shards in one page of one target's list.
const PAGE: u32 = 4000;

/// A shard somewhere.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    pub(super) target: u32,
    pub(super) index: u8,
    pub(super) stored: StoredShard,
}

/// All that was found of one stripe.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stripe {
    pub(super) write: WriteId,
    pub(super) number: u32,
    pub(super) shards: Vec<Held>,
}

/// One target's list.
#[derive(Debug)]
struct List {
    target: u32,
    rows: VecDeque<(ShardId, StoredShard)>,
    after: Bytes,
    more: bool,
}

/// The walk.
#[derive(Debug)]
pub(super) struct Inventory {
    lists: Vec<List>,
    /// Targets whose list broke off: of what they hold beyond that nothing is known.
    pub(super) broken: Vec<u32>,
}

impl Inventory {
    pub(super) fn over(targets: impl IntoIterator<Item = u32>) -> Self {
        let list = |target| List { target, rows: VecDeque::new(), after: Bytes::new(), more: true };
        Self { lists: targets.into_iter().map(list).collect(), broken: Vec::new() }
    }

    /// The next stripe; `None` at the end. A target that does not answer is left out from there on.
    pub(super) async fn next(&mut self, reach: &mut Reach, map: &ClusterMap) -> Option<Stripe> {
        self.fill(reach, map).await;
        let heads = self.lists.iter().filter_map(|list| list.rows.front());
        let (write, number) = heads.map(|(id, _)| (id.write, id.stripe)).min()?;
        let mut shards = Vec::new();
        for list in &mut self.lists {
            while list.rows.front().is_some_and(|(id, _)| (id.write, id.stripe) == (write, number)) {
                if let Some((id, stored)) = list.rows.pop_front() {
                    shards.push(Held { target: list.target, index: id.index, stored });
                }
                if list.rows.is_empty() && list.more {
                    // The rest of the stripe is on the next page, if there is more of it: a page ends anywhere.
                    list.fill(reach, map).await.unwrap_or_else(|error| {
                        tracing::debug!(target_id = list.target, %error, "a list of shards broke off");
                        list.more = false;
                        self.broken.push(list.target);
                    });
                }
            }
        }
        Some(Stripe { write, number, shards })
    }

    /// Sees to it that every list that goes on has a row.
    async fn fill(&mut self, reach: &mut Reach, map: &ClusterMap) {
        let mut asked = Vec::new();
        for (at, list) in self.lists.iter().enumerate().filter(|(_, list)| list.rows.is_empty() && list.more)
        {
            asked.push((at, reach.list(map, list.target, list.after.clone(), PAGE)));
        }
        if asked.is_empty() {
            return;
        }
        let (places, calls): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        for (at, page) in places.into_iter().zip(join_all(calls).await) {
            let list = &mut self.lists[at];
            if let Err(error) = page.and_then(|page| list.take(page)) {
                tracing::debug!(target_id = list.target, %error, "a list of shards broke off");
                list.more = false;
                self.broken.push(list.target);
            }
        }
        // Pages of nothing but deleted shards.
        let empty = |list: &List| list.rows.is_empty() && list.more;
        if self.lists.iter().any(empty) {
            Box::pin(self.fill(reach, map)).await;
        }
    }
}

impl List {
    async fn fill(&mut self, reach: &mut Reach, map: &ClusterMap) -> anyhow::Result<()> {
        while self.rows.is_empty() && self.more {
            let page = reach.list(map, self.target, self.after.clone(), PAGE).await?;
            self.take(page)?;
        }
        Ok(())
    }

    fn take(&mut self, page: ListShardsDone) -> anyhow::Result<()> {
        anyhow::ensure!(
            !page.more || page.last > self.after,
            "target {} goes round in its list",
            self.target
        );
        for stored in page.shards {
            self.rows.push_back((ShardId::from_slice(&stored.shard)?, stored));
        }
        (self.after, self.more) = (page.last, page.more);
        Ok(())
    }
}
