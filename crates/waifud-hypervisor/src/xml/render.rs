//! Renders the XML of a domain from its spec.

use std::ops::RangeInclusive;
use std::path::Path;

use waifud_types::status::HypervisorKind;
use waifud_types::template::Firmware;
use waifud_types::{ByteSize, VolumeSource};

use super::device_settings;
use super::managed::{NAMESPACE, ROOT_PORT, alias, disk_alias, nic_alias};
use super::smbios;
use super::tree::Element;
use crate::{DomainDisk, DomainNic, DomainSpec};

/// The limits of QEMU's cache of translated code for emulation, in MiB; see ADR 18.
const TB_CACHE_MIB: RangeInclusive<u64> = 64..=256;
/// The share of the guest's memory that the cache gets between these limits: one eighth.
const TB_CACHE_SHARE: u64 = 8;
/// A virtio disk's serial has 20 bytes (virtio 1.2, 5.2.6.4).
const SERIAL_MAX: usize = 20;

/// The node's settings for every domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenderOptions {
    /// Volumes already belong to QEMU's user, so libvirt does not change owners, especially not those of shared images.
    pub keep_owners: bool,
}

/// The domain's XML. `digest` is the spec's digest, for the domain's metadata.
pub fn render(spec: &DomainSpec, options: RenderOptions, digest: &str) -> String {
    domain(spec, options, digest).write()
}

pub(super) fn domain(spec: &DomainSpec, options: RenderOptions, digest: &str) -> Element {
    let kind = match spec.kind {
        HypervisorKind::Kvm => "kvm",
        HypervisorKind::Tcg => "qemu",
    };
    let memory = spec.memory.bytes().div_ceil(1024);
    let metadata = Element::new("waifud:domain")
        .with("xmlns:waifud", NAMESPACE)
        .with("epoch", spec.epoch.0)
        .with("spec", digest)
        // The values of the spec, for detecting manual changes.
        .with("cpus", spec.cpus)
        .with("memory", memory);
    let devices = devices(spec, options);
    let metadata = device_settings::record(metadata, &devices);
    let off = |name| Element::new(name).with("enabled", "no");
    Element::new("domain")
        .with("type", kind)
        .child(Element::new("name").text(&spec.name))
        .child(Element::new("uuid").text(spec.id))
        .child(Element::new("metadata").child(metadata))
        .child(Element::new("memory").with("unit", "KiB").text(memory))
        .child(
            Element::new("vcpu")
                .with("placement", "static")
                .text(spec.cpus),
        )
        .child(os(spec))
        .child(smbios::sysinfo(spec))
        .child(features(spec.kind, spec.memory))
        .child(cpu(spec.kind))
        .child(Element::new("clock").with("offset", "utc"))
        .child(Element::new("on_poweroff").text("destroy"))
        .child(Element::new("on_reboot").text("restart"))
        // Not `restart`: the agent decides whether a crashed guest is started again, with its back-off.
        .child(Element::new("on_crash").text("destroy"))
        .child(
            Element::new("pm")
                .child(off("suspend-to-mem"))
                .child(off("suspend-to-disk")),
        )
        .child(devices)
        .children(smbios::override_uuid(spec))
}

fn os(spec: &DomainSpec) -> Element {
    let os = Element::new("os");
    let os = match spec.firmware {
        Firmware::Bios => os,
        // libvirt chooses an installed OVMF image, and keeps the variables in a file that is removed with the domain.
        // Secure Boot is off, because not every boot loader is signed with a key that the firmware knows.
        Firmware::Uefi => os.with("firmware", "efi").child(
            Element::new("firmware").child(
                Element::new("feature")
                    .with("enabled", "no")
                    .with("name", "secure-boot"),
            ),
        ),
    };
    os.child(
        Element::new("type")
            .with("arch", "x86_64")
            .with("machine", "q35")
            .text("hvm"),
    )
    .child(Element::new("smbios").with("mode", "sysinfo"))
}

fn features(kind: HypervisorKind, memory: ByteSize) -> Element {
    let features = Element::new("features")
        .child(Element::new("acpi"))
        .child(Element::new("apic"));
    match kind {
        HypervisorKind::Kvm => features,
        HypervisorKind::Tcg => features.child(
            Element::new("tcg").child(
                Element::new("tb-cache")
                    .with("unit", "MiB")
                    .text(tb_cache_mib(memory)),
            ),
        ),
    }
}

