//! A model of the kernel's table, to which changes are applied one after another.

use netlink_packet_wireguard::WireguardTimeSpec;
use proptest::prelude::*;

use super::*;

const DECOY: u8 = 255;

fn key(number: u8) -> PublicKey {
    PublicKey::from([number; 32])
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn wanted(number: u8, nets: &[&str]) -> MeshPeer {
    MeshPeer {
        public_key: key(number),
        endpoints: Vec::new(),
        allowed: nets.iter().map(|text| net(text)).collect(),
    }
}

/// Applies a change as the kernel does.
fn apply(table: &mut BTreeMap<PublicKey, Present>, change: &Change) {
    match change.kind {
        Kind::Remove => {
            table.remove(&change.key);
            return;
        }
        Kind::Update if !table.contains_key(&change.key) => return,
        Kind::Update | Kind::Add => {}
    }
    for net in &change.allowed {
        for peer in table.values_mut() {
            peer.allowed.remove(net);
        }
        let peer = table.entry(change.key).or_default();
        peer.allowed.insert(*net);
    }
    let peer = table.entry(change.key).or_default();
    if change.endpoint.is_some() {
        peer.endpoint = change.endpoint;
    }
}

fn table(peers: &[MeshPeer]) -> BTreeMap<PublicKey, Present> {
    let mut table = BTreeMap::new();
    for change in changes(&BTreeMap::new(), peers, &BTreeMap::new(), key(DECOY)) {
        apply(&mut table, &change);
    }
    table
}

fn owner(table: &BTreeMap<PublicKey, Present>, net: Ipv4Net) -> Option<PublicKey> {
    let mut peers = table.iter();
    peers.find_map(|(key, peer)| peer.allowed.contains(&net).then_some(*key))
}

#[test]
fn the_same_peers_need_no_change() {
    let peers = [
        wanted(1, &["10.144.1.0/24", "10.144.9.7/32"]),
        wanted(2, &["10.144.2.0/24"]),
    ];
    assert_eq!(
        changes(&table(&peers), &peers, &BTreeMap::new(), key(DECOY)),
        []
    );
}

#[test]
fn a_moved_address_goes_from_peer_to_peer_in_one_change() {
    let before = [
        wanted(1, &["10.144.1.0/24", "10.144.9.7/32"]),
        wanted(2, &["10.144.2.0/24"]),
    ];
    let after = [
        wanted(1, &["10.144.1.0/24"]),
        wanted(2, &["10.144.2.0/24", "10.144.9.7/32"]),
    ];
    let sent = changes(&table(&before), &after, &BTreeMap::new(), key(DECOY));
    let moved = Change {
        allowed: vec![net("10.144.9.7/32")],
        ..Change::new(key(2), Kind::Update)
    };
    assert_eq!(sent, [moved]);
}

#[test]
fn an_address_that_a_peer_loses_is_removed_without_touching_its_others() {
    let before = [wanted(1, &["10.144.1.0/24", "10.144.9.7/32"])];
    let after = [wanted(1, &["10.144.1.0/24"])];
    let sent = changes(&table(&before), &after, &BTreeMap::new(), key(DECOY));
    assert!(
        sent.iter().all(|change| change.key == key(DECOY)),
        "{sent:?}"
    );
    let mut kernel = table(&before);
    for change in &sent {
        apply(&mut kernel, change);
    }
    assert_eq!(kernel, table(&after));
}

fn peers() -> impl Strategy<Value = Vec<MeshPeer>> {
    let nets = proptest::collection::btree_map(0..12_u8, 1..5_u8, 0..12);
    nets.prop_map(|owners| {
        let mut peers = BTreeMap::<u8, MeshPeer>::new();
        for (number, owner) in owners {
            let peer = peers.entry(owner).or_insert_with(|| wanted(owner, &[]));
            peer.allowed.push(net(&format!("10.144.{number}.0/24")));
        }
        peers.into_values().collect()
    })
}

proptest! {
    #[test]
    fn changes_lead_to_the_wanted_peers_and_what_stays_is_never_missing(
        before in peers(), after in peers()
    ) {
        let mut kernel = table(&before);
        let end = table(&after);
        let stays: Vec<Ipv4Net> = kernel
            .values()
            .flat_map(|peer| peer.allowed.iter().copied())
            .filter(|net| owner(&kernel, *net) == owner(&end, *net))
            .collect();
        let owners: Vec<_> = stays.iter().map(|net| owner(&kernel, *net)).collect();
        for change in changes(&kernel, &after, &BTreeMap::new(), key(DECOY)) {
            apply(&mut kernel, &change);
            for (net, before) in stays.iter().zip(&owners) {
                prop_assert_eq!(owner(&kernel, *net), *before);
            }
        }
        prop_assert_eq!(kernel, end);
    }
}

#[test]
fn a_dump_in_parts_is_merged() {
    let part = |number: u8, nets: &[&str]| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*key(number).as_bytes()),
            WireguardPeerAttribute::AllowedIps(
                nets.iter().map(|text| kernel::allowed(net(text))).collect(),
            ),
        ])
    };
    let mut first = part(1, &["10.144.1.0/24"]);
    let endpoint = SocketAddr::from(([192, 0, 2, 1], 51820));
    first.0.extend([
        WireguardPeerAttribute::Endpoint(endpoint),
        WireguardPeerAttribute::LastHandshake(WireguardTimeSpec {
            seconds: 7,
            nano_seconds: 5,
        }),
        WireguardPeerAttribute::RxBytes(8),
        WireguardPeerAttribute::TxBytes(9),
    ]);
    let mut silent = part(2, &[]);
    silent.0.push(WireguardPeerAttribute::LastHandshake(
        WireguardTimeSpec::default(),
    ));
    let device = Device::of(vec![
        WireguardAttribute::PublicKey([9; 32]),
        WireguardAttribute::ListenPort(51820),
        WireguardAttribute::Peers(vec![first]),
        WireguardAttribute::Peers(vec![part(1, &["10.144.9.7/32"]), silent]),
    ]);
    assert_eq!((device.public_key, device.port), (Some(key(9)), 51820));
    let one = &device.peers[&key(1)];
    assert_eq!(one.endpoint, Some(endpoint));
    assert_eq!(one.handshake, Some(Duration::new(7, 5)));
    assert_eq!((one.received, one.sent), (8, 9));
    assert_eq!(
        one.allowed,
        BTreeSet::from([net("10.144.1.0/24"), net("10.144.9.7/32")])
    );
    assert_eq!(device.peers[&key(2)], Present::default());
}

