//! ARCHITECTURE.md names files and functions that exist.
//!
//! The form: a path from the repository's root in backticks, and after it, in the same line, any number of its
//! functions, each as `fn NAME` in backticks. A path that ends with `/` is a directory. Targets of links are checked
//! too. In a table with a column "file and function", every row names at least one of each.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cargo;

const PAGE: &str = "ARCHITECTURE.md";
/// The heading of a column in which every row names a file and a function.
const COLUMN: &str = "file and function";
/// What a path begins with.
const ROOTS: &[&str] = &[
    "crates/",
    "docs/",
    "images/",
    "lab/",
    "packaging/",
    "tests/",
    "xtask/",
];

pub fn check() -> Result<()> {
    let root = cargo::repository();
    let text =
        std::fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    super::none_of(&findings(&text, &|path| source(&root.join(path))))
}

/// The text of a file, nothing of a directory, `None` of what does not exist.
fn source(path: &Path) -> Option<String> {
    if path.is_dir() {
        return Some(String::new());
    }
    std::fs::read_to_string(path).ok()
}

/// `read` gives the text of a path from the repository's root, if it exists.
fn findings(page: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut demanding = false;
    let mut in_block = false;
    for (number, line) in (1..).zip(page.lines()) {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        let mut finding = |text: String| findings.push(format!("{PAGE}:{number}: {text}"));
        let mut file: Option<(&str, String)> = None;
        let mut functions = 0;
        for code in line.split('`').skip(1).step_by(2) {
            if let Some(name) = code.strip_prefix("fn ") {
                functions += 1;
                match &file {
                    None => finding(format!("no file is named before `fn {name}`")),
                    Some((path, text)) if !has_function(text, name) => {
                        finding(format!("{path} has no `fn {name}`"));
                    }
                    Some(_) => {}
                }
            } else if ROOTS.iter().any(|root| code.starts_with(root)) {
                match read(code) {
                    None => finding(format!("{code} does not exist")),
                    Some(text) => file = Some((code, text)),
                }
            }
        }
        for target in links(line) {
            if read(target).is_none() {
                finding(format!("the link to {target} leads nowhere"));
            }
        }
        let is_row = line.starts_with('|');
        let is_rule = line.starts_with("|-");
        let is_header = is_row && line.to_lowercase().contains(COLUMN);
        if demanding && is_row && !is_rule && (file.is_none() || functions == 0) {
            finding(format!(
                "this row names no file with a function (the column says {COLUMN:?})"
            ));
        }
        demanding = is_header || demanding && is_row;
    }
    findings
}

/// Whether `text` defines a function with this name.
fn has_function(text: &str, name: &str) -> bool {
    let start = format!("fn {name}");
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| {
            line.match_indices(&start).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + start.len()..].chars().next();
                before.is_none_or(|c| c == ' ') && matches!(after, Some('(' | '<'))
            })
        })
}

/// The targets of Markdown links within the repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|target| !target.is_empty() && !target.contains("://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(page: &str) -> Vec<String> {
        findings(page, &|path| match path {
            "crates/a/src/create.rs" => {
                Some("pub async fn create(\n// fn gone()\n    fn generic<T>(".to_owned())
            }
            "crates/a/" | "docs/adr/" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn files_functions_and_links_that_exist_are_accepted() {
        let page = "| step | file and function |\n|---|---|\n\
                    | 1. it is created | `crates/a/src/create.rs` `fn create`, `fn generic` |\n\n\
                    See `crates/a/`, [decisions](docs/adr/#two), [elsewhere](https://example.org).\n\
                    ```\n`crates/in/a/drawing.rs`\n```\n";
        assert_eq!(of(page), [""; 0]);
    }

    #[test]
    fn what_does_not_exist_is_found_with_its_line() {
        let cases = [
            (
                "`crates/b/src/create.rs`",
                "crates/b/src/create.rs does not exist",
            ),
            (
                "`crates/a/src/create.rs` `fn gone`",
                "crates/a/src/create.rs has no `fn gone`",
            ),
            (
                "`crates/a/src/create.rs` `fn creat`",
                "crates/a/src/create.rs has no `fn creat`",
            ),
            ("`fn create`", "no file is named before `fn create`"),
            (
                "[gone](docs/gone.md)",
                "the link to docs/gone.md leads nowhere",
            ),
        ];
        for (line, finding) in cases {
            assert_eq!(
                of(&format!("# Title\n{line}\n")),
                [format!("ARCHITECTURE.md:2: {finding}")]
            );
        }
    }

    #[test]
    fn a_step_without_a_function_is_found() {
        let page = "| step | file and function |\n|---|---|\n| 1. it is created | `crates/a/` |\n\n| other | table |\n| x | y |\n";
        let found = of(page);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("ARCHITECTURE.md:3: this row"),
            "{found:?}"
        );
    }
}
