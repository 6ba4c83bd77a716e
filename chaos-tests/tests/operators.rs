//! "On real machines", by hand: one file per node from `deploy/config`, `zone init`, `server -c`, and what an operator
//! then asks the zone.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use holdfast_chaos::process::{self, Group, binary};
use holdfast_chaos::s3::S3;
use holdfast_chaos::sigv4::Credentials;
use holdfast_chaos::wait;
use rand::RngCore;
use rustix::process::Signal;
use serde_json::Value;

/// A busy machine in the dev profile gets minutes.
const START: Duration = Duration::from_secs(180);
/// What a node says when the variable is laid over its file.
const RACK: &str = "rack-of-the-environment";

/// A port of the system, held until its node starts so that no connection is given it meanwhile.
struct Port(TcpListener);

impl Port {
    fn any() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

/// A node's file and what it says.
struct Node {
    name: String,
    config: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
    s3: Option<SocketAddr>,
    held: Vec<Port>,
}

impl Node {
    /// The example of `role` in `deploy/config`, with addresses and directories of this machine.
    fn new(dir: &Path, example: &str, name: &str) -> Self {
        let held = vec![Port::any(), Port::any(), Port::any()];
        let (listen, admin, s3) = (held[0].addr(), held[1].addr(), held[2].addr());
        let text = std::fs::read_to_string(examples().join(example)).unwrap();
        let mut file: toml::Table = text.parse().unwrap();
        let home = dir.join(name);
        for (key, value) in [
            ("data_dir", home.to_str().unwrap().to_owned()),
            ("host", name.to_owned()),
            ("listen", listen.to_string()),
            ("advertise", listen.to_string()),
            ("admin_listen", admin.to_string()),
        ] {
            file["node"][key] = value.into();
        }
        if let Some(targets) = file.get_mut("data").and_then(|data| data["targets"].as_array_mut()) {
            for (disk, target) in targets.iter_mut().enumerate() {
                target["dir"] = home.join(format!("disk-{disk}")).to_str().unwrap().into();
            }
        }
        let serves = file.get_mut("gateway").and_then(toml::Value::as_table_mut).map(|gateway| {
            gateway.insert("listen".to_owned(), s3.to_string().into());
            gateway.remove("tls_cert");
            gateway.remove("tls_key");
            s3
        });
        if let Some(meta) = file.get_mut("meta").and_then(toml::Value::as_table_mut) {
            // Of these only a new zone takes notice, and two are enough of them.
            meta.insert("partitions".to_owned(), 2.into());
        }
        let config = dir.join(format!("{name}.toml"));
        std::fs::write(&config, file.to_string()).unwrap();
        Self { name: name.to_owned(), config, listen, admin, s3: serves, held }
    }

    /// Step 3 of the README.
    fn joins(&self, seed: SocketAddr, token: &str) {
        let mut file: toml::Table = std::fs::read_to_string(&self.config).unwrap().parse().unwrap();
        file["node"]["seeds"] = vec![seed.to_string()].into();
        file["node"]["join_token"] = token.into();
        std::fs::write(&self.config, file.to_string()).unwrap();
    }

    fn log(&self) -> String {
        format!("{}.log", self.name)
    }

    fn start(&mut self, group: &Group) -> Child {
        self.held.clear();
        let mut command = Command::new(binary());
        command.args(["server", "-c"]).arg(&self.config).stdout(Stdio::null());
        if self.name == "data-1" {
            command.env("HOLDFAST_NODE_RACK", RACK);
        }
        group.spawn(&mut command, &self.log()).unwrap()
    }

