//! The rules of ownership: each transition, and the protocol of waifud and its nodes under lost, late and repeated messages.

use std::collections::VecDeque;

use proptest::prelude::*;
use uuid::Uuid;

use super::{HandoverError, NodeCopy, Outdated, Ownership, OwnershipRole, Part};
use crate::{Epoch, NodeId};

const NODES: usize = 3;

fn node(number: usize) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number as u128 + 1))
}

/// An instance that node 0 owns in epoch 4.
fn owned() -> Ownership {
    Ownership {
        epoch: Epoch(4),
        parts: vec![Part {
            node: node(0),
            epoch: Epoch(4),
            role: OwnershipRole::Owner,
            stop: false,
        }],
    }
}

fn role(of: &Ownership, number: usize) -> Option<(OwnershipRole, u64)> {
    of.part(node(number)).map(|part| (part.role, part.epoch.0))
}

#[test]
fn an_instance_changes_owner_only_after_the_release_is_recorded() {
    let mut instance = owned();
    instance.begin_receiving(node(1)).unwrap();
    assert_eq!(
        instance.take_over(node(1)),
        Err(HandoverError::NotReleased),
        "the owner runs it"
    );
    instance.begin_release(node(0), true).unwrap();
    assert_eq!(instance.owner(), None);
    assert_eq!(
        instance.take_over(node(1)),
        Err(HandoverError::NotReleased),
        "the release is not recorded"
    );
    assert!(instance.record_released(node(0), Epoch(4)));
    instance.take_over(node(1)).unwrap();
    assert_eq!(instance.owner(), Some(node(1)));
    assert_eq!(instance.epoch, Epoch(5));
    assert_eq!(role(&instance, 0), Some((OwnershipRole::Released, 4)));
    assert_eq!(role(&instance, 1), Some((OwnershipRole::Owner, 5)));
    // And back.
    instance.begin_receiving(node(0)).unwrap();
    instance.begin_release(node(1), false).unwrap();
    assert!(instance.record_released(node(1), Epoch(5)));
    instance.take_over(node(0)).unwrap();
    assert_eq!(role(&instance, 0), Some((OwnershipRole::Owner, 6)));
}

#[test]
fn a_report_of_another_epoch_and_a_repeated_one_change_nothing() {
    let mut instance = owned();
    assert!(!instance.record_released(node(0), Epoch(4)), "not ordered");
    instance.begin_release(node(0), true).unwrap();
    for epoch in [3, 5] {
        assert!(!instance.record_released(node(0), Epoch(epoch)));
    }
    assert!(!instance.record_released(node(1), Epoch(4)), "another node");
    assert!(instance.record_released(node(0), Epoch(4)));
    let released = instance.clone();
    assert!(!instance.record_released(node(0), Epoch(4)));
    assert_eq!(instance, released);
}

#[test]
fn a_withdrawn_release_gives_the_node_the_next_epoch_whether_it_was_recorded_or_not() {
    for recorded in [false, true] {
        let mut instance = owned();
        instance.begin_release(node(0), true).unwrap();
        if recorded {
            instance.record_released(node(0), Epoch(4));
        }
        instance.withdraw_release(node(0)).unwrap();
        assert_eq!(role(&instance, 0), Some((OwnershipRole::Owner, 5)));
        assert!(
            !instance.record_released(node(0), Epoch(4)),
            "the late report of the withdrawn release"
        );
        assert_eq!(
            instance.withdraw_release(node(0)),
            Err(HandoverError::NotReleasing)
        );
    }
}

#[test]
fn a_release_cannot_be_withdrawn_once_another_node_is_the_owner() {
    let mut instance = owned();
    instance.begin_receiving(node(1)).unwrap();
    instance.begin_release(node(0), true).unwrap();
    instance.record_released(node(0), Epoch(4));
    instance.take_over(node(1)).unwrap();
    assert_eq!(
        instance.withdraw_release(node(0)),
        Err(HandoverError::NotReleasing)
    );
}

#[test]
fn only_the_owner_releases_and_only_a_node_without_another_role_receives() {
    let mut instance = owned();
    assert_eq!(
        instance.begin_release(node(1), true),
        Err(HandoverError::NotOwner)
    );
    assert_eq!(
        instance.begin_receiving(node(0)),
        Err(HandoverError::HasPart)
    );
    instance.begin_release(node(0), true).unwrap();
    assert_eq!(
        instance.begin_release(node(0), true),
        Err(HandoverError::NotOwner)
    );
    assert_eq!(
        instance.begin_receiving(node(0)),
        Err(HandoverError::HasPart)
    );
    instance.record_released(node(0), Epoch(4));
    assert_eq!(
        instance.take_over(node(0)),
        Err(HandoverError::NotReceiving)
    );
    assert_eq!(
        instance.take_over(node(1)),
        Err(HandoverError::NotReceiving)
    );
}

#[test]
fn a_node_ignores_orders_of_older_epochs() {
    let copy = NodeCopy {
        epoch: Some(Epoch(4)),
        ..NodeCopy::default()
    };
    assert_eq!(copy.check_put(Epoch(3), true), Err(Outdated::OlderEpoch));
    assert_eq!(copy.check_release(Epoch(3)), Err(Outdated::OlderEpoch));
    assert_eq!(copy.check_deletion(Epoch(3)), Err(Outdated::OlderEpoch));
    assert_eq!(copy.check_put(Epoch(4), false), Ok(()));
    assert_eq!(copy.check_release(Epoch(4)), Ok(()));
    assert!(copy.may_start());

    let released = NodeCopy {
        released: Some(Epoch(4)),
        ..copy
    };
    assert!(!released.may_start());
    for restored in [false, true] {
        let again = released.check_put(Epoch(4), restored);
        assert_eq!(again, Err(Outdated::Released));
        assert_eq!(released.check_put(Epoch(5), restored), Ok(()));
    }
    assert_eq!(released.check_release(Epoch(4)), Ok(()), "repeated");

    let deleted = NodeCopy {
        deleted: Some(Epoch(4)),
        ..copy
    };
    assert!(!deleted.may_start());
    assert_eq!(deleted.check_put(Epoch(4), false), Err(Outdated::Deleted));
    assert_eq!(deleted.check_put(Epoch(4), true), Ok(()));
    assert_eq!(deleted.check_put(Epoch(5), false), Ok(()));
}

