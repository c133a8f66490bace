//! No room where waifud keeps its state.

use std::path::Path;

use waifud_api::Problem;
use waifud_types::DiskSpace;

/// The problem's code, for scripts.
pub const NO_SPACE: &str = "no-space";

/// The filesystem of the image store and of the database has no room for that. Which it is, and how much is free there,
/// is added on the way out.
pub fn no_space() -> Problem {
    Problem::new(
        507,
        NO_SPACE,
        "there is not enough room in waifud's state_dir",
    )
    .field("state_dir")
    .hint(
        "make room there: waifuctl df shows what images take, waifuctl template delete and image delete remove them; \
         nothing was changed, guests run on, and waifud goes on by itself when there is room",
    )
}

/// Names the directory and what is free in it.
pub fn with_disk_space(mut problem: Problem, dir: &Path, disk_space: Option<DiskSpace>) -> Problem {
    problem.title = match disk_space {
        Some(DiskSpace { size, free }) => format!(
            "there is not enough room in waifud's state_dir {}: {free} of {size} is free",
            dir.display()
        ),
        None => format!(
            "there is not enough room in waifud's state_dir {}",
            dir.display()
        ),
    };
    problem
}

/// The database can't be written.
pub fn database_trouble(why: &str) -> Problem {
    Problem::new(503, "database-unusable", why).hint(
        "see waifud's log; where the database is lost, stop waifud and restore a backup: waifud restore FILE",
    )
}
