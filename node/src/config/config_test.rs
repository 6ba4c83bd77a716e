use super::*;

const GOOD: &str = r#"
[node]
data_dir = "/tmp/x"
zone = "a"
host = "h1"
insecure_plaintext = true

[meta]
down_after = "20s"

[data]
segment_bytes = "64MiB"
[[data.targets]]
dir = "/tmp/x/t"

[gateway]
listen = "127.0.0.1:0"
"#;

fn with_env(text: &str, env: &[(&str, &str)]) -> Result<Config, Vec<ConfigFault>> {
    let env: Vec<(String, String)> =
        env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    parse(text, env.into_iter(), cloud_init::Instance::default())
}

fn paths(faults: &[ConfigFault]) -> Vec<&str> {
    faults.iter().map(|fault| fault.path.as_str()).collect()
}

#[test]
fn a_good_file_is_read_and_written_back() {
    let config = with_env(GOOD, &[]).unwrap();
    assert_eq!(config.roles(), ["meta", "data", "gateway"]);
    assert_eq!(config.meta.as_ref().unwrap().down_after, Span::secs(20));
    assert_eq!(config.node.region, "us-east-1");
    let again = with_env(&toml::to_string(&config).unwrap(), &[]).unwrap();
    assert_eq!(again, config);
}

#[test]
fn every_fault_is_reported_with_its_path() {
    let text = r#"
        colour = 3
        [node]
        listen = "nonsense"
        typo = 1
        zone = "a b"
        host = "h"
        seeds = ["good:1", "bad"]
        [meta]
        down_after = "soon"
        partitions = 0
        copies = 2
        scheme = "4x2"
        [data]
        segment_bytes = "1GB"
        [gateway]
        tls_cert = "/c"
    "#;
    let faults = with_env(text, &[]).unwrap_err();
    let found = paths(&faults);
    for path in [
        "colour",
        "node.typo",
        "node.data_dir",
        "node.listen",
        "node.zone",
        "node.seeds[1]",
        "node.insecure_plaintext",
        "meta.down_after",
        "meta.partitions",
        "meta.scheme",
        "data.segment_bytes",
        "data.targets",
        "gateway.tls_cert",
    ] {
        assert_eq!(found.iter().filter(|found| **found == path).count(), 1, "{path} in {faults:?}");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let env = [
        ("HOLDFAST_NODE_HOST", "h9"),
        ("HOLDFAST_META_DOWN_AFTER", "30s"),
        ("HOLDFAST_NODE_SEEDS", r#"["a:1"]"#),
        ("HOLDFAST_ROOT_ACCESS_KEY", "ignored"),
        ("HOLDFAST_LOG", "debug"),
    ];
    let config = with_env(GOOD, &env).unwrap();
    assert_eq!(config.node.host, "h9");
    assert_eq!(config.node.seeds, ["a:1"]);
    assert_eq!(config.meta.unwrap().down_after, Span::secs(30));
    let faults = with_env(GOOD, &[("HOLDFAST_NODE_NO_SUCH", "1")]).unwrap_err();
    assert_eq!(paths(&faults), ["node.no_such"]);
}

#[test]
fn a_wildcard_needs_an_address_for_others() {
    let text = GOOD.replace("host = \"h1\"", "host = \"h1\"\nlisten = \"0.0.0.0:7070\"");
    assert_eq!(paths(&with_env(&text, &[]).unwrap_err()), ["node.advertise"]);
}

#[test]
fn a_node_without_a_role_is_refused() {
    let text = GOOD.split("[meta]").next().unwrap();
    assert_eq!(with_env(text, &[]).unwrap_err().len(), 1);
}

#[test]
fn broken_toml_is_one_fault() {
    let faults = with_env("[node", &[]).unwrap_err();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].message.starts_with("not TOML"), "{faults:?}");
}

#[test]
fn a_variable_turns_no_role_on() {
    let text = GOOD.split("[meta]").next().unwrap();
    let env = [("HOLDFAST_META_DOWN_AFTER", "3s"), ("HOLDFAST_GATEWAY_LISTEN", "127.0.0.1:1")];
    let config = with_env(&format!("{text}[gateway]\n"), &env).unwrap();
    assert!(config.meta.is_none() && config.data.is_none());
    assert_eq!(config.gateway.unwrap().listen, "127.0.0.1:1");
}
