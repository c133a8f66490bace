//! The configuration files of a node, as text.

use std::fmt::Write as _;

use crate::options::{LabSpec, MachineSpec, Role};
use crate::{net, redis};

/// `libvirtd.conf`: unix sockets for root only, an own host UUID, and a log inside the lab.
pub(crate) fn libvirtd_conf(node: &MachineSpec) -> String {
    format!(
        "host_uuid = \"{}\"\n\
         listen_tls = 0\n\
         listen_tcp = 0\n\
         auth_unix_ro = \"none\"\n\
         auth_unix_rw = \"none\"\n\
         unix_sock_group = \"root\"\n\
         unix_sock_ro_perms = \"0700\"\n\
         unix_sock_rw_perms = \"0700\"\n\
         log_filters = \"3:remote 4:event 3:util.json 3:rpc\"\n\
         log_outputs = \"2:file:/var/log/libvirt/libvirtd.log\"\n",
        node.host_uuid
    )
}

/// `qemu.conf`: guests run as `libvirt-qemu` and own their files, as on an installed Debian.
pub(crate) const QEMU_CONF: &str = "user = \"libvirt-qemu\"\n\
    group = \"kvm\"\n\
    dynamic_ownership = 1\n\
    security_driver = \"none\"\n\
    stdio_handler = \"logd\"\n";

/// `/etc/hosts`: the lab's names only.
pub(crate) fn hosts(spec: &LabSpec) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for node in &spec.machines {
        let _ = writeln!(text, "{} {}", net::address(node.index), node.name);
    }
    text
}

/// `/etc/resolv.conf`: the simulated router. It has no DNS server, so a query fails at once instead of hanging.
pub(crate) fn resolv_conf() -> String {
    format!(
        "nameserver {}\noptions timeout:1 attempts:1\n",
        net::address(0)
    )
}

/// `/etc/nsswitch.conf`: files and DNS, independent of the host's settings.
pub(crate) const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";

/// `agentd.toml`: all other keys have defaults.
pub(crate) fn agentd_toml(node: &MachineSpec) -> String {
    format!("node = \"{}\"\n", node.name)
}

/// `waifud.toml`: a waifud without agent on its machine accepts connections from the home network.
pub(crate) fn waifud_toml(machine: &MachineSpec) -> String {
    let mut text = String::new();
    if machine.role == Role::Waifud {
        text.push_str("listen = [\"0.0.0.0:7373\"]\n");
    }
    if machine.redis {
        text.push_str(&redis::section(machine));
    }
    text
}
