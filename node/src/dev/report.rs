//! What `dev` prints: one line of JSON, or how to use the zone.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::json;

use super::state::DevState;
use super::{DevArgs, certs};

/// What clients of the AWS CLI's kind have to be told: in this region several presign with the retired signature version 2
/// by default, and a region of the user's own configuration is not this zone's.
const AWS_CONFIG: &str = "[default]\nregion = us-east-1\ns3 =\n  signature_version = s3v4\n";

/// Prints that the zone is ready. `pid` gives the process of a node by name, `ids` node ids by gRPC address.
///
/// # Errors
/// When standard output is closed.
pub(super) fn ready(
    state: &DevState,
    args: &DevArgs,
    pid: &dyn Fn(&str) -> u32,
    ids: &BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    let text = if args.json { line(state, pid, ids)? } else { help(state, args)? };
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints that the zone has stopped.
///
/// # Errors
/// When standard output is closed.
pub(super) fn stopped(state: &DevState) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "Zone {} stopped; its data stays.", state.zone)?)
}

fn line(state: &DevState, pid: &dyn Fn(&str) -> u32, ids: &BTreeMap<String, u64>) -> anyhow::Result<String> {
    let meta = state.first_meta()?;
    let nodes: Vec<_> = state
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": ids.get(&node.grpc()),
                "name": node.name,
                "roles": node.roles,
                "pid": pid(&node.name),
                "data_dir": node.data_dir,
                "addr": node.grpc(),
                "admin": format!("http://{}", node.admin()),
                "config": node.config,
            })
        })
        .collect();
    let zone = json!({
        "name": state.zone,
        "s3": state.s3_url()?,
        "grpc": format!("http://{}", meta.grpc()),
        "admin": format!("http://{}", meta.admin()),
        "nodes": nodes,
    });
    Ok(json!({"access_key": state.access_key, "secret_key": state.secret_key, "zones": [zone]}).to_string())
}

fn help(state: &DevState, args: &DevArgs) -> anyhow::Result<String> {
    let url = state.s3_url()?;
    let dir = args.data_dir.canonicalize()?;
    let trust = if state.tls {
        format!(" AWS_CA_BUNDLE={}", shell(&certs::ca_path(&dir).display().to_string()))
    } else {
        String::new()
    };
    let config = dir.join("aws-config");
    std::fs::write(&config, AWS_CONFIG)?;
    let data = state.nodes.iter().filter(|node| node.is("data")).count();
    Ok(format!(
        "Zone {} is ready: 3 meta nodes, {data} data node{}, 1 gateway; data in {}\n\n  \
         S3 endpoint  {url}\n  access key   {}\n  secret key   {}\n\nPaste:\n\n\
         export AWS_CONFIG_FILE={} AWS_ENDPOINT_URL={url} AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1 \
         AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}{trust}\n\
         aws s3 mb s3://first && aws s3 cp README.md s3://first/\n\
         aws s3 ls s3://first/\n\n\
         `holdfast status` shows the zone. Ctrl-C stops it; the same command brings it back.",
        state.zone,
        if data == 1 { "" } else { "s" },
        dir.display(),
        state.access_key,
        state.secret_key,
        shell(&config.display().to_string()),
        shell(&state.access_key),
        shell(&state.secret_key),
    ))
}

/// A word that a shell reads as it is.
fn shell(word: &str) -> String {
    if word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:+=,@%".contains(&byte)) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_read_them() {
        assert_eq!(shell("abc/1"), "abc/1");
        assert_eq!(shell("a b'c"), r"'a b'\''c'");
    }
}
