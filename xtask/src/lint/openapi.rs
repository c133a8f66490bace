//! The API description in the documentation is the one that the server serves.

use anyhow::{Context, Result, ensure};

use crate::cargo;

const FILE: &str = "docs/reference/openapi.json";

pub fn check(bless: bool) -> Result<()> {
    let path = cargo::repository().join(FILE);
    if !bless && !path.exists() {
        eprintln!("no {FILE}: write it with `cargo xtask lint --bless`");
        return Ok(());
    }
    let served = cargo::read(cargo::cargo().args([
        "run",
        "--quiet",
        "--package",
        "waifud",
        "--",
        "openapi",
    ]))?;
    if bless {
        return std::fs::write(&path, served).with_context(|| format!("cannot write {FILE}"));
    }
    let written = std::fs::read_to_string(&path).with_context(|| format!("cannot read {FILE}"))?;
    ensure!(
        served.trim_end() == written.trim_end(),
        "{FILE} is not what `waifud openapi` prints (first difference in line {}): run `cargo xtask lint --bless` and look at the change",
        first_difference(&served, &written)
    );
    Ok(())
}

fn first_difference(one: &str, other: &str) -> usize {
    let same = one
        .lines()
        .zip(other.lines())
        .take_while(|(one, other)| one == other)
        .count();
    same + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), 2);
        assert_eq!(first_difference("a\n", "a\nc\n"), 2);
    }
}
