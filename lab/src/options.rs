//! The caller's options, and the specification that guard and inits read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::OUTSIDE;
use crate::stale::PREFIX;

/// Increased when guard, init and library must change together, so that an older `xtask` is refused.
pub(crate) const PROTOCOL: u32 = 1;

/// The caller's options. The default is one node "alder" with libvirtd and without our daemons.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// The directory of our programs; if absent, that of `init_exe`.
    pub bin_dir: Option<PathBuf>,
    /// Start waifud, waifud-metadatad and waifud-agentd too.
    pub daemons: bool,
    /// The node's name, a DNS label.
    pub node: String,
    /// The parent of the lab's directory; if absent, `$WAIFUD_LAB_BASE` or the temporary directory.
    pub base: Option<PathBuf>,
    /// A program whose `main` starts with [`crate::init_if_asked`]; if absent, that of [`crate::testing::init_exe`].
    pub init_exe: Option<PathBuf>,
    /// Files that are written before the services start: absolute path in the node, and content. Only in directories of
    /// the lab (`/etc/waifud/waifud.toml`, …).
    pub files: Vec<(PathBuf, String)>,
    /// Paths of the machine below `/tmp` and `/run`, which the node hides, that stay visible read-only.
    pub visible: Vec<PathBuf>,
    /// Environment variables of all services.
    pub env: Vec<(String, String)>,
    /// Keep the lab after the process that created it has ended. Otherwise the guard then stops it.
    pub stay: bool,
    /// Limit for the services to become ready.
    pub start_limit: Duration,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            bin_dir: None,
            daemons: false,
            node: "alder".into(),
            base: None,
            init_exe: None,
            files: Vec::new(),
            visible: Vec::new(),
            env: Vec::new(),
            stay: false,
            start_limit: Duration::from_mins(1),
        }
    }
}

impl LabOptions {
    /// The default with our daemons running.
    #[must_use]
    pub fn with_daemons() -> Self {
        Self {
            daemons: true,
            ..Self::default()
        }
    }
}

/// The specification for guard and inits, in `lab.json` in the lab's directory.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct LabSpec {
    pub protocol: u32,
    pub name: String,
    pub nodes: Vec<NodeSpec>,
    pub visible: Vec<PathBuf>,
    pub env: Vec<(String, String)>,
    pub stay: bool,
}

/// One set of namespaces. The first is `outside`; the others are nodes in the order of their addresses.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct NodeSpec {
    pub name: String,
    /// 0 is outside (192.0.2.1); node n has 192.0.2.(n+1).
    pub index: u8,
    pub bin_dir: PathBuf,
    pub host_uuid: String,
    pub libvirt: bool,
    pub daemons: bool,
}

impl LabSpec {
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("lab.json");
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let spec: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a lab's specification", path.display()))?;
        ensure!(
            spec.protocol == PROTOCOL,
            "this program has lab protocol {PROTOCOL}, but the lab needs {}: run `cargo build -p xtask`",
            spec.protocol
        );
        Ok(spec)
    }

    pub(crate) fn node(&self, name: &str) -> Result<&NodeSpec> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| {
                format!(
                    "the lab has no node {name:?}; its nodes are {}",
                    self.names().join(", ")
                )
            })
    }

    fn names(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| node.name.as_str()).collect()
    }
}

/// The specification of a lab with these options and a unique name.
pub(crate) fn specify(options: &LabOptions, init_exe: &Path) -> Result<LabSpec> {
    let init_dir = init_exe
        .parent()
        .context("the init program has no directory")?;
    let bin_dir = options
        .bin_dir
        .clone()
        .unwrap_or_else(|| init_dir.to_owned());
    let bin_dir = bin_dir
        .canonicalize()
        .with_context(|| format!("cannot find the directory {}", bin_dir.display()))?;
    if options.daemons {
        for program in ["waifud", "waifud-agentd", "waifud-metadatad"] {
            let path = bin_dir.join(program);
            ensure!(
                path.is_file(),
                "{} is not built: run `cargo build --workspace`",
                path.display()
            );
        }
    }
    let mut visible = options.visible.clone();
    visible.extend([bin_dir.clone(), init_dir.canonicalize()?]);
    visible.sort();
    visible.dedup();
    let random = uuid()?;
    let short = random.get(..6).unwrap_or("000000");
    let node = |name: &str, index| -> Result<NodeSpec> {
        Ok(NodeSpec {
            name: name.to_owned(),
            index,
            bin_dir: bin_dir.clone(),
            host_uuid: uuid()?,
            libvirt: index != 0,
            daemons: index != 0 && options.daemons,
        })
    };
    Ok(LabSpec {
        protocol: PROTOCOL,
        name: format!("{PREFIX}{}-{short}", std::process::id()),
        nodes: vec![node(OUTSIDE, 0)?, node(&options.node, 1)?],
        visible,
        env: options.env.clone(),
        stay: options.stay,
    })
}

/// A random UUID, version 4, from the kernel.
fn uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid")
        .context("cannot read a random UUID from the kernel")?;
    Ok(text.trim().to_owned())
}

/// A node's name becomes a host name, a directory and part of an interface's name.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 12
        && name != OUTSIDE
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.ends_with('-');
    ensure!(
        fits,
        "{name:?} cannot name a node: 1 to 12 of a-z, 0-9 and -, beginning with a letter, and not \"outside\""
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_short_labels_are_refused() {
        for bad in [
            "",
            "outside",
            "-a",
            "a-",
            "A",
            "a b",
            "../x",
            "a23456789012345",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        check_name("alder").unwrap();
    }
}
