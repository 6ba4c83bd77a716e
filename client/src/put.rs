//! Stores bodies.

use holdfast_proto::meta::Body;

use crate::cluster::Cluster;
use crate::error::{Error, PutError};
use crate::source::{BodySource, StoredBody, WriteIntent};

impl Cluster {
    /// Stores a body durably.
    ///
    /// # Errors
    /// [`PutError`].
    pub async fn put_body<S: BodySource>(
        &self,
        _intent: WriteIntent,
        _source: &mut S,
    ) -> Result<StoredBody, PutError<S::Error>> {
        Err(Error::unavailable("being written").into())
    }

    /// Best effort.
    pub async fn discard(&self, _body: &Body) {}
}
