//! The nics of a request, checked as far as possible without the database.
//!
//! On `default` waifud assigns the address. On a bridge of the nodes a DHCP server does, unless the request sets the
//! address. The first nic has the default route.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use waifud_api::{CreateNic, Problem};
use waifud_types::spec::NicSpec;
use waifud_types::{MacAddr, Name, VlanId};

use super::default_network::DEFAULT;
use crate::network::nic_problems;
use crate::network::problems as network_problems;
use crate::problems;

/// The maximum number of nics of one instance.
pub const NICS_MAX: usize = 8;
/// The maximum number of allowed addresses of one nic.
const ALLOWED_MAX: usize = 16;
/// Prefix lengths of networks: shorter ones are typing errors, longer ones have no address for a router.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=30;

/// A requested nic, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WantedNic {
    /// The network's name. Its existence is checked later, in the transaction.
    pub network: Name,
    /// A fixed MAC address; otherwise waifud chooses one.
    pub mac: Option<MacAddr>,
    /// A fixed address; otherwise waifud or DHCP assigns one.
    pub address: Option<WantedAddress>,
    /// The VLAN on the bridge.
    pub vlan: Option<VlanId>,
    /// Further source addresses that the guest may use.
    pub allow_addresses: Vec<IpNet>,
}

/// A requested address, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WantedAddress {
    /// The address.
    pub ip: Ipv4Addr,
    /// On a bridge: the prefix length of its network.
    pub prefix_len: Option<u8>,
    /// On a bridge: the router, if the user gave one.
    pub gateway: Option<Ipv4Addr>,
}

/// Checks the requested nics. Without any, there is one on `default`. `mac` is the older field for the first nic's MAC
/// address.
pub fn check(nics: &[CreateNic], mac: Option<MacAddr>) -> Result<Vec<WantedNic>, Problem> {
    let one = [CreateNic::default()];
    let nics = if nics.is_empty() { &one[..] } else { nics };
    if nics.len() > NICS_MAX {
        return Err(problems::too_many("spec.nics", NICS_MAX));
    }
    let mut checked: Vec<WantedNic> = Vec::with_capacity(nics.len());
    for (index, nic) in nics.iter().enumerate() {
        let mac = mac.filter(|_| index == 0);
        if mac.is_some() && nic.mac.is_some() {
            return Err(network_problems::mac_in_two_fields());
        }
        let wanted = WantedNic {
            mac: nic.mac.or(mac),
            ..check_one(index, nic)?
        };
        let defaults = || checked.iter().filter(|nic| nic.network.as_str() == DEFAULT);
        if wanted.network.as_str() == DEFAULT && defaults().count() > 0 {
            return Err(network_problems::two_nics_on_default(index));
        }
        if wanted.mac.is_some() && checked.iter().any(|other| other.mac == wanted.mac) {
            return Err(network_problems::duplicate_mac(index));
        }
        let ip = |nic: &WantedNic| nic.address.map(|address| address.ip);
        let same = |other: &WantedNic| ip(other).is_some() && ip(other) == ip(&wanted);
        if checked.iter().any(same) {
            return Err(network_problems::duplicate_address(index));
        }
        checked.push(wanted);
    }
    Ok(checked)
}

/// Checks a nic that is added to an instance with these nics.
pub fn check_added(has: &[NicSpec], nic: &CreateNic) -> Result<WantedNic, Problem> {
    let index = has.len();
    if index >= NICS_MAX {
        return Err(nic_problems::too_many_nics(NICS_MAX));
    }
    let wanted = check_one(index, nic)?;
    let mut defaults = has.iter().filter(|nic| nic.network.as_str() == DEFAULT);
    if wanted.network.as_str() == DEFAULT && defaults.next().is_some() {
        return Err(network_problems::two_nics_on_default(index));
    }
    let ip = wanted.address.map(|address| address.ip);
    if ip.is_some() && has.iter().any(|nic| nic.address == ip) {
        return Err(network_problems::duplicate_address(index));
    }
    Ok(WantedNic {
        mac: nic.mac,
        ..wanted
    })
}

