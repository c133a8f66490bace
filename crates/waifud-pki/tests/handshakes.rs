//! Real handshakes in memory: which clients are accepted, and their identity as seen by the server.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection,
};
use waifud_pki::{
    Authority, Identity, NodeKey, NodePeer, NodeRequest, certificates, client_config, join_config,
    node_client_config, node_server_config, server_config, server_name,
};
use waifud_types::NodeId;

fn node_id() -> NodeId {
    NodeId::from_uuid(uuid::Uuid::now_v7())
}

/// Completes the handshake on both sides, or returns the error of the side that refuses.
fn shake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Vec<CertificateDer<'static>>, rustls::Error> {
    let mut server = ServerConnection::new(server).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    for _ in 0..8 {
        transfer(&mut client, &mut server)?;
        transfer(&mut server, &mut client)?;
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    let protocol = server.alpn_protocol().unwrap();
    assert!([b"http/1.1".as_slice(), b"waifud-node/1"].contains(&protocol));
    Ok(server.peer_certificates().unwrap_or_default().to_vec())
}

/// Passes all pending records of one side to the other.
fn transfer<A, B>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
) -> Result<(), rustls::Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

fn server(ca: &Authority) -> Arc<ServerConfig> {
    let names = ["127.0.0.1".to_owned(), "alder.lan".to_owned()];
    let own = ca.issue_server(&names).unwrap();
    server_config(ca.certificate(), &own).unwrap()
}

fn issued(ca: &Authority, key: &NodeKey, node: NodeId) -> String {
    let request = NodeRequest::parse(&key.request().unwrap()).unwrap();
    assert_eq!(request.digest(), key.digest());
    ca.issue_node(&request, node).unwrap()
}

/// A client of `trusted` that presents this key and certificate.
fn client(trusted: &Authority, key: &str, certificate: &str) -> Arc<ClientConfig> {
    let own = Identity::from_pem(key, certificate).unwrap();
    client_config(trusted.certificate(), Some(&own)).unwrap()
}

/// A certificate that the CA's key signs with these parameters.
fn signed_by_hand(
    dir: &Path,
    key: &KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) -> String {
    let ca = Authority::open(dir).unwrap();
    let text = std::fs::read_to_string(dir.join("ca.key")).unwrap();
    let issuer =
        Issuer::from_ca_cert_der(ca.certificate(), KeyPair::from_pem(&text).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    let name = format!("waifud:node:{}", node_id());
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(name).unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    change(&mut params);
    params.signed_by(key, &issuer).unwrap().pem()
}

#[test]
fn a_node_is_accepted_and_identified_by_its_certificate() {
    let (ca, key, node) = (
        Authority::generate().unwrap(),
        NodeKey::generate().unwrap(),
        node_id(),
    );
    let certificate = issued(&ca, &key, node);
    let client = client(&ca, &key.to_pem(), &certificate);
    let seen = shake(server(&ca), client, server_name()).unwrap();
    assert_eq!(
        NodePeer::of(&seen[0]).unwrap(),
        NodePeer {
            node,
            key: key.digest()
        }
    );
}

#[test]
fn a_client_without_a_certificate_is_accepted_without_an_identity_and_can_verify_the_address() {
    let ca = Authority::generate().unwrap();
    let client = || client_config(ca.certificate(), None).unwrap();
    for name in ["127.0.0.1", "alder.lan", "waifud"] {
        let name = ServerName::try_from(name).unwrap();
        assert_eq!(shake(server(&ca), client(), name).unwrap(), []);
    }
    let wrong = ServerName::try_from("birch.lan").unwrap();
    shake(server(&ca), client(), wrong).unwrap_err();
}

#[test]
fn certificates_of_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(dir.path()).unwrap();
    let key = KeyPair::generate().unwrap();
    let other = Authority::generate().unwrap();
    let node_key = NodeKey::generate().unwrap();

    let good = signed_by_hand(dir.path(), &key, |_| {});
    let shown = |certificate: &str| {
        let client = client(&ca, &key.serialize_pem(), certificate);
        shake(server(&ca), client, server_name())
    };
    shown(&good).unwrap();
    let expired = signed_by_hand(dir.path(), &key, |p| {
        p.not_before = date_time_ymd(1970, 1, 1);
        p.not_after = date_time_ymd(2020, 1, 1);
    });
    shown(&expired).unwrap_err();
    let for_servers = signed_by_hand(dir.path(), &key, |p| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    shown(&for_servers).unwrap_err();
    let own = CertificateParams::default()
        .self_signed(&key)
        .unwrap()
        .pem();
    shown(&own).unwrap_err();

    let elsewhere = issued(&other, &node_key, node_id());
    let foreign = client(&ca, &node_key.to_pem(), &elsewhere);
    shake(server(&ca), foreign, server_name()).unwrap_err();
}

#[test]
fn a_certificate_without_its_key_is_refused() {
    let ca = Authority::generate().unwrap();
    let certificate = issued(&ca, &NodeKey::generate().unwrap(), node_id());
    let other = NodeKey::generate().unwrap();
    let own = Identity::from_pem(&other.to_pem(), &certificate).unwrap();
    client_config(ca.certificate(), Some(&own)).unwrap_err();
}

#[test]
fn a_node_cannot_impersonate_waifud() {
    let ca = Authority::generate().unwrap();
    let key = NodeKey::generate().unwrap();
    let certificate = issued(&ca, &key, node_id());
    let own = Identity::from_pem(&key.to_pem(), &certificate).unwrap();
    let pretender = server_config(ca.certificate(), &own).unwrap();
    let client = client_config(ca.certificate(), None).unwrap();
    shake(pretender, client, server_name()).unwrap_err();
}

/// A node of this CA, with its identity.
fn node(ca: &Authority) -> (NodePeer, Identity) {
    let (key, node) = (NodeKey::generate().unwrap(), node_id());
    let own = Identity::from_pem(&key.to_pem(), &issued(ca, &key, node)).unwrap();
    let key = key.digest();
    (NodePeer { node, key }, own)
}

#[test]
fn two_nodes_know_each_other_by_id_and_key() {
    let ca = Authority::generate().unwrap();
    let (alder, alder_identity) = node(&ca);
    let (birch, birch_identity) = node(&ca);
    let server = || node_server_config(ca.certificate(), &alder_identity).unwrap();
    let client = |own, expected| node_client_config(ca.certificate(), own, expected).unwrap();
    let own = client(&birch_identity, alder);
    let seen = shake(server(), own, server_name()).unwrap();
    assert_eq!(NodePeer::of(&seen[0]).unwrap(), birch);
    // Another node, and the expected one with a key that it does not have any more.
    let key = birch.key;
    for other in [birch, NodePeer { key, ..alder }] {
        let own = client(&birch_identity, other);
        shake(server(), own, server_name()).unwrap_err();
    }
}

/// The clock of a machine.
#[derive(Debug)]
struct Clock(Duration);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0))
    }
}

