//! How a failed call travels: a gRPC status whose details are a [`WireFault`]. Retryability is data, never text.

use prost::Message;
use tonic::{Code, Status};

use crate::v1::{FaultKind, WireFault};

/// A fault with its kind, a sentence, and what a caller needs to go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({kind:?})")]
pub struct Fault {
    /// What went wrong, for programs.
    pub kind: FaultKind,
    /// What went wrong, for people.
    pub message: String,
    /// With [`FaultKind::NotLeader`]: the leader's node id, 0 when unknown.
    pub leader: u64,
    /// With an unavailable or full service: when to try again, milliseconds; 0 when unknown.
    pub retry_after_ms: u32,
}

impl Fault {
    /// A fault of `kind` with a sentence.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), leader: 0, retry_after_ms: 0 }
    }

    /// "Ask `leader`" (0 when unknown).
    pub fn not_leader(leader: u64) -> Self {
        Self { leader, ..Self::new(FaultKind::NotLeader, "this node does not lead the group") }
    }

    /// Whether the same request may succeed elsewhere or later. What was asked may have been done: repeat it with the
    /// same request id or write id.
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            FaultKind::NotLeader
            | FaultKind::NotHere
            | FaultKind::FaultUnavailable
            | FaultKind::StaleEpoch
            | FaultKind::ShardUnknown
            | FaultKind::ClockOff
            | FaultKind::Overloaded => true,
            FaultKind::FaultUnspecified
            | FaultKind::ShardAbsent
            | FaultKind::Corrupt
            | FaultKind::Full
            | FaultKind::DiskFailed
            | FaultKind::Invalid
            | FaultKind::Foreign => false,
        }
    }

    /// As a gRPC status.
    pub fn into_status(self) -> Status {
        let code = match self.kind {
            FaultKind::NotLeader | FaultKind::NotHere | FaultKind::StaleEpoch => Code::FailedPrecondition,
            FaultKind::FaultUnavailable | FaultKind::ShardUnknown | FaultKind::ClockOff => Code::Unavailable,
            FaultKind::ShardAbsent => Code::NotFound,
            FaultKind::Corrupt => Code::DataLoss,
            FaultKind::Full | FaultKind::Overloaded => Code::ResourceExhausted,
            FaultKind::Invalid => Code::InvalidArgument,
            FaultKind::Foreign => Code::PermissionDenied,
            FaultKind::DiskFailed | FaultKind::FaultUnspecified => Code::Internal,
        };
        let wire = WireFault {
            kind: self.kind.into(),
            message: self.message.clone(),
            leader: self.leader,
            retry_after_ms: self.retry_after_ms,
        };
        Status::with_details(code, self.message, wire.encode_to_vec().into())
    }

    /// From a status. One without our details is the transport's own: the peer could not be reached or did not answer
    /// in time, so nothing is known of what it did.
    pub fn from_status(status: &Status) -> Self {
        match WireFault::decode(status.details()) {
            Ok(wire) if !status.details().is_empty() => Self {
                kind: wire.kind(),
                leader: wire.leader,
                retry_after_ms: wire.retry_after_ms,
                message: wire.message,
            },
            _ => {
                let kind = match status.code() {
                    Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => FaultKind::Invalid,
                    _ => FaultKind::FaultUnavailable,
                };
                Self::new(kind, format!("{}: {}", status.code(), status.message()))
            }
        }
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        fault.into_status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_survive_the_wire() {
        let fault = Fault { leader: 7, retry_after_ms: 20, ..Fault::new(FaultKind::NotLeader, "ask 7") };
        assert_eq!(Fault::from_status(&fault.clone().into_status()), fault);
    }

    #[test]
    fn a_broken_connection_is_retryable() {
        assert!(Fault::from_status(&Status::unavailable("connection refused")).is_retryable());
        assert!(!Fault::from_status(&Status::unimplemented("no")).is_retryable());
    }
}
