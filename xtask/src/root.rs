//! Becoming root for what needs it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// Whether this process is root.
pub fn is_root() -> bool {
    // The owner of our own entry in /proc is our effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

/// Where sudo is, if it is installed.
pub fn sudo() -> Option<&'static Path> {
    Some(Path::new("/usr/bin/sudo")).filter(|path| path.is_file())
}

/// Returns when this process is root; otherwise replaces it with itself under sudo, saying so.
///
/// # Errors
/// Not root, and there is no sudo.
pub fn become_root(why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let Some(sudo) = sudo() else {
        bail!("{why} needs root, and there is no sudo: run this as root");
    };
    eprintln!("{why} needs root: going on under sudo");
    let error = Command::new(sudo)
        .arg("--preserve-env")
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .exec();
    bail!("cannot run sudo: {error}")
}

/// Lets the programs that `cargo` builds and runs be root where sudo allows it, while cargo itself stays the caller,
/// so that nothing in the target directory changes hands.
pub fn for_test_programs(cargo: &mut Command) {
    if !is_root() && sudo().is_some() {
        let target = format!(
            "{}_UNKNOWN_LINUX_GNU",
            std::env::consts::ARCH.to_uppercase()
        );
        cargo.env(
            format!("CARGO_TARGET_{target}_RUNNER"),
            "sudo --preserve-env --",
        );
    }
}

/// A command that runs `program` as root where sudo allows it, else as the caller.
pub fn program(program: &Path) -> Command {
    match sudo().filter(|_| !is_root()) {
        None => Command::new(program),
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.args(["--preserve-env", "--"]).arg(program);
            command
        }
    }
}
