//! Other programs' firewalls on this host, and the marked rules that let guests through them.
//!
//! Chains on the same hook all have their say: what another one drops, our accept can't bring back. So guests need an
//! accept in the chain that drops, or where its maker wants additions to be (Docker's `DOCKER-USER`, ufw's
//! `ufw-before-…`). From what is seen, the functions here say which rules are missing and which of ours are there in
//! vain; they are pure. Ours are known by their comment alone, whoever wrote down what.

pub(crate) mod nftables;
pub(crate) mod save;

/// The comment of every rule of ours in others' chains.
pub(crate) const MARK: &str = "waifud";
