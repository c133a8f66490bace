//! The real network against real packets, in network namespaces without a name and without a way out.
//!
//! A *node* namespace holds the bridge and the adapter. *Guest* namespaces hang on it by veth pairs whose node end has
//! a tap's name. An *outside* namespace stands behind the node's uplink, and a *metadata* namespace behind its
//! metadata interface. All of them go when the test's descriptors close; the one thing that would stay, dnsmasq, is
//! ended by the node's guard.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop at the first surprise"
)]

mod dhcp;
mod dial;
mod dns;
mod firewalls;
mod forged;
mod frames;
mod home;
mod lab;
mod lan;
mod lan_forged;
mod lan_metadata;
mod lifecycle;
mod namespace;
mod publish;
mod reach;
mod removal;
mod session;
mod wire;
