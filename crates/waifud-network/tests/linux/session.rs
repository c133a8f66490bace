//! Rules that are changed through the nft session: the result equals that of separate processes, even if the session fails.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use waifud_network::GuestNetwork;
use waifud_network::linux::LinuxNetwork;

use crate::lab::{Lab, on_a_node, port, processes_with};
use crate::namespace::Namespace;

/// A script in place of `nft`, which logs its arguments. `session` is what it does for `nft -i`.
fn wrapper(lab: &Lab, session: &str) -> PathBuf {
    let path = lab.state_dir().with_file_name("nft");
    let log = log(lab);
    let text = format!(
        "#!/bin/sh\necho \"$*\" >> {}\nif [ \"$1\" = -i ]; then\n{session}\nfi\nexec /usr/sbin/nft \"$@\"\n",
        log.display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn log(lab: &Lab) -> PathBuf {
    lab.state_dir().with_file_name("calls")
}

/// How often `nft` was started with these arguments since the last call.
fn calls(lab: &Lab, arguments: &str) -> usize {
    let calls = std::fs::read_to_string(log(lab)).unwrap_or_default();
    std::fs::write(log(lab), "").unwrap();
    calls.lines().filter(|line| *line == arguments).count()
}

fn network(lab: &Lab, session: &str) -> Arc<LinuxNetwork> {
    let nft = wrapper(lab, session);
    lab.restarted_with(|config| config.nft = nft)
}

/// Replaces the node's guest and ensures the new state.
async fn exchange_guest(lab: &mut Lab, network: &LinuxNetwork, index: u8) {
    lab.state.ports.remove(0);
    lab.state.ports.push(port(index));
    network.ensure(&lab.state).await.unwrap();
}

/// Our tables, without handles.
fn listed(namespace: &Namespace) -> String {
    ["bridge", "inet"]
        .map(|family| namespace.tool("nft", &["-s", "list", "table", family, "waifud"]))
        .concat()
}

/// Asserts that the rules in force equal those that a process loads from the beginning.
fn is_as_loaded(lab: &Lab) {
    let other = Namespace::new();
    let rules = std::fs::read_to_string(lab.run_dir().join("rules.nft")).unwrap();
    let file = lab.run_dir().join("copy.nft");
    std::fs::write(&file, rules).unwrap();
    other.tool("nft", &["-f", file.to_str().unwrap()]);
    assert_eq!(listed(&lab.node), listed(&other));
}

/// Running processes of [`real`] sessions.
fn sessions(lab: &Lab) -> Vec<Pid> {
    let marker = lab.state_dir().display().to_string();
    processes_with(&marker)
        .into_iter()
        .map(Pid::from_raw)
        .collect()
}

/// A real session that can be distinguished from those of other tests.
fn real(lab: &Lab) -> String {
    format!("exec /usr/sbin/nft -I \"{}\" -i", lab.state_dir().display())
}

#[test]
fn changes_go_through_one_session_and_give_the_same_rules_as_processes() {
    on_a_node(2, |mut lab| async move {
        let session = real(&lab);
        let by_session = network(&lab, &session);
        by_session.ensure(&lab.state).await.unwrap();
        calls(&lab, "");
        let mut results = Vec::new();
        for index in 5..9 {
            exchange_guest(&mut lab, &by_session, index).await;
            assert_eq!(calls(&lab, "-f -"), 0);
            is_as_loaded(&lab);
            results.push(listed(&lab.node));
        }
        assert_eq!(sessions(&lab).len(), 1);
        by_session.ensure_absent().await.unwrap();
        assert_eq!(sessions(&lab), []);
        drop(by_session);

        // The same changes where `nft -i` does not work.
        lab.state.ports = vec![port(0), port(1)];
        let by_process = network(&lab, "exit 1");
        by_process.ensure(&lab.state).await.unwrap();
        calls(&lab, "");
        for (index, expected) in (5..9).zip(results) {
            exchange_guest(&mut lab, &by_process, index).await;
            assert_eq!(calls(&lab, "-f -"), 1);
            assert_eq!(listed(&lab.node), expected);
        }
    });
}

#[test]
fn a_session_that_is_killed_or_hangs_delays_one_change_only() {
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        on_a_node(1, |mut lab| async move {
            let session = real(&lab);
            let network = network(&lab, &session);
            network.ensure(&lab.state).await.unwrap();
            exchange_guest(&mut lab, &network, 5).await;
            let chains = lab.node.tool("nft", &["-a", "list", "chains", "bridge"]);
            let [process] = sessions(&lab)[..] else {
                panic!("one session");
            };
            kill(process, signal).unwrap();
            let started = Instant::now();
            exchange_guest(&mut lab, &network, 6).await;
            assert!(started.elapsed() < Duration::from_secs(8));
            is_as_loaded(&lab);
            assert_eq!(sessions(&lab), []);
            exchange_guest(&mut lab, &network, 7).await;
            is_as_loaded(&lab);
            // Chains that are loaded again have other handles.
            let same = lab.node.tool("nft", &["-a", "list", "chains", "bridge"]);
            assert_eq!(same, chains);
        });
    }
}

#[test]
fn a_session_that_ends_after_the_change_and_before_the_answer_leaves_the_right_rules() {
    on_a_node(1, |mut lab| async move {
        let network = network(
            &lab,
            "read -r line; /usr/sbin/nft \"$line\"; echo applied >> \"$0.applied\"; exit 0",
        );
        network.ensure(&lab.state).await.unwrap();
        exchange_guest(&mut lab, &network, 5).await;
        let applied = lab.state_dir().with_file_name("nft.applied");
        assert!(applied.exists(), "the session did not apply the change");
        is_as_loaded(&lab);
        exchange_guest(&mut lab, &network, 6).await;
        is_as_loaded(&lab);
    });
}

#[test]
fn a_refused_change_is_replaced_by_a_complete_ruleset_and_the_session_stays() {
    on_a_node(1, |mut lab| async move {
        // The first line asks for a set that does not exist.
        let nft = real(&lab).replace("exec ", "");
        let session = format!("sed -u '1s/waifud macs/waifud nosuch/' | {nft}; exit");
        let network = network(&lab, &session);
        network.ensure(&lab.state).await.unwrap();
        calls(&lab, "");
        exchange_guest(&mut lab, &network, 5).await;
        assert_eq!(calls(&lab, "-f -"), 1);
        is_as_loaded(&lab);
        let process = sessions(&lab);
        assert_eq!(process.len(), 1);
        exchange_guest(&mut lab, &network, 6).await;
        assert_eq!(calls(&lab, "-f -"), 0);
        assert_eq!(sessions(&lab), process);
        is_as_loaded(&lab);
    });
}
