//! The verdict of placement on a node.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::spec::Protocol;
use crate::{ByteSize, Name};

/// The suitability of a node for an instance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "code", content = "fields")]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Verdict {
    /// It can run the instance.
    Fits {
        /// Memory that is not reserved.
        free_bytes: ByteSize,
        /// Memory in total.
        total_bytes: ByteSize,
        /// Number of instances of the same spread group on it.
        group_members: u32,
        /// Name of the instance that the new one should be near, if that instance is on the node.
        #[serde(default)]
        near: Option<Name>,
        /// Whether the image is in the pool of the root disk; null if the node does not report its images.
        #[serde(default)]
        image: Option<bool>,
    },
    /// It has not enough free memory.
    InsufficientMemory {
        /// Memory that is not reserved.
        free_bytes: ByteSize,
        /// Memory in total.
        total_bytes: ByteSize,
        /// Memory of the instance.
        needed_bytes: ByteSize,
    },
    /// It has less memory in total than the instance.
    TooLittleMemory {
        /// Memory in total.
        total_bytes: ByteSize,
        /// Memory of the instance.
        needed_bytes: ByteSize,
    },
    /// Another node was requested.
    NotRequested,
    /// It does not have a required label.
    LabelMissing {
        /// Key of the label.
        key: String,
        /// Required value.
        value: String,
    },
    /// The image is for another architecture.
    OtherArchitecture {
        /// Architecture of the node.
        arch: String,
        /// Architecture of the image.
        image_arch: String,
    },
    /// It has fewer CPUs than the instance.
    TooFewCpus {
        /// CPUs of the node.
        cpus: u32,
        /// CPUs of the instance.
        needed: u32,
    },
    /// Its agent is too old to apply the firewall of the instance.
    NoFirewall,
    /// Its agent is too old to put nics in a VLAN.
    NoVlans,
    /// It does not have the pool.
    NoPool {
        /// Name of the pool.
        pool: Name,
    },
    /// Its pool is smaller than the disk.
    PoolTooSmall {
        /// Name of the pool.
        pool: Name,
        /// Size of the pool.
        size_bytes: ByteSize,
        /// Size of the disk.
        needed_bytes: ByteSize,
    },
    /// Its pool has less free space than waifud reserves for the disks that are there.
    PoolFull {
        /// Name of the pool.
        pool: Name,
        /// Free space of the pool.
        free_bytes: ByteSize,
        /// Size of the pool.
        size_bytes: ByteSize,
    },
    /// It does not have the bridge.
    NoBridge {
        /// Name of the bridge.
        bridge: String,
    },
    /// Guests cannot use its bridge.
    UnsuitableBridge {
        /// Name of the bridge.
        bridge: String,
        /// The node's explanation in English.
        because: String,
    },
    /// Its bridge is not VLAN-aware, but a nic of the instance is in a VLAN.
    BridgeWithoutVlans {
        /// Name of the bridge.
        bridge: String,
    },
    /// Guest addresses on it overlap other networks.
    SubnetConflict {
        /// The node's explanation in English.
        because: String,
    },
    /// It runs another instance of a strict spread group.
    SpreadGroup {
        /// Name of the group.
        group: Name,
        /// Number of instances of the group on the node.
        members: u32,
    },
    /// It is unreachable.
    Unreachable {
        /// Whether it has enough free memory.
        fits: bool,
    },
    /// It is cordoned.
    Cordoned,
    /// It has not reported its instances since the database was restored.
    NotReported,
    /// Another instance publishes the port.
    PortTaken {
        /// The port of the node.
        port: u16,
        /// Protocol of the port.
        protocol: Protocol,
        /// Name of the instance that publishes it.
        instance: Name,
    },
    /// An unmanaged instance on it has the address.
    AddressUnmanaged {
        /// The requested address.
        address: Ipv4Addr,
    },
    /// The requested address is not in its subnet.
    AddressElsewhere {
        /// The requested address.
        address: Ipv4Addr,
        /// Subnet of the node.
        subnet: Ipv4Net,
    },
    /// Its subnet has no free address.
    NoFreeAddress {
        /// Subnet of the node.
        subnet: Ipv4Net,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fits {
                free_bytes,
                total_bytes,
                group_members,
                near,
                image,
            } => {
                write!(f, "{free_bytes} free of {total_bytes}")?;
                if *group_members > 0 {
                    write!(f, ", {group_members} of the same spread group")?;
                }
                if let Some(near) = near {
                    write!(f, ", next to {near}")?;
                }
                match image {
                    Some(true) => f.write_str(", image present"),
                    Some(false) => f.write_str(", image absent"),
                    None => Ok(()),
                }
            }
            Self::InsufficientMemory {
                free_bytes,
                total_bytes,
                ..
            } => write!(f, "{free_bytes} free of {total_bytes}"),
            Self::TooLittleMemory { total_bytes, .. } => write!(f, "has {total_bytes} of memory"),
            Self::NotRequested => f.write_str("not the requested node"),
            Self::LabelMissing { key, value } => {
                write!(f, "does not have the label {key}={value}")
            }
            Self::OtherArchitecture { arch, image_arch } => {
                write!(f, "is {arch}, but the image is for {image_arch}")
            }
            Self::TooFewCpus { cpus, .. } => write!(f, "has {cpus} CPUs"),
            Self::NoFirewall => f.write_str("its agent is too old for firewall rules"),
            Self::NoVlans => f.write_str("its agent is too old for VLANs"),
            Self::NoPool { pool } => write!(f, "has no pool {pool}"),
            Self::PoolTooSmall {
                pool, size_bytes, ..
            } => write!(f, "pool {pool} has only {size_bytes}"),
            Self::PoolFull {
                pool,
                free_bytes,
                size_bytes,
            } => write!(f, "pool {pool} is full: {free_bytes} free of {size_bytes}"),
            Self::NoBridge { bridge } => write!(f, "has no bridge {bridge}"),
            Self::UnsuitableBridge { bridge, because } => {
                write!(f, "cannot use {bridge}, which {because}")
            }
            Self::BridgeWithoutVlans { bridge } => {
                write!(f, "its bridge {bridge} is not VLAN-aware")
            }
            Self::SubnetConflict { because } => f.write_str(because),
            Self::SpreadGroup { group, members } => {
                write!(f, "already has {members} of the instances in group {group}")
            }
            Self::Unreachable { fits: true } => f.write_str("unreachable; would fit"),
            Self::Unreachable { fits: false } => f.write_str("unreachable; has no capacity"),
            Self::Cordoned => f.write_str("cordoned"),
            Self::NotReported => {
                f.write_str("has not reported its instances since the database was restored")
            }
            Self::PortTaken {
                port,
                protocol,
                instance,
            } => write!(
                f,
                "port {port}/{} is already published to {instance}",
                protocol.as_str()
            ),
            Self::AddressUnmanaged { address } => {
                write!(f, "an unmanaged instance on it has {address}")
            }
            Self::AddressElsewhere { address, subnet } => {
                write!(f, "its subnet {subnet} does not contain {address}")
            }
            Self::NoFreeAddress { subnet } => write!(f, "no free address in {subnet}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coded::Coded;
    use crate::coded::checks::assert_codes_and_texts;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// Each verdict with its code and its text.
    fn verdicts() -> Vec<(Verdict, &'static str, &'static str)> {
        let (small, large) = (ByteSize::gib(3), ByteSize::gib(4));
        let address = Ipv4Addr::new(10, 144, 1, 5);
        let subnet = "10.144.2.0/24".parse().unwrap();
        let bridge = "br0".to_owned();
        let pool = name("main");
        let fits = |group_members| Verdict::Fits {
            free_bytes: small,
            total_bytes: large,
            group_members,
            near: None,
            image: None,
        };
        let preferred = |image| Verdict::Fits {
            free_bytes: small,
            total_bytes: large,
            group_members: 2,
            near: Some(name("web")),
            image: Some(image),
        };
        let full_pool = Verdict::PoolFull {
            pool: pool.clone(),
            free_bytes: ByteSize::mib(512),
            size_bytes: large,
        };
        let unsuitable = Verdict::UnsuitableBridge {
            bridge: bridge.clone(),
            because: "has no uplink except wlan0".to_owned(),
        };
        let small_pool = Verdict::PoolTooSmall {
            pool: pool.clone(),
            size_bytes: small,
            needed_bytes: large,
        };
        let other_arch = Verdict::OtherArchitecture {
            arch: "aarch64".to_owned(),
            image_arch: "x86_64".to_owned(),
        };
        let label = Verdict::LabelMissing {
            key: "disk".to_owned(),
            value: "ssd".to_owned(),
        };
        let port = Verdict::PortTaken {
            port: 53,
            protocol: Protocol::Udp,
            instance: name("dns"),
        };
        let memory = Verdict::InsufficientMemory {
            free_bytes: small,
            total_bytes: large,
            needed_bytes: large,
        };
        let little_memory = Verdict::TooLittleMemory {
            total_bytes: small,
            needed_bytes: large,
        };
        let group = Verdict::SpreadGroup {
            group: name("db"),
            members: 1,
        };
        let cpus = Verdict::TooFewCpus { cpus: 2, needed: 4 };
        let elsewhere = Verdict::AddressElsewhere { address, subnet };
        vec![
            (fits(0), "fits", "3G free of 4G"),
            (fits(2), "fits", "3G free of 4G, 2 of the same spread group"),
            (
                preferred(true),
                "fits",
                "3G free of 4G, 2 of the same spread group, next to web, image present",
            ),
            (
                preferred(false),
                "fits",
                "3G free of 4G, 2 of the same spread group, next to web, image absent",
            ),
            (
                Verdict::SubnetConflict {
                    because: "10.144.2.0/24 overlaps 10.144.0.0/16".to_owned(),
                },
                "subnet-conflict",
                "10.144.2.0/24 overlaps 10.144.0.0/16",
            ),
            (
                Verdict::NoFirewall,
                "no-firewall",
                "its agent is too old for firewall rules",
            ),
            (
                Verdict::NoVlans,
                "no-vlans",
                "its agent is too old for VLANs",
            ),
            (
                Verdict::BridgeWithoutVlans {
                    bridge: bridge.clone(),
                },
                "bridge-without-vlans",
                "its bridge br0 is not VLAN-aware",
            ),
            (full_pool, "pool-full", "pool main is full: 512M free of 4G"),
            (memory, "insufficient-memory", "3G free of 4G"),
            (little_memory, "too-little-memory", "has 3G of memory"),
            (
                Verdict::NotRequested,
                "not-requested",
                "not the requested node",
            ),
            (label, "label-missing", "does not have the label disk=ssd"),
            (
                other_arch,
                "other-architecture",
                "is aarch64, but the image is for x86_64",
            ),
            (cpus, "too-few-cpus", "has 2 CPUs"),
            (Verdict::NoPool { pool }, "no-pool", "has no pool main"),
            (small_pool, "pool-too-small", "pool main has only 3G"),
            (
                Verdict::NoBridge { bridge },
                "no-bridge",
                "has no bridge br0",
            ),
            (
                unsuitable,
                "unsuitable-bridge",
                "cannot use br0, which has no uplink except wlan0",
            ),
            (
                group,
                "spread-group",
                "already has 1 of the instances in group db",
            ),
            (
                Verdict::Unreachable { fits: true },
                "unreachable",
                "unreachable; would fit",
            ),
            (
                Verdict::Unreachable { fits: false },
                "unreachable",
                "unreachable; has no capacity",
            ),
            (Verdict::Cordoned, "cordoned", "cordoned"),
            (
                Verdict::NotReported,
                "not-reported",
                "has not reported its instances since the database was restored",
            ),
            (
                port,
                "port-taken",
                "port 53/udp is already published to dns",
            ),
            (
                Verdict::AddressUnmanaged { address },
                "address-unmanaged",
                "an unmanaged instance on it has 10.144.1.5",
            ),
            (
                elsewhere,
                "address-elsewhere",
                "its subnet 10.144.2.0/24 does not contain 10.144.1.5",
            ),
            (
                Verdict::NoFreeAddress { subnet },
                "no-free-address",
                "no free address in 10.144.2.0/24",
            ),
        ]
    }

    #[test]
    fn each_verdict_has_a_code_and_a_text_and_round_trips_through_json() {
        assert_codes_and_texts(verdicts());
    }

    #[test]
    fn a_verdict_from_before_near_and_images_is_decoded() {
        let old = r#"{"code":"fits","fields":{"free_bytes":1,"total_bytes":2,"group_members":0}}"#;
        let old: Coded = serde_json::from_str(old).unwrap();
        let expected = Verdict::Fits {
            free_bytes: ByteSize(1),
            total_bytes: ByteSize(2),
            group_members: 0,
            near: None,
            image: None,
        };
        assert_eq!(old.decode(), Some(expected));
    }

    #[test]
    fn an_unknown_code_or_an_unknown_field_value_is_not_decoded() {
        let unknown: Coded =
            serde_json::from_str(r#"{"code":"too-hot","fields":{"celsius":90}}"#).unwrap();
        assert_eq!(unknown.decode::<Verdict>(), None);
        let other = r#"{"code":"unreachable","fields":{"fits":"maybe"}}"#;
        let other: Coded = serde_json::from_str(other).unwrap();
        assert_eq!(other.decode::<Verdict>(), None);
        let bare: Coded = serde_json::from_str(r#"{"code":"cordoned"}"#).unwrap();
        assert_eq!(bare.decode(), Some(Verdict::Cordoned));
    }
}
