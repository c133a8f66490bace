//! Codes with fields, which are written into larger objects beside their text.

use waifud_api::hint::{HintAction, HintKind, HintWhen};
use waifud_types::spec::Protocol;
use waifud_types::{ByteSize, MoveState, Name, Role, Verdict, WaitReason};

use super::{Kind, parse, text, time};

pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::codes("Verdict", verdicts()),
        Kind::codes("WaitReason", wait_reasons()),
        Kind::codes("HintAction", hint_actions()),
        Kind::values(
            "HintWhen",
            [
                HintWhen::DeletedSinceBackup,
                HintWhen::NotDeletedSinceBackup,
                HintWhen::SameMachine,
                HintWhen::Booting,
                HintWhen::Otherwise,
                HintWhen::CannotLogIn,
                HintWhen::Uploaded,
                HintWhen::Unused,
                HintWhen::Administrator,
            ],
        ),
        Kind::values(
            "HintKind",
            [
                HintKind::Instance,
                HintKind::Template,
                HintKind::Image,
                HintKind::Catalog,
                HintKind::Download,
                HintKind::Network,
                HintKind::Node,
                HintKind::Token,
            ],
        ),
    ]
}

fn verdicts() -> Vec<Verdict> {
    let total_bytes = ByteSize::gib(64);
    let needed_bytes = ByteSize::gib(128);
    let free_bytes = ByteSize::gib(46);
    let size_bytes = ByteSize::gib(900);
    vec![
        Verdict::Fits {
            free_bytes,
            total_bytes,
            group_members: 1,
            near: Some(parse("db")),
            image: Some(true),
        },
        Verdict::InsufficientMemory {
            free_bytes,
            total_bytes,
            needed_bytes,
        },
        Verdict::TooLittleMemory {
            total_bytes,
            needed_bytes,
        },
        Verdict::NotRequested,
        Verdict::LabelMissing {
            key: "disk".to_owned(),
            value: "ssd".to_owned(),
        },
        Verdict::OtherArchitecture {
            arch: "aarch64".to_owned(),
            image_arch: "x86_64".to_owned(),
        },
        Verdict::TooFewCpus { cpus: 4, needed: 8 },
        Verdict::NoFirewall,
        Verdict::NoVlans,
        Verdict::NoPool {
            pool: parse("fast"),
        },
        Verdict::PoolTooSmall {
            pool: parse("main"),
            size_bytes,
            needed_bytes,
        },
        Verdict::PoolFull {
            pool: parse("main"),
            free_bytes,
            size_bytes,
        },
        Verdict::NoBridge {
            bridge: "br0".to_owned(),
        },
        Verdict::BridgeWithoutVlans {
            bridge: "br0".to_owned(),
        },
        Verdict::UnsuitableBridge {
            bridge: "br1".to_owned(),
            because: "its only uplink is wireless".to_owned(),
        },
        Verdict::SubnetConflict {
            because: "10.144.2.0/24 overlaps 10.144.0.0/16".to_owned(),
        },
        Verdict::SpreadGroup {
            group: parse("front"),
            members: 1,
        },
        Verdict::Unreachable { fits: true },
        Verdict::Cordoned,
        Verdict::NotReported,
        Verdict::PortTaken {
            port: 80,
            protocol: Protocol::Tcp,
            instance: parse("web"),
        },
        Verdict::AddressUnmanaged {
            address: parse("10.144.1.12"),
        },
        Verdict::AddressElsewhere {
            address: parse("10.144.1.12"),
            subnet: parse("10.144.2.0/24"),
        },
        Verdict::NoFreeAddress {
            subnet: parse("10.144.1.0/24"),
        },
    ]
}

