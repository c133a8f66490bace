//! waifud, metadatad and the tunnel in memory, for tests and simulations.
//!
//! Each is a handle on a state that outlives the agents that use it.

mod dialer;
mod host;
mod metadata;
mod waifud;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::memfd::{MFdFlags, memfd_create};
use waifud_api::agent::{AgentInstance, BundleRef};
use waifud_kit::sync::lock;
use waifud_types::spec::{DiskSpec, InstanceSpec, NicSpec, PlacementSpec, RestartPolicy};
use waifud_types::template::{Datasource, Firmware};
use waifud_types::{
    ByteSize, Digest, DiskFormat, Epoch, FirewallSpec, Generation, InstanceId, MacAddr, Name,
    PowerSpec, Secret,
};

use crate::transfer::send;
use crate::{BootAlone, Settings, Timing};

pub use dialer::FakeDialer;
pub use host::FakeHost;
pub use metadata::{FakeMetadata, FakeTunnel};
pub use waifud::{DiskFault, FakeWaifud, ImageTicketIssuer, StreamOutcome, TicketIssuer};

/// Parses a text that is known to be valid.
fn name(text: &str) -> Name {
    // Only fixed texts are passed. An invalid one becomes the sample name.
    text.parse().unwrap_or_else(|_| sample_name())
}

fn sample_name() -> Name {
    match "sample".parse() {
        Ok(name) => name,
        Err(_) => sample_name(),
    }
}

/// Settings of a node named `alder` with these directories.
pub fn sample_settings(state_dir: PathBuf, run_dir: PathBuf, timing: Timing) -> Settings {
    Settings {
        node: name("alder"),
        agent_version: "0".to_owned(),
        state_dir,
        run_dir,
        bridge: "waifu0".to_owned(),
        metadata_interface: "wfmeta0".to_owned(),
        mtu: 1420,
        domain: "waifu.internal".to_owned(),
        boot_alone: BootAlone::Start,
        qemu_owner: None,
        timing,
    }
}

/// Short waits and periods, so that tests do not take long.
pub fn fast_timing() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        heartbeat: ms(200),
        report_gap: ms(1),
        facts: ms(200),
        bridges: ms(20),
        period: ms(300),
        sweep: ms(50),
        image_grace: Duration::from_hours(24),
        network: ms(500),
        fabric: ms(200),
        peer_port: ms(50),
        metadata: ms(50),
        metadata_patience: Duration::from_mins(2),
        report_port: ms(50),
        refuse_reports_after: ms(50),
        retry_min: ms(2),
        retry_max: ms(50),
        grace: ms(100),
        restart_min: ms(5),
        restart_max: ms(50),
        stable: Duration::from_mins(5),
        ready_min: ms(5),
        ready_max: ms(50),
        unknown: Duration::from_mins(2),
        evidence: ms(50),
    }
}

/// An instance as waifud would send it: running, with one disk of 10 MiB on `main` and one nic on `default`. Of 200
/// instances in a row, each has an address of its own in 10.144.1.0/24.
pub fn sample_instance(text: &str) -> AgentInstance {
    static CREATED: AtomicU8 = AtomicU8::new(0);
    let next = |created| Some((created + 1) % 200);
    let created = CREATED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    let host = created.unwrap_or(0) + 10;
    let id = InstanceId::generate();
    AgentInstance {
        id,
        name: name(text),
        epoch: Epoch::FIRST,
        generation: Generation::FIRST,
        spec: InstanceSpec {
            template: name("debian-12"),
            image: Digest::from_bytes([7; 32]),
            cpus: 1,
            memory_bytes: ByteSize::mib(256),
            run: true,
            power: PowerSpec::default(),
            rescue: None,
            restart: RestartPolicy::OnCrash,
            priority: 0,
            protected: false,
            disks: vec![DiskSpec {
                name: name("root"),
                size_bytes: ByteSize::mib(10),
                pool: name("main"),
            }],
            nics: vec![NicSpec {
                name: name("net0"),
                network: name("default"),
                mac: MacAddr::of_guest([host, 1, 1]),
                address: Some([10, 144, 1, host].into()),
                prefix_len: None,
                gateway: None,
                vlan: None,
                allow_addresses: Vec::new(),
            }],
            publish: Vec::new(),
            firewall: FirewallSpec::default(),
            placement: PlacementSpec::default(),
            user_data: None,
        },
        image_size_bytes: ByteSize(0),
        image_virtual_size_bytes: ByteSize::mib(1),
        rescue_image: None,
        datasource: Datasource::default(),
        firmware: Firmware::default(),
        bundle: BundleRef {
            digest: Digest::from_bytes([host; 32]),
            key: Secret::new("a2V5".to_owned()),
            size_bytes: 6,
        },
        restored: false,
        bridges: BTreeMap::new(),
        home: None,
        firewall_peers: Vec::new(),
    }
}

/// A disk with these contents, as a node sends it from byte `from` on. For links of tests.
pub fn encoded_disk(contents: &[u8], from: u64) -> std::io::Result<Vec<Bytes>> {
    let mut file = std::fs::File::from(memfd_create("disk", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(contents)?;
    let mut chunks = Vec::new();
    send::each_frame(&file, DiskFormat::Qcow2, from, |frame| {
        chunks.push(frame.encode());
        true
    })?;
    Ok(chunks)
}

/// The state of a fake daemon, or why it is unreachable.
fn online<'a, S>(
    state: &'a Mutex<S>,
    daemon: &str,
    is_online: impl FnOnce(&S) -> bool,
) -> Result<MutexGuard<'a, S>, String> {
    let state = lock(state);
    if is_online(&state) {
        Ok(state)
    } else {
        Err(format!("the fake {daemon} is offline"))
    }
}
