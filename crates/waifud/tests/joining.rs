//! A machine joins the real waifud over TLS, however it is interrupted, and speaks for its node from then on.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

mod kit;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use kit::Waifud;
use waifud_agent::interfaces::{ControlLink, HttpLink};
use waifud_agent::{Membership, MembershipError};
use waifud_api::agent::{AgentReport, Hello, SliceObject, WatchFrame};
use waifud_api::client::Client;
use waifud_api::join::{CreateJoinToken, JoinToken};
use waifud_pki::{Authority, NodeKey};
use waifud_types::node::{HypervisorFacts, NodeFacts, Resources};
use waifud_types::status::HypervisorKind;
use waifud_types::{Name, Timestamp};

const DEADLINE: Duration = Duration::from_mins(1);

fn name() -> Name {
    "alder".parse().unwrap()
}

fn hello() -> Hello {
    Hello {
        name: "alder".parse().unwrap(),
        facts: NodeFacts {
            arch: "x86_64".into(),
            cpu_model: "a CPU".into(),
            hypervisor: HypervisorFacts {
                kind: HypervisorKind::Tcg,
                reason: "no /dev/kvm".into(),
            },
            agent_version: "0.1.0".into(),
            capacity: Resources::default(),
            used: Resources::default(),
            pools: Vec::new(),
            bridges: Vec::new(),
            unfit_bridges: std::collections::BTreeMap::new(),
            routes: Vec::new(),
            conditions: Vec::new(),
            labels: std::collections::BTreeMap::new(),
        },
        now: Timestamp::now(),
        boot_id: None,
    }
}

async fn token(waifud: &Waifud) -> JoinToken {
    let client = Client::unix(&waifud.dir.path().join("u.sock")).unwrap();
    let made = client
        .create_join_token(&CreateJoinToken::default())
        .await
        .unwrap();
    JoinToken::parse(made.token.expose()).unwrap()
}

fn key_in(dir: &Path) -> NodeKey {
    NodeKey::from_pem(&std::fs::read_to_string(dir.join("joining.key")).unwrap()).unwrap()
}

#[tokio::test]
async fn a_machine_that_is_interrupted_anywhere_joins_with_the_key_that_it_began_with() {
    let waifud = Waifud::start();
    let token = token(&waifud).await;
    let home = tempfile::tempdir().unwrap();
    // waifud is not reached: the key is on the disk, the machine no node.
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
    // The answer came and was never written, as after a power cut: the same key may ask again.
    std::fs::remove_file(home.path().join("identity.json")).unwrap();
    waifud_pki::write_durably(&home.path().join("joining.key"), &key.to_pem(), 0o600).unwrap();
    let again = Membership::join(home.path(), &token, &[], name())
        .await
        .unwrap();
    assert_eq!(again.node(), member.node());
    assert!(!home.path().join("joining.key").exists());
    let file = std::fs::metadata(home.path().join("identity.json")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    // Another machine finds the token spent.
    let other = tempfile::tempdir().unwrap();
    Membership::join(other.path(), &token, &[], "birch".parse().unwrap())
        .await
        .unwrap_err();
}

#[tokio::test]
async fn nobody_joins_a_waifud_of_another_ca() {
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
}

#[tokio::test]
async fn a_node_says_hello_watches_and_reports_and_keeps_the_addresses_that_it_is_told() {
    let waifud = Waifud::start();
    let token = token(&waifud).await;
    let home = tempfile::tempdir().unwrap();
    // A first address that leads nowhere is passed over.
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
    let mut watch = link.watch(None).await.unwrap();
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
