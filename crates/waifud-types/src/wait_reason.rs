//! What an instance waits for, as far as waifud decides about it.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::spec::Protocol;
use crate::{ByteSize, MoveState, Name, Timestamp, Verdict};

/// What an instance waits for, or why its state is unknown. The reasons of a node are only text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "code", content = "fields")]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum WaitReason {
    /// No node has joined.
    NoNodes,
    /// All suitable nodes are cordoned.
    AllCordoned,
    /// The node has not reported its instances since the database was restored.
    NodeNotReported {
        /// Name of the node.
        node: Name,
    },
    /// No node has enough free memory.
    InsufficientMemory {
        /// Memory of the instance.
        needed_bytes: ByteSize,
    },
    /// The pool of the suitable node is full.
    PoolFull {
        /// Name of the pool.
        pool: Name,
        /// Name of the node.
        node: Name,
    },
    /// Guest addresses on the suitable node overlap other networks.
    SubnetConflict {
        /// Name of the node.
        node: Name,
    },
    /// The suitable node is unreachable.
    NodeUnreachable {
        /// Name of the node.
        node: Name,
    },
    /// All suitable nodes run an instance of the strict spread group.
    SpreadGroup {
        /// Name of the group.
        group: Name,
    },
    /// The requested node does not exist.
    NoSuchNode {
        /// Name of the node.
        node: Name,
    },
    /// The requested node cannot run the instance.
    RequestedNodeUnsuitable {
        /// Name of the node.
        node: Name,
        /// Why it cannot.
        verdict: Box<Verdict>,
    },
    /// No node has the bridge.
    NoBridge {
        /// Name of the bridge.
        bridge: String,
    },
    /// No node that has the bridge lets nics on it be in a VLAN.
    BridgeWithoutVlans {
        /// Name of the bridge.
        bridge: String,
    },
    /// No node is large enough, or of the image's architecture.
    NoSuitableNode {
        /// CPUs of the instance.
        cpus: u32,
        /// Memory of the instance.
        memory_bytes: ByteSize,
        /// Disks of the instance.
        disk_bytes: ByteSize,
        /// Architecture of the image.
        arch: String,
    },
    /// Another instance publishes the port on the suitable node.
    PortTaken {
        /// The port of the node.
        port: u16,
        /// Protocol of the port.
        protocol: Protocol,
        /// Name of the node.
        node: Name,
        /// Name of the instance that publishes it.
        instance: Name,
    },
    /// An unmanaged instance has the requested address.
    AddressUnmanaged {
        /// The address.
        address: Ipv4Addr,
        /// Name of the node of the unmanaged instance.
        node: Name,
    },
    /// No node's subnet contains the requested address.
    AddressElsewhere {
        /// The address.
        address: Ipv4Addr,
    },
    /// The subnet of the suitable node is full.
    NoFreeAddress {
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// The instance has a node, which has not reported it yet.
    NodePreparing {
        /// Name of the node.
        node: Name,
    },
    /// The state is unknown, since its node is unreachable.
    NoContact {
        /// Name of the node.
        node: Option<Name>,
        /// Time of the node's last contact.
        since: Option<Timestamp>,
    },
    /// It was recreated, and a node that has returned has its disks, unmanaged.
    CopyExists {
        /// Name of the node.
        node: Name,
    },
    /// The node that has its disks was removed.
    NodeRemoved {
        /// Former name of the node.
        node: Name,
    },
    /// The instance moves to another node.
    Moving {
        /// Name of the new node.
        to: Name,
        /// The state of the move.
        state: MoveState,
        /// What the move waits for, in the words of the node.
        problem: Option<String>,
    },
    /// The instance is being destroyed by its node.
    Destruction {
        /// Name of the node.
        node: Option<Name>,
        /// Whether the node is reachable.
        reachable: bool,
        /// What the node waits for, in its own words.
        #[serde(rename = "trouble", alias = "problem")]
        problem: Option<String>,
    },
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNodes => f.write_str("waiting for: a node; none has joined yet"),
            Self::AllCordoned => f.write_str("waiting for: a node that is not cordoned"),
            Self::NodeNotReported { node } => write!(
                f,
                "waiting for: {node} to report its instances after the database was restored"
            ),
            Self::InsufficientMemory { needed_bytes } => {
                write!(f, "waiting for: {needed_bytes} of free memory on one node")
            }
            Self::PoolFull { pool, node } => {
                write!(f, "waiting for: free space in pool {pool} of {node}")
            }
            Self::SubnetConflict { node } => write!(
                f,
                "waiting for: {node}, where guest addresses overlap another network"
            ),
            Self::NodeUnreachable { node } => {
                write!(f, "waiting for: {node}, which is unreachable")
            }
            Self::SpreadGroup { group } => write!(
                f,
                "waiting for: a node without another instance of the group {group}"
            ),
            Self::NoSuchNode { node } => {
                write!(f, "waiting for: node {node}, which does not exist")
            }
            Self::RequestedNodeUnsuitable { node, verdict } => {
                write!(f, "node {node} cannot run it: {verdict}")
            }
            Self::NoBridge { bridge } => write!(f, "waiting for: a node with bridge {bridge}"),
            Self::BridgeWithoutVlans { bridge } => {
                write!(f, "waiting for: a node whose bridge {bridge} is VLAN-aware")
            }
            Self::NoSuitableNode {
                cpus,
                memory_bytes,
                disk_bytes,
                arch,
            } => write!(
                f,
                "no node can run it: {cpus} CPUs, {memory_bytes} memory, {disk_bytes} disk, {arch}"
            ),
            Self::PortTaken {
                port,
                protocol,
                node,
                instance,
            } => write!(
                f,
                "waiting for: port {port}/{} of {node}, which is published to {instance}",
                protocol.as_str()
            ),
            Self::AddressUnmanaged { address, node } => write!(
                f,
                "waiting for: {address}, which is in use by an unmanaged instance on {node}"
            ),
            Self::AddressElsewhere { address } => {
                write!(f, "waiting for: the node whose subnet contains {address}")
            }
            Self::NoFreeAddress { subnet } => {
                write!(f, "waiting for: a free address in {subnet}")
            }
            Self::NodePreparing { node } => write!(f, "waiting for {node} to prepare it"),
            Self::NoContact { node, since } => {
                write!(f, "no contact with {}", named(node.as_ref()))?;
                match since.map(to_the_second) {
                    Some(since) => write!(f, " since {since}"),
                    None => Ok(()),
                }
            }
            Self::CopyExists { node } => write!(
                f,
                "waiting for: a decision about the older copy on {node}; adopt it or delete it there"
            ),
            Self::NodeRemoved { node } => {
                write!(f, "node {node}, which has its disks, was removed")
            }
            Self::Moving { to, state, problem } => {
                match state {
                    MoveState::Preparing => write!(f, "moving to {to}, which prepares for it")?,
                    MoveState::Stopping => write!(f, "moving to {to}: shutting the guest down")?,
                    MoveState::Copying => write!(f, "moving to {to}: copying the disks")?,
                    MoveState::Starting => write!(f, "moved to {to}, which starts it")?,
                    MoveState::Removing => {
                        write!(f, "moved to {to}; the old copy is being deleted")?;
                    }
                    MoveState::Canceling => {
                        write!(
                            f,
                            "the move to {to} was canceled; {to} deletes what it has received"
                        )?;
                    }
                    MoveState::Other => write!(f, "moving to {to}")?,
                }
                match problem {
                    Some(problem) => write!(f, ": {problem}"),
                    None => Ok(()),
                }
            }
            Self::Destruction {
                node,
                reachable: false,
                ..
            } => write!(
                f,
                "waiting for {}, which is unreachable, to destroy it",
                named(node.as_ref())
            ),
            Self::Destruction {
                node,
                reachable: true,
                problem,
            } => {
                write!(f, "waiting for {} to destroy it", named(node.as_ref()))?;
                match problem {
                    Some(problem) => write!(f, ": {problem}"),
                    None => Ok(()),
                }
            }
        }
    }
}

