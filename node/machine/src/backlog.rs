//! What workers ask of a partition: garbage that is due, bodies with missing shards, and the owner of a write.

use bytes::Bytes;
use holdfast_proto::hlc::Hlc;
use holdfast_proto::limits::LIST_PAGE_MAX;
use holdfast_proto::meta::{
    DueGarbage, DueGarbageRows, Garbage, GarbageKey, ListMissed, Missed, MissedRow, MissedRows, OwnerOfWrite,
    WriteOwner,
};

use crate::key;
use crate::kv::KvRead;
use crate::row::{self, Step, Stop};
use crate::session;
use crate::wire;

/// A page's first row: after the last one of the page before, or the family's first.
fn start(family: key::Family, after: &Bytes) -> Step<Vec<u8>> {
    if after.is_empty() {
        return Ok(family.to_vec());
    }
    if !after.starts_with(family) {
        return wire::malformed("the page before was of something else");
    }
    Ok([after, &[0][..]].concat())
}

fn limit(asked: u32) -> usize {
    (asked as usize).clamp(1, LIST_PAGE_MAX)
}

/// Garbage whose due time is before `due_before`, slot by slot. An empty `last` says that nothing is left.
pub(crate) fn due_garbage(kv: &impl KvRead, query: &DueGarbage) -> Step<DueGarbageRows> {
    let end = key::prefix_end(key::GC);
    let mut page = DueGarbageRows::default();
    let mut rows = kv.scan(&start(key::GC, &query.after)?, &end);
    while let Some(row) = rows.next() {
        let (key, value) = row.map_err(Stop::from)?;
        let parsed = key::parse_place(key::GC, &key).and_then(|(bucket, slot, rest)| {
            let (due, write) = rest.split_at_checked(8)?;
            Some((bucket, slot, Hlc::from_be_bytes(due.try_into().ok()?), write))
        });
        let (bucket, slot, due, write) = parsed.ok_or_else(|| row::corrupt(&key, "no garbage key"))?;
        if due.get() >= query.due_before {
            // The rest of this slot is younger still.
            rows = kv.scan(&key::prefix_end(&key::of_slot(key::GC, bucket, slot)), &end);
            continue;
        }
        page.keys.push(GarbageKey {
            bucket: bucket.to_wire(),
            slot: slot.get().into(),
            due: due.get(),
            write: Bytes::copy_from_slice(write),
        });
        page.rows.push(row::decode::<Garbage>(&key, value)?);
        if page.keys.len() == limit(query.limit) {
            page.last = key;
            break;
        }
    }
    Ok(page)
}

/// Bodies that miss shards. An empty `last` says that nothing is left.
pub(crate) fn list_missed(kv: &impl KvRead, query: &ListMissed) -> Step<MissedRows> {
    let mut page = MissedRows { total: session::state(kv)?.missed, ..MissedRows::default() };
    for row in kv.scan(&start(key::MIS, &query.after)?, &key::prefix_end(key::MIS)) {
        let (key, value) = row.map_err(Stop::from)?;
        let (bucket, slot, write) =
            key::parse_place(key::MIS, &key).ok_or_else(|| row::corrupt(&key, "no write"))?;
        page.rows.push(MissedRow {
            bucket: bucket.to_wire(),
            slot: slot.get().into(),
            write: Bytes::copy_from_slice(write),
            row: Some(row::decode::<Missed>(&key, value)?),
        });
        if page.rows.len() == limit(query.limit) {
            page.last = key;
            break;
        }
    }
    Ok(page)
}

/// Who owns a write; an owner that is not set says that nobody does.
pub(crate) fn owner_of_write(kv: &impl KvRead, query: &OwnerOfWrite) -> Step<WriteOwner> {
    let key =
        key::of_write(key::WRT, wire::id(&query.bucket)?, wire::slot(query.slot)?, wire::id(&query.write)?);
    Ok(row::read(kv, &key)?.unwrap_or_default())
}
