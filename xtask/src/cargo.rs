//! Running cargo and other programs in the repository, with their output passed through.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The repository's root.
pub fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// The target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// The cargo that runs xtask.
///
/// `cargo run` sets `CARGO_MANIFEST_DIR` and `CARGO_PKG_*` for xtask. The cargo that xtask starts must not inherit
/// them: the build script of `ring` runs again when `CARGO_MANIFEST_DIR` changes, so everything that depends on `ring`
/// would be compiled again whenever a plain `cargo` command and `cargo xtask` alternate.
pub fn cargo() -> Command {
    in_repository(Command::new(program()))
}

/// [`cargo`] under the kernel's policy for idle work: it and the compilers that it starts get only the processor time
/// that other programs leave. For work without deadlines beside tests that have some.
pub fn in_background() -> Command {
    let mut command = Command::new("chrt");
    command.args(["--idle", "0"]).arg(program());
    in_repository(command)
}

fn program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn in_repository(mut command: Command) -> Command {
    command.current_dir(repository());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(describes_xtask) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether `cargo run` set the variable to describe xtask's own package.
fn describes_xtask(name: &str) -> bool {
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// Whether `cargo NAME` exists.
pub fn has_subcommand(name: &str) -> bool {
    let version = Command::new(format!("cargo-{name}"))
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// Runs `command` and waits for its end. Its output goes to stderr.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let words = words(command);
    eprintln!("$ {words}");
    // Standard output is for the result of xtask. The output of tools is not part of it.
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start `{words}`"))?;
    ensure!(status.success(), "`{words}` failed with {status}");
    Ok(())
}

/// Runs `command` and returns its standard output. Its standard error passes through.
///
/// # Errors
/// It cannot be started, fails, or prints invalid UTF-8.
pub fn read(command: &mut Command) -> Result<String> {
    let words = words(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{words}`"))?;
    ensure!(
        output.status.success(),
        "`{words}` failed with {}",
        output.status
    );
    String::from_utf8(output.stdout).with_context(|| format!("`{words}` printed invalid UTF-8"))
}

fn words(command: &Command) -> String {
    let short = |word: &OsStr| word.to_string_lossy().into_owned();
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    std::iter::once(short(program))
        .chain(command.get_args().map(short))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_in_the_background_and_what_it_starts_run_under_the_policy_for_idle_work() {
        let mut command = in_background();
        let shell = ["-c", "exec chrt --pid $$"];
        // The same command line with a shell instead of cargo.
        let arguments: Vec<OsString> = command
            .get_args()
            .map(|word| {
                if word == program() {
                    "sh".into()
                } else {
                    word.to_owned()
                }
            })
            .collect();
        command = Command::new(command.get_program());
        let policy = read(command.args(arguments).args(shell)).unwrap();
        assert!(policy.contains("SCHED_IDLE"), "{policy}");
    }
}
