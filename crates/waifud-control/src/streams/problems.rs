//! Problems with streams to instances.

use waifud_api::Problem;
use waifud_types::Name;

/// It has no console, no screen and no ports while it is off.
pub fn not_running(name: &Name, state: waifud_types::InstanceState) -> Problem {
    Problem::new(
        409,
        "instance-not-running",
        format!("instance {name} is {state}: there is nothing to connect to"),
    )
    .hint(format!(
        "waifuctl start {name}; waifuctl why {name} tells more"
    ))
}

/// Its node's agent is not heard of.
pub fn node_unreachable() -> Problem {
    Problem::new(
        504,
        "node-unreachable",
        "the instance's node is not connected to waifud",
    )
    .hint("waifuctl node list shows since when; guests go on without waifud")
}

/// The node was asked and nobody came.
pub fn agent_did_not_come() -> Problem {
    Problem::new(
        504,
        "agent-timeout",
        "the instance's node was asked for the stream and did not open it in time",
    )
    .hint("try again; the log of waifud-agentd on the node says more")
}

/// The node could not open the stream.
pub fn stream_refused(
    kind: waifud_api::stream::StreamKind,
    refusal: &waifud_api::stream::StreamRefusal,
) -> Problem {
    use waifud_api::stream::RefusalReason as R;
    let (status, code, hint) = match refusal.reason {
        R::NotHere => (
            409,
            "instance-not-on-node",
            "it may be on its way: try again in a moment",
        ),
        R::NotRunning => (409, "instance-not-running", "waifuctl start NAME"),
        R::NoAddress => (
            409,
            "no-address",
            "waifuctl ip NAME shows whether it has an address",
        ),
        R::NothingListens => (
            409,
            "connection-refused",
            "is the service running in the guest, and not on the guest's loopback only? waifuctl console NAME looks inside",
        ),
        R::NoAnswer => (
            409,
            "guest-unreachable",
            "is the guest up, and does its firewall let the port in? waifuctl console NAME looks inside",
        ),
        R::NotTheGuest => (
            409,
            "guest-identity-mismatch",
            "a stream leads to the guest and to no other machine; waifuctl why NAME, or choose another address",
        ),
        R::NoGuestAgent => (
            409,
            "no-guest-agent",
            "a guest that is booting has it a little later: waifuctl wait NAME --for ready; one that lacks it: install \
             qemu-guest-agent in it, through waifuctl ssh or console",
        ),
        R::GuestRefused => (
            409,
            "guest-refused",
            "is there such a user, and /bin/sh for exec, in the guest? some distributions disable guest-exec: allow it in the configuration of qemu-guest-agent",
        ),
        R::NoLog => (404, "no-log", "it comes with the first start"),
        R::TooMany => (429, "too-many-streams", "close some streams first"),
        R::Other => (
            502,
            "stream-failed",
            "the log of waifud-agentd on the node says more",
        ),
    };
    let shown: String = refusal
        .message
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    Problem::new(
        status,
        code,
        format!("the node could not open the {}: {shown}", kind.as_str()),
    )
    .hint(hint)
}

/// Too many at once.
pub fn too_many_streams(most: usize) -> Problem {
    Problem::new(429, "too-many-streams", "too many streams are open")
        .hint(format!("close some; at most {most} lead to one instance"))
}

/// The request does not ask to become a stream.
pub fn upgrade_required() -> Problem {
    Problem::new(
        426,
        "upgrade-required",
        "this path answers only requests that ask for an upgrade of the connection",
    )
    .hint("use waifuctl, or a WebSocket client over HTTP/1.1")
}

/// Used, expired, another node's, or never made.
pub fn no_such_stream() -> Problem {
    Problem::new(404, "stream-not-found", "nobody waits for that stream")
        .hint("each id is good once, for 30 seconds, for one node")
}
