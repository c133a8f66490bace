//! Problems with streams to instances.

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind, HintWhen};
use waifud_types::Name;

/// The instance is off and has no console, screen or ports.
pub fn not_running(name: &Name, state: waifud_types::InstanceState) -> Problem {
    Problem::new(
        409,
        "instance-not-running",
        format!("cannot connect to instance {name}: it is {state}"),
    )
    .hint(Hint::on(
        &HintAction::Start,
        HintKind::Instance,
        name.as_str(),
    ))
    .hint(Hint::on(
        &HintAction::Explain,
        HintKind::Instance,
        name.as_str(),
    ))
}

/// The instance's node is not connected.
pub fn node_unreachable() -> Problem {
    Problem::new(
        504,
        "node-unreachable",
        "the instance's node is not connected to waifud",
    )
    .hint(Hint::on_kind(&HintAction::List, HintKind::Node))
    .hint("the guests on it may still be running")
}

/// A disk is not copied from node to node, but through waifud.
pub fn no_peer_port(node: &Name) -> Problem {
    Problem::new(
        409,
        "no-peer-port",
        format!("{node} does not listen on a peer port; its disks are copied through waifud"),
    )
    .hint("see `peer_listen` in agentd.toml on that node")
}

/// The agent did not open the requested stream in time.
pub fn agent_timeout() -> Problem {
    Problem::new(
        504,
        "agent-timeout",
        "the instance's node did not open the stream in time",
    )
    .hint("try again; see the log of waifud-agentd on the node")
}

/// The node could not open the stream. The caller names the instance in the hints with [`Problem::about`].
pub fn stream_refused(
    kind: waifud_api::stream::StreamKind,
    refusal: &waifud_api::stream::StreamRefusal,
) -> Problem {
    use waifud_api::stream::RefusalReason as R;
    let on = |action: &HintAction| Hint::on_kind(action, HintKind::Instance);
    let (status, code, hints) = match refusal.reason {
        R::NotHere => (
            409,
            "instance-not-on-node",
            vec!["the node may not have received the instance yet: try again in a moment".into()],
        ),
        R::NotRunning => (409, "instance-not-running", vec![on(&HintAction::Start)]),
        R::NoAddress => (409, "no-address", vec![on(&HintAction::ShowAddresses)]),
        R::NothingListens => (
            409,
            "connection-refused",
            vec![
                "check that the service is running in the guest and does not listen only on the loopback address".into(),
                on(&HintAction::OpenConsole),
            ],
        ),
        R::NoAnswer => (
            409,
            "guest-unreachable",
            vec![
                "check that the guest is running and that its firewall allows the port".into(),
                on(&HintAction::OpenConsole),
            ],
        ),
        R::NotTheGuest => (
            409,
            "guest-identity-mismatch",
            vec![
                "another machine uses the guest's address: choose another address".into(),
                on(&HintAction::Explain),
            ],
        ),
        R::NoGuestAgent => (
            409,
            "no-guest-agent",
            vec![
                on(&HintAction::WaitUntilReady).when(HintWhen::Booting),
                on(&HintAction::InstallGuestAgent).when(HintWhen::Otherwise),
            ],
        ),
        R::GuestRefused => (
            409,
            "guest-refused",
            vec!["check that the user exists in the guest and, for exec, that /bin/sh exists; some distributions disable guest-exec in the configuration of qemu-guest-agent: allow it there".into()],
        ),
        R::NoLog => (404, "no-log", vec!["the log is created at the first start".into()]),
        R::TooMany => (429, "too-many-streams", vec!["close some streams and try again".into()]),
        R::Other => (
            502,
            "stream-failed",
            vec!["see the log of waifud-agentd on the node".into()],
        ),
    };
    let shown: String = refusal
        .message
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    let problem = Problem::new(
        status,
        code,
        format!("the node could not open the {}: {shown}", kind.as_str()),
    );
    hints.into_iter().fold(problem, Problem::hint)
}

/// Too many streams are open.
pub fn too_many_streams(most: usize) -> Problem {
    Problem::new(429, "too-many-streams", "too many streams are open").hint(format!(
        "close some of them; the limit is {most} per instance"
    ))
}

/// The request has no `Upgrade` header.
pub fn upgrade_required() -> Problem {
    Problem::new(
        426,
        "upgrade-required",
        "this path requires an upgrade of the connection",
    )
    .hint("use waifuctl, or a WebSocket client over HTTP/1.1")
}

/// The stream id is used, expired, for another node, or unknown.
pub fn no_such_stream() -> Problem {
    Problem::new(
        404,
        "stream-not-found",
        "no client is waiting for this stream",
    )
    .hint(
        "a stream id can be used once, within 30 seconds, and only by the node that it was sent to",
    )
}
