//! Which tests a change can affect: from changed files to packages, to everything that depends on them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo;
use crate::lint::metadata::{Package, workspace};

/// What is to be run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The packages whose tests run; `None` stands for all.
    pub packages: Option<BTreeSet<String>>,
    /// Whether anything but text changed. If not, only the lints of texts run.
    pub code: bool,
}

impl Selection {
    /// Everything.
    pub fn everything() -> Self {
        Self {
            packages: None,
            code: true,
        }
    }

    /// Whether tests of `package` run.
    pub fn has(&self, package: &str) -> bool {
        self.packages
            .as_ref()
            .is_none_or(|packages| packages.contains(package))
    }
}

/// Files outside of the packages, by how their paths begin, and the packages whose tests read or use them.
///
/// Everything else that is Markdown or lies below `docs/` is text that no test reads. A test below checks that this
/// list has every documentation file that is read.
const USED_BY: &[(&str, &[&str])] = &[
    ("docs/reference/cli.md", &["waifuctl", "waifud-agent"]),
    ("docs/reference/instance.schema.json", &["waifuctl"]),
    ("docs/reference/openapi.json", &["waifud", "waifud-api"]),
    (
        "docs/reference/config.md",
        &["waifud", "waifud-agentd", "waifud-metadatad"],
    ),
    ("docs/reference/api.md", &["waifud-control"]),
    ("docs/guides/images.md", &["waifud-control", "waifud-agent"]),
    (
        "docs/guides/troubleshooting.md",
        &["waifud-types", "waifud-control", "waifud-agent"],
    ),
    ("docs/guides/docker-and-firewalls.md", &["waifud-network"]),
    // The Debian package is built by `cargo xtask package`, and a guest suite installs it.
    ("packaging/", &["xtask", "waifud-tests"]),
    // Only for runs of cargo-nextest by hand, or by git and CI.
    (".config/", &[]),
    (".gitignore", &[]),
    (".ci/", &[]),
];

/// A suite that runs programs of packages that it does not depend on.
const RUNS: &[(&str, &[&str])] = &[(
    "waifud-tests",
    &["waifud", "waifuctl", "waifud-agentd", "waifud-metadatad"],
)];

/// Labs are started with the program of [`XTASK`], so whatever uses [`LAB`] uses it too.
const XTASK: &str = "xtask";
const LAB: &str = "waifud-lab";

/// Selects what the files that git reports as changed since `base` can affect: commits, the index, and the working
/// tree.
///
/// # Errors
/// git does not know `base`.
pub fn selection(base: &str) -> Result<Selection> {
    let files = changed_files(base)?;
    eprintln!("{} files changed since {base}", files.len());
    let packages = workspace()?.packages;
    let root = cargo::repository();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let selection = affected(&files, &packages, root);
    match &selection.packages {
        None => eprintln!("they can affect everything"),
        Some(packages) if packages.is_empty() => eprintln!("they can affect no test"),
        Some(packages) => {
            let list: Vec<_> = packages.iter().map(String::as_str).collect();
            eprintln!("they can affect: {}", list.join(", "));
        }
    }
    Ok(selection)
}

fn changed_files(base: &str) -> Result<BTreeSet<String>> {
    let git = |arguments: &[&str]| -> Result<Vec<String>> {
        let mut command = Command::new("git");
        command.current_dir(cargo::repository()).args(arguments);
        let text = cargo::read(&mut command)?;
        Ok(text.split_terminator('\0').map(str::to_owned).collect())
    };
    // From the commit where the branches parted, so that what others changed in `base` since then is not counted.
    let mut command = Command::new("git");
    command
        .current_dir(cargo::repository())
        .args(["merge-base", base, "HEAD"]);
    let parted = cargo::read(&mut command).with_context(|| {
        format!("git cannot compare with {base:?}: name a revision with --base")
    })?;
    let mut files: BTreeSet<String> =
        git(&["diff", "--name-only", "--no-renames", "-z", parted.trim()])?
            .into_iter()
            .collect();
    files.extend(git(&["ls-files", "--others", "--exclude-standard", "-z"])?);
    Ok(files)
}

/// Pure: `files` are relative to `root`, in which `packages` lie.
fn affected(files: &[&str], packages: &[Package], root: &Path) -> Selection {
    let mut changed = BTreeSet::new();
    let mut tested = BTreeSet::new();
    for file in files {
        let mut used = USED_BY.iter();
        if let Some((_, users)) = used.find(|(start, _)| file.starts_with(start)) {
            tested.extend(users.iter().map(|&user| user.to_owned()));
        } else if let Some(package) = package_of(file, packages, root) {
            changed.insert(package.to_owned());
        } else if !is_text(file) {
            // The manifest, the lock file, settings of cargo and clippy, and files that are not listed yet.
            return Selection::everything();
        }
    }
    let changed = with_dependents(changed, packages);
    for package in packages {
        let uses = |name: &str| package.dependencies.iter().any(|it| it.name == name);
        let depends = changed.iter().any(|name| uses(name));
        let runs = RUNS.iter().any(|(suite, programs)| {
            *suite == package.name && programs.iter().any(|program| changed.contains(*program))
        });
        let starts_labs = (package.name == LAB || uses(LAB)) && changed.contains(XTASK);
        if depends || runs || starts_labs {
            tested.insert(package.name.clone());
        }
    }
    tested.extend(changed);
    Selection {
        code: !tested.is_empty(),
        packages: Some(tested),
    }
}

fn is_text(file: &str) -> bool {
    let markdown = Path::new(file).extension().is_some_and(|it| it == "md");
    markdown || file.starts_with("docs/")
}

