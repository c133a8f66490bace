//! The caller's options, and the specification that guard and inits read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::stale::PREFIX;
use crate::{OUTSIDE, names};

/// Increased when guard, init and library must change together, so that an older `xtask` is refused.
pub(crate) const PROTOCOL: u32 = 3;

/// The index of the machine of waifud in a lab with several nodes: 192.0.2.200, after all nodes.
const WAIFUD_INDEX: u8 = 199;

/// The caller's options. The default is one node "alder" with libvirtd and without our daemons.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// The directory of our programs; if absent, that of `init_exe`.
    pub bin_dir: Option<PathBuf>,
    /// Start waifud, waifud-metadatad and waifud-agentd too. With one node, all of them run on it. With several, waifud
    /// runs on a machine of its own, "rowan".
    pub daemons: bool,
    /// The name of the first node, a DNS label.
    pub node: String,
    /// The number of nodes, 1 to [`NODES_MAX`](crate::NODES_MAX). The others are called birch, cedar, dogwood, ….
    pub nodes: usize,
    /// The parent of the lab's directory; if absent, `$WAIFUD_LAB_BASE` or the temporary directory.
    pub base: Option<PathBuf>,
    /// A program whose `main` starts with [`crate::init_if_asked`]; if absent, that of [`crate::testing::init_exe`].
    pub init_exe: Option<PathBuf>,
    /// Files that are written on every machine before the services start: absolute path inside, and content. Only in
    /// directories of the lab (`/etc/waifud/waifud.toml`, …).
    pub files: Vec<(PathBuf, String)>,
    /// Paths of the host below `/tmp` and `/run`, which the lab hides, that stay visible read-only.
    pub visible: Vec<PathBuf>,
    /// Environment variables of all services.
    pub env: Vec<(String, String)>,
    /// Keep the lab after the process that created it has ended. Otherwise the guard then stops it.
    pub stay: bool,
    /// Start Redis on waifud's machine, and configure waifud to use it.
    pub redis: bool,
    /// Limit for the services to become ready.
    pub start_limit: Duration,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            bin_dir: None,
            daemons: false,
            node: "alder".into(),
            nodes: 1,
            base: None,
            init_exe: None,
            files: Vec::new(),
            visible: Vec::new(),
            env: Vec::new(),
            stay: false,
            redis: false,
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
    /// The first is `outside`.
    pub machines: Vec<MachineSpec>,
    pub visible: Vec<PathBuf>,
    pub env: Vec<(String, String)>,
    pub stay: bool,
}

/// One set of namespaces: a node, the machine of waifud, or `outside`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct MachineSpec {
    pub name: String,
    /// Its address is 192.0.2.(index+1); 0 is outside.
    pub index: u8,
    pub bin_dir: PathBuf,
    pub host_uuid: String,
    pub machine_id: String,
    pub role: Role,
    /// Whether Redis runs on it.
    pub redis: bool,
}

/// What runs on a machine of the lab.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// The home network and the internet: no service.
    Outside,
    /// libvirt only.
    Bare,
    /// libvirt, waifud-metadatad and waifud-agentd.
    Node,
    /// waifud only.
    Waifud,
    /// A node that also runs waifud.
    NodeWithWaifud,
}

impl Role {
    pub(crate) fn has_libvirt(self) -> bool {
        matches!(self, Self::Bare | Self::Node | Self::NodeWithWaifud)
    }

    pub(crate) fn has_waifud(self) -> bool {
        matches!(self, Self::Waifud | Self::NodeWithWaifud)
    }

    pub(crate) fn has_agent(self) -> bool {
        matches!(self, Self::Node | Self::NodeWithWaifud)
    }
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

    pub(crate) fn machine(&self, name: &str) -> Result<&MachineSpec> {
        let found = self.machines.iter().find(|machine| machine.name == name);
        found.with_context(|| {
            let names: Vec<_> = self.machines.iter().map(|it| it.name.as_str()).collect();
            format!(
                "the lab has no machine {name:?}; it has {}",
                names.join(", ")
            )
        })
    }