fn wait_reasons() -> Vec<WaitReason> {
    let node = || -> Name { parse("alder") };
    vec![
        WaitReason::NoNodes,
        WaitReason::AllCordoned,
        WaitReason::NodeNotReported { node: node() },
        WaitReason::InsufficientMemory {
            needed_bytes: ByteSize::gib(128),
        },
        WaitReason::PoolFull {
            pool: parse("main"),
            node: node(),
        },
        WaitReason::SubnetConflict { node: node() },
        WaitReason::NodeUnreachable { node: node() },
        WaitReason::SpreadGroup {
            group: parse("front"),
        },
        WaitReason::NoSuchNode { node: node() },
        WaitReason::RequestedNodeUnsuitable {
            node: node(),
            verdict: Box::new(Verdict::Cordoned),
        },
        WaitReason::NoBridge {
            bridge: "br0".to_owned(),
        },
        WaitReason::BridgeWithoutVlans {
            bridge: "br0".to_owned(),
        },
        WaitReason::NoSuitableNode {
            cpus: 2,
            memory_bytes: ByteSize::gib(2),
            disk_bytes: ByteSize::gib(20),
            arch: "aarch64".to_owned(),
        },
        WaitReason::PortTaken {
            port: 80,
            protocol: Protocol::Udp,
            node: node(),
            instance: parse("web"),
        },
        WaitReason::AddressUnmanaged {
            address: parse("10.144.1.12"),
            node: node(),
        },
        WaitReason::AddressElsewhere {
            address: parse("10.144.1.12"),
        },
        WaitReason::NoFreeAddress {
            subnet: parse("10.144.1.0/24"),
        },
        WaitReason::NodePreparing { node: node() },
        WaitReason::NoContact {
            node: Some(node()),
            since: Some(time(9)),
        },
        WaitReason::CopyExists { node: node() },
        WaitReason::NodeRemoved { node: node() },
        WaitReason::Moving {
            to: node(),
            state: MoveState::Copying,
            problem: text("the disk is busy"),
        },
        WaitReason::Destruction {
            node: Some(node()),
            reachable: true,
            problem: text("the disk is busy"),
        },
    ]
}

fn hint_actions() -> Vec<HintAction> {
    vec![
        HintAction::List,
        HintAction::Show,
        HintAction::Explain,
        HintAction::Start,
        HintAction::Delete { unmanaged: true },
        HintAction::Cancel,
        HintAction::Adopt { rename: true },
        HintAction::Resize {
            memory_bytes: ByteSize::gib(40),
        },
        HintAction::Unprotect,
        HintAction::Unpublish {
            port: 80,
            protocol: "tcp".to_owned(),
        },
        HintAction::CreateToken {
            role: Some(Role::Admin),
        },
        HintAction::Revoke,
        HintAction::CreateJoinToken,
        HintAction::Rename,
        HintAction::Confirm,
        HintAction::Uncordon,
        HintAction::Recreate,
        HintAction::CancelMove,
        HintAction::AllowNewAddress {
            to: "birch".to_owned(),
        },
        HintAction::Drain { new_address: true },
        HintAction::RemoveForced,
        HintAction::SwitchOn,
        HintAction::AddNode,
        HintAction::CreateBridge {
            bridge: "br0".to_owned(),
        },
        HintAction::AddNetwork {
            bridge: text("br0"),
        },
        HintAction::FreeSpace,
        HintAction::Download,
        HintAction::Refresh,
        HintAction::Upload,
        HintAction::GiveChecksum,
        HintAction::NameInChecksums,
        HintAction::OpenConsole,
        HintAction::Rescue,
        HintAction::EndRescue,
        HintAction::ReadCloudInitLog,
        HintAction::ReRunCloudInit,
        HintAction::InstallGuestAgent,
        HintAction::WaitUntilReady,
        HintAction::ShowAddresses,
        HintAction::SetMinimum {
            field: "spec.disks[0].size_bytes".to_owned(),
            bytes: ByteSize::gib(3),
        },
        HintAction::Omit {
            field: "mac".to_owned(),
        },
        HintAction::AllowAddresses,
    ]
}
