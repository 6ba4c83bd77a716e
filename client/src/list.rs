//! Listings of a bucket: every partition that owns slots of it gives pages, merged into one in exact byte order.

use std::cmp::Ordering;

use bytes::Bytes;
use holdfast_proto::id::GroupId;
use holdfast_proto::meta::{
    Bucket, ListObjects, ListObjectsPage, ListUploads, ListUploadsPage, ListedKey, ListedUpload, answer,
    query,
};

use crate::cluster::Cluster;
use crate::error::Error;
use crate::merge::{Page, merge};
use crate::object::unexpected_answer;

/// A key with its row, or a common prefix. Ordered by key, then by marker within a key.
#[derive(Debug, Clone)]
enum Entry<R> {
    Row(Bytes, Bytes, R),
    Prefix(Bytes),
}

impl<R> Entry<R> {
    fn order(&self) -> (&[u8], &[u8]) {
        match self {
            Self::Row(key, marker, _) => (key, marker),
            Self::Prefix(prefix) => (prefix, b""),
        }
    }
}

impl<R> PartialEq for Entry<R> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl<R> Eq for Entry<R> {}

impl<R> PartialOrd for Entry<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R> Ord for Entry<R> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// Rows and prefixes, each ascending, as one ascending list.
fn interleave<R>(rows: impl Iterator<Item = Entry<R>>, prefixes: Vec<Bytes>) -> Vec<Entry<R>> {
    let mut entries: Vec<Entry<R>> = rows.chain(prefixes.into_iter().map(Entry::Prefix)).collect();
    // Two sorted runs: one pass of the merging sort.
    entries.sort();
    entries
}

/// How many of `limit` entries to ask a partition for that owns `slots` of `all`: its share and three deviations. With a
/// delimiter every partition may find the same prefixes, so each is asked for all.
fn share(limit: usize, slots: usize, all: usize, rolled_up: bool) -> usize {
    if rolled_up || slots >= all {
        return limit;
    }
    let mean = limit as f64 * slots as f64 / all as f64;
    ((mean + 3.0 * mean.sqrt()).ceil() as usize + 1).min(limit)
}

impl Cluster {
    /// A page of keys and common prefixes in byte order, together at most `limit`. `last` is the page's last entry.
    /// `request.bucket` and `slots` are filled here. No snapshot: each partition is read at one index per page.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Refused`] with `NoSuchBucket`.
    pub async fn list_objects(
        &self,
        bucket: &Bucket,
        request: ListObjects,
    ) -> Result<ListObjectsPage, Error> {
        let partitions = self.map().partitions_of_bucket(bucket)?;
        let limit = request.limit as usize;
        let asks = asks(&partitions, limit, !request.delimiter.is_empty());
        let fetch = |at: usize, after: Option<Entry<ListedKey>>, n: usize| {
            let (group, slots) = &partitions[at];
            let after =
                after.map_or_else(|| request.after.clone(), |entry| Bytes::copy_from_slice(entry.order().0));
            let query = ListObjects {
                bucket: bucket.id.clone(),
                slots: slots.clone(),
                after,
                limit: n as u32,
                ..request.clone()
            };
            self.page_of_objects(*group, query)
        };
        let page = merge(&asks, limit, fetch).await?;
        let last =
            page.entries.last().map(|entry| Bytes::copy_from_slice(entry.order().0)).unwrap_or_default();
        let mut merged = ListObjectsPage { more: page.more, last, ..Default::default() };
        for entry in page.entries {
            match entry {
                Entry::Row(_, _, row) => merged.keys.push(row),
                Entry::Prefix(prefix) => merged.common_prefixes.push(prefix),
            }
        }
        Ok(merged)
    }

    async fn page_of_objects(
        &self,
        group: GroupId,
        query: ListObjects,
    ) -> Result<Page<Entry<ListedKey>>, Error> {
        match self.query_ok(group, query::Of::ListObjects(query)).await? {
            answer::Ok::Objects(page) => {
                let rows = page.keys.into_iter().map(|row| Entry::Row(row.key.clone(), Bytes::new(), row));
                Ok(Page { entries: interleave(rows, page.common_prefixes), more: page.more })
            }
            other => Err(unexpected_answer(&other)),
        }
    }

    /// A page of uploads and common prefixes in order of key, then upload. `request.bucket` and `slots` are filled here.
    ///
    /// # Errors
    /// As [`Self::list_objects`].
    pub async fn list_uploads(
        &self,
        bucket: &Bucket,
        request: ListUploads,
    ) -> Result<ListUploadsPage, Error> {
        let partitions = self.map().partitions_of_bucket(bucket)?;
        let limit = request.limit as usize;
        let asks = asks(&partitions, limit, true);
        let fetch = |at: usize, after: Option<Entry<ListedUpload>>, n: usize| {
            let (group, slots) = &partitions[at];
            let mut query = ListUploads {
                bucket: bucket.id.clone(),
                slots: slots.clone(),
                limit: n as u32,
                ..request.clone()
            };
            if let Some(entry) = after {
                let (key, marker) = entry.order();
                query.key_marker = Bytes::copy_from_slice(key);
                query.upload_marker = Bytes::copy_from_slice(marker);
            }
            self.page_of_uploads(*group, query)
        };
        let page = merge(&asks, limit, fetch).await?;
        let mut merged = ListUploadsPage { more: page.more, ..Default::default() };
        for entry in page.entries {
            match entry {
                Entry::Row(_, _, row) => merged.uploads.push(row),
                Entry::Prefix(prefix) => merged.common_prefixes.push(prefix),
            }
        }
        Ok(merged)
    }

    async fn page_of_uploads(
        &self,
        group: GroupId,
        query: ListUploads,
    ) -> Result<Page<Entry<ListedUpload>>, Error> {
        match self.query_ok(group, query::Of::ListUploads(query)).await? {
            answer::Ok::Uploads(page) => {
                let rows =
                    page.uploads.into_iter().map(|row| Entry::Row(row.key.clone(), row.upload.clone(), row));
                Ok(Page { entries: interleave(rows, page.common_prefixes), more: page.more })
            }
            other => Err(unexpected_answer(&other)),
        }
    }
}

fn asks(partitions: &[(GroupId, Vec<u32>)], limit: usize, rolled_up: bool) -> Vec<usize> {
    let all: usize = partitions.iter().map(|(_, slots)| slots.len()).sum();
    partitions.iter().map(|(_, slots)| share(limit, slots.len(), all, rolled_up)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_asked_for_its_share_and_a_little_more() {
        assert_eq!(share(1000, 8, 8, false), 1000);
        assert_eq!(share(1000, 4, 8, true), 1000);
        assert_eq!(share(1000, 4, 8, false), 569);
        assert_eq!(share(1, 1, 8, false), 1);
        assert_eq!(share(0, 1, 8, false), 0);
    }

    #[test]
    fn keys_and_prefixes_are_in_byte_order() {
        let key = |key: &'static [u8]| Entry::Row(Bytes::from_static(key), Bytes::new(), ());
        let entries = interleave(
            [key(b"a"), key(b"a\xff"), key(b"c")].into_iter(),
            vec![Bytes::from_static(b"a/"), Bytes::from_static(b"b/")],
        );
        let order: Vec<&[u8]> = entries.iter().map(|entry| entry.order().0).collect();
        assert_eq!(order, [&b"a"[..], b"a/", b"a\xff", b"b/", b"c"]);
    }
}
