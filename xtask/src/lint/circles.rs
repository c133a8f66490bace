//! Circles of imports between the modules of a crate, found in `use crate::…` and `use super::…` outside of tests.
//!
//! A module that is in a circle cannot be read, tested or moved alone. A parent that declares its children and re-exports
//! from them is not in a circle with children that import from it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

use super::metadata::workspace;
use crate::cargo;

/// Circles that exist, as `crate: module, module`. The list must shrink: the lint also fails for a line without its circle.
const KNOWN: &[&str] = &[];

/// Modules and the modules that each imports from.
type Imports = BTreeMap<String, BTreeSet<String>>;

pub fn check() -> Result<()> {
    let mut found = BTreeSet::new();
    for package in workspace()?.packages {
        let sources = package
            .manifest_path
            .parent()
            .context("a package without a directory")?
            .join("src");
        let modules = modules(&sources)?;
        for circle in circles(&imports(&modules)) {
            found.insert(format!("{}: {}", package.name, circle.join(", ")));
        }
    }
    super::none_of(&findings(&found, KNOWN))
}

fn findings(found: &BTreeSet<String>, known: &[&str]) -> Vec<String> {
    let new = found
        .iter()
        .filter(|circle| !known.contains(&circle.as_str()))
        .map(|circle| format!("{circle}: these modules import each other in a circle"));
    let gone = known
        .iter()
        .filter(|circle| !found.contains(**circle))
        .map(|circle| format!("{circle}: this circle no longer exists; remove it from KNOWN in xtask/src/lint/circles.rs"));
    new.chain(gone).collect()
}

/// The modules below `sources`, by their path in the crate (empty for the root), with their text.
fn modules(sources: &std::path::Path) -> Result<BTreeMap<String, String>> {
    let mut modules = BTreeMap::new();
    for (name, text) in super::texts(sources.join("*.rs"))? {
        let file = cargo::repository().join(name);
        if let Ok(relative) = file.strip_prefix(sources) {
            modules.insert(module_of(&relative.to_string_lossy()), text);
        }
    }
    Ok(modules)
}

/// `a/b.rs` and `a/b/mod.rs` are `a::b`; `lib.rs` and `main.rs` are the root.
fn module_of(file: &str) -> String {
    let path = file.trim_end_matches(".rs").replace('/', "::");
    match path.as_str() {
        "lib" | "main" => String::new(),
        path => path.trim_end_matches("::mod").to_owned(),
    }
}

fn imports(modules: &BTreeMap<String, String>) -> Imports {
    let is_test = |name: &str| matches!(name.rsplit("::").next(), Some("tests" | "test"));
    let mut imports = Imports::new();
    for (module, text) in modules.iter().filter(|(name, _)| !is_test(name)) {
        let targets = used_paths(text)
            .into_iter()
            .filter_map(|path| resolve(module, &path, modules))
            .filter(|target| target != module && !is_test(target));
        imports.insert(module.clone(), targets.collect());
    }
    imports
}

/// The paths in the `use` items of a file that begin with `crate` or `super`, without those of its tests.
fn used_paths(text: &str) -> Vec<String> {
    // Unit tests are the last item of a file.
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    let mut paths = Vec::new();
    let mut item = String::new();
    for line in text.lines() {
        if item.is_empty() {
            let line = line.trim_start();
            let after_visibility = match line.strip_prefix("pub(") {
                Some(rest) => rest.split_once(") ").map_or("", |(_, rest)| rest),
                None => line.strip_prefix("pub ").unwrap_or(line),
            };
            let Some(rest) = after_visibility.strip_prefix("use ") else {
                continue;
            };
            item.push_str(rest);
        } else {
            item.push(' ');
            item.push_str(line);
        }
        if let Some((whole, _)) = item.split_once(';') {
            expand("", whole.trim(), &mut paths);
            item.clear();
        }
    }
    paths.retain(|path| path.starts_with("crate::") || path.starts_with("super::"));
    paths
}

/// Writes `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expand(start: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((before, rest)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or(tree).trim();
        paths.push(format!("{start}{name}"));
        return;
    };
    let start = format!("{start}{}", before.trim());
    let inside = rest.rsplit_once('}').map_or(rest, |(inside, _)| inside);
    let (mut depth, mut from) = (0_usize, 0);
    for (at, character) in inside.char_indices().chain([(inside.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                let part = inside[from..at].trim();
                if !part.is_empty() {
                    expand(&start, part, paths);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// The innermost module on a path; what follows it is an item in it.
fn resolve(module: &str, path: &str, modules: &BTreeMap<String, String>) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let mut words = path.split("::").peekable();
    if words.next_if_eq(&"crate").is_none() {
        parts.extend(module.split("::").filter(|part| !part.is_empty()));
        while words.next_if_eq(&"super").is_some() {
            parts.pop()?;
        }
    }
    parts.extend(words);
    loop {
        let name = parts.join("::");
        if modules.contains_key(&name) {
            return Some(name);
        }
        parts.pop()?;
    }
}

/// The sets of modules of which each can be reached from each other, sorted.
fn circles(imports: &Imports) -> Vec<Vec<String>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = imports
        .keys()
        .map(|module| (module.as_str(), reachable(module, imports)))
        .collect();
    let can_reach = |from: &str, to: &str| reached.get(from).is_some_and(|all| all.contains(to));
    let mut circles = BTreeSet::new();
    for module in imports.keys().filter(|module| can_reach(module, module)) {
        let circle: Vec<String> = imports
            .keys()
            .filter(|other| can_reach(module, other) && can_reach(other, module))
            .cloned()
            .collect();
        circles.insert(circle);
    }
    circles.into_iter().collect()
}

fn reachable<'a>(module: &str, imports: &'a Imports) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = imports
        .get(module)
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(imports.get(next).into_iter().flatten().map(String::as_str));
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let modules = files
            .iter()
            .map(|(file, text)| (module_of(file), (*text).to_owned()))
            .collect();
        circles(&imports(&modules))
    }

    #[test]
    fn cycles_across_several_modules_are_found_in_all_forms_of_imports() {
        let files = [
            ("lib.rs", "mod a;\npub use crate::a::A;\n"),
            (
                "a/mod.rs",
                "mod inner;\npub(crate) use crate::{\n    b::{B, other as O},\n    c,\n};\n",
            ),
            ("a/inner.rs", "use super::A;\n"),
            ("b.rs", "use super::c::C;\n"),
            ("c.rs", "use crate::a::inner::Inner;\n"),
        ];
        assert_eq!(of(&files), [["a", "a::inner", "b", "c"]]);
    }

    #[test]
    fn imports_of_tests_and_of_a_childs_parent_make_no_circle() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\npub use a::A;\n"),
            (
                "a/mod.rs",
                "mod inner;\npub use inner::Inner;\nuse std::fmt;\n",
            ),
            ("a/inner.rs", "use super::A;\nuse crate::b::B;\n"),
            (
                "b.rs",
                "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n",
            ),
            ("b/tests.rs", "use crate::a::A;\nuse super::*;\n"),
        ];
        assert_eq!(of(&files), [[""; 0]; 0]);
    }

    #[test]
    fn new_circles_are_found_and_so_are_known_ones_that_are_gone() {
        let found = BTreeSet::from(["x: a, b".to_owned(), "x: c, d".to_owned()]);
        let findings = findings(&found, &["x: c, d", "x: e, f"]);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].starts_with("x: a, b: these modules"));
        assert!(findings[1].starts_with("x: e, f: this circle no longer exists"));
    }
}
