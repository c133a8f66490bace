//! For integration tests: find the init program, and skip loudly where a lab cannot be.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::{Lab, LabOptions};

/// The program that labs are started with: `$WAIFUD_XTASK`, else this program if it is `xtask`, else the `xtask` in the
/// target directory that this test was built into.
///
/// # Errors
/// There is none; says how to build it.
pub fn init_exe() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WAIFUD_XTASK") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().context("cannot tell which program this is")?;
    // target/debug/deps/test-123 or target/debug/waifud
    let places = exe.ancestors().skip(1).take(2).map(|dir| dir.join("xtask"));
    let found = places.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "no xtask beside {}: run `cargo build -p xtask` first",
            exe.display()
        )
    })
}

/// Whether a test may skip what this machine cannot do.
pub fn may_skip() -> bool {
    std::env::var_os("WAIFUD_TEST_NO_SKIP").is_none_or(|value| value != "1")
}

/// Says loudly that the calling test is skipped, and why.
///
/// # Errors
/// With `WAIFUD_TEST_NO_SKIP=1`, always.
pub fn skip(why: &str) -> Result<()> {
    if !may_skip() {
        bail!("must not be skipped (WAIFUD_TEST_NO_SKIP=1), but: {why}");
    }
    // Not by a macro: the test harness swallows those of tests that pass.
    writeln!(std::io::stderr(), "SKIPPED: {why}").context("cannot say so")
}

/// Why there can be no lab on this machine: not root, or programs that are missing. `None` when there can.
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

/// A lab, or `None` after a loud [`skip`] when [`why_no_lab`] has a reason.
///
/// # Errors
/// The lab failed to start, or skipping is not allowed.
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
