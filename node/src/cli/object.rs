//! `holdfast object ...`

use clap::{Args, Subcommand};
use holdfast_proto::admin::{
    AcceptLossRequest, AcceptLossResponse, ShardStat, StatObjectRequest, StatObjectResponse, StripeStat,
};
use serde_json::json;

use super::output;
use super::target_zone::ZoneArgs;

#[derive(Debug, Subcommand)]
pub(super) enum ObjectCommand {
    /// Where every shard of an object is
    Stat(StatArgs),
    /// Give up an object of which more is lost than its code bears: it is deleted
    AcceptLoss(AcceptLossArgs),
}

#[derive(Debug, Args)]
pub(super) struct StatArgs {
    bucket: String,
    key: String,
    #[command(flatten)]
    zone: ZoneArgs,
}

#[derive(Debug, Args)]
pub(super) struct AcceptLossArgs {
    bucket: String,
    key: String,
    /// Do it; without this it is only shown what would be given up
    #[arg(long)]
    yes: bool,
    /// Even though targets that do not answer may have what it lacks
    #[arg(long)]
    even_if_they_may_return: bool,
    #[command(flatten)]
    zone: ZoneArgs,
}

/// `holdfast object accept-loss`
pub(super) async fn accept_loss(args: &AcceptLossArgs) -> anyhow::Result<()> {
    let request = AcceptLossRequest {
        bucket: args.bucket.clone(),
        key: args.key.clone().into_bytes().into(),
        sure: args.yes,
        may_return: args.even_if_they_may_return,
    };
    let answer = args.zone.contact()?.accept_loss(request).await;
    let answer = answer.map_err(|fault| anyhow::anyhow!("{}", fault.message))?;
    let AcceptLossResponse { lost_stripes, stripes, size, deleted } = answer;
    if args.zone.json {
        output::json(&json!({
            "lost_stripes": lost_stripes, "stripes": stripes, "size": size, "deleted": deleted,
        }))?;
    } else {
        let what = if deleted { "given up and deleted" } else { "beyond repair" };
        let (bucket, key, size) = (&args.bucket, &args.key, output::bytes(size));
        output::line(&format!(
            "{bucket}/{key}, {size}: {what}; {lost_stripes} of {stripes} stripes are lost"
        ))?;
    }
    if deleted { Ok(()) } else { Err(anyhow::anyhow!("nothing was done: say --yes to give it up")) }
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

/// Stripes of which too few shards answer.
fn lost(stat: &StatObjectResponse) -> usize {
    let is_lost = |stripe: &&StripeStat| stripe.scheme.is_some_and(|scheme| stripe.alive < scheme.data);
    stat.stripes.iter().filter(is_lost).count()
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
        "readable": lost(stat) == 0,
        "stripes": stat.stripes.iter().map(|stripe| json!({
            "write": hex::encode(&stripe.write),
            "stripe": stripe.stripe,
            "pg": stripe.pg,
            "scheme": super::inspect::scheme(stripe.scheme),
            "shards": stripe.shards.iter().map(shard).collect::<Vec<_>>(),
            "alive": stripe.alive,
            "needed": stripe.scheme.map_or(0, |scheme| scheme.data),
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
    if lost(stat) > 0 {
        text +=
            &format!("cannot be read: {} stripe(s) have fewer shards than their code needs\n", lost(stat));
    }
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
