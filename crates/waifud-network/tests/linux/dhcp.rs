//! Leases from the real dnsmasq, requested like the firmware or the operating system of a guest does.

use std::net::Ipv4Addr;

use crate::frames::{self, BROADCAST, IPV4, Mac, ethernet, ipv4, udp};
use crate::lab::{GATEWAY, GATEWAY_MAC, Guest, on_a_node, port};
use crate::namespace::Namespace;
use crate::wire::Wire;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// An answer of a server: its message type, the address, and options by number.
struct Answer {
    kind: u8,
    address: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Answer {
    fn of(frame: &[u8], mac: Mac) -> Option<Self> {
        let is_answer = frame.get(12..14)? == IPV4.to_be_bytes()
            && *frame.get(23)? == 17
            && frame.get(34..38)? == [0, 67, 0, 68];
        let message = frame.get(42..)?;
        if !is_answer || message.get(28..34)? != mac {
            return None;
        }
        let address = <[u8; 4]>::try_from(message.get(16..20)?).ok()?.into();
        let mut rest = message.get(240..)?;
        let mut options = Vec::new();
        while let [number, length, tail @ ..] = rest {
            if *number == 255 {
                break;
            }
            let (value, next) = tail.split_at(usize::from(*length));
            options.push((*number, value.to_vec()));
            rest = next;
        }
        let mut answer = Self {
            kind: 0,
            address,
            options,
        };
        answer.kind = answer.option(53)?[0];
        Some(answer)
    }

    fn option(&self, number: u8) -> Option<&[u8]> {
        let mut options = self.options.iter();
        options
            .find(|(found, _)| *found == number)
            .map(|(_, value)| value.as_slice())
    }
}

/// Sends a request as `chaddr` and waits for an answer of that kind.
fn ask(wire: &Wire, mac: Mac, kind: u8, options: &[u8], wanted: u8) -> Answer {
    // The parameters that clients ask for: mask, router, DNS, host name, domain, MTU, static routes.
    let options = [options, &[55, 7, 1, 3, 6, 12, 15, 26, 121]].concat();
    let message = frames::dhcp(kind, mac, &options);
    let packet = udp(68, 67, &message);
    let packet = ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &packet);
    wire.seen();
    wire.send(&ethernet(BROADCAST, mac, IPV4, &packet));
    let is_wanted =
        |frame: &[u8]| Answer::of(frame, mac).is_some_and(|answer| answer.kind == wanted);
    let seen = wire.until("a DHCP answer", is_wanted);
    Answer::of(seen.last().unwrap(), mac).unwrap()
}

/// Discovers and requests with a client id, as in figure 3 of RFC 2131.
fn lease(guest: &Guest, client_id: &[u8]) -> Answer {
    lease_of(&guest.wire, guest.mac(), client_id, GATEWAY)
}

/// The answer of a home's DHCP server to a guest on its bridge.
pub fn lease_on_a_lan(wire: &Wire, mac: Mac, server: Ipv4Addr) -> Ipv4Addr {
    lease_of(wire, mac, b"\x01lan", server).address
}

fn lease_of(wire: &Wire, mac: Mac, client_id: &[u8], server: Ipv4Addr) -> Answer {
    let id = [&[61, u8::try_from(client_id.len()).unwrap()], client_id].concat();
    let offer = ask(wire, mac, DISCOVER, &id, OFFER);
    let request = [
        id.as_slice(),
        &[54, 4],
        &server.octets(),
        &[50, 4],
        &offer.address.octets(),
    ]
    .concat();
    ask(wire, mac, REQUEST, &request, ACK)
}

/// A home router's DHCP server: a dnsmasq in its namespace, stopped when this is dropped.
pub struct Server {
    process: std::process::Child,
    _leases: tempfile::TempDir,
}