fn check_one(index: usize, nic: &CreateNic) -> Result<WantedNic, Problem> {
    let network = nic.network.as_deref().unwrap_or(DEFAULT);
    let network: Name = network
        .parse()
        .map_err(|_| network_problems::unknown_network(index, network, &[]))?;
    let vlan = nic.vlan.map(VlanId::try_from).transpose();
    let vlan = vlan.map_err(|_| network_problems::bad_vlan(index))?;
    let mut wanted = WantedNic {
        network,
        mac: None,
        address: None,
        vlan,
        allow_addresses: allowed(index, &nic.allow_addresses)?,
    };
    let (address, gateway) = (nic.address.as_deref(), nic.gateway.as_deref());
    if wanted.network.as_str() == DEFAULT {
        if gateway.is_some() {
            return Err(network_problems::gateway_on_default(index));
        }
        if vlan.is_some() {
            return Err(network_problems::vlan_on_default(index));
        }
        if let Some(IpNet::V6(net)) = wanted
            .allow_addresses
            .iter()
            .find(|net| net.addr().is_ipv6())
        {
            return Err(network_problems::no_ipv6_on_default(
                index,
                &net.to_string(),
            ));
        }
        wanted.address = address
            .map(|text| match text.parse() {
                Ok(ip) => Ok(WantedAddress {
                    ip,
                    prefix_len: None,
                    gateway: None,
                }),
                Err(_) => Err(network_problems::bad_address(index, text)),
            })
            .transpose()?;
        return Ok(wanted);
    }
    let Some(text) = address else {
        return match gateway {
            None => Ok(wanted),
            Some(_) => Err(network_problems::gateway_without_address(index)),
        };
    };
    let net = address_with_prefix(index, text)?;
    let mut wanted_address = WantedAddress {
        ip: net.addr(),
        prefix_len: Some(net.prefix_len()),
        gateway: None,
    };
    if let Some(text) = gateway {
        if index > 0 {
            return Err(network_problems::gateway_not_on_first_nic(index));
        }
        let gateway = text
            .parse()
            .ok()
            .filter(|gateway| is_host_of(net, *gateway) && *gateway != net.addr());
        wanted_address.gateway =
            Some(gateway.ok_or_else(|| network_problems::bad_gateway(index, text, net.trunc()))?);
    }
    wanted.address = Some(wanted_address);
    Ok(wanted)
}

/// Reads `192.168.1.50/24`: an address that a host of that network can have.
fn address_with_prefix(index: usize, text: &str) -> Result<Ipv4Net, Problem> {
    let net: Ipv4Net = text
        .parse()
        .map_err(|_| network_problems::bad_address_with_prefix(index, text))?;
    if !PREFIXES.contains(&net.prefix_len()) {
        let (least, most) = (PREFIXES.start(), PREFIXES.end());
        return Err(network_problems::bad_prefix(
            index,
            net.prefix_len(),
            *least,
            *most,
        ));
    }
    if !is_host_of(net, net.addr()) || reserved_kind(net.addr().into()).is_some() {
        return Err(network_problems::reserved_address(index, net));
    }
    Ok(net)
}

fn is_host_of(net: Ipv4Net, address: Ipv4Addr) -> bool {
    net.contains(&address) && address != net.network() && address != net.broadcast()
}

/// The kind of a reserved address; `None` for an address that a guest can have.
fn reserved_kind(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.octets().first() == Some(&0)
                || v4.octets().first() >= Some(&240)
        }
        // fe80::/10 (RFC 4291, 2.5.6): every nic has its own link-local address, which needs no permission.
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_loopback() {
        Some("loopback")
    } else if address.is_multicast() {
        Some("multicast")
    } else if address.is_unspecified() || link_local {
        Some("reserved")
    } else {
        None
    }
}

