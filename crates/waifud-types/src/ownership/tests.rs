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
        floor: Epoch(0),
        parts: vec![Part {
            node: node(0),
            epoch: Epoch(4),
            role: OwnershipRole::Owner,
            stop: false,
            off: false,
        }],
    }
}

fn role(of: &Ownership, number: usize) -> Option<(OwnershipRole, u64)> {
    of.part(node(number)).map(|part| (part.role, part.epoch.0))
}

/// The owner records its release with the guest off, and the other node takes over.
fn hand_over(instance: &mut Ownership, from: usize, to: usize) {
    let epoch = instance.part(node(from)).unwrap().epoch;
    instance.begin_receiving(node(to)).unwrap();
    instance.begin_release(node(from), true).unwrap();
    assert!(instance.record_released(node(from), epoch, true));
    instance.take_over(node(to)).unwrap();
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
    assert!(instance.record_released(node(0), Epoch(4), true));
    instance.take_over(node(1)).unwrap();
    assert_eq!(instance.owner(), Some(node(1)));
    assert_eq!(instance.epoch, Epoch(5));
    assert_eq!(role(&instance, 0), Some((OwnershipRole::Released, 4)));
    assert_eq!(role(&instance, 1), Some((OwnershipRole::Owner, 5)));
    // And back.
    hand_over(&mut instance, 1, 0);
    assert_eq!(role(&instance, 0), Some((OwnershipRole::Owner, 6)));
}

#[test]
fn no_other_node_takes_over_while_the_guest_of_a_recorded_release_still_runs() {
    let mut instance = owned();
    instance.begin_receiving(node(1)).unwrap();
    instance.begin_release(node(0), false).unwrap();
    assert!(instance.record_released(node(0), Epoch(4), false));
    assert!(
        !instance.record_released(node(0), Epoch(4), false),
        "a repeated report"
    );
    let still_runs = Err(HandoverError::StillRuns);
    assert_eq!(instance.take_over(node(1)), still_runs);
    assert_eq!(instance.begin_receiving(node(0)), still_runs);
    assert!(instance.record_released(node(0), Epoch(4), true));
    assert!(
        !instance.record_released(node(0), Epoch(4), false),
        "a late report"
    );
    instance.take_over(node(1)).unwrap();
    assert_eq!(instance.owner(), Some(node(1)));
}

#[test]
fn an_epoch_is_at_least_the_floor_of_a_restored_database() {
    let mut instance = Ownership {
        floor: Epoch(1000),
        ..owned()
    };
    instance.begin_release(node(0), true).unwrap();
    instance.withdraw_release(node(0)).unwrap();
    assert_eq!(role(&instance, 0), Some((OwnershipRole::Owner, 1000)));
    hand_over(&mut instance, 0, 1);
    assert_eq!(role(&instance, 1), Some((OwnershipRole::Owner, 1001)));
}

#[test]
fn a_report_of_another_epoch_and_a_repeated_one_change_nothing() {
    let mut instance = owned();
    assert!(
        !instance.record_released(node(0), Epoch(4), true),
        "not ordered"
    );
    instance.begin_release(node(0), true).unwrap();
    for epoch in [3, 5] {
        assert!(!instance.record_released(node(0), Epoch(epoch), true));
    }
    assert!(
        !instance.record_released(node(1), Epoch(4), true),
        "another node"
    );
    assert!(instance.record_released(node(0), Epoch(4), true));
    let released = instance.clone();
    assert!(!instance.record_released(node(0), Epoch(4), true));
    assert_eq!(instance, released);
}

