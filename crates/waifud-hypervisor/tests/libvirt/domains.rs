//! Domains as libvirt takes them: the suite, other people's changes, and what QEMU gets.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use waifud_hypervisor::{DomainDisk, DomainNic, Hypervisor, HypervisorError, conformance};
use waifud_types::{ByteSize, InstanceId, Name, TapName, VolumeSource};

use crate::node::{NODE, Node, QEMU, until};

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_conforms() {
    let Some(node) = Node::up() else { return };
    conformance::everything(&*node.hypervisor, &node, &Node::spec)
        .await
        .unwrap();
    assert_eq!(node.hypervisor.list().await.unwrap(), Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirts_disks_conform() {
    let Some(node) = Node::up() else { return };
    let mut spec = Node::spec(InstanceId::generate(), "conform-disk");
    // A second disk, so that the first is found by its name and not by being the only one.
    for name in ["root", "data"] {
        let path = format!("/var/lib/{name}.qcow2");
        node.run(["qemu-img", "create", "-q", "-f", "qcow2", &path, "48M"])
            .unwrap();
        let owner = format!("{QEMU}:{QEMU}");
        node.run(["chown", &owner, &path]).unwrap();
        spec.disks.push(DomainDisk {
            name: name.parse().unwrap(),
            source: VolumeSource::File(path.into()),
            format: waifud_types::DiskFormat::Qcow2,
            backing: None,
        });
    }
    let size_of = |id: InstanceId, disk: Name| {
        let target = if disk.as_str() == "root" {
            "vda"
        } else {
            "vdb"
        };
        let said = node.virsh(["domblkinfo", &id.to_string(), target]).unwrap();
        let capacity = said.lines().find_map(|line| line.strip_prefix("Capacity:"));
        let size = ByteSize(capacity.unwrap().trim().parse().unwrap());
        async move { size }
    };
    conformance::disks_grow_under_running_domains(&*node.hypervisor, &node, &spec, size_of)
        .await
        .unwrap();
    // What the pool has afterwards is what the guest had.
    let info = node
        .run(["qemu-img", "info", "--output=json", "/var/lib/root.qcow2"])
        .unwrap();
    assert!(info.contains("\"virtual-size\": 134217728"), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_only_a_disks_header_names_is_not_opened() {
    let Some(node) = Node::up() else { return };
    let (disk, other) = ("/var/lib/own.qcow2", "/var/lib/other.qcow2");
    node.run(["qemu-img", "create", "-q", "-f", "qcow2", other, "8M"])
        .unwrap();
    node.run([
        "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", other, disk,
    ])
    .unwrap();
    let owner = format!("{QEMU}:{QEMU}");
    node.run(["chown", &owner, disk, other]).unwrap();
    let mut spec = Node::spec(InstanceId::generate(), "misled");
    spec.disks.push(DomainDisk {
        name: "root".parse().unwrap(),
        source: VolumeSource::File(disk.into()),
        format: waifud_types::DiskFormat::Qcow2,
        backing: None,
    });
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    node.hypervisor.ensure_started(spec.id).await.unwrap();
    let live = node.virsh(["dumpxml", "misled"]).unwrap();
    assert!(live.contains(disk) && !live.contains(other), "{live}");
    let pid = node.qemu_pid("misled").unwrap();
    let open = node.run(["ls", "-l", &format!("/proc/{pid}/fd")]).unwrap();
    assert!(open.contains(disk) && !open.contains(other), "{open}");
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn other_peoples_domains_are_left_alone_and_keep_their_names() {
    let Some(node) = Node::up() else { return };
    let theirs = "<domain type='qemu'><name>theirs</name><memory unit='MiB'>32</memory>\
        <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>";
    std::fs::write(node.lab.path_outside("/tmp/theirs.xml"), theirs).unwrap();
    node.virsh(["define", "/tmp/theirs.xml"]).unwrap();

    let spec = Node::spec(InstanceId::generate(), "theirs");
    let refused = node.hypervisor.ensure_defined(&spec).await;
    assert!(
        matches!(&refused, Err(HypervisorError::NameTaken { name }) if name == "theirs"),
        "{refused:?}"
    );
    assert_eq!(node.hypervisor.list().await.unwrap(), Vec::new());
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
    assert!(node.virsh(["list", "--all"]).unwrap().contains("theirs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_added_by_hand_and_bus_addresses_outlive_a_change_of_the_spec() {
    let Some(node) = Node::up() else { return };
    node.run(["ip", "link", "add", "br-test", "type", "bridge"])
        .unwrap();
    node.run(["ip", "link", "set", "br-test", "up"]).unwrap();
    let id = InstanceId::generate();
    let mut spec = Node::spec(id, "changed");
    spec.nics.push(DomainNic {
        tap: TapName::of(id, 0),
        mac: "52:54:00:00:00:01".parse().unwrap(),
        bridge: "br-test".to_owned(),
        mtu: Some(1420),
        isolated: true,
    });
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
            "its section cputune was added by hand",
            "disk vdx (/tmp/extra.raw) was added by hand",
        ]
    );
    assert_eq!(after.matches("<memballoon").count(), 1);
    assert_eq!(after.matches("<console").count(), 1);

    // And it starts, with its port under the name that rules know, isolated.
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
async fn a_domain_renamed_by_hand_gets_its_name_back() {
    let Some(node) = Node::up() else { return };
    let spec = Node::spec(InstanceId::generate(), "named");
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    node.virsh(["domrename", "named", "misnamed"]).unwrap();
    node.hypervisor.ensure_defined(&spec).await.unwrap();
    let seen = node.hypervisor.get(spec.id).await.unwrap().unwrap();
    assert_eq!(seen.name, "named");
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_is_not_root_and_its_screen_and_console_are_private() {
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
    let sees = |user| {
        let test = node.lab.command_as(NODE, user, ["test", "-e", &socket]);
        test.unwrap().status().unwrap().code()
    };
    assert_eq!(
        (sees("libvirt-qemu"), sees("waifud-image")),
        (Some(0), Some(1))
    );
    let listening = node.run(["ss", "-Hltn"]).unwrap();
    assert_eq!(listening.trim(), "", "nothing listens on TCP");

    let log = node.lab.path_outside(&spec.console_log);
    until("the console's log", || async { log.exists() }).await;
    let mode = log.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    node.hypervisor.ensure_absent(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_why_in_qemus_words() {
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
