//! Starts, runs and stops one node.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use holdfast_client::{ClientConfig, Cluster};
use holdfast_proto::admin::admin_server::AdminServer;
use holdfast_proto::id::{GroupId, TargetId};
use holdfast_proto::limits::{H2_FRAME_BYTES, H2_WINDOW_BYTES};
use holdfast_proto::meta::membership_server::MembershipServer;
use holdfast_proto::meta::meta_server::MetaServer;
use holdfast_proto::meta::{ClusterMap, Target};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::contact::Contact;
use super::directory::{Identity, NodeDirectory};
use super::heartbeat::{self, Beat, OpenTargets};
use super::map_feed::{self, MapFeed};
use super::readiness::Conditions;
use super::roles::{self, Opened};
use crate::config::Config;
use crate::data::ShardService;
use crate::data::compact::{self, CompactConfig};
use crate::data::scrub::{self, ScrubConfig};
use crate::env::Env;
use crate::formation::join::{self, SelfDescription};
use crate::formation::{found, levels, members};
use crate::meta::{AddressBook, Groups};
use crate::placement::keeper;
use crate::service::admin::AdminService;
use crate::service::http::{self, AdminHttp};
use crate::service::incoming::{Bound, advertised, bind, connections};
use crate::service::membership::MembershipService;
use crate::service::meta::MetaService;
use crate::service::zone_head::ZoneHead;
use crate::supervisor::Supervisor;
use crate::telemetry;
use crate::worker;

const FRONT_PATIENCE: Duration = Duration::from_secs(40);
const BASE_PATIENCE: Duration = Duration::from_secs(5);
const H2_KEEP_ALIVE: Duration = Duration::from_secs(10);
const H2_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams of one peer at a time; a gateway at full load has a few hundred shards in flight.
const H2_STREAMS_MAX: u32 = 4096;
/// Between two attempts of a node that the zone does not know any more.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
const RECONNECT: Duration = Duration::from_millis(500);

/// A node that has started. Dropped without [`Self::run`] it leaves what a killed process leaves.
#[derive(Debug)]
pub(crate) struct NodeRuntime {
    identity: Identity,
    directory: Arc<NodeDirectory>,
    env: Env,
    config: Config,
    place: SelfDescription,
    contact: Arc<Contact>,
    conditions: Conditions,
    cluster: watch::Sender<Option<Cluster>>,
    /// Gateway, workers: what stops first.
    front: Supervisor,
    /// Listener, map: what the groups need until they have stopped.
    base: Supervisor,
    groups: Option<Arc<Groups>>,
    targets: Vec<Opened>,
    open_targets: OpenTargets,
    /// What this node says of itself, once it does.
    beat: Option<Beat>,
    /// Stops groups and targets at once; cancelled last.
    stores: CancellationToken,
}

impl NodeRuntime {
    /// Starts the node. Returns when it serves; it may still wait for others, see `/health/ready`. When `cancel` is
    /// cancelled while it waits to be let in, it gives up.
    ///
    /// # Errors
    /// One clear line: a directory or port in use, a zone that refuses the node, a store that does not open.
    pub(crate) async fn start(config: Config, env: Env, cancel: CancellationToken) -> anyhow::Result<Self> {
        let directory = Arc::new(NodeDirectory::open(&config.node.data_dir)?);
        let known = directory.identity_in(&config.node.zone)?;
        let grpc = bind("node.listen", &config.node.listen)?;
        let admin = bind("node.admin_listen", &config.node.admin_listen)?;
        let s3 = match &config.gateway {
            Some(gateway) => Some(bind("gateway.listen", &gateway.listen)?),
            None => None,
        };
        let place = SelfDescription {
            addr: advertised(&config.node.advertise, grpc.local_addr()?),
            admin_addr: admin.local_addr()?.to_string(),
            s3_addr: s3
                .as_ref()
                .map(|s3| s3.local_addr().map(|addr| addr.to_string()))
                .transpose()?
                .unwrap_or_default(),
        };
        let contact = Arc::new(Contact::new(config.node.seeds.clone()));
        let base = Supervisor::new(CancellationToken::new());
        let front = Supervisor::new(CancellationToken::new());
        let conditions = Conditions::default();
        conditions.need("registered", "the zone has not let this node in yet");
        serve_admin_http(admin.listen()?, &base, &front, &conditions)?;

        let joined = match known {
            Some(identity) => Ok((identity, None)),
            None => join::first_join(&config, &directory, &env, &contact, &place, &cancel)
                .await
                .map(|(identity, map)| (identity, Some(map))),
        };
        let started = match joined {
            Ok((identity, map)) => {
                let node = Self {
                    identity,
                    directory,
                    env,
                    config,
                    place,
                    contact,
                    conditions,
                    cluster: watch::Sender::new(None),
                    front: front.clone(),
                    base: base.clone(),
                    groups: None,
                    targets: Vec::new(),
                    open_targets: OpenTargets::default(),
                    beat: None,
                    stores: CancellationToken::new(),
                };
                node.assemble(grpc, s3, map).await
            }
            Err(error) => Err(error),
        };
        if started.is_err() {
            front.shutdown(BASE_PATIENCE).await;
            base.shutdown(BASE_PATIENCE).await;
        }
        started
    }