#[test]
fn a_withdrawn_release_gives_the_node_the_next_epoch_whether_it_was_recorded_or_not() {
    for recorded in [false, true] {
        let mut instance = owned();
        instance.begin_release(node(0), true).unwrap();
        if recorded {
            instance.record_released(node(0), Epoch(4), true);
        }
        instance.withdraw_release(node(0)).unwrap();
        assert_eq!(role(&instance, 0), Some((OwnershipRole::Owner, 5)));
        assert!(
            !instance.record_released(node(0), Epoch(4), true),
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
    hand_over(&mut instance, 0, 1);
    let not_releasing = Err(HandoverError::NotReleasing);
    assert_eq!(instance.withdraw_release(node(0)), not_releasing);
}

#[test]
fn only_the_owner_releases_and_only_a_node_without_another_role_receives() {
    let mut instance = owned();
    let not_owner = Err(HandoverError::NotOwner);
    let has_part = Err(HandoverError::HasPart);
    assert_eq!(instance.begin_release(node(1), true), not_owner);
    assert_eq!(instance.begin_receiving(node(0)), has_part);
    instance.begin_release(node(0), true).unwrap();
    assert_eq!(instance.begin_release(node(0), true), not_owner);
    assert_eq!(instance.begin_receiving(node(0)), has_part);
    instance.record_released(node(0), Epoch(4), true);
    for number in [0, 1] {
        let taken = instance.take_over(node(number));
        assert_eq!(taken, Err(HandoverError::NotReceiving), "{number}");
    }
}

#[test]
fn a_node_ignores_orders_of_older_epochs() {
    let copy = NodeCopy {
        epoch: Some(Epoch(4)),
        ..NodeCopy::default()
    };
    assert_eq!(copy.check_put(Epoch(3), true), Err(Outdated::OlderEpoch));
    assert_eq!(
        copy.check_release(Epoch(3), true),
        Err(Outdated::OlderEpoch)
    );
    assert_eq!(copy.check_deletion(Epoch(3)), Err(Outdated::OlderEpoch));
    assert_eq!(copy.check_deletion(Epoch(4)), Ok(()));
    assert_eq!(copy.check_put(Epoch(4), false), Ok(()));
    assert_eq!(copy.check_release(Epoch(4), false), Ok(()));
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
    assert_eq!(released.check_release(Epoch(4), false), Ok(()), "repeated");

    let deleted = NodeCopy {
        deleted: Some(Epoch(4)),
        ..copy
    };
    assert!(!deleted.may_start());
    assert_eq!(deleted.check_put(Epoch(4), false), Err(Outdated::Deleted));
    assert_eq!(deleted.check_put(Epoch(4), true), Ok(()));
    assert_eq!(deleted.check_put(Epoch(5), false), Ok(()));
    assert_eq!(
        deleted.check_release(Epoch(4), false),
        Err(Outdated::Deleted)
    );
    assert_eq!(deleted.check_release(Epoch(4), true), Ok(()));
}

/// What waifud sends a node.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Put(Epoch),
    Release(Epoch, bool),
}

/// A node: its durable record, its guest, and the messages on their way.
#[derive(Clone, Debug, Default)]
struct Node {
    copy: NodeCopy,
    /// Of the recorded release: whether the guest has to stop.
    stop: bool,
    runs: bool,
    frames: VecDeque<Frame>,
    /// Recorded releases, and whether the guest was off.
    reports: VecDeque<(Epoch, bool)>,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// The owner, if there is one, is told to release it.
    BeginRelease(bool),
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
    /// The guest ends on its own.
    End(usize),
    /// The node receives a frame, works, and its report arrives.
    Settle(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let node = 0..NODES;
    prop_oneof![
        2 => any::<bool>().prop_map(Act::BeginRelease),
        1 => node.clone().prop_map(Act::Withdraw),
        1 => node.clone().prop_map(Act::Receive),
        1 => node.clone().prop_map(Act::TakeOver),
        3 => node.clone().prop_map(Act::Frame),
        3 => node.clone().prop_map(Act::Work),
        3 => (node.clone(), any::<bool>()).prop_map(|(node, again)| Act::Report(node, again)),
        1 => node.clone().prop_map(Act::Reconnect),
        1 => node.clone().prop_map(Act::Reboot),
        1 => node.clone().prop_map(Act::End),
        4 => node.prop_map(Act::Settle),
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
        world.act(Act::Settle(0));
        world
    }

    /// Sends a node its part.
    fn send(&mut self, to: usize) {
        let Some(part) = self.instance.part(node(to)) else {
            return;
        };
        let frame = match part.role {
            OwnershipRole::Owner => Frame::Put(part.epoch),
            OwnershipRole::Releasing | OwnershipRole::Released => {
                Frame::Release(part.epoch, part.stop)
            }
            OwnershipRole::Receiving => return,
        };
        self.nodes[to].frames.push_back(frame);
    }

    fn act(&mut self, act: Act) {
        let instance = &mut self.instance;
        match act {
            Act::BeginRelease(stop) => {
                let owner = (0..NODES).find(|at| instance.owner() == Some(node(*at)));
                if let Some(at) = owner {
                    instance.begin_release(node(at), stop).unwrap();
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
                if let Some((epoch, off)) = report {
                    instance.record_released(node(at), epoch, off);
                }
            }
            Act::Reconnect(at) => {
                self.nodes[at].frames.clear();
                self.send(at);
            }
            Act::Reboot(at) => {
                let Node { copy, stop, .. } = self.nodes[at];
                self.nodes[at] = Node {
                    copy,
                    stop,
                    ..Node::default()
                };
                self.nodes[at].work();
            }
            Act::End(at) => self.nodes[at].runs = false,
            Act::Settle(at) => {
                self.act(Act::Frame(at));
                self.act(Act::Work(at));
                self.act(Act::Report(at, false));
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
            Frame::Release(epoch, stop) if self.copy.check_release(epoch, false).is_ok() => {
                self.copy.released = Some(epoch);
                self.stop = stop;
            }
            _ => {}
        }
    }

    fn work(&mut self) {
        match self.copy.released {
            Some(epoch) => {
                self.runs &= !self.stop;
                self.reports.push_back((epoch, !self.runs));
            }
            None => self.runs = self.copy.may_start(),
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
            world.act(Act::End(at));
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
        let runs = |part: &&Part| part.role == OwnershipRole::Released && !part.off;
        prop_assert!(world.instance.parts.iter().find(runs).is_none(), "every released guest is off");
    }
}
