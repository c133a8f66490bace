//! The services of a node, in order: name, arguments, user, log file, and condition of readiness.

use std::path::{Path, PathBuf};

use crate::accounts::{self, Caller, Identity};
use crate::options::MachineSpec;
use crate::redis;

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
pub(crate) fn of(node: &MachineSpec, caller: Caller) -> Vec<Service> {
    let mut list = Vec::new();
    if node.role.has_libvirt() {
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
    let daemon = |name: &'static str, config: &str, identity, ready| {
        let program = node.bin_dir.join(name).to_string_lossy().into_owned();
        Service::new(
            name,
            [program.as_str(), "--config", config],
            identity,
            ready,
        )
    };
    if node.redis {
        list.push(Service::new(
            "redis",
            ["bash", "-c", redis::SERVE],
            Identity::ROOT,
            Ready::Socket(redis::SOCKET.into()),
        ));
    }
    if node.role.has_waifud() {
        list.push(daemon(
            "waifud",
            "/etc/waifud/waifud.toml",
            Identity {
                uid: accounts::WAIFUD,
                gid: accounts::WAIFUD,
                groups: vec![caller.admin_gid()],
            },
            Ready::Socket("/run/waifud/waifud.sock".into()),
        ));
    }
    if node.role.has_agent() {
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

/// The names of the services of `node`.
pub(crate) fn names(node: &MachineSpec) -> Vec<&'static str> {
    let services = of(node, Caller::default());
    services.iter().map(|service| service.name).collect()
}

/// The search path of all processes in a node.
pub(crate) fn search_path(bin_dir: &Path) -> String {
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        bin_dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Role;

    fn node(role: Role) -> MachineSpec {
        MachineSpec::for_test("alder", 1, role)
    }

    #[test]
    fn libvirt_comes_before_our_daemons_and_the_agent_last() {
        let libvirt = ["virtlogd", "libvirtd"];
        let agent = ["waifud-metadatad", "waifud-agentd"];
        for (role, services) in [
            (Role::Outside, vec![]),
            (Role::Bare, libvirt.to_vec()),
            (Role::Node, [libvirt, agent].concat()),
            (Role::Waifud, vec!["waifud"]),
            (
                Role::NodeWithWaifud,
                [&libvirt[..], &["waifud"], &agent].concat(),
            ),
        ] {
            assert_eq!(names(&node(role)), services, "{role:?}");
        }
        let with_redis = MachineSpec {
            redis: true,
            ..node(Role::Waifud)
        };
        assert_eq!(names(&with_redis), ["redis", "waifud"]);
    }

    #[test]
    fn daemons_that_face_users_and_guests_have_no_capabilities() {
        for service in of(&node(Role::NodeWithWaifud), Caller::default()) {
            let drops = service
                .command()
                .iter()
                .any(|word| word == "--bounding-set=-all");
            assert_eq!(drops, service.identity.uid != 0, "{}", service.name);
        }
    }

    #[test]
    fn waifud_is_in_the_group_of_its_socket() {
        let caller = Caller { gid: Some(1000) };
        let waifud = of(&node(Role::NodeWithWaifud), caller)
            .remove(2)
            .command()
            .join(" ");
        assert!(waifud.contains("--groups=1000 "), "{waifud}");
        assert!(
            waifud.ends_with("-- /b/waifud --config /etc/waifud/waifud.toml"),
            "{waifud}"
        );
    }
}