    async fn assemble(
        mut self,
        grpc: Bound,
        s3: Option<Bound>,
        map: Option<ClusterMap>,
    ) -> anyhow::Result<Self> {
        if self.config.meta.is_some() {
            self.directory.check_meta(&self.identity)?;
        }
        // Durable before the first word to anybody: an older copy of this directory is recognised by its number.
        self.identity.incarnation += 1;
        self.directory.save(&self.identity)?;
        let head = self.open_meta(map).await?;
        let shards = self.open_data().await?;
        self.serve_grpc(grpc.listen()?, head.as_ref(), shards.clone());
        if let Some(head) = &head {
            self.found(head).await?;
            self.follow_zone(head);
        }
        self.follow_cluster();
        let unknown = Arc::new(Notify::new());
        self.register(shards, unknown.clone());
        let beat = Beat {
            contact: self.contact.clone(),
            node: self.identity.node.get(),
            incarnation: self.identity.incarnation,
            feature_level: self.config.node.feature_level(),
            targets: self.open_targets.clone(),
            groups: self.groups.clone(),
            cluster: self.config.gateway.as_ref().map(|_| self.cluster.subscribe()),
            unknown,
        };
        self.beat = Some(beat.clone());
        self.front.worker("heartbeat", move |progress| heartbeat::run(beat.clone(), progress));
        if let Some(s3) = s3 {
            self.serve_s3(s3)?;
        }
        tracing::info!(
            node = %self.identity.node,
            roles = self.config.roles().join(","),
            addr = self.place.addr,
            incarnation = self.identity.incarnation,
            "node started"
        );
        Ok(self)
    }

