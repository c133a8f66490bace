//! Problems with reading the history.

use waifud_api::Problem;

/// The history after the revision is not available.
pub fn revision_gone(oldest: waifud_types::Revision) -> Problem {
    Problem::new(
        410,
        "revision-gone",
        "the history after that revision was trimmed, or belongs to another incarnation of the database",
    )
    .field("since")
    .detail(oldest.to_string())
    .hint(format!(
        "read the lists again and continue from their revision; the history begins at {oldest}"
    ))
}
