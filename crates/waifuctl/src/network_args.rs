//! Parses ports and nics: `8080:80/udp`, `default,address=10.144.1.50`.

use std::net::IpAddr;

use ipnet::IpNet;
use waifud_api::{CreateNic, Publish};
use waifud_types::spec::{Protocol, PublishSpec};
use waifud_types::{Name, VlanId};

use crate::failure::Failure;

const PORT_HINT: &str = "write PORT, PORT:GUESTPORT or PORT/udp, for example 80, 8080:80 or 53/udp";
const NETWORK_HINT: &str = "write NAME, NAME,address=10.144.1.50, NAME,address=192.168.1.50/24,gateway=192.168.1.1 or NAME,vlan=20";

/// Parses `PORT[:GUESTPORT][/PROTOCOL]`.
pub fn port(text: &str) -> Result<Publish, String> {
    let error = || format!("{text:?} is not a port: {PORT_HINT}");
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number: u16 = text.parse().ok().filter(|_| digits)?;
        (number > 0).then_some(number)
    };
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(error()),
    };
    let (port, guest_port) = match ports.split_once(':') {
        None => (ports, None),
        Some((port, guest_port)) => (port, Some(number(guest_port).ok_or_else(error)?)),
    };
    Ok(Publish {
        port: number(port).ok_or_else(error)?,
        guest_port,
        protocol,
    })
}

/// Formats a port so that [`port`] parses it.
pub fn port_text(port: &Publish) -> String {
    let spec = PublishSpec {
        port: port.port,
        guest_port: port.guest_port.unwrap_or(port.port),
        protocol: port.protocol,
    };
    spec.to_string()
}

/// Parses `NAME[,KEY=VALUE]…`.
pub fn network(text: &str) -> Result<CreateNic, String> {
    let mut parts = text.split(',');
    let name = parts
        .next()
        .filter(|name| !name.is_empty() && !name.contains('='));
    let mut nic = CreateNic {
        network: Some(
            name.ok_or_else(|| format!("{text:?} does not name a network: {NETWORK_HINT}"))?
                .to_owned(),
        ),
        ..CreateNic::default()
    };
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is not KEY=VALUE: {NETWORK_HINT}"))?;
        match key {
            "address" if nic.address.is_none() => nic.address = Some(value.to_owned()),
            "mac" if nic.mac.is_none() => {
                let mac = value.parse();
                nic.mac =
                    Some(mac.map_err(|error: waifud_types::mac::MacAddrError| error.to_string())?);
            }
            "gateway" if nic.gateway.is_none() => nic.gateway = Some(value.to_owned()),
            "vlan" if nic.vlan.is_none() => {
                let vlan = value.parse::<VlanId>();
                let vlan = vlan.map_err(|error| format!("vlan={value}: {error}"))?;
                nic.vlan = Some(vlan.get());
            }
            "address" | "gateway" | "mac" | "vlan" => return Err(format!("{key} is repeated")),
            _ => {
                return Err(format!(
                    "unknown key {key:?}: the keys are address, gateway, mac and vlan"
                ));
            }
        }
    }
    Ok(nic)
}

/// The network of a nic as it is written for `--network`: `lan`, or `lan,vlan=20`.
pub fn network_text(network: &Name, vlan: Option<VlanId>) -> String {
    match vlan {
        Some(vlan) => format!("{network},vlan={vlan}"),
        None => network.to_string(),
    }
}

/// Adds allowed addresses to nics: `ADDRESS` to the first, `NAME:ADDRESS` to the one on that network. waifud validates
/// the addresses.
pub fn allow(mut nics: Vec<CreateNic>, allowed: &[String]) -> Result<Vec<CreateNic>, Failure> {
    if nics.is_empty() && !allowed.is_empty() {
        nics.push(CreateNic::default());
    }
    for text in allowed {
        // An IPv6 address contains colons too.
        let plain = text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok();
        let (network, address) = match text.split_once(':').filter(|_| !plain) {
            Some((network, address)) => (Some(network), address),
            None => (None, text.as_str()),
        };
        let on = |nic: &&mut CreateNic| {
            network.is_none_or(|wanted| nic.network.as_deref().unwrap_or("default") == wanted)
        };
        let Some(nic) = nics.iter_mut().find(on) else {
            return Err(Failure::input(
                "unknown-network",
                format!("{text:?} names a network that the instance is not on"),
            )
            .field("--allow-address")
            .hint("add the network with --network, or omit NAME: to use the first network"));
        };
        nic.allow_addresses.push(address.to_owned());
    }
    Ok(nics)
}

