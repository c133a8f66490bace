//! Ports in a VLAN of a bridge of the host: only that VLAN reaches the guest, at any time, whatever the guest or others do.
//!
//! The bridge has a machine in its default VLAN, and a link to the home that carries the VLANs 20 and 21 with tags.

use std::net::{Ipv4Addr, Ipv6Addr};

use waifud_kit::testing::kernel_module::KernelModule;
use waifud_network::{GuestNetwork, LanPort, PortCounters, conformance};

use crate::frames::{BROADCAST, IPV4, IPV6, contains, dhcp_answer, ethernet, ipv4, ipv6, udp};
use crate::home::{
    Home, LanGuest, ROUTER, ROUTER_MAC, counters, forwards, lan_port, learned_by_kernel,
};
use crate::lab::{Lab, on_a_node, veth};
use crate::lifecycle::drifts;
use crate::namespace::{Namespace, can_run};
use crate::wire::{Wire, eventually};

const TAG: u16 = 0x8100;
const PROVIDER_TAG: u16 = 0x88a8;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);
const REMEDY: &str = "ip link set br0 type bridge vlan_filtering 1";

/// A bridge with several VLANs.
struct Vlans {
    home: Home,
    /// The machine in the default VLAN.
    plain: Wire,
    /// The home's interfaces in the VLANs 20 and 21.
    in_20: Wire,
    in_21: Wire,
    _machine: Namespace,
}

fn port(index: u8, vlan: Option<u16>) -> LanPort {
    let port = lan_port(index, "br0");
    LanPort {
        vlan: vlan.map(|vlan| vlan.try_into().unwrap()),
        identity: port.identity.filter(|_| vlan.is_none()),
        ..port
    }
}

/// Whether the kernel's bridges tell VLANs apart, and its rules know the VLAN of a port. Reports the skip otherwise.
fn kernel_knows_vlans() -> bool {
    if !can_run() {
        return false;
    }
    let namespace = Namespace::new();
    let knows = namespace.run(|| {
        let run = |program: &str, arguments: &[&str]| {
            let mut command = std::process::Command::new(program);
            command.args(arguments).output().unwrap().status.success()
        };
        let bridge = "link add br0 type bridge vlan_filtering 1";
        let bridge: Vec<_> = bridge.split(' ').collect();
        run("ip", &bridge)
            && run("nft", &["add", "table", "bridge", "t"])
            && run("nft", &["add", "chain", "bridge", "t", "c"])
            && run(
                "nft",
                &["add", "rule", "bridge", "t", "c", "meta", "ibrpvid", "1"],
            )
    });
    !KernelModule::NftMetaBridge.skips(knows, "guests in a VLAN")
}

/// Runs a test on a node whose bridge tells VLANs apart, with ports in these VLANs that are not attached yet.
fn on_a_bridge<F: Future<Output = ()>>(
    ports: &[Option<u16>],
    test: impl FnOnce(Lab, Vlans) -> F + Send,
) {
    if !kernel_knows_vlans() {
        return;
    }
    let ports: Vec<_> = (0..).zip(ports).map(|(n, vlan)| port(n, *vlan)).collect();
    on_a_node(0, |mut lab| async move {
        let vlans = Vlans::new(&lab).await;
        lab.state.lan = ports;
        lab.ensure().await;
        test(lab, vlans).await;
    });
}

impl Vlans {
    async fn new(lab: &Lab) -> Self {
        let home = Home::new(lab, "br0", true).await;
        lab.node.ip("link set br0 type bridge vlan_filtering 1");
        let wire = |vlan: u16| {
            let name = format!("eth0.{vlan}");
            let link = format!("link add link eth0 name {name} type vlan id {vlan}");
            home.namespace.ip(&link);
            home.namespace.ip(&format!("link set {name} up"));
            let vlan = vlan.to_string();
            let trunk = ["vlan", "add", "dev", "cbr0", "vid", vlan.as_str()];
            lab.node.tool("bridge", &trunk);
            Wire::new(&home.namespace, &name)
        };
        let (in_20, in_21) = (wire(20), wire(21));
        let machine = Namespace::new();
        veth(("plain0", None), "eth0", &machine).await;
        lab.node.ip("link set plain0 master br0");
        lab.node.ip("link set plain0 up");
        machine.ip("link set eth0 up");
        forwards(lab, "plain0");
        let plain = Wire::new(&machine, "eth0");
        Self {
            home,
            plain,
            in_20,
            in_21,
            _machine: machine,
        }
    }

