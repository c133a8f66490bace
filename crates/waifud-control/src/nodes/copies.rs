//! Recognizes copies of nodes: machines that have the key of another one because its disk was copied.
//!
//! Two observations prove that there are two machines. A machine never returns to an earlier boot: if messages of a boot
//! arrive after those of a later one, both run, and the later one is the copy. And if the hardware of a node changes while
//! the node is in contact, the new hardware is the copy. Otherwise a boot follows another one: the node was restarted, or its
//! disk is in another machine now.

use std::collections::VecDeque;

use waifud_types::{BootId, Digest};

/// How many former boots and copies of a node are known.
const KNOWN_MAX: usize = 16;

/// What a machine says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Machine {
    pub(crate) boot: Option<BootId>,
    pub(crate) hardware: Option<Digest>,
}

/// The result of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    /// The message is from the node.
    Node,
    /// The message is from the node, and shows that the machine which was taken for it since is a copy.
    Returned,
    /// The message is from a boot that has not said hello.
    Unknown,
    /// The message is from a copy.
    Copy {
        /// Whether this was not known before.
        new: bool,
    },
}

/// The machines that use the key of one node.
#[derive(Default, Debug)]
pub(super) struct Machines {
    present: Option<Machine>,
    former: VecDeque<BootId>,
    copies: VecDeque<BootId>,
}

impl Machines {
    /// Judges a hello. `in_contact`: whether the machine that was the node until now has been in contact lately.
    pub(super) fn hello(&mut self, from: Machine, in_contact: bool) -> Judgement {
        if let Some(known) = self.known(from.boot) {
            if known != (Judgement::Copy { new: false }) {
                self.present = Some(from);
            }
            return known;
        }
        let before = self.present;
        let moved = before
            .and_then(|before| before.hardware.zip(from.hardware))
            .is_some_and(|(before, now)| before != now);
        if moved && in_contact {
            // Not remembered: once the node is silent, its disk may be in the other machine for good.
            return Judgement::Copy { new: true };
        }
        if let Some(boot) = before.and_then(|before| before.boot) {
            remember(&mut self.former, boot);
        }
        self.present = Some(from);
        Judgement::Node
    }

    /// Judges another message of a boot.
    pub(super) fn message(&mut self, boot: Option<BootId>) -> Judgement {
        if boot.is_none() || self.present.is_none() {
            return Judgement::Node;
        }
        self.known(boot).unwrap_or(Judgement::Unknown)
    }

    /// Whether a machine has said hello.
    pub(super) fn is_known(&self) -> bool {
        self.present.is_some()
    }

    /// Whether this boot is one of a copy.
    pub(super) fn is_copy(&self, boot: BootId) -> bool {
        self.copies.contains(&boot)
    }

    /// The boot of the machine that is the node.
    pub(super) fn boot(&self) -> Option<BootId> {
        self.present?.boot
    }

    /// The judgement about a boot that is known.
    fn known(&mut self, boot: Option<BootId>) -> Option<Judgement> {
        let boot = boot?;
        if self.copies.contains(&boot) {
            return Some(Judgement::Copy { new: false });
        }
        if self.boot() == Some(boot) {
            return Some(Judgement::Node);
        }
        let at = self.former.iter().position(|former| *former == boot)?;
        // Every boot since then was one of the copy.
        let later: Vec<_> = self.former.drain(at..).skip(1).collect();
        for copy in later.into_iter().chain(self.boot()) {
            remember(&mut self.copies, copy);
        }
        self.present = Some(Machine {
            boot: Some(boot),
            hardware: None,
        });
        Some(Judgement::Returned)
    }
}

fn remember(boots: &mut VecDeque<BootId>, boot: BootId) {
    boots.push_back(boot);
    if boots.len() > KNOWN_MAX {
        boots.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: Judgement = Judgement::Copy { new: false };

    fn machine(boot: BootId, hardware: u8) -> Machine {
        Machine {
            boot: Some(boot),
            hardware: Some(Digest::from_bytes([hardware; 32])),
        }
    }

    #[test]
    fn a_machine_that_restarts_or_whose_disk_moves_to_another_one_stays_the_node() {
        let mut machines = Machines::default();
        let [first, second, third] = [(); 3].map(|()| BootId::generate());
        assert_eq!(
            machines.message(Some(third)),
            Judgement::Node,
            "nothing is known"
        );
        assert_eq!(machines.hello(machine(first, 1), false), Judgement::Node);
        assert_eq!(machines.hello(machine(first, 1), true), Judgement::Node);
        assert_eq!(machines.hello(machine(second, 1), true), Judgement::Node);
        assert_eq!(machines.message(Some(second)), Judgement::Node);
        assert_eq!(machines.hello(machine(third, 2), false), Judgement::Node);
        assert_eq!(machines.message(Some(first)), Judgement::Returned);
    }

    #[test]
    fn other_hardware_is_a_copy_while_the_node_is_in_contact() {
        let mut machines = Machines::default();
        let [first, second] = [(); 2].map(|()| BootId::generate());
        machines.hello(machine(first, 1), false);
        let copy = machine(second, 2);
        assert_eq!(machines.hello(copy, true), Judgement::Copy { new: true });
        assert_eq!(machines.message(Some(first)), Judgement::Node);
        assert_eq!(machines.message(Some(second)), Judgement::Unknown);
        assert_eq!(machines.hello(copy, false), Judgement::Node);
        let unknown = Machine {
            boot: Some(BootId::generate()),
            hardware: None,
        };
        assert_eq!(machines.hello(unknown, true), Judgement::Node);
    }

    #[test]
    fn an_earlier_boot_that_returns_shows_that_the_later_ones_are_copies() {
        let mut machines = Machines::default();
        let [node, copy, copy_again] = [(); 3].map(|()| BootId::generate());
        for boot in [node, copy, copy_again] {
            assert_eq!(machines.hello(machine(boot, 1), true), Judgement::Node);
        }
        assert_eq!(machines.message(Some(node)), Judgement::Returned);
        assert_eq!(machines.message(Some(node)), Judgement::Node);
        assert_eq!(machines.boot(), Some(node));
        for boot in [copy, copy_again] {
            assert!(machines.is_copy(boot));
            assert_eq!(machines.hello(machine(boot, 1), true), COPY);
            assert_eq!(machines.message(Some(boot)), COPY);
        }
        assert_eq!(machines.hello(machine(node, 1), true), Judgement::Node);
        // The copy is restarted, and the node answers.
        let restarted = BootId::generate();
        assert_eq!(machines.hello(machine(restarted, 1), true), Judgement::Node);
        assert_eq!(machines.hello(machine(node, 1), true), Judgement::Returned);
        assert!(machines.is_copy(restarted));
    }

    #[test]
    fn agents_of_earlier_versions_are_not_judged() {
        let mut machines = Machines::default();
        machines.hello(machine(BootId::generate(), 1), false);
        assert_eq!(machines.hello(Machine::default(), true), Judgement::Node);
        assert_eq!(machines.message(None), Judgement::Node);
    }
}
