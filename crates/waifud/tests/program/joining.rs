//! A machine joins the real waifud over TLS, also after interruptions, and then acts as its node.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::kit::{DEADLINE, Waifud};
use waifud_agent::interfaces::{ControlLink, HttpLink};
use waifud_agent::{Membership, MembershipError};
use waifud_api::agent::{AgentReport, Hello, SliceObject, WatchFrame, WatchStart};
use waifud_api::client::ListQuery;
use waifud_api::join::{CreateJoinToken, JoinToken};
use waifud_pki::{Authority, NodeKey};
use waifud_types::node::{HypervisorFacts, NodeFacts, PoolFacts, Resources};
use waifud_types::status::HypervisorKind;
use waifud_types::{ByteSize, Name, PoolKind, Timestamp};

pub fn name() -> Name {
    "alder".parse().unwrap()
}

pub fn hello() -> Hello {
    Hello {
        name: "alder".parse().unwrap(),
        facts: NodeFacts {
            arch: "x86_64".into(),
            cpu_model: "a CPU".into(),
            hypervisor: HypervisorFacts {
                kind: HypervisorKind::Tcg,
                reason: "no /dev/kvm".into(),
                cause: None,
            },
            agent_version: "0.1.0".into(),
            capacity: Resources::default(),
            used: Resources::default(),
            pools: Vec::new(),
            bridges: Vec::new(),
            vlan_bridges: Vec::new(),
            unfit_bridges: std::collections::BTreeMap::new(),
            routes: Vec::new(),
            conditions: Vec::new(),
            labels: std::collections::BTreeMap::new(),
            features: Vec::new(),
            mesh: None,
            mesh_backend: None,
            peer_port: None,
            dns: None,
        },
        now: Timestamp::now(),
        boot_id: None,
        incarnation: None,
        order: None,
        hardware: None,
    }
}

pub async fn token(waifud: &Waifud) -> JoinToken {
    let made = waifud
        .client()
        .create_join_token(&CreateJoinToken::default())
        .await
        .unwrap();
    JoinToken::parse(made.token.expose()).unwrap()
}

/// Joins a node whose key is in `home`, and sends its hello with this capacity and one pool.
pub async fn join_ready(waifud: &Waifud, name: Name, home: &Path, capacity: Resources) -> HttpLink {
    let member = Membership::join(home, &token(waifud).await, &[], name).await;
    let link = HttpLink::of(member.unwrap()).unwrap();
    let mut hello = hello();
    hello.facts.capacity = capacity;
    hello.facts.pools = vec![PoolFacts {
        name: "main".parse().unwrap(),
        kind: PoolKind::Qcow2,
        size_bytes: ByteSize::gib(500),
        used_bytes: ByteSize(0),
        promised_bytes: ByteSize(0),
        health: "ok".into(),
        images: None,
    }];
    link.hello(&hello).await.unwrap();
    link
}

fn key_in(dir: &Path) -> NodeKey {
    NodeKey::from_pem(&std::fs::read_to_string(dir.join("joining.key")).unwrap()).unwrap()
}

#[tokio::test]
async fn an_interrupted_join_continues_with_the_same_key() {
    let waifud = Waifud::start();
    let token = token(&waifud).await;
    let home = tempfile::tempdir().unwrap();
    // Without a connection to waifud, the key is stored and the machine is not a node.
    let nowhere = ["https://127.0.0.1:1".to_owned()];
    let error = Membership::join(home.path(), &token, &nowhere, name())
        .await
        .unwrap_err();
    assert!(matches!(error, MembershipError::Refused(_)), "{error:?}");
    assert!(Membership::open(home.path()).unwrap().is_none());
    let key = key_in(home.path());
    let member = Membership::join(home.path(), &token, &[], name())
        .await
        .unwrap();
    // The answer was received and lost, as by a power failure: the same key can join again.
    std::fs::remove_file(home.path().join("identity.json")).unwrap();
    waifud_pki::write_durably(&home.path().join("joining.key"), &key.to_pem(), 0o600).unwrap();
    let again = Membership::join(home.path(), &token, &[], name())
        .await
        .unwrap();
    assert_eq!(again.node(), member.node());
    assert!(!home.path().join("joining.key").exists());
    let file = std::fs::metadata(home.path().join("identity.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    // Another machine cannot use the token.
    let other = tempfile::tempdir().unwrap();
    let error = Membership::join(other.path(), &token, &[], "birch".parse().unwrap())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, MembershipError::Refused(cause) if cause.status() == Some(401)),
        "{error:?}"
    );
    assert!(Membership::open(other.path()).unwrap().is_none());
}

