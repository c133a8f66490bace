//! The operations under test: the initial state, the request and the expected result of each.

use std::sync::Arc;

use axum::http::Method;
use base64::Engine;
use serde_json::{Value, json};
use waifud_hypervisor::fake::AgentScript;

/// The initial state of a verb.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum InitialState {
    /// waifud with a template; the node's daemons have never been started.
    Empty,
    /// A running, ready instance.
    Running,
    /// A stopped instance.
    Stopped,
    /// An instance in a rescue.
    Rescued,
    /// A running instance with a second nic.
    TwoNics,
    /// A running instance that is missing in a restored database.
    Unmanaged,
    /// A running instance on another node, which the test plays.
    Elsewhere,
}

pub struct Verb {
    pub name: &'static str,
    pub begin: InitialState,
    pub method: Method,
    pub path: &'static str,
    pub body: fn() -> Value,
    /// Whether the operation is complete, given the instance as the API returns it (`None` if it does not exist).
    pub done: fn(Option<&Value>) -> bool,
}

const PATH: &str = "/v1/instances/web";
/// The nics of the instance.
pub const NICS: &str = "/v1/instances/web/nics";
/// Stands for a release, for which the API has no route of its own.
pub const RELEASE: &str = "release";

const fn patch(name: &'static str, begin: InitialState, body: fn() -> Value) -> Verb {
    let done = is_observed as fn(Option<&Value>) -> bool;
    Verb {
        name,
        begin,
        method: Method::PATCH,
        path: PATH,
        body,
        done,
    }
}

/// The verbs that change an instance and involve its node. Labels and objects other than instances are single transactions
/// of waifud, and unpublishing is publishing fewer ports. The atomic restore of a backup is tested with the waifud program.
pub static VERBS: &[Verb] = &[
    Verb {
        name: "create",
        begin: InitialState::Empty,
        method: Method::POST,
        path: "/v1/instances",
        body: || json!({"name": "web", "template": "debian-12", "user_data": "#cloud-config\n# first\n"}),
        done: is_observed,
    },
    Verb {
        name: "create with a cidata disk",
        begin: InitialState::Empty,
        method: Method::POST,
        path: "/v1/instances",
        body: || json!({"name": "web", "template": "appliance", "user_data": "#cloud-config\n# first\n"}),
        done: is_observed,
    },
    patch("start", InitialState::Stopped, || json!({"run": true})),
    patch("stop", InitialState::Running, || json!({"run": false})),
    patch(
        "stop --force",
        InitialState::Running,
        || json!({"run": false, "force": true}),
    ),
    patch(
        "reboot",
        InitialState::Running,
        || json!({"reboot": "clean"}),
    ),
    patch(
        "reboot --force",
        InitialState::Running,
        || json!({"reboot": "force"}),
    ),
    patch(
        "resize",
        InitialState::Running,
        || json!({"cpus": 2, "memory_bytes": 3_u64 << 30, "disk_bytes": 30_u64 << 30}),
    ),
    patch(
        "resize while off",
        InitialState::Stopped,
        || json!({"cpus": 2, "disk_bytes": 30_u64 << 30}),
    ),
    patch(
        "rescue",
        InitialState::Running,
        || json!({"rescue": {"begin": {"template": "small"}}}),
    ),
    patch(
        "rescue --end",
        InitialState::Rescued,
        || json!({"rescue": "end"}),
    ),
    patch(
        "protect",
        InitialState::Running,
        || json!({"protected": true}),
    ),
    patch(
        "edit --re-run",
        InitialState::Running,
        || json!({"re_run": true}),
    ),
    patch(
        "edit",
        InitialState::Running,
        || json!({"user_data": "#cloud-config\n# second\n"}),
    ),
    patch(
        "publish",
        InitialState::Running,
        || json!({"publish": [{"port": 8080, "guest_port": 80}]}),
    ),
    Verb {
        name: "nic add",
        begin: InitialState::Running,
        method: Method::POST,
        path: NICS,
        body: || json!({"network": "lan"}),
        done: has_its_nics,
    },
    Verb {
        name: "nic add while off",
        begin: InitialState::Stopped,
        method: Method::POST,
        path: NICS,
        body: || json!({"network": "lan"}),
        done: has_its_nics,
    },
    Verb {
        name: "nic remove",
        begin: InitialState::TwoNics,
        method: Method::DELETE,
        path: "/v1/instances/web/nics/eth1",
        body: || json!(null),
        done: has_its_nics,
    },
    Verb {
        name: "delete",
        begin: InitialState::Running,
        method: Method::DELETE,
        path: PATH,
        body: || json!(null),
        done: |web| web.is_none(),
    },
    Verb {
        name: "release",
        begin: InitialState::Running,
        method: Method::POST,
        path: RELEASE,
        body: || json!(null),
        done: |web| web.is_some_and(|web| web["status"]["state"] == "stopped"),
    },
    Verb {
        name: "adopt",
        begin: InitialState::Unmanaged,
        method: Method::POST,
        path: "/v1/nodes/alder/unmanaged/web/adopt",
        body: || json!({}),
        done: is_observed,
    },
    Verb {
        name: "move to this node",
        begin: InitialState::Elsewhere,
        method: Method::POST,
        path: "/v1/instances/web/move",
        body: || json!({"to": "alder", "new_address": true}),
        done: |web| {
            is_observed(web)
                && web.is_some_and(|web| web["move"].is_null() && web["status"]["node"] == "alder")
        },
    },
    Verb {
        name: "delete --unmanaged",
        begin: InitialState::Unmanaged,
        method: Method::DELETE,
        path: "/v1/nodes/alder/unmanaged/web",
        body: || json!(null),
        done: |web| web.is_none(),
    },
];

/// Whether the node has applied the present spec, and the guest has its nics.
fn has_its_nics(web: Option<&Value>) -> bool {
    let names = |part: &str| {
        let nics = web.and_then(|web| web.pointer(part)?.as_array());
        let nics = nics.into_iter().flatten();
        nics.map(|nic| nic["name"].clone()).collect::<Vec<_>>()
    };
    let states = web.map(|web| web["status"]["nics"].to_string());
    is_observed(web)
        && names("/spec/nics") == names("/status/nics")
        && states.is_some_and(|states| !states.contains("adding"))
}

/// Whether the node has applied the present spec.
pub fn is_observed(web: Option<&Value>) -> bool {
    let Some(web) = web else { return false };
    let status = &web["status"];
    let runs = web["spec"]["run"] == true;
    status["observed_generation"] == web["generation"]
        && status["state"] == if runs { "running" } else { "stopped" }
        && (!runs || status["ready"] == true)
}

/// A guest agent in a guest whose cloud-init is done.
pub fn cloud_init_done() -> AgentScript {
    let files = [
        (
            "/run/cloud-init/result.json",
            r#"{"v1": {"datasource": "DataSourceOpenStackLocal", "errors": []}}"#,
        ),
        ("/run/cloud-init/.instance-id", "i-1\n"),
    ];
    Arc::new(move |command| {
        let arguments = &command["arguments"];
        match command["execute"].as_str()? {
            "guest-file-open" => {
                let path = arguments["path"].as_str()?;
                Some(json!(files.iter().position(|(name, _)| *name == path)))
            }
            "guest-file-read" => {
                let text = files
                    .get(usize::try_from(arguments["handle"].as_u64()?).ok()?)?
                    .1;
                let encoded = base64::engine::general_purpose::STANDARD.encode(text);
                Some(json!({"count": text.len(), "buf-b64": encoded, "eof": true}))
            }
            _ => Some(json!({})),
        }
    })
}
