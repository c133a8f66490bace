//! Domains as libvirt accepts them: the conformance tests, changes by others, and QEMU's view.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use waifud_hypervisor::{DomainNic, Hypervisor, HypervisorError, conformance};
use waifud_kit::testing::skip_if;
use waifud_types::template::Firmware;
use waifud_types::{ByteSize, InstanceId, Name, TapName};

use crate::node::{NODE, Node, QEMU, qcow2_disk, until};

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_passes_the_conformance_tests() {
    let Some(node) = Node::up() else { return };
    conformance::run_all(&*node.hypervisor, &node, &Node::spec)
        .await
        .unwrap();
    assert_eq!(node.hypervisor.list().await.unwrap(), Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirts_nics_pass_the_conformance_tests() {
    let Some(node) = Node::up() else { return };
    node.run(["ip", "link", "add", "br-test", "type", "bridge"])
        .unwrap();
    node.run(["ip", "link", "set", "br-test", "up"]).unwrap();
    conformance::nics_are_added_and_removed(&*node.hypervisor, &Node::spec, "br-test")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirts_disks_pass_the_conformance_tests() {
    let Some(node) = Node::up() else { return };
    let mut spec = Node::spec(InstanceId::generate(), "conform-disk");
    // A second disk, so that the first one is found by its name and not as the only one.
    for name in ["root", "data"] {
        let path = format!("/var/lib/{name}.qcow2");
        node.create_disk(&path, "48M").unwrap();
        spec.disks.push(qcow2_disk(name, path));
    }
    let size_of = |id: InstanceId, disk: Name| {
        let target = if disk.as_str() == "root" {
            "vda"
        } else {
            "vdb"
        };
        let info = node.virsh(["domblkinfo", &id.to_string(), target]).unwrap();
        let capacity = info.lines().find_map(|line| line.strip_prefix("Capacity:"));
        let size = ByteSize(capacity.unwrap().trim().parse().unwrap());
        async move { size }
    };
    conformance::disks_grow_under_running_domains(&*node.hypervisor, &node, &spec, size_of)
        .await
        .unwrap();
    // The pool's volume afterwards has the size that the guest saw.
    let info = node
        .run(["qemu-img", "info", "--output=json", "/var/lib/root.qcow2"])
        .unwrap();
    assert!(info.contains("\"virtual-size\": 134217728"), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_file_that_only_the_disks_header_names_is_not_opened() {
    let Some(node) = Node::up() else { return };
    let (disk, other) = ("/var/lib/own.qcow2", "/var/lib/other.qcow2");
    for path in [disk, other] {
        node.create_disk(path, "8M").unwrap();
    }
    node.run([
        "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, disk,
    ])
    .unwrap();
    let info = node.run(["qemu-img", "info", disk]).unwrap();
    assert!(info.contains(other), "{info}");
    let mut spec = Node::spec(InstanceId::generate(), "header");
    spec.disks.push(qcow2_disk("root", disk));
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    node.hypervisor.ensure_started(spec.id).await.unwrap();
    let live = node.virsh(["dumpxml", "header"]).unwrap();
    assert!(live.contains(disk) && !live.contains(other), "{live}");
    let pid = node.qemu_pid("header").unwrap();
    let open = node.run(["ls", "-l", &format!("/proc/{pid}/fd")]).unwrap();
    assert!(open.contains(disk) && !open.contains(other), "{open}");
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_of_others_are_neither_listed_nor_changed() {
    let Some(node) = Node::up() else { return };
    let foreign = "<domain type='qemu'><name>foreign</name><memory unit='MiB'>32</memory>\
        <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>";
    std::fs::write(node.lab.path_outside("/tmp/foreign.xml"), foreign).unwrap();
    node.virsh(["define", "/tmp/foreign.xml"]).unwrap();

    let spec = Node::spec(InstanceId::generate(), "foreign");
    let refused = node.hypervisor.ensure_defined(&spec).await;
    assert!(
        matches!(&refused, Err(HypervisorError::NameTaken { name }) if name == "foreign"),
        "{refused:?}"
    );
    assert_eq!(node.hypervisor.list().await.unwrap(), Vec::new());
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
    assert!(node.virsh(["list", "--all"]).unwrap().contains("foreign"));
}

pub fn isolated_nic(id: InstanceId, bridge: &str) -> DomainNic {
    DomainNic {
        number: 0,
        tap: TapName::of(id, 0),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        bridge: bridge.to_owned(),
        mtu: Some(1420),
        isolated: true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn added_devices_and_bus_addresses_survive_a_change_of_the_spec() {
    let Some(node) = Node::up() else { return };
    node.run(["ip", "link", "add", "br-test", "type", "bridge"])
        .unwrap();
    node.run(["ip", "link", "set", "br-test", "up"]).unwrap();
    let id = InstanceId::generate();
    let mut spec = Node::spec(id, "changed");
    spec.nics.push(isolated_nic(id, "br-test"));
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    std::fs::write(node.lab.path_outside("/tmp/extra.raw"), vec![0; 1 << 20]).unwrap();
    node.virsh([
        "attach-disk",
        "changed",
        "/tmp/extra.raw",
        "vdx",
        "--config",
    ])
    .unwrap();
    node.virsh(["schedinfo", "changed", "--config", "--set", "cpu_shares=77"])
        .unwrap();
    let address = |xml: &str| {
        let nic = xml.split("<interface").nth(1).unwrap();
        let nic = nic.split("</interface>").next().unwrap();
        nic.split("<address").nth(1).unwrap().to_owned()
    };
    let before = node.virsh(["dumpxml", "--inactive", "changed"]).unwrap();

    spec.memory = ByteSize::mib(96);
    for _ in 0..2 {
        node.hypervisor.ensure_defined(&spec).await.unwrap();
    }
    let after = node.virsh(["dumpxml", "--inactive", "changed"]).unwrap();
    assert!(
        after.contains("/tmp/extra.raw") && after.contains("vdx"),
        "{after}"
    );
    assert!(after.contains("<shares>77</shares>"), "{after}");
    assert!(
        after.contains("<memory unit='KiB'>98304</memory>"),
        "{after}"
    );
    assert_eq!(address(&before), address(&after));
    let seen = node.hypervisor.get(id).await.unwrap().unwrap();
    assert_eq!(
        seen.drift,
        [
            "section cputune was added by hand",
            "disk vdx (/tmp/extra.raw) was added by hand",
        ]
    );
    assert_eq!(after.matches("<memballoon").count(), 1);
    assert_eq!(after.matches("<console").count(), 1);

    // It starts with an isolated port under the name in the rules.
    node.hypervisor.ensure_started(id).await.unwrap();
    let port = node
        .run([
            "ip",
            "-d",
            "link",
            "show",
            "dev",
            TapName::of(id, 0).as_str(),
        ])
        .unwrap();
    assert!(
        port.contains("master br-test") && port.contains("isolated on"),
        "{port}"
    );
    assert!(port.contains("mtu 1420"), "{port}");
    node.hypervisor.ensure_absent(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nic_that_was_moved_by_hand_is_reported_and_moved_back_by_a_change_of_the_spec() {
    let Some(node) = Node::up() else { return };
    let id = InstanceId::generate();
    let mut spec = Node::spec(id, "moved");
    spec.nics.push(isolated_nic(id, "br-ours"));
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    let drift = async || node.hypervisor.get(id).await.unwrap().unwrap().drift;
    assert_eq!(drift().await, [""; 0], "libvirt returns what was defined");
    let xml = node.virsh(["dumpxml", "--inactive", "moved"]).unwrap();
    let file = node.lab.path_outside("/tmp/moved.xml");
    let moved = xml.replace("<source bridge='br-ours'/>", "<source bridge='br-other'/>");
    std::fs::write(&file, moved).unwrap();
    node.virsh(["define", "/tmp/moved.xml"]).unwrap();
    assert_eq!(
        drift().await,
        ["connection of nic-0 is bridge br-other and should be bridge br-ours"]
    );
    spec.memory = ByteSize::mib(96);
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    assert_eq!(drift().await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_renamed_domain_is_restored() {
    let Some(node) = Node::up() else { return };
    let spec = Node::spec(InstanceId::generate(), "named");
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    node.virsh(["domrename", "named", "misnamed"]).unwrap();
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    let seen = node.hypervisor.get(spec.id).await.unwrap().unwrap();
    assert_eq!(seen.name, "named");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_runs_without_root_and_its_screen_and_console_are_private() {
    let Some(node) = Node::up() else { return };
    let spec = node.running("private").await;
    let pid = node.qemu_pid("private").unwrap();
    let status = node.run(["cat", &format!("/proc/{pid}/status")]).unwrap();
    let uids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert_eq!(uids, format!("Uid:\t{QEMU}\t{QEMU}\t{QEMU}\t{QEMU}"));

    let mut screen = UnixStream::connect(node.lab.path_outside(&spec.vnc_socket)).unwrap();
    let mut banner = [0; 4];
    screen.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"RFB ");
    drop(UnixStream::connect(node.lab.path_outside(&spec.console_socket)).unwrap());
    let socket = spec.vnc_socket.to_str().unwrap().to_owned();
    let exit_code = |user| {
        let test = node.lab.command_as(NODE, user, ["test", "-e", &socket]);
        test.unwrap().status().unwrap().code()
    };
    assert_eq!(
        (exit_code("libvirt-qemu"), exit_code("waifud-image")),
        (Some(0), Some(1))
    );
    let listening = node.run(["ss", "-Hltn"]).unwrap();
    assert_eq!(listening.trim(), "", "no socket listens on TCP");

    let log = node.lab.path_outside(&spec.console_log);
    until("the console log", || async { log.exists() }).await;
    let mode = log.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_returns_qemus_message() {
    let Some(node) = Node::up() else { return };
    let mut spec = Node::spec(InstanceId::generate(), "broken");
    spec.vnc_socket = "/nonexistent/screen".into();
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    let failed = node.hypervisor.ensure_started(spec.id).await.unwrap_err();
    let HypervisorError::StartFailed { name, message } = &failed else {
        panic!("{failed:?}");
    };
    assert_eq!(name, "broken");
    assert!(message.contains("/nonexistent/screen"), "{message}");
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_uefi_domain_has_variables_of_its_own_which_are_removed_with_it() {
    let Some(node) = Node::up() else { return };
    let missing = !Path::new("/usr/share/OVMF").exists();
    if skip_if(missing.then_some("UEFI guests need the package ovmf")) {
        return;
    }
    let mut domains = Vec::new();
    for name in ["one", "two"] {
        let mut spec = Node::spec(InstanceId::generate(), name);
        spec.firmware = Firmware::Uefi;
        node.hypervisor.ensure_defined(&spec).await.unwrap();
        node.hypervisor.ensure_started(spec.id).await.unwrap();
        let xml = node.virsh(["dumpxml", name]).unwrap();
        let (_, element) = xml.split_once("<nvram").unwrap();
        let (_, path) = element.split_once('>').unwrap();
        let (path, _) = path.split_once("</nvram>").unwrap();
        let file = node.lab.path_outside(path);
        assert!(file.exists(), "{xml}");
        domains.push((spec.id, file));
    }
    let [(one, of_one), (two, of_two)] = domains.try_into().unwrap();
    assert_ne!(of_one, of_two);
    node.hypervisor.ensure_absent(one).await.unwrap();
    assert!(!of_one.exists() && of_two.exists());
    node.hypervisor.ensure_absent(two).await.unwrap();
    assert!(!of_two.exists());
}