/// What waifud sends a node.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Put(Epoch),
    Release(Epoch),
}

/// A node: its durable record, its guest, and the messages on their way.
#[derive(Clone, Debug, Default)]
struct Node {
    copy: NodeCopy,
    runs: bool,
    frames: VecDeque<Frame>,
    reports: VecDeque<Epoch>,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    BeginRelease(usize),
    Withdraw(usize),
    Receive(usize),
    TakeOver(usize),
    /// The node receives its next frame.
    Frame(usize),
    /// The node starts or stops its guest, and reports.
    Work(usize),
    /// waifud receives the node's next report; it may arrive again.
    Report(usize, bool),
    /// The connection is lost, and a new one begins with the current state.
    Reconnect(usize),
    /// The node's machine crashes and boots without waifud.
    Reboot(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let node = 0..NODES;
    prop_oneof![
        1 => node.clone().prop_map(Act::BeginRelease),
        1 => node.clone().prop_map(Act::Withdraw),
        1 => node.clone().prop_map(Act::Receive),
        1 => node.clone().prop_map(Act::TakeOver),
        3 => node.clone().prop_map(Act::Frame),
        3 => node.clone().prop_map(Act::Work),
        3 => (node.clone(), any::<bool>()).prop_map(|(node, again)| Act::Report(node, again)),
        1 => node.clone().prop_map(Act::Reconnect),
        1 => node.prop_map(Act::Reboot),
    ]
}

struct World {
    instance: Ownership,
    nodes: Vec<Node>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            instance: owned(),
            nodes: vec![Node::default(); NODES],
        };
        world.send(0);
        world
    }

    /// Sends a node its part.
    fn send(&mut self, to: usize) {
        let frame = match role(&self.instance, to) {
            Some((OwnershipRole::Owner, epoch)) => Frame::Put(Epoch(epoch)),
            Some((OwnershipRole::Releasing | OwnershipRole::Released, epoch)) => {
                Frame::Release(Epoch(epoch))
            }
            Some((OwnershipRole::Receiving, _)) | None => return,
        };
        self.nodes[to].frames.push_back(frame);
    }

    fn act(&mut self, act: Act) {
        let instance = &mut self.instance;
        match act {
            Act::BeginRelease(at) => {
                if instance.begin_release(node(at), true).is_ok() {
                    self.send(at);
                }
            }
            Act::Withdraw(at) => {
                if instance.withdraw_release(node(at)).is_ok() {
                    self.send(at);
                }
            }
            Act::Receive(at) => drop(instance.begin_receiving(node(at))),
            Act::TakeOver(at) => {
                if instance.take_over(node(at)).is_ok() {
                    self.send(at);
                }
            }
            Act::Frame(at) => {
                if let Some(frame) = self.nodes[at].frames.pop_front() {
                    self.nodes[at].apply(frame);
                }
            }
            Act::Work(at) => self.nodes[at].work(),
            Act::Report(at, again) => {
                let reports = &mut self.nodes[at].reports;
                let report = reports.front().copied();
                if !again {
                    reports.pop_front();
                }
                if let Some(epoch) = report {
                    instance.record_released(node(at), epoch);
                }
            }
            Act::Reconnect(at) => {
                self.nodes[at].frames.clear();
                self.send(at);
            }
            Act::Reboot(at) => {
                let copy = self.nodes[at].copy;
                self.nodes[at] = Node {
                    copy,
                    ..Node::default()
                };
                self.nodes[at].work();
            }
        }
    }

    fn running(&self) -> Vec<usize> {
        (0..NODES).filter(|at| self.nodes[*at].runs).collect()
    }
}

impl Node {
    fn apply(&mut self, frame: Frame) {
        match frame {
            Frame::Put(epoch) if self.copy.check_put(epoch, false).is_ok() => {
                self.copy.epoch = Some(epoch);
                self.copy.released = None;
            }
            Frame::Release(epoch) if self.copy.check_release(epoch).is_ok() => {
                self.copy.released = Some(epoch);
            }
            _ => {}
        }
    }

    fn work(&mut self) {
        self.runs = self.copy.may_start();
        if let Some(epoch) = self.copy.released {
            self.reports.push_back(epoch);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn two_nodes_never_run_an_instance_and_the_owner_runs_it_in_the_end(
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
            prop_assert!(world.running().len() <= 1, "{act:?}: {:?} run it", world.running());
            let owners = world.instance.parts.iter().filter(|p| p.role == OwnershipRole::Owner);
            prop_assert!(owners.count() <= 1);
        }
        // Everything arrives in the end.
        for at in 0..NODES {
            world.act(Act::Reconnect(at));
            world.act(Act::Frame(at));
            world.act(Act::Work(at));
            while !world.nodes[at].reports.is_empty() {
                world.act(Act::Report(at, false));
            }
        }
        let owner: Vec<_> = (0..NODES)
            .filter(|at| world.instance.owner() == Some(node(*at)))
            .collect();
        prop_assert_eq!(world.running(), owner);
        let releasing = world.instance.parts.iter().filter(|p| p.role == OwnershipRole::Releasing);
        prop_assert_eq!(releasing.count(), 0, "every release is recorded");
    }
}
