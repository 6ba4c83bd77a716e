//! `holdfast node add` and `holdfast target add`: on the machine that is added, or that has the new disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use holdfast_proto::meta::NodeState;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::output;
use crate::config::{self, Config};
use crate::env::Env;
use crate::formation::join::{self, SelfDescription};
use crate::node::atomic_file;
use crate::node::contact::Contact;
use crate::node::directory::NodeDirectory;

#[derive(Debug, Args)]
pub(super) struct NodeAddArgs {
    /// The new node's configuration, with node.seeds and node.join_token
    #[arg(short, long)]
    config: PathBuf,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Lets the configured node into its zone: it has an id from then on, and serves once it is started.
pub(super) async fn node(args: &NodeAddArgs) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    let dir = &config.node.data_dir;
    let directory = NodeDirectory::open(dir)?;
    if let Some(known) = directory.identity()? {
        anyhow::bail!("{} belongs to node {} of zone {} already", dir.display(), known.node, known.zone_name);
    }
    let place = SelfDescription {
        addr: if config.node.advertise.is_empty() { &config.node.listen } else { &config.node.advertise }
            .clone(),
        admin_addr: config.node.admin_listen.clone(),
        s3_addr: config.gateway.as_ref().map(|gateway| gateway.listen.clone()).unwrap_or_default(),
    };
    let contact = Contact::new(config.node.seeds.clone());
    let cancel = CancellationToken::new();
    let (identity, map) =
        join::first_join(&config, &directory, &Env::real(), &contact, &place, &cancel).await?;
    let shares = map.nodes.iter().filter(|row| {
        row.host == config.node.host && row.id != identity.node.get() && row.state() != NodeState::NodeRemoved
    });
    let shares: Vec<String> = shares.map(|row| holdfast_proto::id::NodeId::new(row.id).to_string()).collect();
    if args.json {
        return output::json(&json!({
            "node": identity.node.to_string(),
            "zone": identity.zone_name,
            "roles": config.roles(),
            "host": config.node.host,
            "shares_host_with": shares,
        }));
    }
    if !shares.is_empty() {
        output::complain(&format!(
            "host {} has node {} already: they count as one that falls together",
            config.node.host,
            shares.join(", ")
        ));
    }
    output::line(&format!(
        "Node {} ({}) is in zone {}. Start it: holdfast server -c {}",
        identity.node,
        config.roles().join(", "),
        identity.zone_name,
        args.config.display()
    ))
}

#[derive(Debug, Args)]
pub(super) struct TargetAddArgs {
    /// Directory of the new target: the mount point of its disk
    dir: PathBuf,
    /// Configuration of the data node that has it
    #[arg(short, long)]
    config: PathBuf,
    /// Tag that storage classes choose targets by, where it is not the default
    #[arg(long)]
    media: Option<String>,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Writes a target into a data node's configuration; the node opens it when it starts next, and the zone gives it an id and
/// its share.
pub(super) fn target(args: &TargetAddArgs) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    ensure!(config.data.is_some(), "{} is no data node's: it has no [data]", args.config.display());
    std::fs::create_dir_all(&args.dir).with_context(|| format!("making {}", args.dir.display()))?;
    let dir = args.dir.canonicalize()?;
    check_empty(&dir)?;
    let text = std::fs::read_to_string(&args.config)?;
    let more = with_target(&text, &dir, args.media.as_deref());
    // What it becomes must be as good as it was.
    let checked = config::load_text(&args.config, &more)?;
    let targets = |config: &Config| config.data.as_ref().map_or(0, |data| data.targets.len());
    ensure!(
        targets(&checked) == targets(&config) + 1,
        "{} lists its targets in a way that nothing can be appended to: add {} by hand",
        args.config.display(),
        dir.display()
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&args.config)?.permissions());
    atomic_file::write(&args.config, more.as_bytes(), mode & 0o777)?;
    if args.json {
        return output::json(&json!({ "dir": dir, "targets": targets(&checked) }));
    }
    output::line(&format!(
        "{} is target number {} of this node from its next start on: ask `holdfast node ok-to-stop`, then restart it",
        dir.display(),
        targets(&checked)
    ))
}

/// A directory of somebody else's files is no target; one that was a target comes back as that.
fn check_empty(dir: &Path) -> anyhow::Result<()> {
    let strange = |name: &std::ffi::OsStr| name != "lost+found";
    let names: Vec<_> = std::fs::read_dir(dir)?.flatten().map(|entry| entry.file_name()).collect();
    let is_target = names.iter().any(|name| name == "target.json");
    match names.iter().find(|name| strange(name)) {
        Some(name) if !is_target => {
            anyhow::bail!("{} is not empty: it has {}", dir.display(), name.to_string_lossy())
        }
        _ => Ok(()),
    }
}

fn with_target(text: &str, dir: &Path, media: Option<&str>) -> String {
    let quoted = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let mut more = text.trim_end().to_owned();
    more.push_str("\n\n[[data.targets]]\n");
    more.push_str(&format!("dir = {}\n", quoted(&dir.to_string_lossy())));
    if let Some(media) = media {
        more.push_str(&format!("media = {}\n", quoted(media)));
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_appended_and_what_was_there_stays() {
        let example = include_str!("../../../deploy/config/data.toml");
        let more = with_target(example, Path::new("/disks/3 \"new\""), Some("ssd"));
        assert!(more.starts_with(example.trim_end()));
        let config = config::load_text(Path::new("data.toml"), &more).unwrap();
        let last = config.data.unwrap().targets.pop().unwrap();
        assert_eq!(last.dir, Path::new("/disks/3 \"new\""));
        assert_eq!(last.media, "ssd");
    }

    #[test]
    fn somebody_elses_files_are_no_target() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lost+found")).unwrap();
        check_empty(dir.path()).unwrap();
        std::fs::write(dir.path().join("photo"), "").unwrap();
        assert!(check_empty(dir.path()).unwrap_err().to_string().contains("photo"));
        std::fs::write(dir.path().join("target.json"), "{}").unwrap();
        check_empty(dir.path()).unwrap();
    }
}