/// The size of QEMU's cache of translated code for a guest with this memory, in MiB.
fn tb_cache_mib(memory: ByteSize) -> u64 {
    let share = (memory.bytes() >> 20) / TB_CACHE_SHARE;
    share.clamp(*TB_CACHE_MIB.start(), *TB_CACHE_MIB.end())
}

fn cpu(kind: HypervisorKind) -> Element {
    match kind {
        HypervisorKind::Kvm => Element::new("cpu")
            .with("mode", "host-passthrough")
            .with("check", "none"),
        HypervisorKind::Tcg => Element::new("cpu").with("mode", "maximum"),
    }
}

fn devices(spec: &DomainSpec, options: RenderOptions) -> Element {
    let disks = spec.disks.iter().enumerate();
    let seed = spec.seed.as_deref();
    Element::new("devices")
        .children(disks.map(|(index, one)| disk(index, one, options)))
        .children(seed.map(|path| seed_disk(spec.disks.len(), path, options)))
        .children(spec.nics.iter().map(nic))
        .child(serial(&spec.console_socket, &spec.console_log))
        .child(
            Element::new("channel")
                .with("type", "unix")
                .child(
                    Element::new("target")
                        .with("type", "virtio")
                        .with("name", "org.qemu.guest_agent.0"),
                )
                .child(alias("agent")),
        )
        .child(vnc(&spec.vnc_socket))
        .child(
            Element::new("video")
                .child(
                    Element::new("model")
                        .with("type", "virtio")
                        .with("heads", 1)
                        .with("primary", "yes"),
                )
                .child(alias("video")),
        )
        .child(
            Element::new("rng")
                .with("model", "virtio")
                .child(
                    Element::new("backend")
                        .with("model", "random")
                        .text("/dev/urandom"),
                )
                .child(alias("rng")),
        )
        .child(
            Element::new("memballoon")
                .with("model", "virtio")
                // Memory that the guest frees is returned to the host.
                .with("freePageReporting", "on")
                .child(alias("balloon")),
        )
        // Last, as in a definition that keeps them.
        .children((1..=root_ports(spec)).map(root_port))
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn source(file: &Path, options: RenderOptions) -> Element {
    source_attribute("file", file, options)
}

fn source_attribute(attribute: &str, file: &Path, options: RenderOptions) -> Element {
    let source = Element::new("source").with(attribute, path(file));
    if options.keep_owners {
        return source.child(
            Element::new("seclabel")
                .with("model", "dac")
                .with("relabel", "no"),
        );
    }
    source
}

/// The disk with the guest's documents. It uses virtio, because cloud kernels have no driver for a CD-ROM.
fn seed_disk(index: usize, path: &Path, options: RenderOptions) -> Element {
    Element::new("disk")
        .with("type", "file")
        .with("device", "disk")
        .child(
            Element::new("driver")
                .with("name", "qemu")
                .with("type", "raw"),
        )
        .child(source(path, options))
        .child(
            Element::new("target")
                .with("dev", format!("vd{}", letters(index)))
                .with("bus", "virtio"),
        )
        .child(Element::new("readonly"))
        .child(Element::new("serial").text("cidata"))
        .child(alias("seed"))
}

fn disk(index: usize, disk: &DomainDisk, options: RenderOptions) -> Element {
    let serial: String = disk.name.as_str().chars().take(SERIAL_MAX).collect();
    let (kind, source) = match &disk.source {
        VolumeSource::File(path) => ("file", source(path, options)),
        VolumeSource::Block(path) => ("block", source_attribute("dev", path, options)),
    };
    let mut element = Element::new("disk")
        .with("type", kind)
        .with("device", "disk")
        .child(
            // `io` is not set: `native` blocks when a write allocates, as most writes to an overlay do.
            Element::new("driver")
                .with("name", "qemu")
                .with("type", disk.format.as_str())
                .with("cache", "none")
                .with("discard", "unmap")
                // If the pool is full, the guest is paused until there is space, instead of getting an error that
                // damages its filesystem. Other errors are passed to the guest, as from a real disk.
                .with("error_policy", "enospace")
                .with("rerror_policy", "report"),
        )
        .child(source)
        .child(backing(disk.backing.as_deref(), options))
        .child(
            Element::new("target")
                .with("dev", format!("vd{}", letters(index)))
                .with("bus", "virtio"),
        )
        .child(Element::new("serial").text(serial));
    if index == 0 {
        element = element.child(Element::new("boot").with("order", 1));
    }
    element.child(disk_alias(&disk.name))
}

/// The whole chain below a disk. Without it, libvirt would read the chain from the disk's header, which QEMU can write,
/// and give the guest access to the files named there.
fn backing(image: Option<&Path>, options: RenderOptions) -> Element {
    let end = || Element::new("backingStore");
    let Some(image) = image else { return end() };
    end()
        .with("type", "file")
        .child(Element::new("format").with("type", "qcow2"))
        .child(source(image, options))
        .child(end())
}

/// The letters of a disk's name, as Linux assigns them: `a` to `z`, then `aa`.
pub(super) fn letters(index: usize) -> String {
    let mut text = String::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        let letter = u8::try_from(rest % 26).unwrap_or(0);
        text.insert(0, char::from(b'a' + letter));
        rest /= 26;
    }
    text
}

