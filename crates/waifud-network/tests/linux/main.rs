//! The real network with real packets, in network namespaces without names and without a route to the outside.
//!
//! A *node* namespace contains the bridge and the adapter. *Guest* namespaces are connected by veth pairs whose node
//! end has the name of a tap. An *outside* namespace is behind the node's uplink, and a *metadata* namespace behind its
//! metadata interface. All of them end when the test's descriptors are closed. Only dnsmasq would remain; the node's
//! guard stops it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod datagrams;
mod dhcp;
mod dial;
mod dns;
mod dns_served;
mod fabric;
mod fabric_clients;
mod firewalls;
mod forged;
mod frames;
mod guest_firewall;
mod home;
mod lab;
mod lan;
mod lan_forged;
mod lan_metadata;
mod lifecycle;
mod moved;
mod namespace;
mod nodes;
mod publish;
mod reach;
mod remote;
mod removal;
mod reports;
mod session;
mod vlans;
mod wire;
