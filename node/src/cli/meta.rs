//! `holdfast meta backup|verify|restore|rebuild`: metadata to another place and back, or made again of shards.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use holdfast_proto::admin::rebuild_index_event::What;
use holdfast_proto::admin::{BucketNamed, RebuildIndexFound, RebuildIndexRequest, RebuildIndexSummary};
use serde_json::json;

use super::output;
use super::target_zone::ZoneArgs;
use crate::backup::depot::Depot;
use crate::backup::{Manifest, make, restore};
use crate::config;
use crate::env::Env;
use crate::s3::{EndpointConfig, Keys};

const ENDPOINT_DEFAULT: &str = "https://s3.amazonaws.com";

#[derive(Debug, Subcommand)]
pub(super) enum MetaCommand {
    /// Back the metadata of the zone up, while it serves
    Backup(BackupArgs),
    /// Read a whole backup and prove it
    Verify(VerifyArgs),
    /// Make a meta node of a backup, in a new directory: the only one of its zone, which others can join
    Restore(RestoreArgs),
    /// In a zone that was recovered: make objects of shards that nobody owns, the last resort
    Rebuild(RebuildArgs),
}

#[derive(Debug, Args)]
struct S3Args {
    /// Where s3:// is, http or https
    #[arg(long, env = "AWS_ENDPOINT_URL", default_value = ENDPOINT_DEFAULT)]
    s3_endpoint: String,
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    s3_region: String,
    /// PEM file of the CA to trust for https, instead of the system's
    #[arg(long)]
    s3_ca: Option<PathBuf>,
    #[arg(long, env = "AWS_ACCESS_KEY_ID", default_value = "", hide_env_values = true)]
    s3_access_key: String,
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", default_value = "", hide_env_values = true)]
    s3_secret_key: String,
}