    /// The DHCP server of a VLAN gives an address.
    fn gives(wire: &Wire, guest: &LanGuest, address: Ipv4Addr) {
        let message = dhcp_answer(5, guest.mac(), address);
        let packet = ipv4(ROUTER, Ipv4Addr::BROADCAST, 17, &udp(67, 68, &message));
        wire.send(&ethernet(BROADCAST, ROUTER_MAC, IPV4, &packet));
    }
}

/// A frame to all that a guest may send without an address: a router solicitation.
fn from_guest(guest: &LanGuest, mark: &[u8]) -> Vec<u8> {
    let message = [&[133, 0, 0, 0, 0, 0, 0, 0], mark].concat();
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let packet = ipv6(Ipv6Addr::UNSPECIFIED, all, 58, &message);
    ethernet([0x33, 0x33, 0, 0, 0, 1], guest.mac(), IPV6, &packet)
}

/// A frame to all from another machine.
fn to_all(mark: &[u8]) -> Vec<u8> {
    let packet = ipv4(ROUTER, Ipv4Addr::BROADCAST, 17, &udp(9, 9, mark));
    ethernet(BROADCAST, ROUTER_MAC, IPV4, &packet)
}

/// Sends a frame that arrives at `there`, and one after it through which all frames before it have been processed. None of the
/// others may see the first one.
fn arrives_only_at(frame: &[u8], mark: &[u8], from: &Wire, there: &[&Wire], nowhere: &[&Wire]) {
    for wire in there.iter().chain(nowhere) {
        wire.seen();
    }
    from.send(frame);
    for wire in there {
        wire.until("the frame of its VLAN", |f| contains(f, mark));
    }
    for wire in nowhere {
        wire.saw_nothing_of(mark);
    }
}

/// As `bridge vlan` shows the VLANs of a port.
fn vlans_of(lab: &Lab, guest: &LanGuest) -> String {
    let tap = guest.port.tap.as_str();
    let text = lab.node.tool("bridge", &["vlan", "show", "dev", tap]);
    let words = text.split_ascii_whitespace().skip(2);
    words
        .filter(|word| *word != tap)
        .collect::<Vec<_>>()
        .join(" ")
}

async fn trouble(lab: &Lab, guest: &LanGuest) -> Option<String> {
    let mut all = lab.network.observe_ports().await.unwrap();
    all.remove(&guest.port.tap).unwrap().trouble
}

#[test]
fn ports_on_a_bridge_that_tells_vlans_apart_pass_the_conformance_tests() {
    if !kernel_knows_vlans() {
        return;
    }
    on_a_node(3, |mut lab| async move {
        let _vlans = Vlans::new(&lab).await;
        lab.state.lan = vec![port(0, None), port(1, None), port(2, Some(20))];
        conformance::all(lab.network.as_ref(), &lab.state).await;
    });
}

