//! Tests of `waifud-network` in a real Debian kernel, for what the kernel of the machine that runs the suite may not have.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use waifud_lab::wait;
use waifud_tests::Machine;
use waifud_tests::world::SOON;

/// The test program of `waifud-network`.
const PROGRAM: &str = "linux";
/// The tests that depend on the kernel most; all of them take too long in an emulated machine.
const TESTS: [&str; 9] = [
    "fabric::kernel::the_real_fabric_conforms",
    "fabric::kernel::adding_and_removing_a_node_loses_no_packet_of_others",
    "fabric::kernel::an_address_that_moves_between_nodes_is_never_without_one",
    "fabric::kernel::an_agent_that_starts_again_finds_the_link_and_loses_no_packet",
    "fabric::kernel::nodes_with_either_reach_each_other_and_change_to_the_other_one",
    "vlans::a_guest_exchanges_frames_with_its_own_vlan_only",
    "vlans::a_port_is_closed_until_it_is_in_its_vlan_also_when_the_guest_starts_again",
    "vlans::changes_by_others_let_no_frame_into_another_vlan_and_are_repaired",
    "vlans::frames_that_a_guest_tags_itself_are_dropped_and_counted",
];

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
    let program = dir.join("kernel-tests");
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
    let tests = TESTS.join(" ");
    let run =
        format!("WAIFUD_TEST_NO_SKIP=1 /root/kernel-tests --test-threads=1 --exact {tests} 2>&1");
    let output = machine.run(&format!("{run} || {{ echo; echo FAILED; }}"))?;
    ensure!(
        output.contains(&format!("{} passed; 0 failed", TESTS.len()))
            && !output.contains("SKIPPED"),
        "{output}"
    );
    machine.run("grep -q ^wireguard /proc/modules && rm /root/kernel-tests")?;
    Ok(())
}