    fn ready(&self) -> bool {
        process::http_get(self.admin, "/health/ready").is_ok()
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config")
}

fn holdfast(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What standard output says after `label` on one line.
fn printed(text: &str, label: &str) -> String {
    let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(label));
    let value = lines.next().unwrap_or_else(|| panic!("no {label:?} in {text}")).trim().to_owned();
    assert!(!value.is_empty() && lines.next().is_none(), "{label:?} once, with its value: {text}");
    value
}

/// A zone made by hand. It ends with the test binary, see [`Group`].
struct Site {
    group: Group,
    nodes: Vec<Node>,
    root: Credentials,
    join_token: String,
}

impl Site {
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Site> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let group = Group::new().unwrap();
        let mut nodes = vec![Node::new(group.dir(), "first-meta.toml", "meta-1")];
        nodes.extend([2, 3].map(|number| Node::new(group.dir(), "meta.toml", &format!("meta-{number}"))));
        nodes.extend([1, 2, 3].map(|number| Node::new(group.dir(), "data.toml", &format!("data-{number}"))));
        nodes.push(Node::new(group.dir(), "gateway.toml", "gateway-1"));

        let others = format!("{},{}", nodes[1].listen, nodes[2].listen);
        let init =
            holdfast(&["zone", "init", "--meta", &others, "-c"]).arg(&nodes[0].config).output().unwrap();
        assert!(init.status.success(), "{}", stderr(&init));
        let text = stdout(&init);
        assert!(text.contains(&nodes[0].listen.to_string()), "the seed for the others: {text}");
        let root = Credentials {
            access_key: printed(&text, "root access key"),
            secret_key: printed(&text, "root secret key"),
            region: "us-east-1".to_owned(),
        };
        let join_token = printed(&text, "join token");
        nodes[1..].iter().for_each(|node| node.joins(nodes[0].listen, &join_token));

        // All at once: nobody waits for the first to be ready.
        let mut running: Vec<Child> = nodes.iter_mut().map(|node| node.start(&group)).collect();
        let site = Self { group, nodes, root, join_token };
        wait::until("the zone to be ready", START, || {
            for (node, child) in site.nodes.iter().zip(&mut running) {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{} ended: {}", node.name, site.group.log_tail(&node.log()));
            }
            (site.nodes.iter().all(Node::ready) && site.formed()).then_some(())
        });
        site
    }

