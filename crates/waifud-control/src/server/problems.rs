//! Problems with waifud's own state: a full filesystem, an unusable database.

use std::path::Path;

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction};
use waifud_types::DiskSpace;

/// The problem's code, for scripts.
pub const NO_SPACE: &str = "no-space";

/// The filesystem of the image store and the database does not have enough free space. The directory and its free space are
/// added to the answer by [`with_disk_space`].
pub fn no_space() -> Problem {
    Problem::new(
        507,
        NO_SPACE,
        "there is not enough free space in waifud's state_dir",
    )
    .field("state_dir")
    .hint(Hint::action(&HintAction::FreeSpace))
}

/// Adds the directory and its free space.
pub fn with_disk_space(mut problem: Problem, dir: &Path, disk_space: Option<DiskSpace>) -> Problem {
    problem.title = match disk_space {
        Some(DiskSpace { size, free }) => format!(
            "there is not enough free space in waifud's state_dir {}: {free} of {size} is free",
            dir.display()
        ),
        None => format!(
            "there is not enough free space in waifud's state_dir {}",
            dir.display()
        ),
    };
    problem
}

/// The database cannot be written.
pub fn database_unusable(why: &str) -> Problem {
    Problem::new(503, "database-unusable", why).hint(
        "see waifud's log; if the database is lost, stop waifud and restore a backup: waifud restore FILE",
    )
}