fn named(node: Option<&Name>) -> &str {
    node.map_or("its node", Name::as_str)
}

fn to_the_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coded::checks::assert_codes_and_texts;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// Each reason with its code and its text.
    fn reasons() -> Vec<(WaitReason, &'static str, &'static str)> {
        let node = name("alder");
        let address = Ipv4Addr::new(10, 144, 1, 5);
        let subnet = "10.144.2.0/24".parse().unwrap();
        let needed_bytes = ByteSize::gib(4);
        let bridge = "br0".to_owned();
        let unsuitable = WaitReason::RequestedNodeUnsuitable {
            node: node.clone(),
            verdict: Box::new(Verdict::NoPool { pool: name("fast") }),
        };
        let nowhere = WaitReason::NoSuitableNode {
            cpus: 8,
            memory_bytes: needed_bytes,
            disk_bytes: needed_bytes,
            arch: "x86_64".to_owned(),
        };
        let port = WaitReason::PortTaken {
            port: 8080,
            protocol: Protocol::Tcp,
            node: node.clone(),
            instance: name("web"),
        };
        let unmanaged = WaitReason::AddressUnmanaged {
            address,
            node: node.clone(),
        };
        let destruction = |reachable| WaitReason::Destruction {
            node: Some(name("alder")),
            reachable,
            problem: Some("its disk is busy".to_owned()),
        };
        let moving = |state, problem: Option<&str>| WaitReason::Moving {
            to: name("birch"),
            state,
            problem: problem.map(str::to_owned),
        };
        let full = WaitReason::PoolFull {
            pool: name("main"),
            node: node.clone(),
        };
        let unreported = WaitReason::NodeNotReported { node: node.clone() };
        let off = WaitReason::NodeUnreachable { node: node.clone() };
        let missing = WaitReason::NoSuchNode { node: node.clone() };
        vec![
            (
                WaitReason::NoNodes,
                "no-nodes",
                "waiting for: a node; none has joined yet",
            ),
            (
                WaitReason::AllCordoned,
                "all-cordoned",
                "waiting for: a node that is not cordoned",
            ),
            (
                unreported,
                "node-not-reported",
                "waiting for: alder to report its instances after the database was restored",
            ),
            (
                WaitReason::InsufficientMemory { needed_bytes },
                "insufficient-memory",
                "waiting for: 4G of free memory on one node",
            ),
            (
                full,
                "pool-full",
                "waiting for: free space in pool main of alder",
            ),
            (
                WaitReason::SubnetConflict {
                    node: name("alder"),
                },
                "subnet-conflict",
                "waiting for: alder, where guest addresses overlap another network",
            ),
            (
                off,
                "node-unreachable",
                "waiting for: alder, which is unreachable",
            ),
            (
                WaitReason::SpreadGroup { group: name("db") },
                "spread-group",
                "waiting for: a node without another instance of the group db",
            ),
            (
                missing,
                "no-such-node",
                "waiting for: node alder, which does not exist",
            ),
            (
                unsuitable,
                "requested-node-unsuitable",
                "node alder cannot run it: has no pool fast",
            ),
            (
                WaitReason::BridgeWithoutVlans {
                    bridge: bridge.clone(),
                },
                "bridge-without-vlans",
                "waiting for: a node whose bridge br0 is VLAN-aware",
            ),
            (
                WaitReason::NoBridge { bridge },
                "no-bridge",
                "waiting for: a node with bridge br0",
            ),
            (
                nowhere,
                "no-suitable-node",
                "no node can run it: 8 CPUs, 4G memory, 4G disk, x86_64",
            ),
            (
                port,
                "port-taken",
                "waiting for: port 8080/tcp of alder, which is published to web",
            ),
            (
                unmanaged,
                "address-unmanaged",
                "waiting for: 10.144.1.5, which is in use by an unmanaged instance on alder",
            ),
            (
                WaitReason::AddressElsewhere { address },
                "address-elsewhere",
                "waiting for: the node whose subnet contains 10.144.1.5",
            ),
            (
                WaitReason::NoFreeAddress { subnet },
                "no-free-address",
                "waiting for: a free address in 10.144.2.0/24",
            ),
            (
                WaitReason::NodePreparing { node: node.clone() },
                "node-preparing",
                "waiting for alder to prepare it",
            ),
            (
                WaitReason::NoContact {
                    node: Some(node.clone()),
                    since: Some(Timestamp::from_millisecond(1_900).unwrap()),
                },
                "no-contact",
                "no contact with alder since 1970-01-01T00:00:01Z",
            ),
            (
                WaitReason::NoContact {
                    node: None,
                    since: None,
                },
                "no-contact",
                "no contact with its node",
            ),
            (
                WaitReason::CopyExists { node: node.clone() },
                "copy-exists",
                "waiting for: a decision about the older copy on alder; adopt it or delete it there",
            ),
            (
                WaitReason::NodeRemoved { node: node.clone() },
                "node-removed",
                "node alder, which has its disks, was removed",
            ),
            (
                moving(MoveState::Copying, Some("its disk is busy")),
                "moving",
                "moving to birch: copying the disks: its disk is busy",
            ),
            (
                moving(MoveState::Preparing, None),
                "moving",
                "moving to birch, which prepares for it",
            ),
            (
                moving(MoveState::Stopping, None),
                "moving",
                "moving to birch: shutting the guest down",
            ),
            (
                moving(MoveState::Starting, None),
                "moving",
                "moved to birch, which starts it",
            ),
            (
                moving(MoveState::Removing, None),
                "moving",
                "moved to birch; the old copy is being deleted",
            ),
            (
                moving(MoveState::Canceling, None),
                "moving",
                "the move to birch was canceled; birch deletes what it has received",
            ),
            (moving(MoveState::Other, None), "moving", "moving to birch"),
            (
                destruction(false),
                "destruction",
                "waiting for alder, which is unreachable, to destroy it",
            ),
            (
                destruction(true),
                "destruction",
                "waiting for alder to destroy it: its disk is busy",
            ),
        ]
    }

    #[test]
    fn each_reason_has_a_code_and_a_text_and_round_trips_through_json() {
        assert_codes_and_texts(reasons());
    }
}
