//! An agent's own client against the real program, over its unix socket.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may stop at the first surprise"
)]

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use waifud_api::agent::{AgentReport, Hello, SliceObject, WatchFrame};
use waifud_api::agent_client::AgentClient;
use waifud_types::Timestamp;
use waifud_types::node::{HypervisorFacts, NodeFacts, Resources};
use waifud_types::status::HypervisorKind;

const DEADLINE: Duration = Duration::from_secs(20);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _may_have_ended = self.0.kill();
        let _may_have_ended = self.0.wait();
    }
}

fn hello() -> Hello {
    Hello {
        name: "alder".parse().unwrap(),
        node: None,
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
            routes: Vec::new(),
            conditions: Vec::new(),
            labels: std::collections::BTreeMap::new(),
        },
        now: Timestamp::now(),
    }
}

#[tokio::test]
async fn an_agent_says_hello_watches_and_reports_over_the_socket() {
    if !nix::unistd::geteuid().is_root() {
        assert!(
            std::env::var_os("WAIFUD_TEST_NO_SKIP").is_none(),
            "this test needs root"
        );
        // Not eprintln!: a passing test's is swallowed, and a skip has to be seen.
        drop(std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("SKIPPED: only root may use the agent's socket\n"),
        ));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().display();
    let config = dir.path().join("waifud.toml");
    let text = format!(
        "socket = '{home}/u.sock'\nagent_socket = '{home}/a.sock'\nlisten = ['127.0.0.1:0']\nstate_dir = '{home}/state'"
    );
    std::fs::write(&config, text).unwrap();
    let _waifud = Killed(
        Command::new(env!("CARGO_BIN_EXE_waifud"))
            .arg("--config")
            .arg(&config)
            .spawn()
            .unwrap(),
    );
    let client = AgentClient::unix(dir.path().join("a.sock"));
    let begun = Instant::now();
    let welcome = loop {
        match client.hello(&hello()).await {
            Ok(welcome) => break welcome,
            Err(error) => assert!(begun.elapsed() < DEADLINE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let client = client.with_node(welcome.node);
    let mut watch = client.watch(None).await.unwrap();
    let first = tokio::time::timeout(DEADLINE, watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        matches!(first, WatchFrame::Put { object: SliceObject::Node(node), .. } if node.id == welcome.node)
    );
    let second = tokio::time::timeout(DEADLINE, watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        matches!(second, WatchFrame::Sync { revision } if revision.incarnation == welcome.incarnation)
    );
    client.report(&AgentReport::default()).await.unwrap();
}
