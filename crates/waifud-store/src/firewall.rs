//! The addresses that the instances and labels in firewalls stand for.
//!
//! An instance keeps its addresses until its node has confirmed that it is destroyed, so rules about it apply until then.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};
use rusqlite::{Params, Row};
use waifud_api::PeerAddresses;
use waifud_types::firewall::FirewallPeer;
use waifud_types::spec::NicSpec;
use waifud_types::{FirewallSpec, NodeId};

use crate::codec::{json, node16};
use crate::{ReadTx, StoreError};

/// The nics of an instance, in the form of a spec.
const OF_INSTANCE: &str =
    "SELECT json_extract(spec, '$.nics') AS nics FROM instances WHERE name = ?1";
const OF_LABEL: &str = "SELECT json_extract(i.spec, '$.nics') AS nics
   FROM instance_labels l JOIN instances i ON i.id = l.instance WHERE l.key = ?1 AND l.value = ?2";

const HAS_PEERS: &str = "SELECT 1 FROM instances WHERE node = ?1 AND firewall_peers = 1 LIMIT 1";

impl ReadTx<'_> {
    /// The addresses of the named peers of a firewall, sorted and merged.
    pub fn peer_addresses(
        &self,
        firewall: &FirewallSpec,
    ) -> Result<Vec<PeerAddresses>, StoreError> {
        let peers: BTreeSet<_> = firewall.named_peers().collect();
        let mut all = Vec::with_capacity(peers.len());
        for peer in peers {
            let addresses = match peer {
                FirewallPeer::Address(_) => continue,
                FirewallPeer::Instance(name) => self.of_nics(OF_INSTANCE, [name.as_str()])?,
                FirewallPeer::Label { key, value } => self.of_nics(OF_LABEL, (key, value))?,
            };
            all.push(PeerAddresses {
                peer: peer.to_string(),
                addresses,
            });
        }
        Ok(all)
    }

    /// Whether the firewall of an instance of the node names instances or labels.
    pub(crate) fn has_peers(&self, node: NodeId) -> Result<bool, StoreError> {
        let found = self.first(HAS_PEERS, [node16(&node)], |_| Ok(()))?;
        Ok(found.is_some())
    }

    fn of_nics(&self, sql: &str, params: impl Params) -> Result<Vec<Ipv4Net>, StoreError> {
        let nics: Vec<Vec<NicSpec>> = self.all(sql, params, |row: &Row<'_>| json(row, "nics"))?;
        let addresses: BTreeSet<_> = nics.iter().flatten().flat_map(addresses_of).collect();
        Ok(Ipv4Net::aggregate(&addresses.into_iter().collect()))
    }
}

/// The addresses that a guest may send from.
fn addresses_of(nic: &NicSpec) -> impl Iterator<Item = Ipv4Net> {
    let further = nic.allow_addresses.iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    });
    nic.address.map(Ipv4Net::from).into_iter().chain(further)
}