impl Server {
    pub fn start(home: &Namespace, address: Ipv4Addr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c, _] = address.octets();
        let arguments = [
            "--keep-in-foreground".to_owned(),
            "--conf-file=/dev/null".to_owned(),
            "--user=root".to_owned(),
            "--port=0".to_owned(),
            "--interface=eth0".to_owned(),
            "--bind-interfaces".to_owned(),
            "--dhcp-authoritative".to_owned(),
            "--no-ping".to_owned(),
            format!("--dhcp-range={a}.{b}.{c}.100,{a}.{b}.{c}.150,1h"),
            format!("--dhcp-leasefile={}", dir.path().join("leases").display()),
            format!("--pid-file={}", dir.path().join("pid").display()),
        ];
        let mut dnsmasq = std::process::Command::new("/usr/sbin/dnsmasq");
        let process = home.run(|| dnsmasq.args(arguments).spawn().unwrap());
        // dnsmasq writes its pid file after opening its sockets.
        let pid = dir.path().join("pid");
        crate::wire::eventually("the home's DHCP server", || pid.exists());
        Self {
            process,
            _leases: dir,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
fn a_guest_gets_its_address_and_the_route_to_metadata() {
    on_a_node(2, |mut lab| async move {
        lab.state.mtu = 1420;
        lab.ensure().await;
        let guest = lab.attach_as(&lab.state.ports[1].clone()).await;
        let ack = lease(&guest, b"\x01firmware");
        assert_eq!(ack.address, guest.address());
        let gateway = GATEWAY.octets();
        assert_eq!(ack.option(1), Some([255, 255, 255, 0].as_slice()));
        assert_eq!(ack.option(3), Some(gateway.as_slice()));
        assert_eq!(ack.option(6), Some(gateway.as_slice()));
        assert_eq!(ack.option(12), Some(b"guest-1".as_slice()));
        assert_eq!(ack.option(15), Some(b"waifu.internal".as_slice()));
        assert_eq!(ack.option(26), Some([5, 0x8c].as_slice()));
        let routes = [&[32, 169, 254, 169, 254], &gateway[..], &[0], &gateway].concat();
        assert_eq!(ack.option(121), Some(routes.as_slice()));
        // Guests see the same MAC address of the gateway on every node.
        let seen = guest.namespace.run(|| guest.mac());
        assert_ne!(seen, GATEWAY_MAC);
    });
}

#[test]
fn a_guest_that_moved_keeps_its_address_mask_and_router_and_gets_the_resolver_of_its_node() {
    on_a_node(2, |mut lab| async move {
        let moved = &mut lab.state.ports[1];
        moved.home = Some("10.144.9.0/24".parse().unwrap());
        moved.address = [10, 144, 9, 77].into();
        lab.ensure().await;
        let moved = lab.attach_as(&lab.state.ports[1].clone()).await;
        let ack = lease(&moved, b"\x01firmware");
        assert_eq!(ack.address, moved.address());
        let home = [10, 144, 9, 1];
        assert_eq!(ack.option(1), Some([255, 255, 255, 0].as_slice()));
        assert_eq!(ack.option(3), Some(home.as_slice()));
        assert_eq!(ack.option(6), Some(GATEWAY.octets().as_slice()));
        let routes = [&[32, 169, 254, 169, 254], &home[..], &[0], &home].concat();
        assert_eq!(ack.option(121), Some(routes.as_slice()));

        let native = lab.attach_as(&lab.state.ports[0].clone()).await;
        let ack = lease(&native, b"\x01firmware");
        assert_eq!(ack.address, native.address());
        assert_eq!(ack.option(3), Some(GATEWAY.octets().as_slice()));

        // It is deleted, and the address belongs to a guest elsewhere.
        lab.state.ports.truncate(1);
        lab.ensure().await;
        let memory = std::fs::read_to_string(lab.state_dir().join("dnsmasq.leases")).unwrap();
        assert!(!memory.contains("10.144.9.77"), "{memory}");
        assert_eq!(lease(&native, b"\x01firmware").address, native.address());
    });
}

#[test]
fn a_mac_address_has_one_address_regardless_of_the_client_id() {
    on_a_node(1, |lab| async move {
        lab.ensure().await;
        let guest = lab.attach_as(&lab.state.ports[0].clone()).await;
        let ids: [&[u8]; 3] = [b"\x01PXE", b"\xff\0\0\0\x01dhcpcd", b"\0systemd-networkd"];
        for id in ids {
            assert_eq!(lease(&guest, id).address, guest.address());
        }
        let memory = std::fs::read_to_string(lab.state_dir().join("dnsmasq.leases")).unwrap();
        assert_eq!(memory.lines().count(), 1, "{memory}");
    });
}

#[test]
fn a_new_guest_is_served_without_a_restart_and_can_get_the_address_of_a_deleted_one() {
    on_a_node(1, |mut lab| async move {
        lab.ensure().await;
        let pid = lab.dnsmasq_pid();
        let former = lab.attach_as(&lab.state.ports[0].clone()).await;
        assert_eq!(lease(&former, b"\x01x").address, former.address());
        let memory = lab.state_dir().join("dnsmasq.leases");
        let held = |what: &str| std::fs::read_to_string(&memory).unwrap().contains(what);
        assert!(held("52:54:00:00:00:01 10.144.1.11"));

        // The guest is deleted, and its address is given to another guest although the lease is valid for hours.
        let mut heir = port(1);
        heir.address = former.address();
        lab.state.ports = vec![heir.clone()];
        lab.ensure().await;
        assert!(!held("52:54:00:00:00:01"));
        let heir = lab.attach_as(&heir).await;
        assert_eq!(lease(&heir, b"\x01x").address, former.address());
        assert_eq!(lab.dnsmasq_pid(), pid);

        lab.state.ports.clear();
        lab.ensure().await;
        assert!(!held("10.144.1.11"));
        assert_eq!(lab.dnsmasq_pid(), pid);
    });
}

#[test]
fn stale_leases_are_removed_even_after_a_crash_of_dnsmasq() {
    on_a_node(1, |mut lab| async move {
        lab.ensure().await;
        let former = lab.attach_as(&lab.state.ports[0].clone()).await;
        lease(&former, b"\x01x");
        lab.kill_dnsmasq();
        let mut heir = port(1);
        heir.address = former.address();
        lab.state.ports = vec![heir.clone()];
        lab.ensure().await;
        let heir = lab.attach_as(&heir).await;
        assert_eq!(lease(&heir, b"\x01x").address, former.address());
    });
}
