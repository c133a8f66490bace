//! Nodes on which guest addresses overlap other networks.

use waifud_types::node::condition_kind;
use waifud_types::status::Condition;
use waifud_types::{Timestamp, Verdict, WaitReason};

use super::{chosen, name, nic_on, ready, spec};

fn conflict(kind: &str) -> Condition {
    Condition {
        kind: kind.to_owned(),
        ok: false,
        reason: "subnet-conflict".to_owned(),
        message: "overlaps".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn a_node_with_an_overlap_gets_no_instances_until_it_is_gone() {
    let mut wanted = spec(1, 1, None);
    wanted.nics = vec![nic_on("default")];
    for kind in [condition_kind::SUBNET, condition_kind::REMOTE_SUBNETS] {
        let mut node = ready(0);
        node.node.facts.conditions = vec![conflict(kind)];
        let choice = chosen(&wanted, &[], std::slice::from_ref(&node));
        assert_eq!(choice.node, None, "{kind}");
        let because = "overlaps".to_owned();
        let verdict = Verdict::SubnetConflict { because };
        assert_eq!(choice.verdicts[0].verdict(), Some(verdict));
        let node_0 = name("node-0");
        assert_eq!(
            choice.reason,
            Some(WaitReason::SubnetConflict { node: node_0 })
        );
        let both = [node.clone(), ready(1)];
        assert_eq!(chosen(&wanted, &[], &both).node, Some(both[1].node.id));
        node.node.facts.conditions[0].ok = true;
        assert!(chosen(&wanted, &[], &[node]).node.is_some());
    }
}

#[test]
fn an_overlap_matters_only_to_instances_that_get_an_address_there() {
    let mut node = ready(0);
    node.node.facts.conditions = vec![conflict(condition_kind::SUBNET)];
    node.node.facts.bridges.push("br0".into());
    let mut wanted = spec(1, 1, None);
    wanted.nics = vec![nic_on("lan")];
    assert!(
        chosen(&wanted, &[], std::slice::from_ref(&node))
            .node
            .is_some()
    );
    wanted.nics.push(nic_on("default"));
    assert!(chosen(&wanted, &[], &[node]).node.is_none());
}