#[test]
fn a_machine_with_a_wrong_clock_joins_and_connects_and_is_connected_to() {
    const DAY: Duration = Duration::from_hours(24);
    let ca = Authority::generate().unwrap();
    let (alder, alder_identity) = node(&ca);
    let (_, birch_identity) = node(&ca);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Never set, a day off in both directions, and years ahead.
    let yesterday = now.saturating_sub(DAY);
    for wrong in [DAY, yesterday, now + DAY, now + 3650 * DAY] {
        let late = |config: Arc<ClientConfig>| {
            let mut config = Arc::unwrap_or_clone(config);
            config.time_provider = Arc::new(Clock(wrong));
            Arc::new(config)
        };
        let join = join_config(ca.fingerprint()).unwrap();
        shake(server(&ca), late(join), server_name()).unwrap();
        let member = client_config(ca.certificate(), Some(&birch_identity)).unwrap();
        shake(server(&ca), late(member), server_name()).unwrap();

        let peer = || node_client_config(ca.certificate(), &birch_identity, alder).unwrap();
        let listening = || node_server_config(ca.certificate(), &alder_identity).unwrap();
        shake(listening(), late(peer()), server_name()).unwrap();
        let mut listening = Arc::unwrap_or_clone(listening());
        listening.time_provider = Arc::new(Clock(wrong));
        shake(Arc::new(listening), peer(), server_name()).unwrap();
    }
}

#[test]
fn nodes_encrypt_what_they_send_to_each_other_with_aes_128() {
    let ca = Authority::generate().unwrap();
    let (alder, alder_identity) = node(&ca);
    let (_, birch_identity) = node(&ca);
    let server = node_server_config(ca.certificate(), &alder_identity).unwrap();
    let client = node_client_config(ca.certificate(), &birch_identity, alder).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut client = ClientConnection::new(client, server_name()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        transfer(&mut client, &mut server).unwrap();
        transfer(&mut server, &mut client).unwrap();
    }
    let suite = server.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
}

