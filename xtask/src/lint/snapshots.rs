//! Every snapshot file belongs to a test that still exists: a renamed test would otherwise start without a snapshot.

use anyhow::Result;

use crate::cargo;

pub fn check() -> Result<()> {
    let mut findings = Vec::new();
    for (name, text) in super::texts("*.snap")? {
        let source = source_of(&text).unwrap_or_default();
        let code = std::fs::read_to_string(cargo::repository().join(source)).unwrap_or_default();
        findings.extend(finding_in(&name, source, &code));
    }
    super::none_of(&findings)
}

/// The source file that a snapshot's header names.
fn source_of(snapshot: &str) -> Option<&str> {
    snapshot
        .lines()
        .find_map(|line| line.strip_prefix("source: "))
}

/// insta names a snapshot file `MODULES__TEST.snap`, or `MODULES__NAME.snap` for `assert_snapshot!("NAME", …)`.
fn finding_in(name: &str, source: &str, code: &str) -> Option<String> {
    let stem = name.rsplit('/').next()?.strip_suffix(".snap")?;
    let test = stem.rsplit("__").next()?;
    let known = code.contains(&format!("fn {test}(")) || code.contains(&format!("\"{test}\""));
    (!known).then(|| {
        format!(
            "{name}: {source:?} has no test `{test}`: rename the snapshot like the test, or remove it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_without_a_test_is_found() {
        let code = "fn two_guests() {}\nassert_snapshot!(\"a_name\", text)";
        for (name, known) in [
            ("a/snapshots/c__tests__two_guests.snap", true),
            ("a/snapshots/c__tests__a_name.snap", true),
            ("a/snapshots/c__tests__two_guest.snap", false),
        ] {
            assert_eq!(finding_in(name, "a/c.rs", code).is_none(), known, "{name}");
        }
        assert_eq!(
            source_of("---\nsource: a/c.rs\nexpression: x\n---\n"),
            Some("a/c.rs")
        );
    }
}