    /// Runs until `cancel` is cancelled or the node cannot go on, then stops it in order.
    ///
    /// # Errors
    /// Why the node could not go on.
    pub(crate) async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let groups_failure = async {
            if let Some(groups) = &self.groups {
                let mut failure = groups.failure();
                let reason = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
                if let Some(reason) = reason {
                    return reason;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = self.front.cancel().cancelled() => {}
            () = self.base.cancel().cancelled() => {}
            reason = groups_failure => self.base.fail(reason),
        }
        self.stop().await
    }

    async fn stop(self) -> anyhow::Result<()> {
        let node = self.identity.node;
        tracing::debug!(%node, "node stops");
        self.front.shutdown(FRONT_PATIENCE).await;
        if let Some(beat) = &self.beat {
            beat.last().await;
        }
        let cluster = self.cluster.send_replace(None);
        if let Some(cluster) = cluster {
            cluster.shutdown().await;
        }
        if let Some(groups) = &self.groups {
            groups.shutdown().await;
        }
        self.base.shutdown(BASE_PATIENCE).await;
        self.open_targets.write().clear();
        for opened in &self.targets {
            opened.target.shutdown().await;
        }
        self.stores.cancel();
        match self.front.failure().or_else(|| self.base.failure()) {
            Some(reason) => Err(anyhow::anyhow!("node {node}: {reason}")),
            None => {
                tracing::info!(%node, "node stopped");
                Ok(())
            }
        }
    }

    async fn open_meta(&mut self, map: Option<ClusterMap>) -> anyhow::Result<Option<Arc<ZoneHead>>> {
        let Some(meta) = self.config.meta.clone() else {
            if let Some(map) = &map {
                self.contact.learn(map);
            }
            return Ok(None);
        };
        let addresses = Arc::new(AddressBook::new());
        addresses.set(self.identity.node, self.place.addr.clone());
        if let Some(map) = &map {
            map_feed::remember(map, &addresses, &self.contact);
        }
        let groups = roles::open_groups(
            self.directory.meta_path(),
            &self.identity,
            &meta,
            &self.env,
            addresses.clone(),
            self.stores.child_token(),
        )
        .await?;
        self.groups = Some(groups.clone());
        if !self.identity.meta_opened {
            // Before it is served, so before the first vote.
            self.identity.meta_opened = true;
            self.directory.save(&self.identity)?;
        }
        let feed = MapFeed::new(map);
        let head = Arc::new(ZoneHead::new(
            groups.clone(),
            self.identity.clone(),
            meta,
            feed.clone(),
            self.env.clone(),
        ));
        let (contact, zone_group) = (self.contact.clone(), head.zone_group());
        self.base.worker("map", move |_| {
            feed.clone().follow(groups.clone(), zone_group, addresses.clone(), contact.clone())
        });
        Ok(Some(head))
    }

    async fn open_data(&mut self) -> anyhow::Result<Option<ShardService>> {
        let Some(data) = &self.config.data else { return Ok(None) };
        self.targets = roles::open_targets(data, &self.identity, &self.env, &self.stores).await?;
        let service = ShardService::new();
        for (place, id) in roles::known_ids(&self.identity, &self.targets) {
            let target = &self.targets[place].target;
            service.add(TargetId::new(id), target.clone());
            self.open_targets.write().insert(id, target.clone());
        }
        let config = ScrubConfig {
            every: data.scrub_every.get(),
            bytes_per_second: data.scrub_bytes_per_second.bytes(),
        };
        let compact = CompactConfig {
            below_per_cent: data.compact_below.into(),
            bytes_per_second: data.compact_bytes_per_second.bytes(),
        };
        for opened in &self.targets {
            let target = opened.target.clone();
            self.front.worker("compact", move |progress| compact::run(target.clone(), compact, progress));
            let (target, env) = (opened.target.clone(), self.env.clone());
            self.front
                .worker("scrub", move |progress| scrub::run(target.clone(), config, env.clone(), progress));
        }
        Ok(Some(service))
    }

    fn serve_grpc(&self, listener: TcpListener, head: Option<&Arc<ZoneHead>>, shards: Option<ShardService>) {
        let cancel = self.base.cancel().clone();
        let admin = AdminService {
            head: head.cloned(),
            contact: self.contact.clone(),
            cluster: self.cluster.subscribe(),
        };
        let router = tonic::transport::Server::builder()
            .initial_stream_window_size(H2_WINDOW_BYTES)
            .initial_connection_window_size(8 * H2_WINDOW_BYTES)
            .max_frame_size(H2_FRAME_BYTES)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .http2_keepalive_interval(Some(H2_KEEP_ALIVE))
            .http2_keepalive_timeout(Some(H2_KEEP_ALIVE_TIMEOUT))
            .add_service(AdminServer::new(admin))
            .add_optional_service(self.groups.as_ref().map(Groups::service))
            .add_optional_service(
                head.map(|head| MetaServer::new(MetaService { head: head.clone(), cancel: cancel.clone() })),
            )
            .add_optional_service(head.map(|head| MembershipServer::new(MembershipService(head.clone()))))
            .add_optional_service(shards.map(ShardService::into_server));
        self.base.task("gRPC listener", async move {
            router.serve_with_incoming_shutdown(connections(listener), cancel.cancelled_owned()).await
        });
    }

    /// On the node that `zone init` marked: makes the realm and the zone, once.
    async fn found(&mut self, head: &Arc<ZoneHead>) -> anyhow::Result<()> {
        let Some(founding) = self.identity.founding.clone().filter(|founding| !founding.done) else {
            return Ok(());
        };
        let node =
            join::node_row(&self.config, self.identity.node.get(), self.identity.incarnation, &self.place);
        let level = self.config.node.feature_level();
        found::found(&head.groups, &self.identity, &founding, node, head.config.partitions, level).await?;
        self.identity.founding = Some(crate::node::directory::Founding { done: true, ..founding });
        self.directory.save(&self.identity)?;
        tracing::info!(realm = %self.identity.realm, zone = self.identity.zone_name, "realm and zone made");
        Ok(())
    }

    /// What a meta node does for its zone.
    fn follow_zone(&self, head: &Arc<ZoneHead>) {
        let me = self.identity.node;
        let keeper_head = head.clone();
        self.front.worker("zone-keeper", move |progress| keeper::run(keeper_head.clone(), progress));
        let members_head = head.clone();
        self.front.worker("group-members", move |progress| {
            members::run(members_head.groups.clone(), members_head.feed.clone(), me, progress)
        });
        let garbage_head = head.clone();
        self.front.worker("garbage", move |progress| worker::garbage::run(garbage_head.clone(), progress));
        let chronicle_head = head.clone();
        self.front
            .worker("chronicle", move |progress| worker::chronicle::run(chronicle_head.clone(), progress));
        let (mend_head, cluster) = (head.clone(), self.cluster.subscribe());
        self.front.worker("mend", move |progress| {
            let (head, mut cluster) = (mend_head.clone(), cluster.clone());
            async move {
                let cluster = connected(&mut cluster).await?;
                worker::mend::run(head, cluster, progress).await
            }
        });
        let (repair_head, cluster) = (head.clone(), self.cluster.subscribe());
        self.front.worker("repair", move |progress| {
            let (head, mut cluster) = (repair_head.clone(), cluster.clone());
            async move {
                let cluster = connected(&mut cluster).await?;
                worker::repair::run(head, cluster, progress).await
            }
        });
        let (levels_head, cluster) = (head.clone(), self.cluster.subscribe());
        self.front.worker("feature-level", move |progress| {
            let (head, mut cluster) = (levels_head.clone(), cluster.clone());
            async move {
                let cluster = connected(&mut cluster).await?;
                levels::run(head, cluster, progress).await
            }
        });
        let (groups, cluster) = (head.groups.clone(), self.cluster.subscribe());
        self.front.worker("unfinished-buckets", move |progress| {
            let (groups, mut cluster) = (groups.clone(), cluster.clone());
            async move {
                let cluster = connected(&mut cluster).await?;
                worker::buckets::run(groups, cluster, progress).await
            }
        });
        let (groups, every) = (head.groups.clone(), head.config.scrub_every.get());
        self.front.worker("meta-scrub", move |progress| groups.clone().run_scrub(every, progress));
        let groups = head.groups.clone();
        self.front.worker("group-metrics", move |_| worker::group_metrics::run(groups.clone()));
        let (conditions, groups) = (self.conditions.clone(), head.groups.clone());
        conditions.need("groups", "the realm or zone group has no leader yet");
        let zone_group = GroupId::zone_group(self.identity.zone_id());
        self.front.worker("group-readiness", move |_| {
            let (conditions, groups) = (conditions.clone(), groups.clone());
            async move {
                while [GroupId::REALM, zone_group].iter().any(|group| groups.leader(*group).is_none()) {
                    tokio::time::sleep(RECONNECT).await;
                }
                conditions.met("groups");
                Ok(())
            }
        });
    }

    /// Connects to the zone as every client does.
    fn follow_cluster(&self) {
        let (contact, clusters) = (self.contact.clone(), self.cluster.clone());
        let (realm, zone) = (self.identity.realm, self.identity.zone_id());
        let own = self.config.meta.is_some().then(|| self.place.addr.clone());
        let renew_every = self.config.gateway.as_ref().map(|gateway| gateway.renew_every.get());
        let cancel = self.stores.clone();
        self.front.worker("zone-client", move |progress| {
            let (contact, clusters, cancel, own) =
                (contact.clone(), clusters.clone(), cancel.clone(), own.clone());
            async move {
                loop {
                    let seeds = own.iter().cloned().chain(contact.addresses()).collect();
                    let mut config = ClientConfig {
                        realm: Some(realm),
                        local_zone: Some(zone),
                        ..ClientConfig::new(seeds)
                    };
                    config.renew_every = renew_every.unwrap_or(config.renew_every);
                    match Cluster::connect(config, cancel.child_token()).await {
                        Ok(cluster) => {
                            contact.learn(cluster.map().raw());
                            clusters.send_replace(Some(cluster));
                            progress.well();
                            return Ok(());
                        }
                        Err(error) => {
                            progress.trouble(error);
                            tokio::time::sleep(RECONNECT).await;
                        }
                    }
                }
            }
        });
    }

    /// Tells the zone of this start, and learns the ids of targets that are new. Tells it again when it says that it does not
    /// know this node: it goes on from older metadata then.
    fn register(&self, shards: Option<ShardService>, unknown: Arc<Notify>) {
        let (config, place, contact) = (self.config.clone(), self.place.clone(), self.contact.clone());
        let (directory, conditions) = (self.directory.clone(), self.conditions.clone());
        let (targets, open_targets) = (self.targets.clone(), self.open_targets.clone());
        let mut identity = self.identity.clone();
        if config.meta.is_some() {
            contact.add_seed(place.addr.clone());
        }
        let cancel = self.front.cancel().clone();
        self.front.task("registration", async move {
            let node = identity.node.get();
            let row = join::node_row(&config, node, identity.incarnation, &place);
            let known = roles::known_ids(&identity, &targets);
            let rows: Vec<_> = targets
                .iter()
                .enumerate()
                .map(|(place, target)| target.row(known.get(&place).copied().unwrap_or(0), node))
                .collect();
            let level = config.node.feature_level();
            let told = join::register(&contact, &identity, row.clone(), rows.clone(), level, &cancel).await;
            let answer = match told {
                Ok(answer) => answer,
                Err(_) if cancel.is_cancelled() => return Ok(()),
                Err(error) => return Err(error),
            };
            if answer.targets.len() != targets.len() {
                anyhow::bail!("{} targets were registered as {}", targets.len(), answer.targets.len());
            }
            for (opened, id) in targets.iter().zip(&answer.targets) {
                identity.targets.insert(opened.uuid_text(), *id);
            }
            // Durable before the first shard is taken: after a restart the targets are served without asking.
            directory.save(&identity)?;
            for (opened, id) in targets.iter().zip(&answer.targets) {
                if let Some(service) = &shards {
                    service.add(TargetId::new(*id), opened.target.clone());
                }
                open_targets.write().insert(*id, opened.target.clone());
            }
            if let Some(map) = &answer.map {
                contact.learn(map);
            }
            conditions.met("registered");
            let ids = answer.targets;
            let rows: Vec<_> =
                rows.into_iter().zip(&ids).map(|(row, id)| Target { id: *id, ..row }).collect();
            // A beat that was sent before is answered after.
            unknown.notified().now_or_never();
            loop {
                tokio::select! {
                    () = unknown.notified() => {}
                    () = cancel.cancelled() => return Ok(()),
                }
                match join::register(&contact, &identity, row.clone(), rows.clone(), level, &cancel).await {
                    Ok(_) => tracing::info!("the zone knows this node again"),
                    Err(_) if cancel.is_cancelled() => return Ok(()),
                    Err(error) => {
                        tracing::error!(%error, "the zone does not know this node and refuses it");
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                }
            }
        });
    }

    fn serve_s3(&self, socket: Bound) -> anyhow::Result<()> {
        let Some(section) = &self.config.gateway else { return Ok(()) };
        let config = roles::gateway_config(&self.config, section, &self.identity)?;
        let cancel = self.front.cancel().clone();
        let mut clusters = self.cluster.subscribe();
        self.conditions.need("placement", "the zone has no placement groups yet");
        self.front.task("S3 gateway", async move {
            let cluster = tokio::select! {
                cluster = connected(&mut clusters) => cluster?,
                () = cancel.cancelled() => return Ok(()),
            };
            holdfast_gateway::serve(socket.listen()?, cluster, config, cancel)
                .await
                .map_err(anyhow::Error::from)
        });
        let (conditions, clusters) = (self.conditions.clone(), self.cluster.subscribe());
        self.front.worker("placement-readiness", move |_| {
            let (conditions, mut clusters) = (conditions.clone(), clusters.clone());
            async move {
                let cluster = connected(&mut clusters).await?;
                while cluster.map().raw().pgs.is_empty() {
                    tokio::time::sleep(RECONNECT).await;
                }
                conditions.met("placement");
                Ok(())
            }
        });
        Ok(())
    }
}

/// Waits for the zone to be reached.
async fn connected(clusters: &mut watch::Receiver<Option<Cluster>>) -> anyhow::Result<Cluster> {
    let cluster = clusters.wait_for(Option::is_some).await?.clone();
    cluster.ok_or_else(|| anyhow::anyhow!("the node is stopping"))
}

fn serve_admin_http(
    listener: TcpListener,
    base: &Supervisor,
    front: &Supervisor,
    conditions: &Conditions,
) -> anyhow::Result<()> {
    let metrics = telemetry::start_metrics()?;
    let upkeep = metrics.clone();
    base.worker("metrics", move |_| {
        let upkeep = upkeep.clone();
        async move {
            loop {
                tokio::time::sleep(telemetry::METRICS_UPKEEP).await;
                upkeep.run_upkeep();
            }
        }
    });
    let conditions = conditions.clone();
    let shown =
        AdminHttp { metrics, supervisor: front.clone(), readiness: Arc::new(move || conditions.waiting()) };
    base.task("admin listener", http::serve(listener, shown, base.cancel().clone()));
    Ok(())
}
