//! What a caller of the cluster learns when something did not work. Retryability and "it may have happened" are data.

use holdfast_proto::error::Fault;
use holdfast_proto::meta::Refusal;
use holdfast_proto::v1::FaultKind;

/// Why a call to the cluster gave no result. The client has already retried what can be retried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The state machine said no. Nothing was changed.
    #[error("refused: {refusal:?} {detail}")]
    Refused {
        /// Which rule refused it.
        refusal: Refusal,
        /// The rule's own words, for logs.
        detail: String,
    },
    /// No leader, no quorum, too few healthy targets, or too much in flight: a 503.
    #[error("unavailable: {detail}")]
    Unavailable {
        /// When to try again, milliseconds; 0 when nothing is known.
        retry_after_ms: u32,
        /// A mutation may have been done all the same: what it refers to must not be discarded.
        unknown: bool,
        /// What was missing.
        detail: String,
    },
    /// Too few targets have room in every placement group: nothing was stored, and repeating it at once is of no use.
    #[error("full: {detail}")]
    Full {
        /// What is full.
        detail: String,
    },
    /// More shards are gone than the code can bear, and every target that should hold them has said so.
    #[error("lost: {detail}")]
    Lost {
        /// Which stripe of which write.
        detail: String,
    },
    /// The caller asked for something that cannot be: a range past the end, a body that is not what it declared.
    #[error("invalid: {detail}")]
    Invalid {
        /// What was wrong.
        detail: String,
    },
    /// A peer broke the protocol, or stored metadata does not parse.
    #[error("internal: {detail}")]
    Internal {
        /// What was found.
        detail: String,
    },
}

impl Error {
    pub(crate) fn refused(refusal: Refusal, detail: impl Into<String>) -> Self {
        Self::Refused { refusal, detail: detail.into() }
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::Unavailable { retry_after_ms: 0, unknown: false, detail: detail.into() }
    }

    pub(crate) fn full(detail: impl Into<String>) -> Self {
        Self::Full { detail: detail.into() }
    }

    pub(crate) fn lost(detail: impl Into<String>) -> Self {
        Self::Lost { detail: detail.into() }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::Invalid { detail: detail.into() }
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::Internal { detail: detail.into() }
    }

    /// A fault that retrying did not, or must not, get past.
    pub(crate) fn from_fault(fault: &Fault, unknown: bool) -> Self {
        match fault.kind {
            FaultKind::Invalid | FaultKind::Foreign | FaultKind::FaultUnspecified => {
                Self::internal(fault.to_string())
            }
            _ => {
                Self::Unavailable { retry_after_ms: fault.retry_after_ms, unknown, detail: fault.to_string() }
            }
        }
    }

    /// The same error where something may have been done all the same.
    pub(crate) fn uncertain(self) -> Self {
        match self {
            Self::Unavailable { retry_after_ms, detail, .. } => {
                Self::Unavailable { retry_after_ms, unknown: true, detail }
            }
            other => other,
        }
    }

    /// The refusal, when the state machine said no.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// Whether a mutation may have been done although no answer came.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unavailable { unknown: true, .. })
    }
}

/// Why a body was not stored: its source failed, or the cluster did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError<E> {
    /// The source's own error, as it gave it. Nothing of the write is owned by anyone.
    #[error("the body's source failed: {0}")]
    Source(E),
    /// The cluster's.
    #[error(transparent)]
    Cluster(#[from] Error),
}