    /// Whether every group has its voters and a leader, and placement is made over all targets.
    fn formed(&self) -> bool {
        let output = self.ask(&["status", "--json"]);
        let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return false };
        let all = |list: &Value, good: fn(&Value) -> bool| {
            list.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(good))
        };
        all(&status["groups"], |group| group["voters"].as_array().unwrap().len() == 3 && group["leader"] != 0)
            && all(&status["targets"], |target| target["state"] == "up" && target["writable"] == true)
            && all(&status["nodes"], |node| node["alive"] == true)
            && status["pgs"].as_u64().is_some_and(|count| count > 0)
    }

    fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn s3(&self) -> S3 {
        let addr = self.node("gateway-1").s3.unwrap();
        S3::new(&format!("http://{addr}"), None, self.root.clone()).unwrap()
    }

    /// A question to the first meta node.
    fn ask(&self, args: &[&str]) -> Output {
        holdfast(args).args(["--endpoint", &self.nodes[0].listen.to_string()]).output().unwrap()
    }

    fn ask_well(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn ask_json(&self, args: &[&str]) -> Value {
        let text = self.ask_well(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// A node that is not part of the zone, in a directory of its own.
    fn stranger(&self, example: &str) -> Node {
        Node::new(self.group.dir(), example, &format!("stranger-{:08x}", rand::random::<u32>()))
    }
}

/// Numbers and strings of one column, by what a row is called.
fn column<T: Ord>(rows: &Value, name: &str, of: impl Fn(&Value) -> Option<T>) -> BTreeSet<T> {
    let rows = rows.as_array().unwrap_or_else(|| panic!("rows: {rows}"));
    rows.iter().map(|row| of(&row[name]).unwrap_or_else(|| panic!("no {name} in {row}"))).collect()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[tokio::test]
async fn the_zone_stores_and_serves_under_the_printed_key() {
    let site = Site::shared();
    let s3 = site.s3();
    let bucket = s3.bucket("operators").await;
    // A row, copies, and several stripes.
    for bytes in [1_000, 100_000, 9_000_000] {
        let mut content = vec![0; bytes];
        rand::rng().fill_bytes(&mut content);
        let content = Bytes::from(content);
        let key = format!("size-{bytes}");
        s3.put(&bucket, &key, content.clone()).expect(200).await;
        let got = s3.get(&bucket, &key).expect(200).await;
        assert!(got.body == content, "{bytes} bytes: other bytes came back");
    }
    let other = Credentials { secret_key: "x".repeat(40), ..site.root.clone() };
    s3.with_credentials(other).get(&bucket, "size-1000").refused(403, "SignatureDoesNotMatch").await;

    // Shown once: no log repeats it.
    for node in &site.nodes {
        let log = std::fs::read_to_string(site.group.dir().join(node.log())).unwrap();
        assert!(!log.contains(&site.root.secret_key), "{} logs the root secret", node.name);
        assert!(!log.contains(&site.join_token), "{} logs the join token", node.name);
    }
}

#[test]
fn status_shows_the_zone_as_it_was_configured() {
    let site = Site::shared();
    let status = site.ask_json(&["status"]);
    assert_eq!(status["zone"], "site-a");
    let class = &status["classes"][0];
    assert_eq!(class["scheme"], "3 copies", "three data hosts: {class}");
    let health = status["health"].as_array().unwrap();
    // The gateway that another test ends is silent afterwards.
    let mut errors = health.iter().filter(|code| code["severity"] == "error");
    assert!(errors.all(|code| code["code"] == "NODE_SILENT"), "{health:?}");
    assert!(
        health.iter().any(|code| code["code"] == "NO_SPARE_HOST" && code["next_step"] != ""),
        "three copies on three hosts: {health:?}"
    );
    for group in status["groups"].as_array().unwrap() {
        assert_eq!(group["voters"].as_array().unwrap().len(), 3, "{group}");
    }
    // The same rows as the listings, whose own test looks closer.
    let listed = site.ask_json(&["node", "list"]);
    assert_eq!(column(&status["nodes"], "id", Value::as_u64), column(&listed, "id", Value::as_u64));
    let shown = site.ask_well(&["status"]);
    for part in ["site-a", "NO_SPARE_HOST", "STANDARD 3 copies", "GROUP", "LEADER", "TARGET", "data-2"] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
}

#[test]
fn node_list_has_every_node_with_its_place() {
    let site = Site::shared();
    let listed = site.ask_json(&["node", "list"]);
    let shown = site.ask_well(&["node", "list"]);
    for node in &site.nodes {
        let mut rows = listed.as_array().unwrap().iter().filter(|row| row["host"] == node.name);
        let row = rows.next().unwrap_or_else(|| panic!("no {} in {listed}", node.name));
        assert!(rows.next().is_none(), "{} twice: {listed}", node.name);
        assert_eq!(row["addr"], node.listen.to_string());
        assert_eq!(row["admin"], node.admin.to_string());
        assert_eq!(row["alive"], true, "{row}");
        let role = node.name.split('-').next().unwrap();
        assert_eq!(row["roles"], serde_json::json!([role]));
        assert_eq!(row["s3"], node.s3.map(|addr| addr.to_string()).unwrap_or_default());
        // Only this one's environment says otherwise.
        assert_eq!(row["rack"], if node.name == "data-1" { RACK } else { "" });
        let line = shown.lines().find(|line| line.contains(&node.name)).unwrap();
        assert!(line.contains("alive") && line.contains(&node.listen.to_string()), "{shown}");
    }
}

#[test]
fn target_list_has_every_disk_on_its_node() {
    let site = Site::shared();
    let listed = site.ask_json(&["target", "list"]);
    let nodes = site.ask_json(&["node", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 6, "{listed}");
    assert_eq!(column(&listed, "id", Value::as_u64).len(), 6, "{listed}");
    assert_eq!(column(&listed, "uuid", text).len(), 6, "{listed}");
    assert_eq!(column(&listed, "state", text), BTreeSet::from(["up".to_owned()]));
    assert!(column(&listed, "capacity_bytes", Value::as_u64).iter().all(|bytes| *bytes > 0), "{listed}");
    for name in ["data-1", "data-2", "data-3"] {
        let node = nodes.as_array().unwrap().iter().find(|row| row["host"] == name).unwrap();
        let own = listed.as_array().unwrap().iter().filter(|row| row["node"] == node["id"]);
        assert_eq!(own.count(), 2, "two disks on {name}: {listed}");
    }
    let shown = site.ask_well(&["target", "list"]);
    assert!(shown.starts_with("TARGET"), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.contains(" up ")).count(), 6, "{shown}");
}

#[test]
fn pg_list_spreads_every_group_over_the_hosts() {
    let site = Site::shared();
    let listed = site.ask_json(&["pg", "list"]);
    let targets = site.ask_json(&["target", "list"]);
    let node_of =
        |id: &Value| targets.as_array().unwrap().iter().find(|row| row["id"] == *id).unwrap()["node"].clone();
    let groups = listed.as_array().unwrap();
    assert!(!groups.is_empty());
    for group in groups {
        let members = group["targets"].as_array().unwrap();
        let nodes: BTreeSet<u64> = members.iter().map(|id| node_of(id).as_u64().unwrap()).collect();
        assert_eq!((members.len(), nodes.len()), (3, 3), "three copies, each on its own host: {group}");
        assert_eq!(group["up"], group["targets"], "{group}");
    }
    assert_eq!(column(&listed, "id", Value::as_u64).len(), groups.len());
    let shown = site.ask_well(&["pg", "list"]);
    assert!(shown.starts_with("PG"), "{shown}");
    assert_eq!(shown.lines().filter(|line| line.contains("3/3")).count(), groups.len(), "{shown}");
}

#[tokio::test]
async fn bucket_list_counts_objects_and_bytes() {
    let site = Site::shared();
    let s3 = site.s3();
    let bucket = s3.bucket("counted").await;
    s3.put(&bucket, "a", vec![1; 1500]).expect(200).await;
    s3.put(&bucket, "b", vec![2; 500]).expect(200).await;
    let listed = site.ask_json(&["bucket", "list"]);
    let row = listed.as_array().unwrap().iter().find(|row| row["name"] == *bucket).unwrap();
    assert_eq!((&row["objects"], &row["bytes"]), (&2.into(), &2000.into()), "{row}");
    assert_eq!(row["state"], "active");
    let shown = site.ask_well(&["bucket", "list"]);
    let line = shown.lines().find(|line| line.starts_with(&bucket)).unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains("active") && line.contains("2.0 KiB"), "{line}");
}

#[test]
fn any_node_a_file_or_the_environment_says_which_zone() {
    let site = Site::shared();
    for name in ["meta-2", "data-1", "gateway-1"] {
        let node = site.node(name);
        let listen = node.listen.to_string();
        let url = format!("http://{listen}");
        let file = node.config.to_str().unwrap();
        let mut by_environment = holdfast(&["node", "list", "--json"]);
        by_environment.env("HOLDFAST_ENDPOINT", &listen);
        for mut command in [
            holdfast(&["node", "list", "--json", "--endpoint", &listen]),
            holdfast(&["node", "list", "--json", "--endpoint", &url]),
            holdfast(&["node", "list", "--json", "-c", file]),
            by_environment,
        ] {
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{command:?}: {}", stderr(&output));
            let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(
                listed.as_array().unwrap().iter().any(|row| row["host"] == name),
                "{command:?}: {listed}"
            );
        }
    }
    // Nobody listens there.
    let nowhere = Port::any().addr().to_string();
    let output = holdfast(&["status", "--endpoint", &nowhere]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "one line: {}", stderr(&output));
    // Nothing says where.
    let output =
        holdfast(&["status"]).env_remove("HOLDFAST_ENDPOINT").current_dir(site.group.dir()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn config_check_passes_every_file_of_the_zone_and_every_example() {
    let site = Site::shared();
    let mut files: Vec<PathBuf> = site.nodes.iter().map(|node| node.config.clone()).collect();
    files.extend(std::fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path()));
    for file in &files {
        let output = holdfast(&["config", "check", "-c"]).arg(file).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}: {}", file.display(), stderr(&output));
        let name = file.file_name().unwrap().to_str().unwrap();
        let role = ["meta", "data", "gateway"].into_iter().find(|role| name.contains(role));
        assert!(stdout(&output).contains(role.unwrap()), "{}", stdout(&output));
    }
    // The environment is checked with the file.
    let output = holdfast(&["config", "check", "-c"])
        .arg(&site.nodes[0].config)
        .env("HOLDFAST_META_DOWN_AFTER", "soon")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("meta.down_after"), "{}", stderr(&output));
}

#[test]
fn a_wrong_join_token_is_refused_in_one_line() {
    let site = Site::shared();
    let mut stranger = site.stranger("data.toml");
    stranger.joins(site.nodes[0].listen, &site.join_token.chars().rev().collect::<String>());
    let mut child = stranger.start(&site.group);
    let ended = wait::until("a refused node to end", START, || child.try_wait().unwrap());
    let log = site.group.log_tail(&stranger.log());
    assert_eq!(ended.code(), Some(1), "{log}");
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("refuse")).collect();
    assert_eq!(complaints.len(), 1, "{log}");
    assert!(complaints[0].starts_with("holdfast: the zone refuses this node: "), "{log}");
    assert!(complaints[0].ends_with("wrong join token"), "{log}");
    assert!(log.ends_with(&format!("{}\n", complaints[0])), "the last line is what the operator sees: {log}");
    let listed = site.ask_json(&["node", "list"]);
    assert!(!column(&listed, "host", text).contains(&stranger.name), "{listed}");
}

