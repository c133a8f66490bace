//! Installing waifud on a new node: the packages that waifud makes of its own files, and the script that installs one.

mod ar;
mod packages;
mod script;

pub use packages::NodePackages;
pub use script::{Source, commands, error_script, script};