/// The package in whose directory the file lies; of nested ones the innermost.
fn package_of<'a>(file: &str, packages: &'a [Package], root: &Path) -> Option<&'a str> {
    let path = root.join(file);
    packages
        .iter()
        .filter_map(|package| {
            let directory = package.manifest_path.parent()?;
            path.starts_with(directory)
                .then_some((directory.as_os_str().len(), package.name.as_str()))
        })
        .max()
        .map(|(_, name)| name)
}

/// Adds every package that is built with one of `changed`, at whatever distance. What only tests depend on is not
/// passed on: a changed test helper cannot affect the packages above the one that it tests.
fn with_dependents(mut changed: BTreeSet<String>, packages: &[Package]) -> BTreeSet<String> {
    loop {
        let more: Vec<String> = packages
            .iter()
            .filter(|package| !changed.contains(&package.name))
            .filter(|package| {
                package
                    .dependencies
                    .iter()
                    .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
                    .any(|dependency| changed.contains(&dependency.name))
            })
            .map(|package| package.name.clone())
            .collect();
        if more.is_empty() {
            return changed;
        }
        changed.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// types <- api <- waifuctl; lab <- xtask; agent uses the lab and waifud-sim in tests only.
    fn packages() -> Vec<Package> {
        let package = |name: &str, directory: &str, dependencies: &[(&str, Option<&str>)]| {
            let json = serde_json::json!({
                "name": name, "version": "0.1.0", "license": null, "source": null,
                "manifest_path": format!("/r/{directory}/Cargo.toml"),
                "dependencies": dependencies.iter().map(|(name, kind)| serde_json::json!({
                    "name": name, "kind": kind, "uses_default_features": true, "features": []
                })).collect::<Vec<_>>(),
            });
            serde_json::from_value(json).unwrap()
        };
        vec![
            package("waifud-types", "crates/waifud-types", &[]),
            package("waifud-api", "crates/waifud-api", &[("waifud-types", None)]),
            package("waifuctl", "crates/waifuctl", &[("waifud-api", None)]),
            package("waifud-lab", "lab", &[]),
            package("xtask", "xtask", &[("waifud-lab", None)]),
            package(
                "waifud-agent",
                "crates/waifud-agent",
                &[("waifud-lab", Some("dev"))],
            ),
            package(
                "waifud-agentd",
                "crates/waifud-agentd",
                &[("waifud-agent", None)],
            ),
            package("waifud-tests", "tests", &[("waifud-lab", None)]),
        ]
    }

    fn of(files: &[&str]) -> Selection {
        affected(files, &packages(), Path::new("/r"))
    }

    fn some(names: &[&str]) -> Selection {
        Selection {
            code: !names.is_empty(),
            packages: Some(names.iter().map(|&name| name.to_owned()).collect()),
        }
    }

    #[test]
    fn a_change_selects_its_package_and_everything_that_is_built_with_it() {
        assert_eq!(
            of(&["crates/waifud-types/src/lib.rs"]),
            some(&["waifud-types", "waifud-api", "waifuctl", "waifud-tests"])
        );
        // The guest suites run waifuctl without depending on its package.
        assert_eq!(
            of(&["crates/waifuctl/tests/program/spec.rs"]),
            some(&["waifuctl", "waifud-tests"])
        );
        assert_eq!(of(&["tests/tests/life.rs"]), some(&["waifud-tests"]));
    }

    #[test]
    fn what_only_tests_depend_on_selects_those_tests_and_nothing_above_them() {
        // The lab changes: the agent's tests use it, but agentd, which is built with the agent, does not.
        assert_eq!(
            of(&["lab/src/lib.rs"]),
            some(&["waifud-lab", "xtask", "waifud-agent", "waifud-tests"])
        );
    }

    #[test]
    fn xtask_selects_every_suite_that_starts_labs_with_it() {
        assert_eq!(
            of(&["xtask/src/main.rs"]),
            some(&["waifud-lab", "xtask", "waifud-agent", "waifud-tests"])
        );
    }

    #[test]
    fn documentation_selects_no_test_unless_a_test_reads_it() {
        assert_eq!(of(&["README.md", "docs/guides/lan.md"]), some(&[]));
        assert_eq!(
            of(&["docs/reference/cli.md"]),
            some(&["waifuctl", "waifud-agent"])
        );
        assert_eq!(
            of(&["packaging/debian/postinst", "docs/tutorial.md"]),
            some(&["xtask", "waifud-tests"])
        );
        assert_eq!(of(&[]), some(&[]));
    }

    #[test]
    fn files_that_concern_everything_or_are_unknown_select_everything() {
        for file in [
            "Cargo.toml",
            "Cargo.lock",
            "clippy.toml",
            ".cargo/config.toml",
            "new/file",
        ] {
            assert_eq!(of(&["README.md", file]), Selection::everything(), "{file}");
        }
    }

    #[test]
    fn every_documentation_file_that_a_test_reads_is_listed_with_its_package() {
        let root = cargo::repository();
        let packages = workspace().unwrap().packages;
        let mut list = Command::new("git");
        list.current_dir(root)
            .args(["ls-files", "-z", "--", "*.rs"]);
        let mut found = 0;
        for name in cargo::read(&mut list).unwrap().split_terminator('\0') {
            let Ok(text) = std::fs::read_to_string(root.join(name)) else {
                continue;
            };
            // Tests name them relative to their package.
            for (at, start) in text.match_indices(concat!("../", "docs/")) {
                let path = &text[at + start.len() - "docs/".len()..];
                let path = path.split('"').next().unwrap();
                let package = package_of(name, &packages, root).unwrap();
                assert!(
                    affected(&[path], &packages, root).has(package),
                    "{name} reads {path}: add it to USED_BY"
                );
                found += 1;
            }
        }
        assert!(found > 3, "only {found} readers were found");
    }
}
