//! What resolvers of other machines need to know: the zones of guests' names, and the nodes that serve them.

use ipnet::Ipv4Net;
use waifud_api::{Dns, DnsServer, DnsServerState};
use waifud_store::NodeRow;
use waifud_types::dns::{self, DOMAIN};

use crate::{Control, ControlError};

impl Control {
    /// The zones, and the addresses at which nodes serve them.
    pub async fn dns(&self) -> Result<Dns, ControlError> {
        let nodes = self.store().read(|tx| tx.nodes("", u32::MAX)).await?;
        Ok(Dns {
            domain: DOMAIN.to_owned(),
            reverse_zones: reverse_zones(self.config().guest_range, &nodes),
            servers: nodes.iter().flat_map(servers).collect(),
        })
    }
}

/// The reverse zones of the range from which nodes get subnets, and of subnets from an earlier range.
fn reverse_zones(range: Ipv4Net, nodes: &[NodeRow]) -> Vec<String> {
    let others = nodes.iter().map(|node| node.subnet);
    let mut others: Vec<_> = others.filter(|subnet| !range.contains(subnet)).collect();
    others.sort_unstable();
    let mut zones = dns::reverse_zones(range);
    zones.extend(others.into_iter().flat_map(dns::reverse_zones));
    zones.dedup();
    zones
}

fn servers(node: &NodeRow) -> Vec<DnsServer> {
    let Some(served) = &node.facts.dns else {
        return Vec::new();
    };
    let domain_trouble = (!dns::is_domain(&served.domain))
        .then(|| format!("the domain {:?} of {} is invalid", served.domain, node.name));
    let servers = served.listen.iter().map(|listener| {
        let (state, message) = match &listener.error {
            _ if domain_trouble.is_some() => (DnsServerState::Failed, domain_trouble.clone()),
            _ if !node.reachable => (
                DnsServerState::Unreachable,
                Some(format!("{} is unreachable; it may be off", node.name)),
            ),
            Some(error) => (DnsServerState::Failed, Some(error.clone())),
            None => (DnsServerState::Serving, None),
        };
        DnsServer {
            node: node.name.clone(),
            address: listener.address,
            domain: served.domain.clone(),
            state,
            message,
        }
    });
    servers.collect()
}
