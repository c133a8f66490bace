//! The services of a node, in order: name, arguments, user, log file, and condition of readiness.

use std::path::{Path, PathBuf};

use crate::accounts::{self, Identity, Machine};
use crate::options::NodeSpec;

/// The condition under which a service is ready and the next one may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ready {
    /// A unix socket at this path accepts a connection.
    Socket(PathBuf),
    /// The process runs. For the agent, which has no socket to check.
    Started,
}

/// One service of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub name: &'static str,
    pub argv: Vec<String>,
    pub identity: Identity,
    pub log: PathBuf,
    pub ready: Ready,
}

impl Service {
    fn new<const N: usize>(
        name: &'static str,
        argv: [&str; N],
        identity: Identity,
        ready: Ready,
    ) -> Self {
        Self {
            name,
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            identity,
            log: Path::new("/var/log/waifud").join(format!("{name}.log")),
            ready,
        }
    }

    /// The complete command. `setpriv` changes to other users and leaves them no capabilities and no way to get any.
    pub(crate) fn command(&self) -> Vec<String> {
        if self.identity == Identity::ROOT {
            return self.argv.clone();
        }
        let Identity { uid, gid, groups } = &self.identity;
        let groups = match groups.as_slice() {
            [] => "--clear-groups".to_owned(),
            groups => format!(
                "--groups={}",
                groups
                    .iter()
                    .map(u32::to_string)
                    .collect::<Vec<_>>()
                    .join(",")
            ),
        };
        let mut words = vec![
            "setpriv".to_owned(),
            format!("--reuid={uid}"),
            format!("--regid={gid}"),
            groups,
            "--bounding-set=-all".to_owned(),
            "--inh-caps=-all".to_owned(),
            "--no-new-privs".to_owned(),
            "--".to_owned(),
        ];
        words.extend(self.argv.iter().cloned());
        words
    }
}

/// The services of `node`, in the order in which they start.
pub(crate) fn of(node: &NodeSpec, machine: Machine) -> Vec<Service> {
    let mut list = Vec::new();
    if node.libvirt {
        list.push(Service::new(
            "virtlogd",
            ["virtlogd"],
            Identity::ROOT,
            Ready::Socket("/run/libvirt/virtlogd-sock".into()),
        ));
        list.push(Service::new(
            "libvirtd",
            ["libvirtd"],
            Identity::ROOT,
            Ready::Socket("/run/libvirt/libvirt-sock".into()),
        ));
    }
    if node.daemons {
        let daemon = |name: &'static str, config: &str, identity, ready| {
            let program = node.bin_dir.join(name).to_string_lossy().into_owned();
            Service::new(
                name,
                [program.as_str(), "--config", config],
                identity,
                ready,
            )
        };
        list.push(daemon(
            "waifud",
            "/etc/waifud/waifud.toml",
            Identity {
                uid: accounts::WAIFUD,
                gid: accounts::WAIFUD,
                groups: vec![machine.admin_gid()],
            },
            Ready::Socket("/run/waifud/waifud.sock".into()),
        ));
        list.push(daemon(
            "waifud-metadatad",
            "/etc/waifud/metadatad.toml",
            Identity {
                uid: accounts::METADATA,
                gid: accounts::METADATA,
                groups: Vec::new(),
            },
            Ready::Socket("/run/waifud-metadata/control.sock".into()),
        ));
        list.push(daemon(
            "waifud-agentd",
            "/etc/waifud/agentd.toml",
            Identity::ROOT,
            Ready::Started,
        ));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(daemons: bool) -> NodeSpec {
        NodeSpec {
            name: "alder".into(),
            index: 1,
            bin_dir: "/b".into(),
            host_uuid: "u".into(),
            libvirt: true,
            daemons,
        }
    }

    #[test]
    fn libvirt_comes_before_our_daemons_and_the_agent_last() {
        let names: Vec<_> = of(&node(true), Machine::default())
            .iter()
            .map(|service| service.name)
            .collect();
        assert_eq!(
            names,
            [
                "virtlogd",
                "libvirtd",
                "waifud",
                "waifud-metadatad",
                "waifud-agentd"
            ]
        );
        assert_eq!(of(&node(false), Machine::default()).len(), 2);
    }

    #[test]
    fn daemons_that_face_users_and_guests_have_no_capabilities() {
        for service in of(&node(true), Machine::default()) {
            let drops = service
                .command()
                .iter()
                .any(|word| word == "--bounding-set=-all");
            assert_eq!(drops, service.identity.uid != 0, "{}", service.name);
        }
    }

    #[test]
    fn waifud_is_in_the_group_of_its_socket() {
        let machine = Machine {
            caller_gid: Some(1000),
        };
        let waifud = of(&node(true), machine).remove(2).command().join(" ");
        assert!(waifud.contains("--groups=1000 "), "{waifud}");
        assert!(
            waifud.ends_with("-- /b/waifud --config /etc/waifud/waifud.toml"),
            "{waifud}"
        );
    }
}
