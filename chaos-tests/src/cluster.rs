//! A zone of the real binary on loopback: `holdfast dev --json`, one process per node unless asked otherwise.
//!
//! Nodes are killed, stopped, continued and brought back by `holdfast server -c` as an operator would; `restart` starts
//! `dev` again on the same directory. Dropping a zone leaves no process and no file; so does a test binary's end.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;
use serde::Deserialize;

use crate::process::{self, Group, binary};
use crate::s3::S3;
use crate::sigv4::Credentials;
use crate::wait;

/// Zones start within seconds; a busy machine in the dev profile gets minutes.
const START: Duration = Duration::from_secs(180);
/// Longer than the mending of a few hundred files takes on a busy machine; it begins some 20 s after a return.
const MENDED: Duration = Duration::from_secs(240);
const LOG: &str = "dev.log";

/// How `dev` is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// All nodes in one process.
    pub one_process: bool,
    pub tls: bool,
    /// Data nodes, where not the default.
    pub nodes: Option<u32>,
    /// Settings of every node, as variables of the environment.
    pub env: Vec<(&'static str, &'static str)>,
    /// Where all nodes keep their data, where not in a directory of the zone's own.
    pub data_dir: Option<PathBuf>,
    /// Another binary than the one that is tested.
    pub binary: Option<PathBuf>,
}

impl Options {
    fn command(&self) -> Command {
        Command::new(self.binary.as_deref().unwrap_or(binary()))
    }
}

/// The one line that `dev --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    pub access_key: String,
    pub secret_key: String,
    pub zones: Vec<ReadyZone>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ReadyZone {
    pub name: String,
    pub s3: String,
    pub grpc: String,
    pub admin: String,
    pub nodes: Vec<Node>,
}

/// A node as `dev` started it.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub id: u64,
    pub roles: Vec<String>,
    pub pid: u32,
    pub data_dir: PathBuf,
    pub addr: SocketAddr,
    pub config: PathBuf,
}

impl Node {
    pub fn is(&self, role: &str) -> bool {
        self.roles.iter().any(|own| own == role)
    }
}

/// A running zone.
#[derive(Debug)]
pub struct Zone {
    options: Options,
    pub ready: Ready,
    dev: Child,
    /// Nodes that were brought back by `server -c`.
    revived: Vec<Child>,
    group: Group,
}

