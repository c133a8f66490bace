//! The mesh with WireGuard of a real Debian kernel, which the machine that runs the tests may not have.
//!
//! The tests of the mesh in `waifud-network` run on the machine. Later, the agent there changes between the kernel's WireGuard
//! and its own process.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use waifud_lab::wait;
use waifud_tests::Machine;
use waifud_tests::machine::SLOW;
use waifud_tests::world::SOON;

/// The test program of `waifud-network`.
const PROGRAM: &str = "linux";
/// Its tests of the mesh in the kernel that depend on the kernel most; all of them take too long in an emulated machine.
const TESTS: [&str; 5] = [
    "the_real_fabric_conforms",
    "adding_and_removing_a_node_loses_no_packet_of_others",
    "an_address_that_moves_between_nodes_is_never_without_one",
    "an_agent_that_starts_again_finds_the_link_and_loses_no_packet",
    "nodes_with_either_reach_each_other_and_change_to_the_other_one",
];
/// A file that keeps the kernel from loading the module again.
const BLOCKED: &str = "/etc/modprobe.d/no-wireguard.conf";
const CONFIG: &str = "/etc/waifud/agentd.toml";

/// A copy of the test program without debug information. It was built together with this one.
pub fn program(dir: &Path) -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot determine the path of this program")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(exe.parent().context("no directory")?)? {
        let path = entry?.path();
        let is_program = path.extension().is_none()
            && path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix(PROGRAM)?.strip_prefix('-'))
                .is_some();
        if is_program {
            found.push((path.metadata()?.modified()?, path));
        }
    }
    let newest = found.into_iter().max().context(
        "the tests of waifud-network are not built: run `cargo test -p waifud-network --no-run` first",
    )?;
    let program = dir.join("mesh-tests");
    let mut strip = Command::new("strip");
    wait::run(strip.arg("-o").arg(&program).arg(&newest.1), SOON)?;
    Ok(program)
}

/// The tests pass on the machine's kernel, and none is skipped.
pub fn conforms(machine: &Machine<'_>) -> Result<()> {
    // The kernel loads the module by itself.
    machine.run("! grep -q ^wireguard /proc/modules")?;
    // It begins a set of rules again for each module that is missing, which takes long in an emulated machine.
    machine.run(
        "find /lib/modules/$(uname -r)/kernel/net -name 'nft_*.ko*' -printf '%f\\n' | cut -d. -f1 | xargs modprobe -a",
    )?;
    let tests = TESTS
        .map(|test| format!("fabric::kernel::{test}"))
        .join(" ");
    let run =
        format!("WAIFUD_TEST_NO_SKIP=1 /root/mesh-tests --test-threads=1 --exact {tests} 2>&1");
    let output = machine.run(&format!("{run} || {{ echo; echo FAILED; }}"))?;
    ensure!(
        output.contains(&format!("{} passed; 0 failed", TESTS.len()))
            && !output.contains("SKIPPED"),
        "{output}"
    );
    machine.run("grep -q ^wireguard /proc/modules && rm /root/mesh-tests")?;
    Ok(())
}

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
