//! What a service answers when it does not do what was asked: a problem for the asker, or a failure of ours.

use crate::server::problems as server_problems;
use waifud_api::Problem;
use waifud_store::StoreError;

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The asker can do something about it.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// A bundle could not be sealed.
    #[error("the guest's documents could not be sealed")]
    Seal(#[source] waifud_cloudinit::BundleError),
    /// The private CA can't be used.
    #[error("the private CA can't be used")]
    Pki(#[from] waifud_pki::PkiError),
    /// The filesystem failed.
    #[error("{what} failed")]
    Io {
        /// The call and its file.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something that must be there is not.
    #[error("{0}")]
    Inconsistent(String),
}

impl From<Problem> for ControlError {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl ControlError {
    /// A failed call of the filesystem.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether it says that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Problem(problem) if problem.code == "not-found")
    }

    /// Whether it says that there is no room for it.
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

    /// The problem to answer with. What is ours is logged and shown as such, without its inside.
    pub fn into_problem(self) -> Problem {
        match self {
            Self::Problem(problem) => *problem,
            full if full.is_disk_full() => server_problems::no_space(),
            ours => {
                let mut causes = String::new();
                let mut next: Option<&dyn std::error::Error> = std::error::Error::source(&ours);
                while let Some(cause) = next {
                    causes.push_str(": ");
                    causes.push_str(&cause.to_string());
                    next = cause.source();
                }
                tracing::error!("{ours}{causes}");
                Problem::new(
                    500,
                    "internal",
                    "waifud could not do it, through no fault of yours",
                )
                .hint("waifud's log says why, under this request's id")
            }
        }
    }
}
