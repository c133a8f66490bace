//! Nodes: how they join, what they watch and report, when they count as unreachable, and how administrators manage them.

mod admin;
mod boot;
mod conditions;
pub(crate) mod contacts;
mod copies;
mod drain;
mod files;
mod firewall_peers;
mod hello;
pub(crate) mod install;
pub(crate) mod joining;
mod list;
pub(crate) mod monitor;
mod names;
mod newer_copies;
mod older_copies;
pub(crate) mod problems;
mod report;
mod slice;
pub(crate) mod unmanaged;
pub(crate) mod view;
mod write_budget;

pub(crate) use slice::{NamesRequest, SliceWatch};
