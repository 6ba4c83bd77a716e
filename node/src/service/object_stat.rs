//! `object stat`: where every shard of an object is, asked of every target.

use holdfast_client::{Cluster, Error};
use holdfast_proto::admin::{ShardStat, StatObjectRequest, StatObjectResponse, StripeStat};
use holdfast_proto::error::Fault;
use holdfast_proto::id::TargetId;
use holdfast_proto::meta::{Body, GetObject};
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
        });
    }
    Ok(())
}

fn fault(error: Error) -> Fault {
    let kind = match error {
        Error::Refused { .. } | Error::Invalid { .. } => FaultKind::Invalid,
        _ => FaultKind::FaultUnavailable,
    };
    Fault::new(kind, error.to_string())
}
