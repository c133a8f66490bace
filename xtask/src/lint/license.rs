//! SPDX license expressions: names, AND, OR, WITH and parentheses.
//!
//! (SPDX 2.3, annex D: WITH binds more tightly than AND, AND more tightly than OR. crates.io's old `MIT/Apache-2.0`
//! means OR.)

use anyhow::{Context, Result, ensure};

/// Whether `expression` can be satisfied with licenses that `allowed` accepts (`NAME` or `NAME WITH EXCEPTION`).
///
/// # Errors
/// `expression` is not a license expression.
pub fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Result<bool> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let result = either(&mut rest, allowed)
        .with_context(|| format!("{expression:?} is not a license expression"))?;
    ensure!(
        rest.is_empty(),
        "{expression:?} is not a license expression"
    );
    Ok(result)
}

fn either(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut result = both(rest, allowed)?;
    while take(rest, "OR") {
        // The second side must be parsed even if the first is satisfied.
        result |= both(rest, allowed)?;
    }
    Some(result)
}

fn both(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let mut result = one(rest, allowed)?;
    while take(rest, "AND") {
        result &= one(rest, allowed)?;
    }
    Some(result)
}

fn one(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    if take(rest, "(") {
        let result = either(rest, allowed)?;
        return take(rest, ")").then_some(result);
    }
    let (name, after) = rest.split_first()?;
    if ["OR", "AND", "WITH", ")"].contains(name) {
        return None;
    }
    *rest = after;
    if !take(rest, "WITH") {
        return Some(allowed(name));
    }
    let (exception, after) = rest.split_first()?;
    *rest = after;
    Some(allowed(&format!("{name} WITH {exception}")))
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    match rest.split_first() {
        Some((first, after)) if *first == word => {
            *rest = after;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mit(expression: &str) -> bool {
        satisfied(expression, &|name| {
            ["MIT", "Unicode-3.0", "GPL-2.0 WITH Classpath"].contains(&name)
        })
        .unwrap()
    }

    #[test]
    fn one_allowed_choice_is_enough_and_all_demands_must_be_allowed() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(Apache-2.0 OR MIT) AND Unicode-3.0",
            "GPL-3.0 AND GPL-2.0 OR MIT",
            "GPL-2.0 WITH Classpath",
        ] {
            assert!(with_mit(good), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "MIT AND (GPL-2.0 OR GPL-3.0)",
            "GPL-2.0",
            "GPL-2.0 WITH Other",
            "MIT WITH Anything",
        ] {
            assert!(!with_mit(bad), "{bad}");
        }
    }

    #[test]
    fn an_invalid_expression_is_an_error() {
        for bad in [
            "",
            "MIT OR",
            "(MIT",
            "MIT)",
            "AND MIT",
            "MIT Apache-2.0",
            "MIT WITH",
        ] {
            assert!(satisfied(bad, &|_| true).is_err(), "{bad:?}");
        }
    }
}
