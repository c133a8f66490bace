//! Nics that are added to instances and removed from them, on a node of fakes.

use waifud_api::agent::InstanceReport;
use waifud_hypervisor::fake::Op;
use waifud_network::fake::Call;
use waifud_types::spec::NicSpec;
use waifud_types::status::{NicState, NicStatus};
use waifud_types::{InstanceId, MacAddr, TapName};

use crate::test_node::TestNode;

const NO_SLOT: &str = "no PCI slot is free";

/// Adds nic `eth{number}` on the bridge `br0` to the spec.
fn add(node: &TestNode, id: InstanceId, number: u8) {
    node.waifud.edit(id, |instance| {
        let lan = || "lan".parse().unwrap();
        instance.bridges.insert(lan(), "br0".to_owned());
        instance.spec.nics.push(NicSpec {
            name: name(number).parse().unwrap(),
            network: lan(),
            mac: MacAddr::of_guest([9, 9, number]),
            address: None,
            prefix_len: None,
            gateway: None,
            vlan: None,
            allow_addresses: Vec::new(),
        });
    });
}

fn remove(node: &TestNode, id: InstanceId, number: u8) {
    node.waifud.edit(id, |instance| {
        let nics = &mut instance.spec.nics;
        nics.retain(|nic| nic.name.as_str() != name(number));
    });
}

fn name(number: u8) -> String {
    format!("eth{number}")
}

fn nic(report: &InstanceReport, number: u8) -> Option<&NicStatus> {
    let mut nics = report.nics.iter().flatten();
    nics.find(|nic| nic.name.as_str() == name(number))
}

/// Waits until the node reports that a nic is in this state, or is gone.
async fn until(
    node: &TestNode,
    id: InstanceId,
    number: u8,
    state: Option<NicState>,
) -> InstanceReport {
    let what = format!("{} to be {state:?}", name(number));
    let generation = node.waifud.instance(id).unwrap().generation;
    node.until_status(id, &what, |report| {
        report.observed_generation == generation
            && report.nics.is_some()
            && nic(report, number).map(|nic| nic.state) == state
    })
    .await
}

fn has_port(node: &TestNode, id: InstanceId, number: usize) -> bool {
    let tap = TapName::of(id, number);
    let state = node.network.state().unwrap();
    state.lan.iter().any(|port| port.tap == tap)
}

fn guest_has(node: &TestNode, id: InstanceId, number: usize) -> bool {
    node.hypervisor.nics(id).contains(&TapName::of(id, number))
}

#[tokio::test]
async fn a_running_guest_gets_a_nic_after_its_rules_and_loses_it_before_them() {
    let (node, id) = TestNode::with_instance("web").await;
    // The rules cannot be applied, so the port must not come into being.
    node.network.fail(Call::Ensure, u32::MAX);
    add(&node, id, 1);
    let waiting = until(&node, id, 1, Some(NicState::Adding)).await;
    assert!(waiting.restart_needed.is_empty(), "{waiting:?}");
    node.until("the rules to fail", async || node.network.ensured() > 3)
        .await;
    assert_eq!(node.hypervisor.calls(Op::EnsureNics), 0);
    assert!(!guest_has(&node, id, 1));
    node.network.fail(Call::Ensure, 0);
    until(&node, id, 1, Some(NicState::Attached)).await;
    assert!(has_port(&node, id, 1) && guest_has(&node, id, 1));

    node.hypervisor.set_holds_nics(id, true);
    remove(&node, id, 1);
    let leaving = until(&node, id, 1, Some(NicState::Removing)).await;
    node.until_more_reports(2).await;
    assert!(nic(&leaving, 0).is_none(), "the first nic has another name");
    assert!(has_port(&node, id, 1), "the guest still has the nic");
    node.hypervisor.set_holds_nics(id, false);
    until(&node, id, 1, None).await;
    assert!(!has_port(&node, id, 1) && !guest_has(&node, id, 1));
    assert_eq!(node.hypervisor.starts(), 1);
}