    /// The nodes, in the order of their addresses.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &MachineSpec> {
        let machines = self.machines.iter();
        machines.filter(|machine| machine.role.has_libvirt())
    }

    /// The machine on which waifud runs, if it runs in this lab.
    pub(crate) fn waifud(&self) -> Option<&MachineSpec> {
        self.machines
            .iter()
            .find(|machine| machine.role.has_waifud())
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
    let machine = |name: &str, index, role: Role| -> Result<MachineSpec> {
        Ok(MachineSpec {
            name: name.to_owned(),
            index,
            bin_dir: bin_dir.clone(),
            host_uuid: uuid()?,
            machine_id: uuid()?.replace('-', ""),
            redis: options.redis && role.has_waifud(),
            role,
        })
    };
    let nodes = names::nodes(&options.node, options.nodes)?;
    let (node, with_waifud) = match (options.daemons, nodes.len()) {
        (false, _) => (Role::Bare, false),
        (true, 1) => (Role::NodeWithWaifud, false),
        (true, _) => (Role::Node, true),
    };
    let mut machines = vec![machine(OUTSIDE, 0, Role::Outside)?];
    if with_waifud {
        machines.push(machine(names::WAIFUD, WAIFUD_INDEX, Role::Waifud)?);
    }
    for (name, index) in nodes.iter().zip(1..) {
        machines.push(machine(name, index, node)?);
    }
    Ok(LabSpec {
        protocol: PROTOCOL,
        name: format!("{PREFIX}{}-{short}", std::process::id()),
        machines,
        visible,
        env: options.env.clone(),
        stay: options.stay,
    })
}

/// A random UUID, version 4, from the kernel.
pub(crate) fn uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid")
        .context("cannot read a random UUID from the kernel")?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
impl MachineSpec {
    pub(crate) fn for_test(name: &str, index: u8, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            index,
            bin_dir: "/b".into(),
            host_uuid: "u".into(),
            machine_id: "m".into(),
            redis: false,
            role,
        }
    }
}

#[cfg(test)]
impl LabSpec {
    pub(crate) fn for_test(machines: Vec<MachineSpec>) -> Self {
        Self {
            protocol: PROTOCOL,
            name: format!("{PREFIX}1-a"),
            machines,
            visible: Vec::new(),
            env: Vec::new(),
            stay: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(options: &LabOptions) -> Vec<(String, u8, Role)> {
        // The directory of this program; nothing in it is run.
        let exe = std::env::current_exe().unwrap();
        let spec = specify(options, &exe).unwrap();
        let mut uuids: Vec<_> = spec.machines.iter().map(|it| &it.machine_id).collect();
        uuids.sort();
        uuids.dedup();
        assert_eq!(uuids.len(), spec.machines.len());
        let machines = spec.machines.into_iter();
        machines.map(|it| (it.name, it.index, it.role)).collect()
    }

    #[test]
    fn waifud_runs_on_the_only_node_or_on_a_machine_of_its_own() {
        let bin = tempfile::tempdir().unwrap();
        for program in ["waifud", "waifud-agentd", "waifud-metadatad"] {
            fs::write(bin.path().join(program), "").unwrap();
        }
        let options = |nodes, daemons| LabOptions {
            bin_dir: Some(bin.path().to_owned()),
            nodes,
            daemons,
            ..LabOptions::default()
        };
        let list = |list: &[(&str, u8, Role)]| -> Vec<_> {
            let list = list.iter();
            list.map(|(name, index, role)| ((*name).to_owned(), *index, *role))
                .collect()
        };
        let outside = ("outside", 0, Role::Outside);
        assert_eq!(
            roles(&options(1, true)),
            list(&[outside, ("alder", 1, Role::NodeWithWaifud)])
        );
        assert_eq!(
            roles(&options(2, true)),
            list(&[
                outside,
                ("rowan", WAIFUD_INDEX, Role::Waifud),
                ("alder", 1, Role::Node),
                ("birch", 2, Role::Node)
            ])
        );
        assert_eq!(
            roles(&options(2, false)),
            list(&[outside, ("alder", 1, Role::Bare), ("birch", 2, Role::Bare)])
        );
    }
}
