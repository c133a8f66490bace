//! The control server's API in one program: tests call its routers directly, as a user or as the agent of a node.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers may stop at the first surprise"
)]

mod access;
mod addresses_and_ports;
mod bad_input;
mod bridged_networks;
mod capacity;
mod common;
mod conventions;
mod copies;
mod deterministic;
mod disk_space;
mod dns;
mod downloads;
mod drain;
mod events;
mod fabric;
mod fabric_clients;
mod firewall;
mod handover;
mod image_tickets;
mod image_use;
mod instance_updates;
mod joining;
mod lifecycle;
mod lost_nodes;
mod mirror;
mod moving;
mod names;
mod newer_copies;
mod nics;
mod node_admin;
mod node_capacities;
mod peers;
mod placement;
mod placement_preferences;
mod power;
mod rescue;
mod routes;
mod status;
mod streams;
mod subnet_conflicts;
mod unmanaged;