#[test]
fn a_node_that_means_another_zone_leaves_no_trace() {
    let site = Site::shared();
    let mut stranger = site.stranger("data.toml");
    stranger.joins(site.nodes[0].listen, &site.join_token);
    let mut file: toml::Table = std::fs::read_to_string(&stranger.config).unwrap().parse().unwrap();
    file["node"]["zone"] = "elsewhere".into();
    std::fs::write(&stranger.config, file.to_string()).unwrap();
    let mut child = stranger.start(&site.group);
    let ended = wait::until("a refused node to end", START, || child.try_wait().unwrap());
    let log = site.group.log_tail(&stranger.log());
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("node.zone says \"elsewhere\""), "{log}");
    let listed = site.ask_json(&["node", "list"]);
    assert!(!column(&listed, "host", text).contains(&stranger.name), "{listed}");
}

#[test]
fn a_zone_is_made_once() {
    let site = Site::shared();
    // While it runs, and with nothing running.
    let output = holdfast(&["zone", "init", "-c"]).arg(&site.nodes[0].config).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(output.stdout.is_empty(), "no second key: {}", stdout(&output));

    let idle = site.stranger("first-meta.toml");
    let first = holdfast(&["zone", "init", "--json", "-c"]).arg(&idle.config).output().unwrap();
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    let shown: Value = serde_json::from_slice(&first.stdout).unwrap();
    for name in ["realm", "zone", "node", "access_key", "secret_key", "join_token"] {
        assert!(!shown[name].as_str().unwrap_or_default().is_empty(), "{name} in {shown}");
    }
    assert_ne!(shown["join_token"], *site.join_token, "every zone has its own");
    assert_ne!(shown["access_key"], *site.root.access_key);

    let identity = idle.config.with_extension("").join("identity.json");
    let before = std::fs::read(&identity).unwrap();
    let again = holdfast(&["zone", "init", "--json", "-c"]).arg(&idle.config).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    assert!(again.stdout.is_empty(), "no second key: {}", stdout(&again));
    assert_eq!(stderr(&again).lines().count(), 1, "one line: {}", stderr(&again));
    assert!(stderr(&again).contains("already belongs to"), "{}", stderr(&again));
    assert_eq!(std::fs::read(&identity).unwrap(), before, "what was made stays");

    // Only a meta node can be the first.
    let output = holdfast(&["zone", "init", "-c"]).arg(&site.node("data-1").config).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("[meta]"), "{}", stderr(&output));
}