#[test]
fn a_guest_exchanges_frames_with_its_own_vlan_only() {
    let ports = [Some(20), Some(20), Some(21), None];
    on_a_bridge(&ports, |lab, vlans| async move {
        let aware = lab.network.host_facts().await.unwrap().vlan_bridges;
        assert_eq!(aware, ["br0"], "not the bridge of default");
        let mut guests = Vec::new();
        for index in 0..ports.len() {
            guests.push(LanGuest::attach(&lab, index).await);
        }
        lab.ensure().await;
        let only = |vlan: &str| format!("{vlan} PVID Egress Untagged");
        let shown: Vec<_> = guests.iter().map(|guest| vlans_of(&lab, guest)).collect();
        assert_eq!(shown, [only("20"), only("20"), only("21"), only("1")]);
        assert_eq!(trouble(&lab, &guests[0]).await, None);

        let [one, two, other, plain] = [0, 1, 2, 3].map(|index: usize| &guests[index]);
        let sent = |mark: &[u8], guest: &LanGuest, there: &[&Wire], nowhere: &[&Wire]| {
            let frame = from_guest(guest, mark);
            arrives_only_at(&frame, mark, &guest.wire, there, nowhere);
        };
        let of_20 = [&vlans.in_20, &one.wire, &two.wire];
        let of_21 = [&vlans.in_21, &other.wire];
        let of_default = [&vlans.plain, &plain.wire];
        let rest = |own: &[&Wire]| -> Vec<&Wire> {
            let all = of_20.iter().chain(&of_21).chain(&of_default).copied();
            all.filter(|wire| !own.iter().any(|own| std::ptr::eq(*own, *wire)))
                .collect()
        };
        sent(b"of one in 20", one, &of_20[..1], &rest(&of_20));
        sent(b"of two in 20", two, &[&one.wire], &rest(&of_20));
        sent(b"of other in 21", other, &of_21[..1], &rest(&of_21));
        sent(
            b"of plain in 1",
            plain,
            &of_default[..1],
            &rest(&of_default),
        );
        for (mark, from, there) in [
            (b"from home in 20", &vlans.in_20, &of_20[1..]),
            (b"from home in 21", &vlans.in_21, &of_21[1..]),
            (b"from those in 1", &vlans.plain, &of_default[1..]),
        ] {
            let mut own = there.to_vec();
            own.push(from);
            arrives_only_at(&to_all(mark), mark, from, there, &rest(&own));
        }
    });
}

#[test]
fn frames_that_a_guest_tags_itself_are_dropped_and_counted() {
    on_a_bridge(&[Some(20), Some(21)], |lab, vlans| async move {
        let guest = LanGuest::attach(&lab, 0).await;
        let other = LanGuest::attach(&lab, 1).await;
        lab.ensure().await;
        let mark = b"a forged VLAN";
        let valid = from_guest(&guest, mark);
        let (addresses, rest) = valid.split_at(12);
        let tagged = |tags: &[(u16, u16)]| {
            let tags = tags.iter().flat_map(|(kind, vlan)| {
                let (kind, vlan) = (kind.to_be_bytes(), vlan.to_be_bytes());
                kind.into_iter().chain(vlan)
            });
            [addresses, &tags.collect::<Vec<_>>(), rest].concat()
        };
        let forged = [
            &[(TAG, 21)][..],
            &[(TAG, 1)],
            &[(TAG, 20)],
            &[(TAG, 0)],
            &[(TAG, 4095)],
            &[(TAG, 20), (TAG, 21)],
            &[(PROVIDER_TAG, 21)],
            &[(PROVIDER_TAG, 20), (TAG, 21)],
        ];
        for (number, tags) in (1..).zip(forged) {
            let wires = [&vlans.in_20, &vlans.in_21, &vlans.plain, &other.wire];
            for wire in wires {
                wire.seen();
            }
            guest.wire.send(&tagged(tags));
            let proof = format!("valid frame {number}");
            let frame = from_guest(&guest, proof.as_bytes());
            guest.wire.send(&frame);
            let seen = vlans
                .in_20
                .until("the valid frame", |f| contains(f, proof.as_bytes()));
            assert!(!seen.iter().any(|f| contains(f, mark)), "{tags:x?} passed");
            for wire in [&vlans.in_21, &vlans.plain, &other.wire, &vlans.home.wire] {
                wire.saw_nothing_of(mark);
            }
        }
        let counted = PortCounters {
            not_ipv4: forged.len() as u64,
            ..PortCounters::default()
        };
        assert_eq!(counters(&lab, &guest.port.tap).await, counted);
    });
}

