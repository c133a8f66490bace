//! The agent of a real Debian machine changes between the kernel's WireGuard and its own process. The tests of the mesh itself are run
//! there as well; see [`crate::kernel`].

use anyhow::{Context, Result};
use waifud_lab::wait;
use waifud_tests::Machine;
use waifud_tests::machine::SLOW;

/// A file that keeps the kernel from loading the module again.
const BLOCKED: &str = "/etc/modprobe.d/no-wireguard.conf";
const CONFIG: &str = "/etc/waifud/agentd.toml";

/// The agent uses the kernel's WireGuard, its own process instead, and the kernel's again, and leaves nothing of the former one.
pub fn changes_between_kernel_and_process(machine: &Machine<'_>, node: &str) -> Result<()> {
    reports(machine, node, "kernel")?;
    let restart = "systemctl restart waifud-agentd";
    machine.run(&format!(
        "! test -e {CONFIG} && echo 'mesh_backend = \"userspace\"' >{CONFIG} && {restart}"
    ))?;
    reports(machine, node, "userspace")?;
    machine.run(&format!("rm {CONFIG} && {restart}"))?;
    reports(machine, node, "kernel")?;
    // The kernel removes all links of a module with it. Without a restart, the agent finds that out.
    machine.run(&format!(
        "echo 'install wireguard /bin/false' > {BLOCKED} && modprobe -r wireguard"
    ))?;
    reports(machine, node, "userspace")?;
    machine.run(&format!("rm {BLOCKED} && {restart}"))?;
    reports(machine, node, "kernel")?;
    machine.run("systemctl stop waifud-agentd")?;
    machine.run("ip link show wfmesh0")?;
    machine.prints("waifud-agentd remove-network", "mesh wfmesh0")?;
    machine.run("! ip link show wfmesh0 && systemctl start waifud-agentd")?;
    reports(machine, node, "kernel")
}

/// waifud knows what carries the mesh of the node, and exactly that is there.
fn reports(machine: &Machine<'_>, node: &str, backend: &str) -> Result<()> {
    let (is_there, is_absent) = match backend {
        "kernel" => (
            "ip -d link show wfmesh0 | grep -q ' wireguard '",
            "pgrep -f '[w]aifud-agentd mesh'",
        ),
        _ => (
            "pgrep -f '[w]aifud-agentd mesh' && ip -d link show wfmesh0 | grep -q ' tun '",
            "ip -d link show wfmesh0 | grep -q ' wireguard '",
        ),
    };
    let waifuctl = &machine.world.waifuctl;
    let what = format!("the mesh of {node} to be that of {backend}");
    wait::until(&what, SLOW, || {
        let shown = waifuctl.json(&["fabric", "show"])?;
        let mut nodes = shown["nodes"].as_array().into_iter().flatten();
        let reported = nodes.any(|one| one["node"] == node && one["mesh_backend"] == backend);
        Ok(reported.then_some(()))
    })
    .with_context(|| {
        let log = machine.run("journalctl -u waifud-agentd -o cat -n 40; ip -d link");
        log.unwrap_or_else(|error| format!("{error:#}"))
    })?;
    // What waifud knows may be from before the agent's restart.
    machine.until(
        &what,
        &format!("{is_there} && ! {{ {is_absent}; }} && echo so || true"),
        |output| output.ends_with("so\n"),
    )
}
