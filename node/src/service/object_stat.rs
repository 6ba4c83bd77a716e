//! `object stat`: where every shard of an object is, asked of every target; and `object accept-loss`, which ends what is beyond
//! repair.

use holdfast_client::{Cluster, Error};
use holdfast_proto::admin::{
    AcceptLossRequest, AcceptLossResponse, ShardStat, StatObjectRequest, StatObjectResponse, StripeStat,
};
use holdfast_proto::error::Fault;
use holdfast_proto::id::TargetId;
use holdfast_proto::meta::{Body, DeleteObject, GetObject, Preconditions};
use holdfast_proto::v1::FaultKind;

/// Looks at the current version of an object.
///
/// # Errors
/// `INVALID` when there is no such object, `FAULT_UNAVAILABLE`.
pub(super) async fn stat(cluster: &Cluster, asked: StatObjectRequest) -> Result<StatObjectResponse, Fault> {
    let bucket = cluster.bucket(&asked.bucket).await.map_err(fault)?;
    let query = GetObject { key: asked.key, ..GetObject::default() };
    let found = cluster.get_object(&bucket, query).await.map_err(fault)?;
    let version = found.version.unwrap_or_default();
    let mut stat =
        StatObjectResponse { size: version.size, etag: version.etag, ..StatObjectResponse::default() };
    let parts = found.parts.into_iter().filter_map(|part| part.row.and_then(|row| row.body));
    for body in version.body.into_iter().chain(parts) {
        add(cluster, &body, &mut stat).await.map_err(fault)?;
    }
    stat.silent.sort_unstable();
    stat.silent.dedup();
    Ok(stat)
}

async fn add(cluster: &Cluster, body: &Body, stat: &mut StatObjectResponse) -> Result<(), Error> {
    stat.inline_bytes += body.inline.as_ref().map_or(0, |bytes| bytes.len() as u64);
    let located = cluster.locate_body(body).await?;
    stat.silent.extend(located.silent.into_iter().map(TargetId::get));
    for (found, belongs) in located.stripes {
        let shards = found.holders.iter().zip(belongs).map(|(holders, home)| ShardStat {
            target: home.get(),
            present: holders.contains(&home),
            elsewhere: holders.iter().filter(|target| **target != home).map(|target| target.get()).collect(),
        });
        stat.stripes.push(StripeStat {
            write: found.write.to_wire(),
            stripe: found.stripe,
            pg: found.pg.get(),
            scheme: Some(found.scheme),
            shards: shards.collect(),
            alive: found.holders.iter().filter(|holders| !holders.is_empty()).count() as u32,
        });
    }
    Ok(())
}

/// Whether fewer shards of a stripe are left than its code needs.
fn is_lost(stripe: &StripeStat) -> bool {
    stripe.scheme.is_some_and(|scheme| stripe.alive < scheme.data)
}

/// Gives up an object of which some stripe is beyond repair: like a DELETE of that very version. What it held until then is
/// collected as everything that was deleted.
///
/// # Errors
/// `INVALID` when the object can be read, or when targets that do not answer may have what it lacks; as [`stat`].
pub(super) async fn accept_loss(
    cluster: &Cluster,
    asked: AcceptLossRequest,
) -> Result<AcceptLossResponse, Fault> {
    let invalid = |text: String| Err(Fault::new(FaultKind::Invalid, text));
    let request = StatObjectRequest { bucket: asked.bucket.clone(), key: asked.key.clone() };
    let stat = stat(cluster, request).await?;
    let lost_stripes = stat.stripes.iter().filter(|stripe| is_lost(stripe)).count();
    if lost_stripes == 0 {
        return invalid("nothing of it is lost: every stripe has the shards it needs".to_owned());
    }
    if !stat.silent.is_empty() && !asked.may_return {
        let silent: Vec<String> = stat.silent.iter().map(u32::to_string).collect();
        return invalid(format!(
            "target(s) {} did not answer and may have what it lacks: bring them back, or `holdfast target remove` what is \
             gone for good",
            silent.join(", ")
        ));
    }
    let mut answer = AcceptLossResponse {
        lost_stripes: lost_stripes as u32,
        stripes: stat.stripes.len() as u32,
        size: stat.size,
        deleted: false,
    };
    if !asked.sure {
        return Ok(answer);
    }
    let bucket = cluster.bucket(&asked.bucket).await.map_err(fault)?;
    let found = cluster.get_object(&bucket, GetObject { key: asked.key.clone(), ..GetObject::default() });
    let found = found.await.map_err(fault)?;
    let version = found.version.unwrap_or_default();
    if version.etag != stat.etag {
        return invalid("it was stored again just now".to_owned());
    }
    let delete = DeleteObject {
        key: asked.key,
        version: if version.null { Default::default() } else { found.version_id },
        version_null: version.null,
        // The same bytes stored again are another object: they can be read.
        conditions: Some(Preconditions {
            if_match: vec![stat.etag],
            if_match_modified_ms: Some(version.modified_ms),
            ..Preconditions::default()
        }),
        owner: version.owner,
        ..DeleteObject::default()
    };
    cluster.delete_object(&bucket, delete).await.map_err(fault)?;
    answer.deleted = true;
    Ok(answer)
}

fn fault(error: Error) -> Fault {
    let kind = match error {
        Error::Refused { .. } | Error::Invalid { .. } => FaultKind::Invalid,
        _ => FaultKind::FaultUnavailable,
    };
    Fault::new(kind, error.to_string())
}