#[test]
fn only_nodes_of_the_cluster_connect_to_a_node() {
    let (ca, other) = (
        Authority::generate().unwrap(),
        Authority::generate().unwrap(),
    );
    let (alder, identity) = node(&ca);
    let server = || node_server_config(ca.certificate(), &identity).unwrap();
    let refused = |client| shake(server(), client, server_name()).unwrap_err();
    let (_, foreign) = node(&other);
    refused(node_client_config(ca.certificate(), &foreign, alder).unwrap());
    let waifud = ca.issue_server(&["127.0.0.1".to_owned()]).unwrap();
    refused(node_client_config(ca.certificate(), &waifud, alder).unwrap());
    // Another protocol, and no certificate.
    let (_, birch) = node(&ca);
    refused(client_config(ca.certificate(), Some(&birch)).unwrap());
    refused(client_config(ca.certificate(), None).unwrap());
}

#[test]
fn waifud_and_nodes_of_other_clusters_cannot_impersonate_a_node() {
    let (ca, other) = (
        Authority::generate().unwrap(),
        Authority::generate().unwrap(),
    );
    let (birch, own) = node(&ca);
    let waifud = ca.issue_server(&["127.0.0.1".to_owned()]).unwrap();
    let (pretender, foreign) = node(&other);
    for (expected, identity) in [(birch, &waifud), (pretender, &foreign)] {
        let server = node_server_config(ca.certificate(), identity).unwrap();
        let client = node_client_config(ca.certificate(), &own, expected).unwrap();
        shake(server, client, server_name()).unwrap_err();
    }
}

#[test]
fn a_server_of_another_ca_is_refused_by_the_ca_and_by_the_fingerprint() {
    let (ours, theirs) = (
        Authority::generate().unwrap(),
        Authority::generate().unwrap(),
    );
    let by_ca = client_config(ours.certificate(), None).unwrap();
    shake(server(&theirs), by_ca, server_name()).unwrap_err();
    let pinned = || join_config(ours.fingerprint()).unwrap();
    shake(server(&theirs), pinned(), server_name()).unwrap_err();
    shake(server(&ours), pinned(), server_name()).unwrap();
    // Sending the correct CA is not sufficient: the server's own certificate must be issued by it.
    let key = NodeKey::generate().unwrap();
    let own_chain = format!("{}{}", issued(&theirs, &key, node_id()), ours.to_pem());
    let liar = Identity::from_pem(&key.to_pem(), &own_chain).unwrap();
    let liar = server_config(theirs.certificate(), &liar).unwrap();
    shake(liar, pinned(), server_name()).unwrap_err();
}

#[test]
fn requests_that_are_broken_changed_or_of_another_kind_are_refused() {
    let good = NodeKey::generate().unwrap().request().unwrap();
    NodeRequest::parse(&good).unwrap();
    NodeRequest::parse("").unwrap_err();
    NodeRequest::parse(&good[..good.len() / 2]).unwrap_err();
    NodeRequest::parse(&"A".repeat(100_000)).unwrap_err();
    let other_kind = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let request = CertificateParams::default()
        .serialize_request(&other_kind)
        .unwrap();
    NodeRequest::parse(&request.pem().unwrap()).unwrap_err();
}

#[test]
fn a_certificate_that_names_no_node_or_two_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let uri = |text: String| SanType::URI(Ia5String::try_from(text).unwrap());
    let node = || uri(format!("waifud:node:{}", node_id()));
    for names in [
        vec![],
        vec![uri("waifud:node:alder".to_owned())],
        vec![uri("https://waifud.invalid/".to_owned())],
        vec![node(), node()],
    ] {
        let text = signed_by_hand(dir.path(), &key, |p| p.subject_alt_names = names);
        NodePeer::of(&certificates(&text).unwrap()[0]).unwrap_err();
    }
    let one = signed_by_hand(dir.path(), &key, |p| p.subject_alt_names = vec![node()]);
    NodePeer::of(&certificates(&one).unwrap()[0]).unwrap();
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    #[test]
    fn a_request_with_any_changed_byte_is_not_accepted_for_this_key(at in 0_usize..10_000, to in proptest::char::range('A', 'Z')) {
        let key = NodeKey::generate().unwrap();
        let text = key.request().unwrap();
        let at = at % text.len();
        let mut changed: Vec<u8> = text.clone().into_bytes();
        changed[at] = u8::try_from(to).unwrap();
        let changed = String::from_utf8(changed).unwrap();
        if let Ok(parsed) = NodeRequest::parse(&changed) {
            // Only text outside of the request may differ, so an accepted request must be for the same key.
            proptest::prop_assert_eq!(parsed.digest(), key.digest());
        }
    }
}
