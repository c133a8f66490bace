//! The texts under which values are stored and sent. Databases, clients and agents of other versions depend on them.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::node::NodeState;
use crate::spec::{Protocol, Unreported};
use crate::status::{CloudInitState, HypervisorKind, InstanceStatus};
use crate::template::{Datasource, Firmware};
use crate::{
    ByteSize, Checksum, Digest, DiskFormat, DiskSpace, DiskSpaceState, Epoch, Generation,
    Incarnation, InstanceId, InstanceState, MacAddr, Name, PoolKind, Revision, Role, Secret,
    TapName, VolumeId, VolumeSource,
};

const ID: &str = "0198d2a8-1111-7000-8000-00000000000a";

fn assert_wire<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    value: &T,
    wire: &serde_json::Value,
) {
    assert_eq!(&serde_json::to_value(value).unwrap(), wire);
    assert_eq!(
        &serde_json::from_value::<T>(wire.clone()).unwrap(),
        value,
        "{wire}"
    );
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn instance() -> InstanceId {
    ID.parse().unwrap()
}

#[test]
fn texts_have_one_form_on_the_wire() {
    let hex = "ab".repeat(32);
    let digest: Digest = hex.parse().unwrap();
    assert_wire(&digest, &json!(format!("sha256:{hex}")));
    assert_eq!(format!("{digest:?}"), format!("sha256:{hex}"));
    let checksum: Checksum = format!("sha512:{}", "0f".repeat(64)).parse().unwrap();
    assert_wire(&checksum, &json!(format!("sha512:{}", "0f".repeat(64))));
    assert_eq!(checksum.hex(), "0f".repeat(64));
    assert_wire(&name("web-1"), &json!("web-1"));
    assert_eq!(
        (name("web-1").as_str(), name("web-1").as_ref()),
        ("web-1", "web-1")
    );
    assert_eq!(name("web-1").to_string(), "web-1");
    let mac = MacAddr::new([0x52, 0x54, 0, 1, 2, 0xff]);
    assert_wire(&mac, &json!("52:54:00:01:02:ff"));
    assert_eq!(mac.bytes(), [0x52, 0x54, 0, 1, 2, 0xff]);
    assert_wire(&instance(), &json!(ID));
    assert_eq!(format!("{:?}", instance()), format!("InstanceId({ID})"));
    let volume = VolumeId {
        instance: instance(),
        disk: name("root"),
    };
    assert_wire(&volume, &json!(format!("{ID}.root")));
    let tap = TapName::of(instance(), 1);
    assert_wire(&tap, &json!("wf-0000000b"));
    assert_eq!(
        (tap.as_str(), tap.to_string().as_str()),
        ("wf-0000000b", "wf-0000000b")
    );
    let revision = Revision {
        incarnation: Incarnation(0xab),
        number: 7,
    };
    assert_wire(&revision, &json!("000000ab.7"));
    assert_wire(&Secret::new("key".to_owned()), &json!("key"));
}

#[test]
fn numbers_are_numbers_on_the_wire_and_counters_count_by_one() {
    assert_wire(&ByteSize(1536), &json!(1536));
    assert_wire(&Epoch(3), &json!(3));
    assert_eq!(Epoch(3).next(), Epoch(4));
    assert_eq!(Generation(3).next(), Generation(4));
    assert_eq!(
        (Epoch(3).to_string(), Generation(4).to_string()),
        ("3".into(), "4".into())
    );
}

/// Where a value has both, the name in tables and rules is the name on the wire.
#[test]
fn names_in_tables_are_the_names_on_the_wire() {
    for state in InstanceState::ALL {
        assert_wire(&state, &json!(state.as_str()));
        assert_eq!(state.to_string(), state.as_str());
    }
    for role in [Role::Viewer, Role::Operator, Role::Admin] {
        assert_wire(&role, &json!(role.as_str()));
        assert_eq!(role.to_string(), role.as_str());
    }
    for datasource in Datasource::ALL {
        assert_wire(&datasource, &json!(datasource.as_str()));
        assert_eq!(
            datasource.needs_metadata(),
            datasource != Datasource::Cidata
        );
    }
    for firmware in Firmware::ALL {
        assert_wire(&firmware, &json!(firmware.as_str()));
    }
    for state in [
        NodeState::Joining,
        NodeState::Ready,
        NodeState::Cordoned,
        NodeState::Draining,
        NodeState::Unreachable,
    ] {
        assert_wire(&state, &json!(state.to_string()));
    }
    for kind in [
        PoolKind::Qcow2,
        PoolKind::Reflink,
        PoolKind::Other("ceph".to_owned()),
    ] {
        assert_wire(&kind, &json!(kind.to_string()));
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert_wire(&protocol, &json!(protocol.as_str()));
    }
    for kind in [HypervisorKind::Kvm, HypervisorKind::Tcg] {
        assert_wire(&kind, &json!(kind.as_str()));
    }
}

#[test]
fn qemu_knows_the_formats_by_these_names() {
    assert_eq!(
        (DiskFormat::Qcow2.as_str(), DiskFormat::Raw.as_str()),
        ("qcow2", "raw")
    );
}

#[test]
fn a_volume_has_the_path_of_its_file_or_device() {
    for source in [VolumeSource::File, VolumeSource::Block] {
        assert_eq!(source(PathBuf::from("/a")).path(), Path::new("/a"));
    }
}

#[test]
fn a_secret_is_not_printed() {
    assert!(!format!("{:?}", Secret::new("key")).contains("key"));
    assert_eq!(Secret::from("key").expose(), &"key");
    assert_eq!(Secret::new("key").into_inner(), "key");
}

/// Rows are the present state, columns the next one, both in the order of [`InstanceState::ALL`]: pending, preparing,
/// starting, running, paused, stopping, stopped, moving, deleting, failed, unknown.
#[test]
fn states_follow_each_other_as_in_this_table() {
    let table = [
        "xx....x.xxx",
        ".xxx..x.xxx",
        ".xxxxxx.xxx",
        ".xxxxxxxxxx",
        "...xxxx.xxx",
        "...xxxx.xxx",
        ".xxx..xxxxx",
        ".x.x..xxxxx",
        "........x..",
        ".xxx.xx.xxx",
        ".xxxxxxxxxx",
    ];
    for (state, row) in InstanceState::ALL.into_iter().zip(table) {
        for (next, mark) in InstanceState::ALL.into_iter().zip(row.chars()) {
            assert_eq!(state.may_become(next), mark == 'x', "{state} to {next}");
        }
    }
}

#[test]
fn a_guest_may_be_on_in_these_states() {
    let on: Vec<_> = InstanceState::ALL
        .into_iter()
        .filter(|state| state.may_be_on())
        .map(InstanceState::as_str)
        .collect();
    assert_eq!(
        on,
        [
            "starting", "running", "paused", "stopping", "moving", "unknown"
        ]
    );
}

#[test]
fn cloud_init_has_finished_in_these_states() {
    use CloudInitState as S;
    for state in [S::Done, S::Degraded, S::Error, S::Disabled] {
        assert!(state.is_final(), "{state:?}");
    }
    for state in [S::Pending, S::Running, S::Unknown] {
        assert!(!state.is_final(), "{state:?}");
    }
}

#[test]
fn an_instance_without_a_report_is_pending_and_has_the_given_reason() {
    let status = InstanceStatus::pending(Some("no node".to_owned()));
    assert_eq!(status.state, InstanceState::Pending);
    assert_eq!(status.reason.as_deref(), Some("no node"));
    assert!(!status.ready);
}

#[test]
fn each_cause_for_missing_reports_names_the_key_in_the_user_data() {
    for (cause, key) in [
        (Unreported::VendorDataDisabled, "vendor_data.enabled"),
        (Unreported::ReporterOverridden, "reporting"),
        (Unreported::PartMayOverride, "vendor_data"),
    ] {
        assert!(cause.cause().contains(key), "{cause:?}");
    }
}

/// 512 MiB and a twentieth up to 10 GiB are limits that are not low any more; 64 MiB are not full.
#[test]
fn limits_of_free_space_belong_to_the_better_state() {
    let state = |size, free| DiskSpace { size, free }.state();
    let gib = ByteSize::gib;
    let under = |size: ByteSize| ByteSize(size.bytes() - 1);
    for (size, low) in [
        (gib(8), ByteSize::mib(512)),
        (gib(100), gib(5)),
        (gib(1000), gib(10)),
    ] {
        assert_eq!(state(size, low), DiskSpaceState::Ok, "{size}");
        assert_eq!(state(size, under(low)), DiskSpaceState::Low, "{size}");
    }
    let full = crate::disk_space::FULL_BELOW;
    assert_eq!(state(gib(8), full), DiskSpaceState::Low);
    assert_eq!(state(gib(8), under(full)), DiskSpaceState::Full);
}
