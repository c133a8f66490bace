//! Every source file starts with a line that describes its purpose, and has at most 600 lines.

use anyhow::{Context, Result};

use crate::cargo;

const LONGEST: usize = 600;

pub fn check() -> Result<()> {
    let mut list = std::process::Command::new("git");
    list.current_dir(cargo::repository());
    list.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        "*.rs",
    ]);
    let mut findings = Vec::new();
    for name in cargo::read(&mut list)?.split_terminator('\0') {
        let path = cargo::repository().join(name);
        // The removal of a file may not be committed yet.
        if path.is_file() {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
            findings.extend(findings_in(name, &text));
        }
    }
    super::none_of(&findings)
}

fn findings_in(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//! ") {
        findings.push(format!(
            "{name}:1: does not start with a `//!` line that describes its purpose"
        ));
    }
    let lines = text.lines().count();
    if lines > LONGEST {
        findings.push(format!(
            "{name}: has {lines} lines (at most {LONGEST} are allowed): split it by topic"
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_description_and_a_long_one_are_found() {
        assert_eq!(findings_in("a.rs", "//! For a.\n").len(), 0);
        assert_eq!(findings_in("a.rs", "fn main() {}\n").len(), 1);
        assert_eq!(
            findings_in("a.rs", &format!("//! For a.\n{}", "\n".repeat(LONGEST))).len(),
            1
        );
    }
}