/// Ports for devices that are added to the running guest, for example nics. QEMU cannot add ports later.
const SPARE_ROOT_PORTS: usize = 4;
/// The devices that each domain has on a port, besides disks and nics: the serial bus of the guest agent, the random number
/// generator, the balloon and the USB controller.
const FIXED_DEVICES: usize = 4;

/// The number of PCI Express root ports. libvirt uses them for the devices of the definition, and adds none beyond what these
/// need.
fn root_ports(spec: &DomainSpec) -> usize {
    let disks = spec.disks.len() + usize::from(spec.seed.is_some());
    FIXED_DEVICES + disks + spec.nics.len() + SPARE_ROOT_PORTS
}

/// A port with this number, which is also that of the bus behind it; 0 is the root.
fn root_port(index: usize) -> Element {
    Element::new("controller")
        .with("type", "pci")
        .with("index", index)
        .with("model", ROOT_PORT)
}

/// The definition of a nic, for a running domain.
pub fn nic_device(one: &DomainNic) -> String {
    nic(one).write()
}

fn nic(nic: &DomainNic) -> Element {
    let mut element = Element::new("interface")
        .with("type", "bridge")
        .child(Element::new("mac").with("address", nic.mac))
        .child(Element::new("source").with("bridge", &nic.bridge))
        .child(Element::new("target").with("dev", &nic.tap))
        .child(Element::new("model").with("type", "virtio"));
    if let Some(mtu) = nic.mtu {
        element = element.child(Element::new("mtu").with("size", mtu));
    }
    if nic.isolated {
        element = element.child(Element::new("port").with("isolated", "yes"));
    }
    element.child(nic_alias(nic.number))
}

fn serial(socket: &Path, log: &Path) -> Element {
    Element::new("serial")
        .with("type", "unix")
        // A socket instead of a pseudo-terminal: clients are connected at once, and disconnections are detected.
        .child(
            Element::new("source")
                .with("mode", "bind")
                .with("path", path(socket)),
        )
        // Appended to, so that a crash can be read after the restart; virtlogd limits the size.
        .child(
            Element::new("log")
                .with("file", path(log))
                .with("append", "on"),
        )
        .child(
            Element::new("target")
                .with("type", "isa-serial")
                .with("port", 0),
        )
        .child(alias("serial"))
}

