//! The error of a service: a problem that the caller can act on, or an internal failure.

use crate::server::problems as server_problems;
use waifud_api::Problem;
use waifud_store::StoreError;

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The caller can act on it.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// Sealing a bundle failed.
    #[error("encrypting the guest's metadata and user-data failed")]
    Seal(#[source] waifud_cloudinit::BundleError),
    /// The private CA is not usable.
    #[error("the private CA is not usable")]
    Pki(#[from] waifud_pki::PkiError),
    /// A filesystem call failed.
    #[error("{what} failed")]
    Io {
        /// The operation and its file.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An invariant is violated.
    #[error("{0}")]
    Inconsistent(String),
}

impl From<Problem> for ControlError {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl ControlError {
    /// An error of the filesystem; `what` names the operation and its file.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether the named object does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.code == "not-found")
    }

    /// Whether the filesystem is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.code == server_problems::NO_SPACE,
            Self::Store(error) => error.is_full(),
            Self::Io { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }

    /// The problem to answer with. Internal failures are logged, and the answer contains no details of them.
    pub fn into_problem(self) -> Problem {
        match self {
            Self::Problem(problem) => *problem,
            full if full.is_disk_full() => server_problems::no_space(),
            internal => {
                tracing::error!("{}", waifud_kit::error::with_causes(&internal));
                Problem::new(500, "internal", "internal error in waifud")
                    .hint("see waifud's log for this request id")
            }
        }
    }
}
