//! Owners of addresses on the nodes' bridges: other instances, and the gateways in their nics.
//!
//! waifud does not manage these networks, so it knows only configured and observed addresses. The nodes also check their own
//! addresses and those of their routers.

use std::net::IpAddr;

use ipnet::IpNet;
use waifud_store::{NicRow, ReadTx};
use waifud_types::spec::{InstanceSpec, NicSpec};

use super::default_network::is_default;
use super::problems::Owned;
use crate::ControlError;
use crate::network::problems as network_problems;

/// Refuses addresses of new nics that belong to others. Two nics with exactly the same address are detected when the leases
/// are stored.
///
/// The nics before position `first` are not new.
pub fn check(tx: &ReadTx<'_>, spec: &InstanceSpec, first: usize) -> Result<(), ControlError> {
    for (index, nic) in spec.nics.iter().enumerate().skip(first) {
        let ranges = nic.allow_addresses.iter();
        let routers = spec
            .nics
            .iter()
            .filter(|other| other.network == nic.network && other.vlan == nic.vlan);
        let routers: Vec<IpAddr> = routers
            .filter_map(|nic| Some(nic.gateway?.into()))
            .collect();
        for range in ranges {
            if let Some(router) = routers.iter().find(|router| range.contains(*router)) {
                let owned = Owned {
                    what: IpNet::from(*router),
                    whose: "is the gateway of the instance itself".to_owned(),
                };
                return Err(network_problems::allowed_of_another(index, *range, &owned).into());
            }
            if let IpNet::V4(v4) = range
                && let Some((address, owner)) = tx.owner_in(*v4)?
            {
                let owned = Owned {
                    what: IpNet::from(IpAddr::V4(address)),
                    whose: tx.instance(owner)?.map_or_else(
                        || "belongs to another instance".to_owned(),
                        |row| format!("belongs to {}", row.name),
                    ),
                };
                return Err(network_problems::allowed_of_another(index, *range, &owned).into());
            }
        }
        if is_default(&nic.network) || (nic.address.is_none() && nic.allow_addresses.is_empty()) {
            continue;
        }
        let mut others = tx.nics_on(&nic.network)?;
        // The same address may be in use in another VLAN.
        others.retain(|other| other.nic.vlan == nic.vlan);
        if let Some(address) = nic.address
            && let Some(owned) = owner_of(&others, IpNet::from(IpAddr::V4(address)), false)
        {
            return Err(network_problems::address_of_another(index, address, &owned).into());
        }
        for range in &nic.allow_addresses {
            if let Some(owned) = owner_of(&others, *range, true) {
                return Err(network_problems::allowed_of_another(index, *range, &owned).into());
            }
        }
    }
    Ok(())
}

/// The owner of an address in `wanted`, or of a range that contains it. `further` is set for allowed addresses, as opposed to
/// the nic's own address. Several instances may share a single allowed address, so that they can take it over from each
/// other, but not a range.
fn owner_of(others: &[NicRow], wanted: IpNet, further: bool) -> Option<Owned> {
    others.iter().find_map(|row| owned_by(row, wanted, further))
}

fn owned_by(row: &NicRow, wanted: IpNet, further: bool) -> Option<Owned> {
    let NicSpec {
        address,
        gateway,
        allow_addresses,
        ..
    } = &row.nic;
    let single = |whose: String| {
        move |address: IpAddr| {
            wanted.contains(&address).then(|| Owned {
                what: IpNet::from(address),
                whose: whose.clone(),
            })
        }
    };
    let given = address
        .map(IpAddr::from)
        .and_then(single(format!("belongs to {}", row.owner)));
    let router = || {
        gateway
            .map(IpAddr::from)
            .and_then(single(format!("is the router of {}", row.owner)))
    };
    // An observed DHCP address belongs to the instance as long as it is observed.
    let seen = || {
        row.seen
            .iter()
            .copied()
            .find_map(single(format!("belongs to {}", row.owner)))
    };
    let allowed = || {
        let mut ranges = allow_addresses.iter();
        let held = |range: &&IpNet| {
            let shared =
                further && **range == wanted && wanted.prefix_len() == wanted.max_prefix_len();
            !shared && (range.contains(&wanted) || wanted.contains(*range))
        };
        ranges.find(held).map(|range| Owned {
            what: *range,
            whose: format!("belongs to {}", row.owner),
        })
    };
    given.or_else(router).or_else(seen).or_else(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(address: Option<&str>, allowed: &[&str], seen: &[&str]) -> NicRow {
        NicRow {
            owner: "web".parse().unwrap(),
            nic: NicSpec {
                name: "eth0".parse().unwrap(),
                network: "lan".parse().unwrap(),
                mac: waifud_types::MacAddr::of_guest([0, 0, 1]),
                address: address.map(|text| text.parse().unwrap()),
                prefix_len: address.map(|_| 24),
                gateway: address.map(|_| [192, 168, 1, 1].into()),
                vlan: None,
                allow_addresses: allowed.iter().map(|text| text.parse().unwrap()).collect(),
            },
            seen: seen.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn owner(row: &NicRow, wanted: &str) -> Option<(String, String)> {
        let owned = owned_by(row, wanted.parse().unwrap(), true)?;
        Some((owned.what.to_string(), owned.whose))
    }

    #[test]
    fn configured_observed_and_allowed_addresses_and_gateways_have_owners() {
        let given = row(Some("192.168.1.50"), &[], &[]);
        let webs = |what: &str| Some((what.to_owned(), "belongs to web".to_owned()));
        assert_eq!(owner(&given, "192.168.1.50/32"), webs("192.168.1.50/32"));
        assert_eq!(owner(&given, "192.168.1.48/29"), webs("192.168.1.50/32"));
        let router = Some((
            "192.168.1.1/32".to_owned(),
            "is the router of web".to_owned(),
        ));
        assert_eq!(owner(&given, "192.168.1.1/32"), router);
        assert_eq!(owner(&given, "192.168.1.0/28"), router);
        assert_eq!(owner(&given, "192.168.1.51/32"), None);
        let seen = row(None, &[], &["192.168.1.77", "fd00::7"]);
        assert_eq!(owner(&seen, "192.168.1.77/32"), webs("192.168.1.77/32"));
        assert_eq!(owner(&seen, "fd00::/64"), webs("fd00::7/128"));
        let ranges = row(None, &["192.168.1.64/26", "192.168.1.200/32"], &[]);
        assert_eq!(owner(&ranges, "192.168.1.70/32"), webs("192.168.1.64/26"));
        assert_eq!(owner(&ranges, "192.168.1.0/24"), webs("192.168.1.64/26"));
        assert_eq!(owner(&ranges, "192.168.1.192/26"), webs("192.168.1.200/32"));
    }

    #[test]
    fn a_single_allowed_address_may_be_shared() {
        let virtual_address = row(None, &["192.168.1.200/32"], &[]);
        assert_eq!(owner(&virtual_address, "192.168.1.200/32"), None);
        // But it cannot be the nic's own address.
        let own = owned_by(&virtual_address, "192.168.1.200/32".parse().unwrap(), false);
        assert!(own.is_some());
    }
}