#[test]
fn many_peers_and_addresses_are_sent_in_messages_that_fit() {
    let mut peers: Vec<_> = (0..200).map(|number| wanted(number, &[])).collect();
    for number in 0..1000_u32 {
        peers[0]
            .allowed
            .push(std::net::Ipv4Addr::from((10 << 24) + number).into());
    }
    let all = changes(&BTreeMap::new(), &peers, &BTreeMap::new(), key(DECOY));
    let sent = batches(all);
    let mut addresses = 0;
    for peers in &sent {
        let message = WireguardAttribute::Peers(peers.clone());
        let length = rtnetlink::packet_core::Nla::value_len(&message);
        assert!(length < usize::from(u16::MAX) / 2, "{length}");
        for peer in peers {
            let keepalive = WireguardPeerAttribute::PersistentKeepalive(KEEPALIVE);
            let flags = WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly);
            assert!(
                peer.contains(&keepalive) != peer.contains(&flags),
                "{peer:?}"
            );
            for attribute in peer.iter() {
                if let WireguardPeerAttribute::AllowedIps(nets) = attribute {
                    addresses += nets.len();
                }
            }
        }
    }
    assert_eq!(addresses, 1000);
    assert_eq!(sent.iter().map(Vec::len).sum::<usize>(), 203);
}