fn vnc(socket: &Path) -> Element {
    Element::new("graphics").with("type", "vnc").child(
        Element::new("listen")
            .with("type", "socket")
            .with("socket", path(socket)),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use waifud_types::template::Datasource;
    use waifud_types::{Epoch, InstanceId, TapName};

    pub(crate) fn spec() -> DomainSpec {
        let id: InstanceId = "0198c0de-0000-7000-8000-00000000abcd".parse().unwrap();
        DomainSpec {
            id,
            name: "web".parse().unwrap(),
            epoch: Epoch(3),
            cpus: 2,
            memory: ByteSize::gib(1),
            kind: HypervisorKind::Tcg,
            firmware: Firmware::Bios,
            datasource: Datasource::Openstack,
            seed: None,
            disks: vec![
                DomainDisk {
                    name: "root".parse().unwrap(),
                    source: VolumeSource::File(format!("/pool/volumes/{id}.root.qcow2").into()),
                    format: waifud_types::DiskFormat::Qcow2,
                    backing: Some("/pool/images/00ff.qcow2".into()),
                },
                DomainDisk {
                    name: "a-name-of-more-than-twenty-bytes".parse().unwrap(),
                    source: VolumeSource::File("/pool/volumes/it's <odd> & \"legal\"".into()),
                    format: waifud_types::DiskFormat::Qcow2,
                    backing: None,
                },
            ],
            nics: vec![DomainNic {
                number: 0,
                tap: TapName::of(id, 0),
                mac: "52:54:00:12:34:56".parse().unwrap(),
                bridge: "waifud0".to_owned(),
                mtu: Some(1420),
                isolated: true,
            }],
            console_log: "/var/log/waifud/console/web.log".into(),
            console_socket: "/run/waifud/console/web.sock".into(),
            vnc_socket: "/run/waifud/vnc/web.sock".into(),
        }
    }

    #[test]
    fn xml_of_an_emulated_domain() {
        insta::assert_snapshot!(render(&spec(), RenderOptions::default(), "DIGEST"));
    }

    #[test]
    fn emulation_gets_one_eighth_of_the_memory_for_translated_code_within_limits() {
        for (memory, cache) in [(64, 64), (512, 64), (1024, 128), (2048, 256), (65536, 256)] {
            assert_eq!(tb_cache_mib(ByteSize::mib(memory)), cache, "{memory} MiB");
        }
    }

    #[test]
    fn xml_of_a_kvm_domain_with_owners_kept() {
        let mut spec = spec();
        spec.kind = HypervisorKind::Kvm;
        spec.disks.truncate(1);
        spec.nics[0].mtu = None;
        let options = RenderOptions { keep_owners: true };
        insta::assert_snapshot!(render(&spec, options, "DIGEST"));
    }

    #[test]
    fn xml_of_a_uefi_domain_with_a_seed_disk() {
        let mut spec = spec();
        spec.firmware = Firmware::Uefi;
        spec.datasource = Datasource::Cidata;
        spec.seed = Some("/var/lib/waifud-agent/instances/web/cidata.iso".into());
        spec.disks.truncate(1);
        let options = RenderOptions { keep_owners: true };
        insta::assert_snapshot!(render(&spec, options, "DIGEST"));
    }

    #[test]
    fn a_block_device_is_rendered_and_observed_as_a_block_device() {
        let mut spec = spec();
        spec.disks.truncate(1);
        spec.disks[0].source = VolumeSource::Block("/dev/zvol/tank/waifud/web.root".into());
        spec.disks[0].format = waifud_types::DiskFormat::Raw;
        spec.disks[0].backing = None;
        let xml = render(&spec, RenderOptions { keep_owners: true }, "DIGEST");
        for part in [
            "<disk type='block' device='disk'>",
            "type='raw'",
            "<source dev='/dev/zvol/tank/waifud/web.root'>",
            "<seclabel model='dac' relabel='no'/>",
            "<backingStore/>",
        ] {
            assert!(xml.contains(part), "{part} is missing in {xml}");
        }
        let seen = super::super::describe(&xml).unwrap().disks;
        assert_eq!(
            seen.into_values().collect::<Vec<_>>(),
            [spec.disks[0].source.clone()]
        );
    }

    #[test]
    fn the_xml_of_every_disk_contains_its_backing_chain() {
        let domain = domain(&spec(), RenderOptions { keep_owners: true }, "DIGEST");
        let devices = domain.get("devices").unwrap();
        let mut disks = devices.children.iter().filter(|d| d.name == "disk");
        let overlay = disks.next().unwrap().get("backingStore").unwrap();
        let image = overlay.get("source").unwrap();
        assert_eq!(image.attribute("file"), Some("/pool/images/00ff.qcow2"));
        let label = image.get("seclabel").unwrap();
        assert_eq!(
            label.attribute("relabel"),
            Some("no"),
            "the owner of a shared image must not change"
        );
        let end = overlay.get("backingStore").unwrap();
        for end in [end, disks.next().unwrap().get("backingStore").unwrap()] {
            assert!(end.attributes.is_empty() && end.children.is_empty());
        }
    }

    #[test]
    fn disks_are_named_like_in_linux() {
        assert_eq!(
            [0, 1, 25, 26, 27, 701, 702].map(letters),
            ["a", "b", "z", "aa", "ab", "zz", "aaa"]
        );
    }
}