impl Zone {
    /// The zone that all tests of one test binary share. Whoever breaks things starts their own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Zone> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(Options::default()))
    }

    /// Starts a zone in a new directory. Panics, with the end of its log, if it does not become ready.
    #[track_caller]
    pub fn start(options: Options) -> Self {
        let group = Group::new().expect("a process group");
        match launch(&group, &options) {
            Ok((dev, ready)) => Self { options, ready, dev, revived: Vec::new(), group },
            Err(error) => panic!("{error:#}\n{}", group.log_tail(LOG)),
        }
    }

    pub fn zone(&self) -> &ReadyZone {
        &self.ready.zones[0]
    }

    /// Where all nodes keep their data.
    pub fn data_dir(&self) -> PathBuf {
        self.options.data_dir.clone().unwrap_or_else(|| self.group.dir().join("data"))
    }

    /// Files of the test's own, removed with the zone.
    pub fn scratch(&self) -> &Path {
        self.group.dir()
    }

    pub fn credentials(&self) -> Credentials {
        Credentials {
            access_key: self.ready.access_key.clone(),
            secret_key: self.ready.secret_key.clone(),
            region: "us-east-1".to_owned(),
        }
    }

    /// A client of one gateway, with connections of its own.
    pub fn s3_of(&self, gateway: &Node) -> anyhow::Result<S3> {
        let url = format!("http://{}", s3_listen(&gateway.config)?);
        S3::new(&url, None, self.credentials())
    }

    /// A client of the zone's gateway, with connections of its own.
    pub fn s3(&self) -> S3 {
        let ca = self.options.tls.then(|| {
            let path = self.ca_file();
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        });
        S3::new(&self.zone().s3, ca.as_deref(), self.credentials()).expect("the URL that dev printed")
    }

    /// The CA that `--tls` writes beside the data: the PEM file with `ca` in its name.
    pub fn ca_file(&self) -> PathBuf {
        let found = std::fs::read_dir(self.data_dir()).expect("the data directory").flatten().find(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("ca") && (name.ends_with(".pem") || name.ends_with(".crt"))
        });
        found.expect("dev --tls writes its CA into the data directory").path()
    }

    /// The nodes of a role, in the order of their ids.
    pub fn nodes(&self, role: &str) -> Vec<Node> {
        let mut nodes: Vec<Node> = self.zone().nodes.iter().filter(|node| node.is(role)).cloned().collect();
        nodes.sort_by_key(|node| node.id);
        nodes
    }

    pub fn gateway(&self) -> Node {
        self.nodes("gateway").remove(0)
    }

    /// `kill -9`.
    pub fn kill(&self, node: &Node) {
        process::kill(node.pid);
    }

    /// Ends a node by SIGTERM, as an operator does, and waits until it has.
    pub fn end(&self, node: &Node) {
        process::signal(node.pid, Signal::TERM);
        wait::until("a node to end", START, || (!process::runs(node.pid)).then_some(()));
    }

    /// Freezes a node: its sockets stay open and silent.
    pub fn stop(&self, node: &Node) {
        process::signal(node.pid, Signal::STOP);
    }

    pub fn resume(&self, node: &Node) {
        process::signal(node.pid, Signal::CONT);
    }

    /// Starts a meta node on `data_dir` in the place of one of the zone's, whose configuration and addresses it takes over, and
    /// waits until it is ready. It has whatever id the directory or the zone gives it.
    pub fn start_meta(&mut self, place: &Node, data_dir: &Path) -> anyhow::Result<Node> {
        let text = std::fs::read_to_string(&place.config)?;
        let text = set_key(&text, "data_dir", data_dir.to_str().context("a path in UTF-8")?);
        std::fs::write(&place.config, text)?;
        let mut command = self.options.command();
        command.args(["server", "-c"]).arg(&place.config).stdout(Stdio::null());
        command.envs(self.options.env.iter().copied());
        let log = format!("meta-at-{}.log", place.addr.port());
        let child = self.group.spawn(&mut command, &log)?;
        let pid = child.id();
        self.revived.push(child);
        let addr = place.addr.to_string();
        let known: BTreeSet<u64> = self.zone().nodes.iter().map(|node| node.id).collect();
        let place_id = place.id;
        // Whoever answers, this node first.
        let nodes = &mut self.ready.zones[0].nodes;
        let at = nodes.iter().position(|node| node.id == place_id).context("a node of another zone")?;
        nodes[at].pid = pid;
        let id = wait::until("a meta node to be ready", START, || {
            assert!(process::runs(pid), "server ended: {}", self.group.log_tail(&log));
            let status = self.status().ok()?;
            let rows = status["nodes"].as_array()?.iter();
            let mut here = rows.filter(|node| node["addr"] == addr.as_str() && node["alive"] == true);
            let row = here.find(|node| {
                let id = node["id"].as_u64().unwrap_or_default();
                id == place_id || !known.contains(&id)
            })?;
            let admin = row["admin"].as_str()?.parse().ok()?;
            process::http_get(admin, "/health/ready").ok()?;
            row["id"].as_u64()
        });
        let node = Node { id, pid, data_dir: data_dir.to_owned(), ..place.clone() };
        self.ready.zones[0].nodes[at] = node.clone();
        Ok(node)
    }

    /// How nodes are started from now on.
    pub fn reconfigure(&mut self, options: Options) {
        self.options = options;
    }

    /// Brings a killed node back with `holdfast server -c` and waits until the zone has it back: its new life is
    /// registered and heard, the node says it is ready, and its targets are up.
    pub fn revive(&mut self, node: &Node) -> anyhow::Result<()> {
        let former = self.incarnation(node).context("a node that status does not know")?;
        let begun = Instant::now();
        let pid = self.start_again(node)?;
        self.until_back(node, pid, begun, former);
        Ok(())
    }

    /// The same of nodes that are all down, which need each other.
    pub fn revive_all(&mut self, nodes: &[Node]) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut started = Vec::new();
        for node in nodes {
            started.push((node, self.start_again(node)?));
        }
        for (node, pid) in started {
            // Nobody could be asked how often it had started.
            self.until_back(node, pid, begun, 0);
        }
        Ok(())
    }

    /// Starts a node that was killed, and waits for nothing; its process.
    pub fn start_again(&mut self, node: &Node) -> anyhow::Result<u32> {
        let mut command = self.options.command();
        command.args(["server", "-c"]).arg(&node.config).stdout(Stdio::null());
        command.envs(self.options.env.iter().copied());
        let child = self.group.spawn(&mut command, &log_of(node))?;
        let pid = child.id();
        self.revived.push(child);
        let nodes = &mut self.ready.zones[0].nodes;
        nodes.iter_mut().find(|own| own.id == node.id).context("a node of another zone")?.pid = pid;
        Ok(pid)
    }

    fn until_back(&self, node: &Node, pid: u32, begun: Instant, former: u64) {
        wait::until("a revived node to be part of the zone", START, || {
            assert!(process::runs(pid), "server ended: {}", self.group.log_tail(&log_of(node)));
            let status = self.status().ok()?;
            let row = row_of(&status, node)?;
            // What was heard before this life began says nothing of it.
            let silent = Duration::from_millis(row["silent_ms"].as_u64()?);
            let heard = row["alive"] == true && silent < begun.elapsed();
            let registered = row["incarnation"].as_u64()? > former;
            let ready = process::http_get(row["admin"].as_str()?.parse().ok()?, "/health/ready").is_ok();
            let targets = status["targets"].as_array()?.iter().filter(|target| target["node"] == node.id);
            let up: Vec<bool> =
                targets.map(|target| target["state"] == "up" && target["writable"] == true).collect();
            let serves = up.iter().all(|up| *up) && up.is_empty() != node.is("data");
            (heard && registered && ready && serves).then_some(())
        });
    }

    /// Starts one more data node on a host of its own, as an operator does: a configuration like the first one's.
    /// Returns its host once its target is in the zone.
    pub fn add_data_node(&mut self) -> anyhow::Result<String> {
        let (host, _) = self.add_node("data")?;
        wait::until("a new node's target to be up", START, || {
            let status = self.status().ok()?;
            let node = status["nodes"].as_array()?.iter().find(|node| node["host"] == host.as_str())?;
            let mut targets = status["targets"].as_array()?.iter();
            targets.any(|target| target["node"] == node["id"] && target["state"] == "up").then_some(())
        });
        Ok(host)
    }

    /// Starts one more meta node or gateway likewise. Returns it once it is ready; from then on it is one of the zone's nodes.
    pub fn add_ready_node(&mut self, role: &str) -> anyhow::Result<Node> {
        let (host, pid) = self.add_node(role)?;
        let config = self.group.dir().join(&host).join("node.toml");
        let node = wait::until("a new node to be ready", START, || {
            let status = self.status().ok()?;
            let row = status["nodes"].as_array()?.iter().find(|node| node["host"] == host.as_str())?;
            let ready = process::http_get(row["admin"].as_str()?.parse().ok()?, "/health/ready").is_ok();
            (row["alive"] == true && ready).then_some(())?;
            Some(Node {
                id: row["id"].as_u64()?,
                roles: vec![role.to_owned()],
                pid,
                data_dir: self.group.dir().join(&host),
                addr: row["addr"].as_str()?.parse().ok()?,
                config: config.clone(),
            })
        });
        self.ready.zones[0].nodes.push(node.clone());
        Ok(node)
    }

    fn add_node(&mut self, role: &str) -> anyhow::Result<(String, u32)> {
        let like = self.nodes(role).remove(0);
        let host = format!("host-added-{}", self.revived.len());
        let dir = self.group.dir().join(&host);
        let text = std::fs::read_to_string(&like.config)?;
        let old = like.data_dir.to_str().context("a path in UTF-8")?;
        let mut text = text.replace(old, dir.to_str().context("a path in UTF-8")?);
        for key in ["listen", "admin_listen"] {
            text = set_key(&text, key, &free_address()?);
        }
        // The gateway's own `listen` stands in its section.
        if let Some((above, section)) = text.split_once("[gateway]") {
            text = format!("{above}[gateway]{}", set_key(section, "listen", &free_address()?));
        }
        text = set_key(&text, "host", &host);
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("node.toml");
        std::fs::write(&config, text)?;
        let added =
            self.run(&["node", "add", "--json", "-c", config.to_str().context("a path in UTF-8")?])?;
        anyhow::ensure!(added["host"] == host.as_str(), "{added}");
        let mut command = self.options.command();
        command.args(["server", "-c"]).arg(&config).stdout(Stdio::null());
        command.envs(self.options.env.iter().copied());
        let log = format!("{host}.log");
        let child = self.group.spawn(&mut command, &log)?;
        let pid = child.id();
        self.revived.push(child);
        wait::until("a new node to be heard of", START, || {
            assert!(process::runs(pid), "server ended: {}", self.group.log_tail(&log));
            let status = self.status().ok()?;
            status["nodes"].as_array()?.iter().any(|node| node["host"] == host.as_str()).then_some(())
        });
        Ok((host, pid))
    }

    /// How often a node has started, as the zone knows it.
    fn incarnation(&self, node: &Node) -> Option<u64> {
        wait::until("the zone to answer", START, || {
            let status = self.status().ok()?;
            Some(row_of(&status, node).and_then(|row| row["incarnation"].as_u64()))
        })
    }

    /// Waits until `status` says that a killed node is silent and, for a data node, that its targets are down.
    pub fn until_missed(&self, node: &Node) {
        wait::until("a dead node to be missed", START, || {
            let status = self.status().ok()?;
            let silent = row_of(&status, node)?["alive"] == false;
            let mut targets = status["targets"].as_array()?.iter().filter(|target| target["node"] == node.id);
            (silent && targets.all(|target| target["state"] == "down")).then_some(())
        });
    }

    /// Waits until `status` says that a killed data node's targets are down, or out already.
    pub fn until_missed_or_out(&self, node: &Node) {
        wait::until("a dead node's targets to be given up", START, || {
            let status = self.status().ok()?;
            let mut targets = status["targets"].as_array()?.iter().filter(|target| target["node"] == node.id);
            targets.all(|target| target["state"] == "down" || target["state"] == "out").then_some(())
        });
    }

    /// Waits until no write lacks a shard.
    pub fn until_whole(&self) {
        wait::until("missed shards to be written", MENDED, || {
            self.health().ok().filter(|codes| !codes.contains("SHARDS_MISSING"))
        });
    }

    /// Waits until a killed data node's targets are out.
    pub fn until_out(&self, node: &Node) {
        wait::until("a dead node's targets to go out", START, || {
            let status = self.status().ok()?;
            let mut targets = status["targets"].as_array()?.iter().filter(|target| target["node"] == node.id);
            targets.all(|target| target["state"] == "out").then_some(())
        });
    }

    /// Waits until nothing moves, and repair has found everything in its place.
    pub fn until_settled(&self) {
        wait::until("placement to settle", MENDED, || {
            let pgs = self.json(&["pg", "list"]).ok()?;
            let moving =
                pgs.as_array()?.iter().any(|pg| pg["moving"].as_array().is_none_or(|at| !at.is_empty()));
            (!moving && self.status().ok()?["repair"]["settled"] == true).then_some(())
        });
    }

    /// `holdfast <args> --json`.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.cli(&[args, &["--json"]].concat());
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Codes of the zone's newest events about a subject, oldest first, each with its reason.
    pub fn events(&self, subject: &str) -> anyhow::Result<Vec<(String, String)>> {
        let output = self.cli(&["events", "--limit", "1000", "--json"]);
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut events = Vec::new();
        for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: serde_json::Value = serde_json::from_slice(line)?;
            let text = |name: &str| event[name].as_str().map(str::to_owned).context("a text");
            if event["subject"] == subject {
                events.push((text("code")?, text("why")?));
            }
        }
        Ok(events)
    }

    /// Shards of an object as `object stat` shows them: (there should be, in their place, lying elsewhere too).
    pub fn shards(&self, bucket: &str, key: &str) -> anyhow::Result<(u64, u64, u64)> {
        let stat = self.json(&["object", "stat", bucket, key])?;
        let stripes = stat["stripes"].as_array().context("stripes")?.iter();
        let shards = stripes.flat_map(|stripe| stripe["shards"].as_array().into_iter().flatten());
        let elsewhere = shards.map(|shard| shard["elsewhere"].as_array().map_or(0, Vec::len) as u64).sum();
        let count = |name: &str| stat[name].as_u64().context("a count");
        Ok((count("shards")?, count("present")?, elsewhere))
    }

    /// The codes that `status` shows under health.
    pub fn health(&self) -> anyhow::Result<BTreeSet<String>> {
        let status = self.status()?;
        let codes = status["health"].as_array().context("health in status")?;
        Ok(codes.iter().filter_map(|code| code["code"].as_str().map(str::to_owned)).collect())
    }

    /// `kill -9` of every process at once.
    pub fn kill_all(&mut self) {
        let mut pids: Vec<u32> = self.zone().nodes.iter().map(|node| node.pid).collect();
        pids.push(self.dev.id());
        for pid in &pids {
            process::signal(*pid, Signal::KILL);
        }
        pids.into_iter().for_each(process::kill);
        let _ = self.dev.wait();
        self.revived.drain(..).for_each(|mut child| drop((child.kill(), child.wait())));
    }

    /// Starts `dev` again on the same directory. Addresses may change.
    #[track_caller]
    pub fn restart(&mut self) {
        match launch(&self.group, &self.options) {
            Ok((dev, ready)) => (self.dev, self.ready) = (dev, ready),
            Err(error) => panic!("restart: {error:#}\n{}", self.group.log_tail(LOG)),
        }
    }

    /// Ends `dev` by SIGTERM, as an operator does; whether it ended well.
    pub fn terminate(&mut self) -> bool {
        process::signal(self.dev.id(), Signal::TERM);
        let status = wait::until("dev to end", START, || self.dev.try_wait().ok().flatten());
        status.success()
    }

    /// `holdfast <args>` put to a meta node that runs.
    pub fn cli(&self, args: &[&str]) -> Output {
        let asked = self.nodes("meta").into_iter().find(|node| process::runs(node.pid));
        let endpoint = asked.map_or_else(|| self.zone().grpc.clone(), |node| node.addr.to_string());
        Command::new(binary())
            .args(args)
            .args(["--endpoint", &endpoint])
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs")
    }

    /// `holdfast <args>` as they are; its answer in JSON.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = Command::new(binary()).args(args).stdin(Stdio::null()).output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// `holdfast status --json`.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        self.json(&["status"])
    }

    /// The meta node that leads the most groups, once every group has a leader.
    pub fn leader(&self) -> Node {
        let leader = wait::until("every group to have a leader", START, || {
            let status = self.status().ok()?;
            let leaders: Vec<u64> = status["groups"]
                .as_array()?
                .iter()
                .map(|group| group["leader"].as_u64())
                .collect::<Option<_>>()?;
            let most = leaders.iter().max_by_key(|id| leaders.iter().filter(|other| other == id).count())?;
            (!leaders.contains(&0)).then_some(*most)
        });
        self.zone().nodes.iter().find(|node| node.id == leader).expect("a leader is a node").clone()
    }

    /// The sum of a metric over its labels, on every node that runs.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().context("nodes in status")?;
        // A node that is down has no metrics.
        Ok(nodes.iter().filter_map(|node| scrape(node, name).ok()).sum())
    }

    /// The same on one node: what its process has counted since it started.
    pub fn metric_of(&self, node: &Node, name: &str) -> anyhow::Result<f64> {
        let status = self.status()?;
        scrape(row_of(&status, node).context("a node that status does not know")?, name)
    }

    /// Runs `holdfast server -c` on a configuration until it ends by itself, and kills it when it does not.
    pub fn server(&self, config: &Path) -> Output {
        let mut command = Command::new(binary());
        command.args(["server", "-c"]).arg(config).stdout(Stdio::piped());
        let log = format!("server-{:08x}.log", rand::random::<u32>());
        let child = self.group.spawn(&mut command, &log).expect("the binary runs");
        let pid = child.id();
        let ended = Instant::now() + Duration::from_secs(60);
        while process::runs(pid) && Instant::now() < ended {
            std::thread::sleep(Duration::from_millis(50));
        }
        process::signal(pid, Signal::KILL);
        let mut output = child.wait_with_output().expect("a child that ended");
        output.stderr = std::fs::read(self.group.dir().join(log)).unwrap_or_default();
        output
    }

    /// The end of what the zone's processes logged.
    pub fn log_tail(&self) -> String {
        self.group.log_tail(LOG)
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        self.kill_all();
    }
}

