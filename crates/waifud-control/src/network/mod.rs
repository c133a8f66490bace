//! Networks, and what instances need of them: nics, addresses and published ports.

pub(crate) mod address_owners;
pub(crate) mod networks;
pub(crate) mod nics;
pub(crate) mod problems;
mod requirements;
pub(crate) mod subnet;

pub(crate) use requirements::{
    DEFAULT, address_taken, check, check_address_is_free, check_publish, fit, is_default, publish,
    reserve_ports,
};
