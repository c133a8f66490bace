//! For tests: skipping where the machine cannot run them (no root, a missing program, no archive), and what several crates
//! use: sample texts, filesystems, pseudo-random numbers, temporary paths, the captured log.
//!
//! With `WAIFUD_TEST_NO_SKIP=1` a test that would skip fails instead, except for the [`kernel_module::KernelModule`]s that this
//! kernel does not have. Any other value, or none, allows skipping.

#[cfg(feature = "test-tools")]
pub mod captured_log;
pub mod kernel_module;
pub mod new_filesystem;
pub mod random;

use std::ffi::OsStr;
use std::io::Write;

/// The environment variable that forbids skipping.
const NO_SKIP: &str = "WAIFUD_TEST_NO_SKIP";

/// Texts that a hostile guest may write to harm a terminal or a parser.
pub const UNSAFE_TEXTS: &[&str] = &[
    "\x1b[2J",
    "\x1b]0;x\x07",
    "\u{9b}31m",
    "\u{90}",
    "\r",
    "\x08",
    "\x7f",
    "\u{202e}",
    "\u{2066}",
    "\u{61c}",
    "\u{200b}",
    "\u{2028}",
    "\u{e0041}",
    "\u{feff}",
    "\0",
    "\n",
    "\\",
    "\"",
];

/// A path with this name in a new temporary directory, which exists as long as the first value.
///
/// # Panics
/// The directory cannot be created.
#[cfg(feature = "test-tools")]
#[must_use]
#[expect(
    clippy::unwrap_used,
    reason = "only tests call it, and they stop at the first surprise"
)]
pub fn temp_path(name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    (directory, path)
}

/// Whether tests may skip what this machine cannot run.
pub fn may_skip() -> bool {
    allows_skipping(std::env::var_os(NO_SKIP).as_deref())
}

fn allows_skipping(value: Option<&OsStr>) -> bool {
    value.is_none_or(|value| value != "1")
}

/// Reports on standard error that the calling test is skipped. The caller must then return.
///
/// # Panics
/// Where skipping is forbidden: the test fails.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(
        may_skip(),
        "this test must not be skipped ({NO_SKIP}=1): {reason}"
    );
    report_skipped(reason);
}

/// Calls [`skip`] if there is a reason, and returns whether there is one.
///
/// # Panics
/// Where there is a reason and skipping is forbidden: the test fails.
#[track_caller]
pub fn skip_if<S: AsRef<str>>(reason: Option<S>) -> bool {
    match reason {
        Some(reason) => {
            skip(reason.as_ref());
            true
        }
        None => false,
    }
}

/// Prints the line of a skipped test. Not with `eprintln!`: the test harness captures it in tests that pass.
pub fn report_skipped(reason: &str) {
    let _standard_error_may_be_closed = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_value_1_forbids_skipping() {
        assert!(!allows_skipping(Some(OsStr::new("1"))));
        for value in [None, Some(""), Some("0"), Some("yes")] {
            assert!(allows_skipping(value.map(OsStr::new)), "{value:?}");
        }
    }

    #[test]
    fn a_test_without_a_reason_is_not_skipped() {
        assert!(!skip_if(None::<&str>));
    }
}
