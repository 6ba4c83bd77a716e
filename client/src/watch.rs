//! Follows the zone: one watch stream from some meta node, from another as soon as that one is silent.
//!
//! What a crash leaves: nothing; the view is memory.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::meta::meta_client::MetaClient;
use holdfast_proto::meta::{WatchEvent, WatchRequest};
use tonic::transport::Channel;

use crate::channel::{Traffic, lazy};
use crate::cluster::Inner;
use crate::error::Error;
use crate::retry::Backoff;

/// A watched node beats every 300 ms; one that is silent this long is left for another.
const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// A map of thousands of targets and placement groups.
const EVENT_BYTES_MAX: usize = 64 << 20;

/// Watches until the client is cancelled.
pub(crate) async fn follow(inner: Arc<Inner>) {
    let cancel = inner.cancel.clone();
    tokio::select! {
        () = cancel.cancelled() => {}
        () = follow_for_ever(&inner) => {}
    }
}

async fn follow_for_ever(inner: &Inner) {
    let mut turn: usize = rand::random::<u8>().into();
    loop {
        // A year is "for ever" in an arithmetic that cannot overflow.
        let mut backoff = Backoff::until(tokio::time::Instant::now() + Duration::from_secs(365 * 24 * 3600));
        loop {
            turn = turn.wrapping_add(1);
            let mut heard = false;
            let addrs = addresses(inner);
            let addr = &addrs[turn % addrs.len()];
            if let Err(error) = follow_one(inner, addr, &mut heard).await {
                tracing::debug!(%addr, %error, "watch ended");
            }
            if heard {
                break;
            }
            if !backoff.wait(0).await {
                break;
            }
        }
    }
}

/// Meta nodes of the map, then the seeds.
fn addresses(inner: &Inner) -> Vec<String> {
    let mut addrs: Vec<String> = Vec::new();
    if let Some(map) = inner.view.map() {
        addrs.extend(map.meta_nodes().iter().filter_map(|id| map.node(*id)).map(|node| node.addr.clone()));
    }
    for seed in &inner.config.seeds {
        if !addrs.contains(seed) {
            addrs.push(seed.clone());
        }
    }
    addrs
}

async fn follow_one(inner: &Inner, addr: &str, heard: &mut bool) -> Result<(), Error> {
    // A connection of its own: a watch that ends tells of the peer's death even while calls to it hang.
    let mut client: MetaClient<Channel> =
        MetaClient::new(lazy(addr, Traffic::Meta)?).max_decoding_message_size(EVENT_BYTES_MAX);
    let have_generation = inner.view.map().map_or(0, |map| map.generation());
    let silent = |_| Error::unavailable("silent");
    let refused = |status: tonic::Status| Error::unavailable(status.to_string());
    let call = client.watch(WatchRequest { have_generation });
    let mut events =
        tokio::time::timeout(SILENCE_MAX, call).await.map_err(silent)?.map_err(refused)?.into_inner();
    loop {
        let Some(event) =
            tokio::time::timeout(SILENCE_MAX, events.message()).await.map_err(silent)?.map_err(refused)?
        else {
            return Ok(());
        };
        check_origin(inner, &event)?;
        let had = inner.view.map().map(|map| map.generation());
        inner.view.absorb(event)?;
        *heard = true;
        if let Some(map) = inner.view.map().filter(|map| had != Some(map.generation())) {
            tracing::debug!(generation = map.generation(), "new map");
            inner.channels.retain(|node| map.node(node).is_some());
        }
    }
}

fn check_origin(inner: &Inner, event: &WatchEvent) -> Result<(), Error> {
    let Some(map) = &event.map else { return Ok(()) };
    if let Some(realm) = inner.config.realm
        && map.realm.as_ref() != realm.as_bytes()
    {
        return Err(Error::internal("the meta node belongs to another realm"));
    }
    if let Some(zone) = inner.config.local_zone
        && map.zone != u32::from(zone.get())
    {
        return Err(Error::internal("the meta node belongs to another zone"));
    }
    Ok(())
}