fn log_of(node: &Node) -> String {
    format!("node-{}.log", node.id)
}

/// An address on loopback that is free now.
fn free_address() -> anyhow::Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// The S3 address in a gateway's configuration.
fn s3_listen(config: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(config)?;
    let (_, section) = text.split_once("[gateway]").context("no gateway")?;
    let line = section.lines().find_map(|line| line.strip_prefix("listen = ")).context("no listen")?;
    Ok(line.trim_matches('"').to_owned())
}

/// Sets a text in a configuration.
fn set_key(text: &str, key: &str, value: &str) -> String {
    let set = |line: &str| match line.split_once(" = ") {
        Some((own, _)) if own == key => format!("{key} = {value:?}"),
        _ => line.to_owned(),
    };
    text.lines().map(set).collect::<Vec<_>>().join("\n")
}

/// A node's row in `status`.
fn row_of<'s>(status: &'s serde_json::Value, node: &Node) -> Option<&'s serde_json::Value> {
    status["nodes"].as_array()?.iter().find(|row| row["id"] == node.id)
}

/// The sum of a metric over its labels, from the admin address in a row of `status`.
fn scrape(row: &serde_json::Value, name: &str) -> anyhow::Result<f64> {
    let admin = row["admin"].as_str().unwrap_or_default().parse()?;
    let text = process::http_get(admin, "/metrics")?;
    let lines = text.lines().filter(|line| line.starts_with(name));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

fn launch(group: &Group, options: &Options) -> anyhow::Result<(Child, Ready)> {
    let mut command = options.command();
    let own = group.dir().join("data");
    let data_dir = options.data_dir.as_deref().unwrap_or(&own);
    command.args(["dev", "--json", "--port", "0", "--data-dir"]).arg(data_dir);
    if !options.one_process {
        command.arg("--spawn");
    }
    if options.tls {
        command.arg("--tls");
    }
    if let Some(nodes) = options.nodes {
        command.args(["--nodes", &nodes.to_string()]);
    }
    command.envs(options.env.iter().copied());
    command.current_dir(group.dir()).stdout(Stdio::piped());
    let mut dev = group.spawn(&mut command, LOG)?;
    let stdout = dev.stdout.take().context("standard output is piped")?;

    // The reader stays until the end, so that dev never writes into a closed pipe.
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                // Nobody asks any more; keep draining.
            }
        }
    });
    let line = match lines.recv_timeout(START) {
        Ok(line) => line,
        Err(_) => {
            let _ = dev.kill();
            let status = dev.wait()?;
            anyhow::bail!("dev printed no line ({status})");
        }
    };
    let ready: Ready = serde_json::from_str(&line).with_context(|| format!("not the line of dev: {line}"))?;
    anyhow::ensure!(!ready.zones.is_empty(), "no zone in {line}");
    Ok((dev, ready))
}
