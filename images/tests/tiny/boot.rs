//! The tiny guest is built and boots, with a BIOS and with UEFI.

use std::path::Path;

use crate::machine::{Machine, missing, overlay, turn};
use waifud_images::{Guest, build, default_cache_dir};

#[test]
fn a_freshly_built_tiny_guest_boots_with_a_bios_to_its_login_prompt() {
    if missing(&[
        "mmdebstrap",
        "grub-mkimage",
        "mcopy",
        "qemu-img",
        "qemu-system-x86_64",
    ]) {
        return;
    }
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let built = build(Guest::Tiny, dir.path(), &|line| eprintln!("{line}")).unwrap();
    assert!(!built.from_cache);
    assert_eq!(built.virtual_size_bytes, 128 << 20);
    assert!(built.size_bytes < 32 << 20, "{built:?}");

    let again = build(Guest::Tiny, dir.path(), &|_| ()).unwrap();
    assert!(again.from_cache);
    assert_eq!(again.sha256, built.sha256);

    let mut machine = Machine::start(
        &overlay(&built.qcow2, dir.path()),
        dir.path(),
        &["-nic", "none"],
    );
    machine.wait_for("metadata done: DataSourceNone");
    machine.wait_for("tiny login:");
    machine.press_power_button();
    machine.wait_for_end();
}

#[test]
fn the_same_disk_boots_with_uefi() {
    const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
    const VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
    if missing(&["mmdebstrap", "qemu-img", "qemu-system-x86_64", CODE, VARS]) {
        return;
    }
    let _turn = turn();
    let built = build(Guest::Tiny, &default_cache_dir(), &|line| {
        eprintln!("{line}");
    })
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let vars = dir.path().join("vars.fd");
    std::fs::copy(Path::new(VARS), &vars).unwrap();
    let code = format!("if=pflash,format=raw,unit=0,readonly=on,file={CODE}");
    let vars = format!("if=pflash,format=raw,unit=1,file={}", vars.display());
    let mut machine = Machine::start(
        &overlay(&built.qcow2, dir.path()),
        dir.path(),
        &[
            "-nic", "none", "-m", "384", "-drive", &code, "-drive", &vars,
        ],
    );
    machine.wait_for("metadata done");
}