impl S3Args {
    fn depot(&self, place: &str) -> anyhow::Result<Depot> {
        Depot::new(place, || EndpointConfig {
            endpoint: self.s3_endpoint.clone(),
            keys: Keys {
                access_key: self.s3_access_key.clone(),
                secret_key: self.s3_secret_key.clone(),
                region: self.s3_region.clone(),
            },
            ca: self.s3_ca.clone(),
            sign_bodies: true,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// A directory, or s3://bucket/prefix; a place of its own for each backup
    #[arg(long)]
    to: String,
    #[command(flatten)]
    s3: S3Args,
    #[command(flatten)]
    zone: ZoneArgs,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A directory, or s3://bucket/prefix
    #[arg(long)]
    from: String,
    #[command(flatten)]
    s3: S3Args,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// A directory, or s3://bucket/prefix
    #[arg(long)]
    from: String,
    /// The new meta node's configuration
    #[arg(short, long)]
    config: PathBuf,
    /// The identity.json of any node of the zone, for the realm's key, which no backup has
    #[arg(long)]
    identity: PathBuf,
    #[command(flatten)]
    s3: S3Args,
    /// JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RebuildArgs {
    /// Only say what would be made
    #[arg(long)]
    dry_run: bool,
    /// Name of a bucket that is not known, by its id in hex; else it is called recovered-ID. Repeatable
    #[arg(long, value_name = "ID=NAME", value_parser = named)]
    bucket: Vec<BucketNamed>,
    #[command(flatten)]
    zone: ZoneArgs,
}

fn named(text: &str) -> Result<BucketNamed, String> {
    let (id, name) = text.split_once('=').ok_or("not ID=NAME")?;
    let id = hex::decode(id).ok().filter(|id| id.len() == 16).ok_or("an id is 32 hex digits")?;
    Ok(BucketNamed { id: id.into(), name: name.to_owned() })
}

async fn rebuild(args: RebuildArgs) -> anyhow::Result<()> {
    let request = RebuildIndexRequest { only_look: args.dry_run, buckets: args.bucket };
    let asked = args.zone.contact()?.rebuild(request).await;
    let mut events = asked.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    while let Some(event) =
        events.message().await.map_err(|status| anyhow::anyhow!("{}", status.message()))?
    {
        match event.what {
            Some(What::Progress(sum)) => {
                progress(&format!("{} writes seen, {} objects", sum.writes, sum.objects));
            }
            Some(What::Found(found)) => tell_found(&found, args.zone.json)?,
            Some(What::Summary(sum)) => return tell_sum(&sum, args.dry_run, args.zone.json),
            None => {}
        }
    }
    anyhow::bail!("the node that did it is gone: say it again, what was made stays")
}

fn tell_found(found: &RebuildIndexFound, as_json: bool) -> anyhow::Result<()> {
    let (bucket, key) = (hex::encode(&found.bucket), String::from_utf8_lossy(&found.key));
    if as_json {
        return output::json(&json!({
            "kind": found.kind,
            "bucket": bucket,
            "bucket_name": found.bucket_name,
            "key": key,
            "size": found.size,
            "detail": found.detail,
        }));
    }
    let name = if found.bucket_name.is_empty() { &bucket } else { &found.bucket_name };
    let detail = if found.detail.is_empty() { String::new() } else { format!(": {}", found.detail) };
    output::line(&format!("{:10} {name}/{key} {} bytes{detail}", found.kind, found.size))
}

fn tell_sum(sum: &RebuildIndexSummary, dry_run: bool, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return output::json(&json!({
            "kind": "SUMMARY",
            "dry_run": dry_run,
            "writes": sum.writes,
            "owned": sum.owned,
            "objects": sum.objects,
            "uploads": sum.uploads,
            "older": sum.older,
            "incomplete": sum.incomplete,
            "refused": sum.refused,
            "buckets": sum.buckets,
            "placement_groups": sum.placement_groups,
            "silent": sum.silent,
        }));
    }
    if dry_run && sum.placement_groups > 0 {
        return output::line(&format!(
            "{} placement groups would be made of what targets hold; what objects there are is seen after that",
            sum.placement_groups
        ));
    }
    let made = if dry_run { "would be made" } else { "were made" };
    output::line(&format!(
        "{} objects {made} ({} of parts) in {} new buckets, of {} writes: {} have an owner or are younger than the recovery, {} \
         are older than what their key has, {} are not whole, {} were refused{}",
        sum.objects,
        sum.uploads,
        sum.buckets,
        sum.writes,
        sum.owned,
        sum.older,
        sum.incomplete,
        sum.refused,
        if sum.silent.is_empty() {
            String::new()
        } else {
            format!("; targets {:?} were not asked", sum.silent)
        },
    ))
}

pub(super) async fn run(command: MetaCommand) -> anyhow::Result<()> {
    match command {
        MetaCommand::Backup(args) => {
            let mut depot = args.s3.depot(&args.to)?;
            let made = make::make(&args.zone.contact()?, &mut depot, &Env::real(), progress).await?;
            if args.zone.json {
                return output::json(&summary(&made));
            }
            output::line(&format!("{} at {}; prove it with `holdfast meta verify`", in_words(&made), args.to))
        }
        MetaCommand::Verify(args) => {
            let proven = restore::verify(&mut args.s3.depot(&args.from)?, progress).await?;
            if args.json {
                return output::json(&summary(&proven));
            }
            output::line(&format!("{}: all of it reads back", in_words(&proven)))
        }
        MetaCommand::Restore(args) => restored(&args).await,
        MetaCommand::Rebuild(args) => rebuild(args).await,
    }
}

async fn restored(args: &RestoreArgs) -> anyhow::Result<()> {
    let config = config::load(&args.config)?;
    let mut depot = args.s3.depot(&args.from)?;
    let made = restore::restore(&config, &Env::real(), &mut depot, &args.identity, progress).await?;
    for bucket in &made.left {
        output::complain(&format!(
            "bucket {bucket} was created while the backup was made and is not brought back: its name is taken"
        ));
    }
    if args.json {
        let mut told = summary(&made.manifest);
        told["node"] = made.node.to_string().into();
        told["left"] = json!(made.left);
        return output::json(&told);
    }
    output::line(&format!(
        "{}: restored; node {} is the only meta node of zone {}.\n\n\
         Start it:           holdfast server -c {}\n\
         Other meta nodes:   give each a new data_dir and start it; it joins under a new id\n\
         Data, gateways:     restart those whose node.seeds or known meta nodes do not have this address\n\
         Then:               holdfast fsck, and holdfast zone release-orphans when nothing is missed",
        in_words(&made.manifest),
        made.node,
        made.manifest.zone_name,
        args.config.display(),
    ))
}

fn progress(text: &str) {
    eprintln!("{text}");
}

fn rows(manifest: &Manifest) -> u64 {
    manifest.groups.iter().map(|group| group.rows).sum()
}

fn bytes(manifest: &Manifest) -> u64 {
    manifest.groups.iter().flat_map(|group| &group.pieces).map(|piece| piece.bytes).sum()
}

fn in_words(manifest: &Manifest) -> String {
    format!(
        "metadata of zone {} as of {}, {} groups, {} rows, {} bytes",
        manifest.zone_name,
        output::when(manifest.begun_ms),
        manifest.groups.len(),
        rows(manifest),
        bytes(manifest)
    )
}

fn summary(manifest: &Manifest) -> serde_json::Value {
    json!({
        "realm": manifest.realm,
        "zone": manifest.zone_name,
        "begun_ms": manifest.begun_ms,
        "finished_ms": manifest.finished_ms,
        "groups": manifest.groups.len(),
        "rows": rows(manifest),
        "bytes": bytes(manifest),
    })
}
