//! The behavior of an agent on a node of fakes, which survive when the agent is killed.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

mod churn;
mod datasource;
mod description_reads;
mod disk_full;
mod dns;
mod drift;
mod evidence;
mod fabric;
mod firewall;
mod guest_command;
mod handover;
mod hostile;
mod images;
mod lifecycle;
mod link;
mod names;
mod nics;
mod peer_images;
mod peer_port;
mod peers;
mod power;
mod receive;
mod redis;
mod report_port;
mod rescue;
mod restored;
mod secrets;
mod streams;
mod survival;
mod test_node;