#[test]
fn a_port_is_closed_until_it_is_in_its_vlan_also_when_the_guest_starts_again() {
    on_a_bridge(&[Some(20), None], |lab, vlans| async move {
        let plain = LanGuest::attach(&lab, 1).await;
        for start in ["first", "second"] {
            // As the hypervisor does: the port is in the bridge's default VLAN.
            let guest = LanGuest::attach(&lab, 0).await;
            assert_eq!(vlans_of(&lab, &guest), "1 PVID Egress Untagged");
            let early = format!("early at the {start} start");
            let wires = [&vlans.plain, &vlans.in_20, &plain.wire];
            for wire in wires {
                wire.seen();
            }
            guest.wire.send(&from_guest(&guest, early.as_bytes()));
            let after = format!("after the {start} early frame");
            plain.wire.send(&from_guest(&plain, after.as_bytes()));
            let seen = vlans
                .plain
                .until("the frame after it", |f| contains(f, after.as_bytes()));
            let early = early.as_bytes();
            assert!(!seen.iter().any(|f| contains(f, early)), "{start}");
            vlans.in_20.saw_nothing_of(early);
            let there = [&plain.wire];
            for (from, there) in [(&vlans.plain, &there[..]), (&vlans.in_20, &[])] {
                let frame = to_all(early);
                arrives_only_at(&frame, early, from, there, &[&guest.wire]);
            }

            lab.ensure().await;
            assert_eq!(vlans_of(&lab, &guest), "20 PVID Egress Untagged");
            let late = format!("late at the {start} start");
            let frame = from_guest(&guest, late.as_bytes());
            arrives_only_at(
                &frame,
                late.as_bytes(),
                &guest.wire,
                &[&vlans.in_20],
                &[&vlans.plain],
            );
            let frame = to_all(late.as_bytes());
            let there = [&guest.wire];
            arrives_only_at(&frame, late.as_bytes(), &vlans.in_20, &there, &[]);
            guest.wire.saw_nothing_of(early);
            lab.node.ip(&format!("link del {}", guest.port.tap));
        }
    });
}

#[test]
fn changes_by_others_let_no_frame_into_another_vlan_and_are_repaired() {
    on_a_bridge(&[Some(20)], |lab, vlans| async move {
        let mut drift = lab.network.drift();
        let guest = LanGuest::attach(&lab, 0).await;
        let tap = guest.port.tap.as_str();
        drifts(&mut drift, &format!("{tap} is not only in VLAN 20")).await;
        lab.ensure().await;
        let passes = |mark: &str| {
            let mark = mark.as_bytes();
            let (there, nowhere) = ([&vlans.in_20], [&vlans.in_21, &vlans.plain]);
            let frame = from_guest(&guest, mark);
            arrives_only_at(&frame, mark, &guest.wire, &there, &nowhere);
            arrives_only_at(&to_all(mark), mark, &vlans.in_20, &[&guest.wire], &[]);
        };
        // The frames are dropped by the kernel, before anything has noticed the change.
        let is_closed = |mark: &str| {
            let wires = [&vlans.in_20, &vlans.in_21, &vlans.plain];
            for wire in wires {
                wire.seen();
            }
            guest.wire.send(&from_guest(&guest, mark.as_bytes()));
            for wire in [&vlans.plain, &vlans.in_20] {
                // The bridge takes frames from all ports in turn.
                wire.send(&to_all(b"after it"));
            }
            vlans
                .home
                .wire
                .until("a later frame", |f| contains(f, b"after it"));
            for wire in wires {
                wire.saw_nothing_of(mark.as_bytes());
            }
        };
        passes("at first");
        let other = ["vlan", "add", "dev", tap, "vid", "21", "pvid", "untagged"];
        lab.node.tool("bridge", &other);
        is_closed("with another default");
        drifts(&mut drift, "VLAN 20").await;
        lab.ensure().await;
        assert_eq!(vlans_of(&lab, &guest), "20 PVID Egress Untagged");
        passes("after the repair");

        let switch = |to: &str| {
            let set = format!("link set br0 type bridge vlan_filtering {to}");
            lab.node.ip(&set);
        };
        switch("0");
        is_closed("on a bridge without VLANs");
        drifts(&mut drift, "the VLANs of").await;
        lab.ensure().await;
        let why = trouble(&lab, &guest).await.unwrap();
        assert!(why.contains(REMEDY), "{why}");
        assert!(lab.network.bridges().await.unwrap().vlan_aware.is_empty());
        arrives_only_at(
            &to_all(b"for everyone"),
            b"for everyone",
            &vlans.plain,
            &[&vlans.home.wire],
            &[&guest.wire],
        );
        switch("1");
        drifts(&mut drift, "the VLANs of").await;
        lab.ensure().await;
        assert_eq!(trouble(&lab, &guest).await, None);
        passes("at last");
    });
}

