//! For integration tests: finds the init program, and skips tests where a lab cannot run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
pub use waifud_kit::testing::may_skip;

use crate::{Lab, LabOptions};

/// The program that starts labs: `$WAIFUD_XTASK` if set, else this program if it is `xtask`, else the `xtask` in the
/// target directory of this test.
///
/// # Errors
/// It does not exist. The error contains the command that builds it.
pub fn init_exe() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WAIFUD_XTASK") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().context("cannot determine the path of this program")?;
    // target/debug/deps/test-123 or target/debug/waifud
    let places = exe.ancestors().skip(1).take(2).map(|dir| dir.join("xtask"));
    let found = places.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "xtask is not built next to {}: run `cargo build -p xtask` first",
            exe.display()
        )
    })
}

/// Reports on standard error that the calling test is skipped.
///
/// # Errors
/// With `WAIFUD_TEST_NO_SKIP=1`, always.
pub fn skip(reason: &str) -> Result<()> {
    if !may_skip() {
        bail!("the test must not be skipped (WAIFUD_TEST_NO_SKIP=1): {reason}");
    }
    waifud_kit::testing::report_skipped(reason);
    Ok(())
}

/// The reason why no lab can run on this host: missing root rights or programs. `None` if a lab can run.
pub fn why_no_lab() -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("a lab needs root".into());
    }
    let missing: Vec<_> = [
        "libvirtd",
        "virtlogd",
        "qemu-system-x86_64",
        "ip",
        "nft",
        "nsenter",
        "setpriv",
    ]
    .into_iter()
    .filter(|program| !on_path(program))
    .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "{} not installed (`cargo xtask packages lab`)",
            missing.join(", ")
        )
    })
}

/// Starts a lab, or calls [`skip`] and returns `None` if [`why_no_lab`] returns a reason.
///
/// # Errors
/// The lab does not start, or skipping is not allowed.
pub fn lab_or_skip(options: &LabOptions) -> Result<Option<Lab>> {
    match why_no_lab() {
        Some(why) => skip(&why).map(|()| None),
        None => Lab::up(options).map(Some),
    }
}

fn on_path(program: &str) -> bool {
    [
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/local/sbin",
        "/usr/local/bin",
    ]
    .iter()
    .any(|dir| Path::new(dir).join(program).is_file())
}
