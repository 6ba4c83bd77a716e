//! Listings of a bucket, merged over the partitions that own its slots.

use holdfast_proto::meta::{Bucket, ListObjects, ListObjectsPage, ListUploads, ListUploadsPage};

use crate::cluster::Cluster;
use crate::error::Error;

impl Cluster {
    /// A page of keys and common prefixes in byte order.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_objects(
        &self,
        _bucket: &Bucket,
        _request: ListObjects,
    ) -> Result<ListObjectsPage, Error> {
        Err(Error::unavailable("being written"))
    }

    /// A page of uploads and common prefixes in order of key, then upload.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_uploads(
        &self,
        _bucket: &Bucket,
        _request: ListUploads,
    ) -> Result<ListUploadsPage, Error> {
        Err(Error::unavailable("being written"))
    }
}