#[test]
fn credentials_and_token_may_be_chosen_beforehand() {
    let site = Site::shared();
    let init = |node: &Node, env: &[(&str, &str)]| {
        let mut command = holdfast(&["zone", "init", "--json", "-c"]);
        command.arg(&node.config).envs(env.iter().copied()).output().unwrap()
    };
    let access = ("HOLDFAST_ROOT_ACCESS_KEY", "CHOSEN");
    let secret = ("HOLDFAST_ROOT_SECRET_KEY", "of-my-own-choice");
    let mut node = site.stranger("first-meta.toml");
    let refused = init(&node, &[access]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(stderr(&refused).contains(secret.0), "{}", stderr(&refused));

    let token = ("HOLDFAST_NODE_JOIN_TOKEN", "agreed upon");
    let made = init(&node, &[access, secret, token]);
    let shown: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(shown["access_key"], access.1);
    assert_eq!(shown["secret_key"], secret.1);
    assert_eq!(shown["join_token"], token.1);

    // Its only meta node: it serves by itself, and says what is missing.
    let mut child = node.start(&site.group);
    wait::until("a zone of one node to be ready", START, || {
        assert!(child.try_wait().unwrap().is_none(), "{}", site.group.log_tail(&node.log()));
        node.ready().then_some(())
    });
    wait::until("status to say what is missing", START, || {
        let output = holdfast(&["status", "--json", "-c"]).arg(&node.config).output().unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        let codes = column(&status["health"], "code", text);
        ["META_NOT_REPLICATED", "NO_PLACEMENT"].iter().all(|code| codes.contains(*code)).then_some(())
    });
    process::signal(child.id(), Signal::TERM);
    let ended = wait::until("a node to end", START, || child.try_wait().unwrap());
    assert!(ended.success(), "{ended}: {}", site.group.log_tail(&node.log()));
}

#[tokio::test]
async fn a_second_gateway_joins_serves_and_ends_when_told() {
    let site = Site::shared();
    let mut second = site.stranger("gateway.toml");
    second.joins(site.node("meta-2").listen, &site.join_token);
    let mut child = second.start(&site.group);
    wait::until("the second gateway to be ready", START, || {
        assert!(child.try_wait().unwrap().is_none(), "{}", site.group.log_tail(&second.log()));
        second.ready().then_some(())
    });
    let other = S3::new(&format!("http://{}", second.s3.unwrap()), None, site.root.clone()).unwrap();
    let bucket = site.s3().bucket("two-doors").await;
    site.s3().put(&bucket, "in", "by the first").expect(200).await;
    assert_eq!(other.get(&bucket, "in").expect(200).await.body, "by the first");
    let listed = site.ask_json(&["node", "list"]);
    assert!(column(&listed, "host", text).contains(&second.name), "{listed}");

    process::signal(child.id(), Signal::TERM);
    let ended = wait::until("the second gateway to end", START, || child.try_wait().unwrap());
    assert!(ended.success(), "{ended}: {}", site.group.log_tail(&second.log()));
}

#[test]
fn bench_measures_the_zone_and_leaves_nothing() {
    let site = Site::shared();
    let endpoint = format!("http://{}", site.node("gateway-1").s3.unwrap());
    let output = holdfast(&["bench", "--endpoint", &endpoint, "--duration", "1s", "--sizes", "4KiB"])
        .args(["--ops", "put,get", "--json"])
        .env("AWS_ACCESS_KEY_ID", &site.root.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &site.root.secret_key)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let phases = report["phases"].as_array().unwrap();
    assert_eq!(phases.iter().map(|phase| &phase["op"]).collect::<Vec<_>>(), ["PUT", "GET"], "{report}");
    for phase in phases {
        let count = phase["ops"].as_u64().unwrap();
        assert!(count > 0, "{phase}");
        assert_eq!(phase["errors"], 0, "{phase}");
        assert_eq!(phase["bytes"], count * 4096, "{phase}");
    }
    let listed = site.ask_json(&["bucket", "list"]);
    assert!(!column(&listed, "name", text).iter().any(|name| name.starts_with("bench-")), "{listed}");
}
