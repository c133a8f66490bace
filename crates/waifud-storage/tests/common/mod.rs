//! What the tests of every pool need.

/// The user that image tools run as here: Debian's `nobody`.
pub const NOBODY: (u32, u32) = (65534, 65534);

/// Whether the test can't run here: says so, or fails where nothing may be skipped.
pub fn skip(reason: Option<String>) -> bool {
    let Some(reason) = reason else { return false };
    assert!(
        std::env::var_os("WAIFUD_TEST_NO_SKIP").is_none_or(|v| v != "1"),
        "this test may not be skipped: {reason}"
    );
    // Not eprintln!: a passing test's is swallowed, and a skip has to be seen.
    drop(std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("SKIPPED: {reason}\n"),
    ));
    true
}
