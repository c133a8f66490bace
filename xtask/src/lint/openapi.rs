//! The API description in the documentation is identical to the one that the server serves.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;

const FILE: &str = "docs/reference/openapi.json";

/// `built` takes waifud from the target directory. cargo could choose other features for waifud alone, build all of it
/// again, and replace the program while suites run at the same time as this check.
pub fn check(bless: bool, built: bool) -> Result<()> {
    let path = cargo::repository().join(FILE);
    if !bless && !path.exists() {
        eprintln!("{FILE} does not exist: create it with `cargo xtask lint --bless`");
        return Ok(());
    }
    let mut command = if built {
        Command::new(cargo::target().join("debug/waifud"))
    } else {
        let mut command = cargo::cargo();
        command.args(["run", "--quiet", "--package", "waifud", "--"]);
        command
    };
    let served = cargo::read(command.arg("openapi"))?;
    if bless {
        return std::fs::write(&path, served).with_context(|| format!("cannot write {FILE}"));
    }
    let written = std::fs::read_to_string(&path).with_context(|| format!("cannot read {FILE}"))?;
    ensure!(
        served.trim_end() == written.trim_end(),
        "{FILE} differs from the output of `waifud openapi` (first difference in line {}): run `cargo xtask lint --bless` and review the change",
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
    fn the_first_differing_line_is_reported() {
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), 2);
        assert_eq!(first_difference("a\n", "a\nc\n"), 2);
    }
}
