//! Root rights for commands that need them.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// Whether this process is root.
pub fn is_root() -> bool {
    // The owner of a process's entry in /proc is its effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

/// The path of sudo, if it is installed.
pub fn sudo() -> Option<&'static Path> {
    Some(Path::new("/usr/bin/sudo")).filter(|path| path.is_file())
}

/// Returns if this process is root; otherwise prints a message and starts itself again under sudo. `purpose` completes
/// "… needs root".
///
/// # Errors
/// This process is not root, and sudo is not installed.
pub fn become_root(purpose: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let Some(sudo) = sudo() else {
        bail!("{purpose} needs root, and sudo is not installed: run this as root");
    };
    eprintln!("{purpose} needs root: running again with sudo");
    let error = Command::new(sudo)
        .arg("--preserve-env")
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .exec();
    bail!("cannot run sudo: {error}")
}

/// Makes cargo run test programs through sudo, where it is installed. cargo itself keeps running as the caller, so that
/// the target directory keeps its owner.
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

/// A command that runs `program` as root, through sudo if needed; as the caller where sudo is not installed.
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
