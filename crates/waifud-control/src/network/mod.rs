//! Networks, and what instances need of them: nics, addresses and published ports.

pub(crate) mod address_owners;
mod default_network;
mod dns;
mod fabric;
mod fabric_client_problems;
pub(crate) mod fabric_clients;
pub(crate) mod firewall;
mod firewall_problems;
pub(crate) mod keep_address;
pub(crate) mod networks;
pub(crate) mod nic_problems;
pub(crate) mod nics;
pub(crate) mod problems;
mod requirements;
pub(crate) mod subnet;

pub(crate) use default_network::{DEFAULT, is_default};
pub(crate) use requirements::{
    address_taken, check, check_address_is_free, check_from, check_publish, fit, free_addresses,
    lease_number, publish, reserve_ports, set_default_address,
};