#[tokio::test]
async fn a_join_to_a_waifud_of_another_ca_is_refused() {
    let waifud = Waifud::start();
    let mut token = token(&waifud).await;
    assert_eq!(token.ca, waifud.authority().fingerprint());
    token.ca = Authority::generate().unwrap().fingerprint();
    let home = tempfile::tempdir().unwrap();
    let error = Membership::join(home.path(), &token, &[], name())
        .await
        .unwrap_err();
    assert!(matches!(error, MembershipError::Refused(_)), "{error:?}");
    assert!(Membership::open(home.path()).unwrap().is_none());
    let nodes = waifud.client().nodes(&ListQuery::default()).await.unwrap();
    assert!(nodes.items.is_empty(), "no node was admitted");
}

#[tokio::test]
async fn a_node_sends_hello_watches_reports_and_stores_the_announced_addresses() {
    let waifud = Waifud::start();
    let token = token(&waifud).await;
    let home = tempfile::tempdir().unwrap();
    // An unreachable first address is skipped.
    let here = format!("https://localhost:{}", waifud.at.port());
    let servers = ["https://127.0.0.1:1".to_owned(), here];
    let member = Membership::join(home.path(), &token, &servers, name())
        .await
        .unwrap();
    let node = member.node();
    let link = HttpLink::of(member).unwrap();
    let welcome = link.hello(&hello()).await.unwrap();
    assert_eq!(welcome.node, node);
    assert_eq!(welcome.addresses, [format!("https://{}", waifud.at)]);
    let kept = Membership::open(home.path()).unwrap().unwrap().addresses();
    assert!(kept.contains(&welcome.addresses[0]), "{kept:?}");
    let mut watch = link.watch(WatchStart::default()).await.unwrap();
    let mut next = async || {
        tokio::time::timeout(DEADLINE, watch.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    let first = next().await;
    assert!(
        matches!(&first, WatchFrame::Put { object: SliceObject::Node(slice), .. } if slice.id == node),
        "{first:?}"
    );
    assert!(matches!(next().await, WatchFrame::Sync { .. }));
    link.report(&AgentReport::default()).await.unwrap();
}

/// The files of a package below the state directory's parent, as an installation has them.
fn installation(root: &Path) {
    let dir = root.join("usr/share/waifud/package");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(root.join("usr/program"), vec![7; 1 << 20]).unwrap();
    for (name, text) in [
        ("control", "Version: 1.2.3\nArchitecture: amd64\n"),
        ("files", "usr/program\n"),
        ("postinst", "#!/bin/sh\n"),
        ("prerm", "#!/bin/sh\n"),
        ("postrm", "#!/bin/sh\n"),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

#[tokio::test]
async fn the_command_for_a_new_machine_accepts_only_the_waifud_with_the_pinned_key() {
    let root = tempfile::tempdir().unwrap();
    installation(root.path());
    // Its command needs an address that is not loopback. The test connects to the real one instead.
    let settings = format!(
        "advertise = ['https://waifud.invalid']\ninstallation = '{}'\n",
        root.path().display()
    );
    let waifud = Waifud::start_with(&settings);
    let wanted = CreateJoinToken {
        install: true,
        ..CreateJoinToken::default()
    };
    let created = waifud.client().create_join_token(&wanted).await.unwrap();
    let command = created.install.unwrap().run.expose().clone();
    let download = command.strip_suffix(" | sudo sh").unwrap();
    let here = download.replace("https://waifud.invalid", &format!("https://{}", waifud.at));
    let shell = async |command: String| {
        let output = tokio::process::Command::new("sh")
            .args(["-c", &command])
            .output();
        tokio::time::timeout(DEADLINE, output)
            .await
            .unwrap()
            .unwrap()
    };
    let script = shell(here.clone()).await;
    let text = String::from_utf8(script.stdout).unwrap();
    assert!(text.starts_with("#!/bin/sh\n"), "{text}");
    assert!(text.contains(created.token.expose()));

    // The package is larger than one chunk of the response.
    let package = here.replace("/v1/agent/install", "/v1/agent/packages/tarball");
    let listed = shell(format!("{package} | tar --list --gzip")).await;
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("waifud-1.2.3-amd64/usr/program\n"),
        "{listed}"
    );

    // Another waifud at the same address, with its own key: curl stops before it sends the token.
    let other = Waifud::start_with(&settings);
    let there = download.replace("https://waifud.invalid", &format!("https://{}", other.at));
    let refused = shell(there).await;
    // CURLE_SSL_PINNEDPUBKEYNOTMATCH
    assert_eq!(refused.status.code(), Some(90));
    assert!(refused.stdout.is_empty());
}

#[tokio::test]
async fn a_membership_knows_its_cluster() {
    let waifud = Waifud::start();
    let token = token(&waifud).await;
    let home = tempfile::tempdir().unwrap();
    let member = Membership::join(home.path(), &token, &[], name())
        .await
        .unwrap();
    assert!(member.is_of(token.ca));
    assert!(!member.is_of(Authority::generate().unwrap().fingerprint()));
}