#[test]
fn an_address_is_learned_once_in_each_vlan() {
    on_a_bridge(&[Some(20), Some(20), Some(21)], |lab, vlans| async move {
        let mut guests = Vec::new();
        for index in 0..3 {
            guests.push(LanGuest::attach(&lab, index).await);
        }
        lab.ensure().await;
        Vlans::gives(&vlans.in_20, &guests[0], ADDRESS);
        Vlans::gives(&vlans.in_20, &guests[1], ADDRESS);
        Vlans::gives(&vlans.in_21, &guests[2], ADDRESS);
        let last = Ipv4Addr::new(192, 168, 1, 41);
        Vlans::gives(&vlans.in_20, &guests[1], last);
        let learned = |index: usize| learned_by_kernel(&lab, &guests[index].port.tap);
        for (index, address) in [(0, ADDRESS), (1, last), (2, ADDRESS)] {
            eventually("the address is learned", || {
                learned(index).contains(&address.into())
            });
        }
        assert_eq!(learned(1).len(), 1, "the first guest of the VLAN has it");
        // Learned addresses and open ports outlive a restart and other rules.
        let restarted = lab.restarted();
        restarted.ensure(&lab.state).await.unwrap();
        let mut other = lab.state.clone();
        other.lan.pop();
        restarted.ensure(&other).await.unwrap();
        let mark = b"after a restart";
        let frame = from_guest(&guests[0], mark);
        let there = [&vlans.in_20, &guests[1].wire];
        let nowhere = [&vlans.in_21, &vlans.plain];
        arrives_only_at(&frame, mark, &guests[0].wire, &there, &nowhere);
        assert_eq!(learned(0), [std::net::IpAddr::from(ADDRESS)]);
    });
}

/// On any kernel: the bridge does not tell VLANs apart, or the kernel cannot.
#[test]
fn without_vlans_on_the_bridge_only_the_ports_in_a_vlan_are_closed() {
    on_a_node(0, |mut lab| async move {
        let home = Home::new(&lab, "br0", true).await;
        lab.state.lan = vec![port(0, Some(20)), port(1, None)];
        lab.ensure().await;
        let guest = LanGuest::attach(&lab, 0).await;
        let plain = LanGuest::attach(&lab, 1).await;
        lab.ensure().await;
        let why = trouble(&lab, &guest).await.unwrap();
        assert!(why.contains(REMEDY), "{why}");
        assert_eq!(trouble(&lab, &plain).await, None);
        guest.wire.send(&from_guest(&guest, b"in a VLAN"));
        let mark = b"without a VLAN";
        let frame = from_guest(&plain, mark);
        plain.wire.send(&frame);
        let seen = home.wire.until("the other guest", |f| contains(f, mark));
        assert!(!seen.iter().any(|f| contains(f, b"in a VLAN")));
        let (there, nowhere) = ([&plain.wire], [&guest.wire]);
        arrives_only_at(&to_all(b"to all"), b"to all", &home.wire, &there, &nowhere);
    });
}
