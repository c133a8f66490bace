//! Asks the administrator to confirm a change.

use std::io::{IsTerminal as _, Write as _};

use anyhow::ensure;

/// Asks the question, unless `yes` is set. Fails without a terminal and unless the answer is `y` or `yes`.
pub fn ask(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(
        std::io::stdin().is_terminal(),
        "confirmation required: run this in a terminal or pass --yes"
    );
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    ensure!(is_yes(&answer), "nothing was changed");
    Ok(())
}

fn is_yes(answer: &str) -> bool {
    let answer = answer.trim();
    ["y", "yes"]
        .iter()
        .any(|yes| answer.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_y_and_yes_confirm() {
        for answer in ["y\n", "yes\n", " Yes \n", "Y"] {
            assert!(is_yes(answer), "{answer:?}");
        }
        for answer in ["", "\n", "n\n", "no\n", "yess\n", "ye s\n"] {
            assert!(!is_yes(answer), "{answer:?}");
        }
    }
}
