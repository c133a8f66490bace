//! Two machines with the key of one node, because its disk was copied.

use std::time::Duration;

use waifud_api::agent::{AgentReport, Hello, MessageOrder};
use waifud_types::{BootId, ByteSize, Digest, ProcessId};

use super::common::{Agent, Server, hello};

/// One of the machines.
struct Machine {
    boot: BootId,
    hardware: Option<Digest>,
}

impl Machine {
    fn new(hardware: Option<u8>) -> Self {
        Self {
            boot: BootId::generate(),
            hardware: hardware.map(|byte| Digest::from_bytes([byte; 32])),
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            boot_id: Some(self.boot),
            hardware: self.hardware,
            order: Some(fresh()),
            ..hello("alder", ByteSize::gib(8))
        }
    }

    fn report(&self) -> AgentReport {
        AgentReport {
            boot_id: Some(self.boot),
            order: Some(fresh()),
            ..AgentReport::default()
        }
    }
}

/// The first message of a process.
fn fresh() -> MessageOrder {
    MessageOrder {
        process: ProcessId::generate(),
        number: 1,
    }
}

/// The copy is refused.
async fn refused(agent: &Agent, copy: &Machine) {
    let problem = agent.hello(&copy.hello()).await.expect(409).problem();
    assert_eq!(problem.code, "duplicate-node");
    assert!(problem.title.contains("copy of node alder"), "{problem:?}");
    let hint = problem.hint.unwrap();
    assert!(hint.contains("join --again"), "{hint}");
}

async fn duplicates(server: &Server) -> usize {
    let kinds = server.kinds("node/alder").await;
    let of_copies = kinds.iter().filter(|kind| *kind == "node.duplicate");
    of_copies.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hardware_is_refused_while_the_node_is_in_contact_and_accepted_after() {
    let (server, clock) = Server::with_manual_clock().await;
    let agent = server.admit("alder").await;
    let [node, other] = [1, 2].map(|hardware| Machine::new(Some(hardware)));
    agent.hello(&node.hello()).await.expect(200);
    for _ in 0..3 {
        refused(&agent, &other).await;
        agent.report(&node.report()).await;
    }
    agent.try_to_report(&other.report()).await.expect(503);
    assert_eq!(
        duplicates(&server).await,
        1,
        "one event, not one for each attempt"
    );

    // The disk is in the other machine for good.
    clock.forward(Duration::from_mins(10));
    server.control.check_contacts().await.unwrap();
    agent.hello(&other.hello()).await.expect(200);
    agent.report(&other.report()).await;
    let restarted = Machine {
        boot: BootId::generate(),
        ..node
    };
    refused(&agent, &restarted).await;
}

/// Some boards have no serial number of their own, and machines that were made from one image have one machine-id. Nodes are told
/// apart by their keys.
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_the_same_hardware_id_are_two_nodes() {
    let server = Server::start().await;
    for name in ["alder", "birch"] {
        let agent = server.admit(name).await;
        let machine = Machine::new(Some(1));
        let hello = Hello {
            hardware: machine.hardware,
            boot_id: Some(machine.boot),
            ..hello(name, ByteSize::gib(8))
        };
        agent.hello(&hello).await.expect(200);
        agent.report(&machine.report()).await;
    }
    let nodes = server.items("/v1/nodes").await;
    assert_eq!(nodes.len(), 2);
    assert_ne!(nodes[0]["subnets"], nodes[1]["subnets"]);
    for node in &nodes {
        assert_eq!(node["state"], "ready", "{node}");
    }
    assert_eq!(duplicates(&server).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_returns_after_a_later_boot_is_the_node_and_the_other_one_is_refused() {
    let server = Server::start().await;
    let mut agent = server.admit("alder").await;
    let [node, copy] = [(); 2].map(|()| Machine::new(None));
    agent.hello(&node.hello()).await.expect(200);
    // It cannot be told from a restart of the node.
    agent.hello(&copy.hello()).await.expect(200);
    agent.watch_from_now().await;
    agent.report(&copy.report()).await;
    assert_eq!(duplicates(&server).await, 0);

    agent.report(&node.report()).await;
    assert!(agent.watch_ends().await, "the watch of the copy goes on");
    assert_eq!(duplicates(&server).await, 1);
    refused(&agent, &copy).await;
    let problem = agent.try_to_report(&copy.report()).await;
    assert_eq!(problem.expect(409).problem().code, "duplicate-node");
    agent.hello(&node.hello()).await.expect(200);
    agent.watch_from_now().await;
    agent.report(&node.report()).await;

    // After a restart of the node, its earlier boot is not taken for it.
    let restarted = Machine::new(None);
    agent.hello(&restarted.hello()).await.expect(200);
    agent.report(&restarted.report()).await;
    refused(&agent, &copy).await;
}
