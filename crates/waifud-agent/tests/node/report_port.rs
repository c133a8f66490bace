//! Guests' reports are refused while metadatad does not answer.

use std::time::Duration;

use waifud_network::fake::Call;

use crate::test_node::TestNode;

fn refuses(node: &TestNode) -> bool {
    node.network
        .state()
        .is_some_and(|state| state.refuse_reports)
}

/// A node with a guest whose network is applied only when something changes.
async fn node_without_periodic_repairs() -> TestNode {
    let node = TestNode::started_after(|node| {
        node.settings.timing.network = Duration::from_hours(1);
    });
    node.run_one("web").await;
    node
}

#[tokio::test]
async fn reports_are_refused_while_metadatad_hangs_or_is_offline_and_nothing_else_changes() {
    let (node, id) = TestNode::with_instance("web").await;
    let hang = |hangs: bool| node.metadata.set_hanging(hangs);
    let away = |away: bool| node.metadata.set_online(!away);
    for change in [&hang as &dyn Fn(bool), &away] {
        assert!(!refuses(&node));
        let before = node.network.state().unwrap();
        change(true);
        node.until("refused", async || refuses(&node)).await;
        let now = node.network.state().unwrap();
        assert_eq!((now.ports, now.lan), (before.ports, before.lan));
        change(false);
        node.until("accepted", async || !refuses(&node)).await;
    }
    assert_eq!(node.hypervisor.starts(), 1);
    assert!(node.waifud.status(id).unwrap().ready_by.is_some());
}

#[tokio::test]
async fn a_failed_change_of_the_report_rules_is_retried() {
    let node = node_without_periodic_repairs().await;
    for refused in [true, false] {
        let ensured = node.network.ensured();
        node.network.fail(Call::Ensure, 2);
        node.metadata.set_online(!refused);
        node.until("changed", async || refuses(&node) == refused)
            .await;
        assert!(node.network.ensured() >= ensured + 3, "two attempts failed");
    }
}

#[tokio::test]
async fn reports_are_accepted_again_when_metadatad_answers_before_their_refusal_was_confirmed() {
    let node = node_without_periodic_repairs().await;
    // The rules are applied, and the agent does not learn that.
    node.network.lose_answers(true);
    node.metadata.set_online(false);
    node.until("refused", async || refuses(&node)).await;
    node.metadata.set_online(true);
    node.network.lose_answers(false);
    node.until("accepted", async || !refuses(&node)).await;
}

#[tokio::test]
async fn an_agent_that_stops_while_reports_are_refused_accepts_them_again() {
    let (node, _) = TestNode::with_instance("web").await;
    node.metadata.set_online(false);
    node.until("refused", async || refuses(&node)).await;
    node.stop_agent().await;
    assert!(!refuses(&node));
    assert_eq!(node.ports(), 1, "nothing else changes");
}

#[tokio::test]
async fn reports_are_not_refused_while_metadatad_is_silent_for_a_short_time() {
    let node = TestNode::started_after(|node| {
        node.settings.timing.refuse_reports_after = Duration::from_hours(1);
    });
    node.run_one("web").await;
    node.metadata.set_online(false);
    // The agent has noticed, and has asked metadatad many times.
    node.until("noticed", async || {
        let facts = node.waifud.facts();
        let mut conditions = facts.iter().flat_map(|facts| &facts.conditions);
        conditions.any(|condition| condition.kind == "metadata-service")
    })
    .await;
    node.until_more_reports(3).await;
    assert!(node.network.state().is_some_and(|s| !s.refuse_reports));
}
