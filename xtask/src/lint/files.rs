//! Every source file starts with a line that describes its purpose, and has at most 600 lines.

use anyhow::Result;

const LONGEST: usize = 600;

pub fn check() -> Result<()> {
    let texts = super::texts("*.rs")?;
    let findings: Vec<String> = texts
        .iter()
        .flat_map(|(name, text)| findings_in(name, text))
        .collect();
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