/// Formats a port as an argument of `unpublish`.
pub fn outside(spec: &PublishSpec) -> String {
    match spec.protocol {
        Protocol::Tcp => spec.port.to_string(),
        Protocol::Udp => format!("{}/udp", spec.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_parsed_in_all_documented_forms() {
        let of = |port, guest_port, protocol| {
            Ok(Publish {
                port,
                guest_port,
                protocol,
            })
        };
        assert_eq!(port("80"), of(80, None, Protocol::Tcp));
        assert_eq!(port("8080:80"), of(8080, Some(80), Protocol::Tcp));
        assert_eq!(port("8080:80/tcp"), of(8080, Some(80), Protocol::Tcp));
        assert_eq!(port("53:5353/udp"), of(53, Some(5353), Protocol::Udp));
        for bad in [
            "",
            "0",
            "65536",
            "80:",
            ":80",
            "80/sctp",
            "80/",
            "+80",
            "80:80:80",
            "80/tcp/udp",
            "a",
        ] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_read_with_their_settings() {
        let nic = network("default,address=10.144.1.50,mac=52:54:00:00:00:07").unwrap();
        assert_eq!(nic.network.as_deref(), Some("default"));
        assert_eq!(nic.address.as_deref(), Some("10.144.1.50"));
        assert_eq!(nic.mac.unwrap().to_string(), "52:54:00:00:00:07");
        for bad in [
            "",
            "address=1",
            "default,1",
            "default,mac=1",
            "default,ip=1",
            "default,address=1,address=2",
            "lan,gateway=1,gateway=2",
            "lan,vlan=",
            "lan,vlan=0",
            "lan,vlan=4095",
            "lan,vlan=+20",
            "lan,vlan=20,vlan=20",
        ] {
            assert!(network(bad).is_err(), "{bad}");
        }
        let nic = network("lan,address=192.168.1.50/24,gateway=192.168.1.1").unwrap();
        assert_eq!(nic.address.as_deref(), Some("192.168.1.50/24"));
        assert_eq!(nic.gateway.as_deref(), Some("192.168.1.1"));
        assert_eq!(nic.vlan, None);
        assert_eq!(network("lan,vlan=20").unwrap().vlan, Some(20));
        let error = network("lan,vlan=4095").unwrap_err();
        assert!(error.contains("1 to 4094"), "{error}");
    }

    #[test]
    fn an_allowed_address_is_added_to_the_first_or_to_the_named_nic() {
        let of = |networks: &[&str], allowed: &[&str]| {
            let nics = networks.iter().map(|text| network(text).unwrap());
            let allowed: Vec<_> = allowed.iter().map(|&text| text.to_owned()).collect();
            let nics = allow(nics.collect(), &allowed);
            nics.map(|nics| {
                nics.into_iter()
                    .map(|nic| nic.allow_addresses)
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(of(&[], &[]).unwrap().len(), 0);
        assert_eq!(of(&[], &["192.0.2.1"]).unwrap(), [["192.0.2.1"]]);
        let both = ["default", "lan"];
        let allowed = ["10.0.0.0/24", "lan:fd00::/64", "default:192.0.2.7"];
        assert_eq!(
            of(&both, &allowed).unwrap(),
            [vec!["10.0.0.0/24", "192.0.2.7"], vec!["fd00::/64"]]
        );
        assert_eq!(of(&["lan"], &["fd00::1"]).unwrap(), [["fd00::1"]]);
        assert_eq!(of(&both, &["wan:192.0.2.1"]).unwrap_err().exit_code(), 1);
    }
}