#[tokio::test]
async fn a_nic_that_the_guest_holds_is_gone_when_the_guest_is_off_or_stays_if_it_comes_back() {
    let (node, id) = TestNode::with_instance("web").await;
    add(&node, id, 1);
    add(&node, id, 2);
    until(&node, id, 2, Some(NicState::Attached)).await;
    node.hypervisor.set_holds_nics(id, true);
    remove(&node, id, 1);
    until(&node, id, 1, Some(NicState::Removing)).await;
    // The agent forgets nothing, and applies the port of the nic that the guest has, too.
    let before = node.hypervisor.calls(Op::EnsureNics);
    node.restart().await;
    node.until("the nics to be ensured again", async || {
        node.hypervisor.calls(Op::EnsureNics) > before
    })
    .await;
    assert!(has_port(&node, id, 1) && guest_has(&node, id, 1));
    let report = until(&node, id, 1, Some(NicState::Removing)).await;
    assert_eq!(nic(&report, 2).unwrap().state, NicState::Attached);
    add(&node, id, 1);
    until(&node, id, 1, Some(NicState::Attached)).await;
    remove(&node, id, 1);
    until(&node, id, 1, Some(NicState::Removing)).await;
    node.stop(id).await;
    until(&node, id, 1, None).await;
    assert!(!has_port(&node, id, 1) && has_port(&node, id, 2));
    let nics = node.hypervisor.spec(id).unwrap().nics;
    let numbers: Vec<_> = nics.iter().map(|nic| nic.number).collect();
    assert_eq!(numbers, [0, 2]);
    node.start_again(id).await;
    assert!(guest_has(&node, id, 2) && !guest_has(&node, id, 1));
}

#[tokio::test]
async fn a_nic_that_cannot_be_added_comes_with_the_next_start() {
    let (node, id) = TestNode::with_instance("web").await;
    node.hypervisor.set_refuses_nics(id, Some(NO_SLOT));
    add(&node, id, 1);
    let report = until(&node, id, 1, Some(NicState::NextStart)).await;
    assert_eq!(nic(&report, 1).unwrap().reason.as_deref(), Some(NO_SLOT));
    assert_eq!(report.restart_needed, ["nics"]);
    // Its removal leaves nothing.
    remove(&node, id, 1);
    until(&node, id, 1, None).await;
    assert!(!has_port(&node, id, 1));
    add(&node, id, 1);
    until(&node, id, 1, Some(NicState::NextStart)).await;
    node.waifud.edit(id, |i| i.spec.power.reboots += 1);
    let report = until(&node, id, 1, Some(NicState::Attached)).await;
    assert!(report.restart_needed.is_empty());
    assert!(guest_has(&node, id, 1));
}

#[tokio::test]
async fn nics_of_an_instance_that_is_off_change_without_a_guest() {
    let (node, id) = TestNode::with_instance("web").await;
    node.stop(id).await;
    add(&node, id, 1);
    until(&node, id, 1, Some(NicState::Off)).await;
    assert!(has_port(&node, id, 1));
    remove(&node, id, 1);
    until(&node, id, 1, None).await;
    assert!(!has_port(&node, id, 1));
    assert_eq!(node.hypervisor.calls(Op::EnsureNics), 0);
}

#[tokio::test]
async fn a_change_of_nics_is_completed_whenever_the_agent_is_killed() {
    let node = TestNode::started();
    let id = node.run_one("web").await;
    add(&node, id, 1);
    until(&node, id, 1, Some(NicState::Attached)).await;
    for op in [Op::Get, Op::EnsureNics] {
        node.kill_inside(op, || {
            add(&node, id, 2);
            remove(&node, id, 1);
        })
        .await;
        until(&node, id, 1, None).await;
        until(&node, id, 2, Some(NicState::Attached)).await;
        assert!(!has_port(&node, id, 1) && has_port(&node, id, 2));
        add(&node, id, 1);
        remove(&node, id, 2);
        until(&node, id, 2, None).await;
        until(&node, id, 1, Some(NicState::Attached)).await;
    }
    assert_eq!(node.hypervisor.starts(), 1);
}