/// Allowed addresses: single ones or ranges without reserved addresses.
fn allowed(index: usize, texts: &[String]) -> Result<Vec<IpNet>, Problem> {
    if texts.len() > ALLOWED_MAX {
        let field = format!("spec.nics[{index}].allow_addresses");
        return Err(problems::too_many(&field, ALLOWED_MAX));
    }
    let mut allowed = Vec::with_capacity(texts.len());
    for (number, text) in texts.iter().enumerate() {
        let net = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| network_problems::bad_allowed(index, number, text))?
            .trunc();
        // Shorter prefixes would contain reserved addresses or a large part of the internet.
        let least = if net.addr().is_ipv4() { 8 } else { 16 };
        let kind = reserved_kind(net.network()).or_else(|| reserved_kind(net.broadcast()));
        let reserved = |range: &str| {
            range
                .parse::<IpNet>()
                .is_ok_and(|range| net.contains(&range))
        };
        if net.prefix_len() < least {
            return Err(network_problems::allowed_too_large(
                index, number, net, least,
            ));
        }
        if let Some(kind) = kind {
            return Err(network_problems::allowed_reserved(index, number, net, kind));
        }
        if reserved("169.254.0.0/16") || reserved("fe80::/10") {
            return Err(network_problems::allowed_reserved(
                index, number, net, "reserved",
            ));
        }
        if !allowed.contains(&net) {
            allowed.push(net);
        }
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nic(network: &str, address: Option<&str>, gateway: Option<&str>) -> CreateNic {
        CreateNic {
            network: Some(network.to_owned()),
            address: address.map(str::to_owned),
            gateway: gateway.map(str::to_owned),
            ..CreateNic::default()
        }
    }

    fn refused(nics: &[CreateNic]) -> (String, String) {
        let problem = check(nics, None).unwrap_err();
        (problem.code, problem.field.unwrap_or_default())
    }

    #[test]
    fn an_address_on_a_bridge_needs_a_prefix_and_its_gateway_is_in_the_same_network() {
        let good = nic("lan", Some("192.168.1.50/24"), Some("192.168.1.1"));
        let checked = check(&[good], None).unwrap().remove(0).address.unwrap();
        assert_eq!(checked.ip.to_string(), "192.168.1.50");
        assert_eq!(checked.prefix_len, Some(24));
        assert_eq!(checked.gateway.unwrap().to_string(), "192.168.1.1");
        for (address, gateway, code, part) in [
            (Some("192.168.1.50"), None, "invalid-address", "address"),
            (Some("192.168.1.0/24"), None, "invalid-address", "address"),
            (Some("192.168.1.255/24"), None, "invalid-address", "address"),
            (Some("169.254.1.1/16"), None, "invalid-address", "address"),
            (Some("127.0.0.1/8"), None, "invalid-address", "address"),
            (Some("192.168.1.50/31"), None, "invalid-prefix", "address"),
            (Some("10.1.2.3/4"), None, "invalid-prefix", "address"),
            (Some("fd00::1/64"), None, "invalid-address", "address"),
            (
                None,
                Some("192.168.1.1"),
                "gateway-without-address",
                "gateway",
            ),
            (
                Some("192.168.1.50/24"),
                Some("192.168.2.1"),
                "invalid-gateway",
                "gateway",
            ),
            (
                Some("192.168.1.50/24"),
                Some("192.168.1.50"),
                "invalid-gateway",
                "gateway",
            ),
            (
                Some("192.168.1.50/24"),
                Some("router"),
                "invalid-gateway",
                "gateway",
            ),
        ] {
            let refusal = refused(&[nic("lan", address, gateway)]);
            let field = format!("spec.nics[0].{part}");
            assert_eq!(refusal, (code.to_owned(), field), "{address:?} {gateway:?}");
        }
    }

    #[test]
    fn only_the_first_nic_has_a_gateway_and_default_is_used_once() {
        let lan = || nic("lan", Some("192.168.1.50/24"), Some("192.168.1.1"));
        let refusal = refused(&[nic("default", None, None), lan()]);
        assert_eq!(refusal.0, "gateway-not-on-first-nic");
        let refusal = refused(&[nic("default", None, None), nic("default", None, None)]);
        assert_eq!(
            refusal,
            (
                "duplicate-default-network".to_owned(),
                "spec.nics[1].network".to_owned()
            )
        );
        assert_eq!(refused(&[lan(), lan()]).1, "spec.nics[1].gateway");
        let same = nic("lan", Some("192.168.1.50/24"), None);
        assert_eq!(refused(&[lan(), same]).0, "duplicate-address");
        assert_eq!(refused(&vec![nic("lan", None, None); 9]).0, "too-many");
        assert_eq!(
            refused(&[nic("default", None, Some("10.144.1.1"))]).0,
            "gateway-on-default"
        );
        let both = [nic("default", None, None), nic("lan", None, None)];
        assert_eq!(check(&both, None).unwrap().len(), 2);
        assert_eq!(
            check(&[], None).unwrap().remove(0).network.as_str(),
            "default"
        );
    }

    #[test]
    fn a_vlan_has_a_valid_number_and_is_not_on_default() {
        let in_vlan = |network: &str, vlan| CreateNic {
            vlan: Some(vlan),
            ..nic(network, None, None)
        };
        for vlan in [1, 20, 4094] {
            let checked = check(&[in_vlan("lan", vlan)], None).unwrap();
            assert_eq!(checked[0].vlan.map(VlanId::get), Some(vlan));
        }
        let field = "spec.nics[1].vlan".to_owned();
        let first = || nic("lan", None, None);
        for vlan in [0, 4095, 65535] {
            let refusal = refused(&[first(), in_vlan("lan", vlan)]);
            assert_eq!(refusal, ("out-of-range".to_owned(), field.clone()));
        }
        let refusal = refused(&[first(), in_vlan("default", 20)]);
        assert_eq!(refusal, ("vlan-on-default".to_owned(), field));
        let both = [in_vlan("lan", 20), in_vlan("lan", 30), first()];
        assert_eq!(check(&both, None).unwrap().len(), 3);
    }

    #[test]
    fn allowed_addresses_exclude_reserved_ones() {
        let of = |network: &str, allowed: &[&str]| {
            let nic = CreateNic {
                network: Some(network.to_owned()),
                allow_addresses: allowed.iter().map(|&text| text.to_owned()).collect(),
                ..CreateNic::default()
            };
            check(&[nic], None).map(|mut nics| nics.remove(0).allow_addresses)
        };
        let nets = of(
            "lan",
            &[
                "192.168.1.200",
                "10.244.0.7/16",
                "fd00::/64",
                "192.168.1.200/32",
            ],
        );
        let shown: Vec<_> = nets.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.168.1.200/32", "10.244.0.0/16", "fd00::/64"]);
        for bad in [
            "",
            "all",
            "0.0.0.0/0",
            "::/0",
            "127.0.0.1",
            "224.0.0.1",
            "169.254.169.254",
            "169.254.0.0/16",
            "169.0.0.0/8",
            "0.0.0.0/8",
            "255.255.255.255",
            "240.0.0.0/8",
            "fe80::1",
            "ff02::1",
            "::1",
            "192.168.1.0/33",
        ] {
            let problem = of("lan", &["10.0.0.1", bad]).unwrap_err();
            assert_eq!(
                problem.field.as_deref(),
                Some("spec.nics[0].allow_addresses[1]"),
                "{bad}"
            );
        }
        assert_eq!(of("default", &["fd00::1"]).unwrap_err().code, "no-ipv6");
    }

    proptest! {
        #[test]
        fn no_allowed_range_contains_the_metadata_address(bits in any::<u32>(), prefix in 0_u8..=32) {
            let text = format!("{}/{prefix}", Ipv4Addr::from(bits));
            let metadata: IpAddr = [169, 254, 169, 254].into();
            if let Ok(nets) = allowed(0, &[text]) {
                prop_assert!(nets.iter().all(|net| !net.contains(&metadata) && !net.contains(&IpAddr::from([127, 0, 0, 1]))));
            }
        }
    }
}
