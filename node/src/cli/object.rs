//! `holdfast object ...`

use clap::{Args, Subcommand};
use holdfast_proto::admin::{ShardStat, StatObjectRequest, StatObjectResponse};
use serde_json::json;

use super::output;
use super::target_zone::ZoneArgs;

#[derive(Debug, Subcommand)]
pub(super) enum ObjectCommand {
    /// Where every shard of an object is
    Stat(StatArgs),
}

#[derive(Debug, Args)]
pub(super) struct StatArgs {
    bucket: String,
    key: String,
    #[command(flatten)]
    zone: ZoneArgs,
}

/// `holdfast object stat`
pub(super) async fn stat(args: &StatArgs) -> anyhow::Result<()> {
    let request =
        StatObjectRequest { bucket: args.bucket.clone(), key: args.key.clone().into_bytes().into() };
    let stat =
        args.zone.contact()?.object(request).await.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    if args.zone.json { output::json(&stat_json(&stat)) } else { output::line(&stat_text(&stat)) }
}

/// Shards that are where they belong, of how many there should be.
fn present(stat: &StatObjectResponse) -> (usize, usize) {
    let shards = || stat.stripes.iter().flat_map(|stripe| &stripe.shards);
    (shards().filter(|shard| shard.present).count(), shards().count())
}

fn stat_json(stat: &StatObjectResponse) -> serde_json::Value {
    let shard = |shard: &ShardStat| json!({"target": shard.target, "present": shard.present, "elsewhere": shard.elsewhere});
    let (present, shards) = present(stat);
    json!({
        "size": stat.size,
        "etag": stat.etag,
        "inline_bytes": stat.inline_bytes,
        "shards": shards,
        "present": present,
        "silent": stat.silent,
        "stripes": stat.stripes.iter().map(|stripe| json!({
            "write": hex::encode(&stripe.write),
            "stripe": stripe.stripe,
            "pg": stripe.pg,
            "scheme": super::inspect::scheme(stripe.scheme),
            "shards": stripe.shards.iter().map(shard).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn stat_text(stat: &StatObjectResponse) -> String {
    let (present, shards) = present(stat);
    let mut text = format!("{}, ETag {}", output::bytes(stat.size), stat.etag);
    if stat.stripes.is_empty() {
        return text + "; in the metadata, without shards";
    }
    text += &format!("; {present} of {shards} shards in their place\n");
    if !stat.silent.is_empty() {
        let silent: Vec<String> = stat.silent.iter().map(u32::to_string).collect();
        text += &format!("targets that did not answer: {}\n", silent.join(" "));
    }
    let rows: Vec<Vec<String>> = stat
        .stripes
        .iter()
        .map(|stripe| {
            let shards: Vec<String> = stripe.shards.iter().map(shard_text).collect();
            let scheme = super::inspect::scheme(stripe.scheme);
            vec![
                hex::encode(&stripe.write),
                stripe.stripe.to_string(),
                stripe.pg.to_string(),
                scheme,
                shards.join(" "),
            ]
        })
        .collect();
    text + "\n" + &output::table(&["WRITE", "STRIPE", "PG", "SCHEME", "TARGETS"], &rows)
}

/// `5`: there; `5!`: missing there; `5+7`: at 7 too; `5!7`: at 7 instead.
fn shard_text(shard: &ShardStat) -> String {
    let elsewhere: Vec<String> = shard.elsewhere.iter().map(u32::to_string).collect();
    match (shard.present, elsewhere.is_empty()) {
        (true, true) => shard.target.to_string(),
        (true, false) => format!("{}+{}", shard.target, elsewhere.join("+")),
        (false, _) => format!("{}!{}", shard.target, elsewhere.join("+")),
    }
}
