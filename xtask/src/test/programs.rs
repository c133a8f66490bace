//! The test programs of the workspace: built by one cargo command, which reports where each one is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cargo;

/// One built test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The package that it belongs to.
    pub package: String,
    /// `lib`, `bin` or `test`.
    pub kind: String,
    /// The name of its target.
    pub target: String,
    /// The executable.
    pub path: PathBuf,
    /// The directory of its package, in which its tests run.
    pub directory: PathBuf,
}

impl Program {
    /// A short unique name: `waifud-agent`, `waifud-agent::faults`, `waifud (bin)`.
    pub fn name(&self) -> String {
        match self.kind.as_str() {
            "test" => format!("{}::{}", self.package, self.target),
            "lib" => self.package.clone(),
            kind => format!("{} ({kind})", self.package),
        }
    }
}

/// Builds all programs, and all test programs.
///
/// Always the whole workspace: a selection of packages would make cargo choose other features for the packages that
/// they share, and build those again. cargo builds only what has changed in any case. Benches are left out: `clippy`
/// checks that they compile, and `cargo xtask bench` builds them.
///
/// # Errors
/// They do not compile.
pub fn build() -> Result<Vec<Program>> {
    let mut command = cargo::cargo();
    command.args(["build", "--workspace", "--lib", "--bins", "--tests"]);
    command.arg("--message-format=json-render-diagnostics");
    let programs = parse(&cargo::read(&mut command)?)?;
    anyhow::ensure!(!programs.is_empty(), "cargo reported no test program");
    Ok(programs)
}

/// The parts of cargo's messages that are used here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Reads cargo's messages, one JSON object per line.
fn parse(messages: &str) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message =
            serde_json::from_str(line).context("cannot parse a message of cargo")?;
        let (Some(target), Some(profile), Some(path)) =
            (message.target, message.profile, message.executable)
        else {
            continue;
        };
        if message.reason != "compiler-artifact" || !profile.test {
            continue;
        }
        let directory = message
            .manifest_path
            .parent()
            .context("a package without a directory")?;
        programs.push(Program {
            package: package_name(directory)?,
            kind: target.kind.into_iter().next().unwrap_or_default(),
            target: target.name,
            path,
            directory: directory.to_owned(),
        });
    }
    programs.sort_by(|one, other| one.path.cmp(&other.path));
    programs.dedup_by(|one, other| one.path == other.path);
    Ok(programs)
}

/// Every package of the workspace is named in its own manifest.
fn package_name(directory: &Path) -> Result<String> {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let path = directory.join("Cargo.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    Ok(manifest.package.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_executables_are_read_from_cargos_messages() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let artifact = |kind: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{}","target":{{"kind":["{kind}"],"name":"faults"}},"profile":{{"test":{test}}},"executable":{executable}}}"#,
                manifest.display()
            )
        };
        let messages = [
            artifact("test", true, "\"/t/faults-1\""),
            artifact("bin", false, "\"/t/xtask\""),
            artifact("lib", false, "null"),
            artifact("bin", true, "\"/t/xtask-2\""),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ]
        .join("\n");
        let programs = parse(&messages).unwrap();
        let names: Vec<_> = programs.iter().map(Program::name).collect();
        assert_eq!(names, ["xtask::faults", "xtask (bin)"]);
        assert_eq!(programs[0].path, Path::new("/t/faults-1"));
        assert_eq!(programs[0].directory, manifest.parent().unwrap());
    }
}
