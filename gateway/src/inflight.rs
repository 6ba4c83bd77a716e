//! The bound on object data in flight, over all requests: what does not fit is told to come back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{S3Result, slow_down};

/// Bytes under one permit: keeps the counts small.
const UNIT_BYTES: u64 = 4096;
/// What one request holds at most: a stripe being filled and its parity. More in flight is bounded by the cluster
/// client's own budget.
const REQUEST_BYTES_MAX: u64 = 6 << 20;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Inflight {
    permits: Arc<Semaphore>,
    wait: Duration,
}

/// Held while a request's data is in flight.
#[derive(Debug)]
pub(crate) struct Room(#[allow(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

impl Inflight {
    /// `bytes` in flight at most; at least one request always fits.
    pub(crate) fn new(bytes: usize, wait: Duration) -> Self {
        let units = (bytes as u64).max(REQUEST_BYTES_MAX) / UNIT_BYTES;
        let permits = usize::try_from(units).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(permits)), wait }
    }

    /// Room for a body of `length` bytes. Cancel-safe.
    ///
    /// # Errors
    /// SlowDown when there is none for too long.
    pub(crate) async fn enter(&self, length: u64) -> S3Result<Room> {
        if length == 0 {
            return Ok(Room(None));
        }
        let units = u32::try_from(length.min(REQUEST_BYTES_MAX).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        if let Ok(permit) = self.permits.clone().try_acquire_many_owned(units) {
            return Ok(Room(Some(permit)));
        }
        match tokio::time::timeout(self.wait, self.permits.clone().acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Room(Some(permit))),
            Ok(Err(_)) | Err(_) => {
                metrics::counter!("holdfast_gateway_slow_downs_total").increment(1);
                Err(slow_down())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_gateway_says_slow_down_and_recovers() {
        let inflight = Inflight::new(6 << 20, Duration::ZERO);
        let room = inflight.enter(u64::MAX).await.unwrap();
        assert_eq!(inflight.enter(1).await.unwrap_err().code().as_str(), "SlowDown");
        assert!(inflight.enter(0).await.is_ok(), "a request without data needs no room");
        drop(room);
        assert!(inflight.enter(1).await.is_ok());
    }
}
