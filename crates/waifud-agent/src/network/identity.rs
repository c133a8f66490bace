//! The address by which metadatad recognizes a guest.
//!
//! A guest whose first nic is on the routed network is identified by that nic's address. On any other network waifud does
//! not allocate the address, so the port gets an *identity*: an address of a range that only this node's rules and its
//! metadatad know. It is chosen once and kept with the record, because a running guest's documents depend on it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use waifud_api::agent::AgentInstance;
use waifud_network::IDENTITIES;
use waifud_types::spec::NicSpec;

use crate::control_link::record::Memory;

/// The name of the network that the node routes.
pub const DEFAULT_NETWORK: &str = "default";

/// Whether a nic is on a bridge of the host.
pub(crate) fn is_on_lan(nic: &NicSpec) -> bool {
    nic.network.as_str() != DEFAULT_NETWORK
}

/// Whether the guest reaches the metadata service through a host bridge. In a VLAN it does not: the service's answers leave
/// the node in the bridge's own VLAN.
pub(crate) fn needs_identity(want: &AgentInstance) -> bool {
    let first = want.spec.nics.first();
    first.is_some_and(|nic| is_on_lan(nic) && nic.vlan.is_none())
}

/// The first identity that is not taken; `None` if all are.
pub(crate) fn free_identity(taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    IDENTITIES.hosts().find(|address| !taken.contains(address))
}

/// The address by which metadatad recognizes a guest; `None` if the guest cannot reach it.
pub(crate) fn identity(want: &AgentInstance, memory: &Memory) -> Option<Ipv4Addr> {
    let first = want.spec.nics.first()?;
    if is_on_lan(first) {
        return memory.identity.filter(|_| needs_identity(want));
    }
    first.address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_unique() {
        let mut taken = BTreeSet::new();
        for _ in 0..300 {
            let next = free_identity(&taken).unwrap();
            assert!(IDENTITIES.contains(&next) && taken.insert(next));
        }
    }
}
