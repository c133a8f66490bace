//! The conformance tests that every [`Fabric`], real or fake, must pass, and states for tests.
//!
//! The host must have the network 192.0.2.0/24 on an uplink.
#![expect(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a test suite: it panics on a violation"
)]

use std::net::SocketAddr;

use waifud_types::{FabricKind, Name};

use super::{AppliedFabric, Fabric, FabricClient, FabricPeer, FabricState};
use crate::NetworkError;

/// Node number `index`: `node-INDEX` with 10.144.INDEX.0/24, at 192.0.2.(100 + INDEX).
pub fn peer(index: u8) -> FabricPeer {
    FabricPeer {
        node: format!("node-{index}").parse().unwrap(),
        subnets: vec![format!("10.144.{index}.0/24").parse().unwrap()],
        extra: Vec::new(),
        public_key: Some(key(index)),
        endpoints: vec![SocketAddr::from(([192, 0, 2, 100 + index], 51820))],
    }
}

/// A public key: 31 zero bytes and the number, in base64.
pub fn key(index: u8) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    // The last group has two bytes: the first is 0, the other the index, shifted by two bits.
    let digit = |bits: u8| char::from(*DIGITS.get(usize::from(bits & 63)).unwrap());
    let last = [digit(0), digit(index >> 4), digit(index << 2)];
    let mut key = "A".repeat(40);
    key.extend(last);
    key.push('=');
    key
}

/// A node with 10.144.1.0/24 on `waifu0` and these peers.
pub fn state(kind: FabricKind, peers: &[u8]) -> FabricState {
    FabricState {
        kind,
        subnet: "10.144.1.0/24".parse().unwrap(),
        gateway: [10, 144, 1, 1].into(),
        bridge: "waifu0".to_owned(),
        peers: peers.iter().map(|index| peer(*index)).collect(),
        clients: Vec::new(),
    }
}

/// The error for a kind that this version does not know.
pub(crate) fn unknown_kind() -> NetworkError {
    NetworkError::Contradiction(
        "waifud has chosen a fabric that this version of waifud-agentd does not know; update it"
            .to_owned(),
    )
}

/// Runs all tests, and leaves nothing behind.
pub async fn all(fabric: &dyn Fabric) {
    no_fabric_has_no_paths(fabric).await;
    for kind in [FabricKind::Wireguard, FabricKind::Static] {
        each_usable_peer_has_a_path(fabric, kind).await;
        peers_come_and_go(fabric, kind).await;
        an_unusable_peer_does_not_affect_others(fabric, kind).await;
    }
    handshakes_are_those_of_the_mesh(fabric).await;
    clients_have_a_path_in_a_mesh_only(fabric).await;
    an_unknown_kind_is_refused(fabric).await;
    removing_leaves_nothing_and_can_be_repeated(fabric).await;
}

fn nodes(applied: &AppliedFabric) -> Vec<&str> {
    applied.paths.keys().map(Name::as_str).collect()
}

async fn no_fabric_has_no_paths(fabric: &dyn Fabric) {
    for _ in 0..2 {
        let applied = fabric.ensure(&state(FabricKind::None, &[2])).await.unwrap();
        assert_eq!(applied, AppliedFabric::default());
    }
}

async fn each_usable_peer_has_a_path(fabric: &dyn Fabric, kind: FabricKind) {
    let first = fabric.ensure(&state(kind, &[2, 3])).await.unwrap();
    assert_eq!(nodes(&first), ["node-2", "node-3"], "{first:?}");
    assert!(first.troubles.is_empty(), "{first:?}");
    let mesh = kind == FabricKind::Wireguard;
    assert!(first.paths.values().all(|path| path.dedicated == mesh));
    assert_eq!(first.fresh, mesh);
    assert_eq!(first.backend.is_some(), mesh, "{first:?}");
    let again = fabric.ensure(&state(kind, &[2, 3])).await.unwrap();
    assert_eq!(again.paths, first.paths);
    assert!(!again.fresh);
}

async fn peers_come_and_go(fabric: &dyn Fabric, kind: FabricKind) {
    for peers in [&[2][..], &[2, 3, 4], &[], &[3]] {
        let applied = fabric.ensure(&state(kind, peers)).await.unwrap();
        let expected: Vec<_> = peers.iter().map(|index| format!("node-{index}")).collect();
        assert_eq!(nodes(&applied), expected);
    }
}

async fn an_unusable_peer_does_not_affect_others(fabric: &dyn Fabric, kind: FabricKind) {
    let mut state = state(kind, &[2, 3]);
    state.peers.first_mut().unwrap().subnets = vec!["10.144.1.0/25".parse().unwrap()];
    let applied = fabric.ensure(&state).await.unwrap();
    assert_eq!(nodes(&applied), ["node-3"]);
    let (node, why) = applied.troubles.iter().next().unwrap();
    assert_eq!(node.as_str(), "node-2");
    assert!(why.contains("overlaps"), "{why}");
}

async fn handshakes_are_those_of_the_mesh(fabric: &dyn Fabric) {
    fabric
        .ensure(&state(FabricKind::Wireguard, &[2]))
        .await
        .unwrap();
    let handshakes = fabric.handshakes().await.unwrap();
    let seen: Vec<_> = handshakes.keys().map(Name::as_str).collect();
    assert_eq!(seen, ["node-2"]);
    fabric
        .ensure(&state(FabricKind::Static, &[2]))
        .await
        .unwrap();
    assert!(fabric.handshakes().await.unwrap().is_empty());
}

async fn clients_have_a_path_in_a_mesh_only(fabric: &dyn Fabric) {
    let client = |address: [u8; 4], index| FabricClient {
        address: address.into(),
        public_key: key(index),
    };
    for (clients, has_path) in [
        (vec![client([10, 144, 9, 2], 9)], true),
        // One with the key of a node, and one with an address of this node's guests.
        (
            vec![client([10, 144, 9, 2], 2), client([10, 144, 1, 9], 9)],
            false,
        ),
        (Vec::new(), false),
    ] {
        let with = |kind| FabricState {
            clients: clients.clone(),
            ..state(kind, &[2])
        };
        let applied = fabric.ensure(&with(FabricKind::Wireguard)).await.unwrap();
        assert_eq!(applied.clients.is_some(), has_path, "{applied:?}");
        assert_eq!(nodes(&applied), ["node-2"]);
        assert_eq!(fabric.handshakes().await.unwrap().len(), 1);
        let applied = fabric.ensure(&with(FabricKind::Static)).await.unwrap();
        assert_eq!(applied.clients, None);
    }
}

async fn an_unknown_kind_is_refused(fabric: &dyn Fabric) {
    let error = fabric.ensure(&state(FabricKind::Other, &[2])).await;
    assert!(error.unwrap_err().to_string().contains("update it"));
}

async fn removing_leaves_nothing_and_can_be_repeated(fabric: &dyn Fabric) {
    fabric
        .ensure(&state(FabricKind::Wireguard, &[2]))
        .await
        .unwrap();
    assert!(!fabric.remove().await.unwrap().is_empty());
    assert!(fabric.remove().await.unwrap().is_empty());
    assert!(fabric.handshakes().await.unwrap().is_empty());
}
