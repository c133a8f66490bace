//! The protocol between a node's agent and its metadata service, which also stores assignments.

use waifud_api::metadatad::{
    Assignment, CloudInitEvent, Held, Observation, Observations, Observed, RedisSetting, Status,
    Tunnel,
};
use waifud_types::evidence::ModuleResult;

use super::{INSTANCE, Kind, agent, digest, nodes, parse, text, texts, time};

pub fn kinds() -> Vec<Kind> {
    vec![
        Kind::one(
            "Status",
            Status {
                process: "5f".to_owned(),
                public_key: "a2V5".to_owned(),
                endpoint: parse("127.0.0.1:51821"),
                node_public_key: text("bm9kZQ=="),
                instances: vec![Held {
                    id: parse(INSTANCE),
                    address: parse("10.144.1.12"),
                    bundle: digest(0xb0),
                }],
                unserved: vec![parse(INSTANCE)],
                unused_bundles: vec![digest(0xb1)],
                redis: Some(nodes::condition("redis")),
            },
        ),
        Kind::one(
            "Tunnel",
            Tunnel {
                node_public_key: "bm9kZQ==".to_owned(),
                node_endpoint: parse("127.0.0.1:40000"),
                subnet: parse("10.144.1.0/24"),
                identities: Some(parse("100.64.0.0/16")),
                moved: vec![parse("10.144.2.7")],
            },
        ),
        Kind::one(
            "RedisSetting",
            RedisSetting {
                access: Some(agent::redis_access()),
            },
        ),
        Kind::one(
            "Assignment",
            Assignment {
                name: parse("web"),
                address: parse("10.144.1.12"),
                bundle: agent::bundle(),
            },
        ),
        Kind::one("Observations", observations()),
    ]
}

fn observations() -> Observations {
    let observed = [
        Observed::Request {
            path: "/latest/meta-data".to_owned(),
            status: 200,
        },
        Observed::PhoneHome {
            instance_id: text("i-1"),
            hostname: text("web"),
            host_keys: texts(&["ssh-ed25519 AAAA"]),
        },
        Observed::CloudInit(CloudInitEvent {
            name: "modules-final/config-scripts-user".to_owned(),
            result: Some(ModuleResult::Warn),
            description: "running config-scripts-user".to_owned(),
            guest_micros: Some(1_700_000_000_000_000),
        }),
    ];
    let items = (1..).zip(observed).map(|(number, what)| Observation {
        number,
        at: time(4),
        instance: parse(INSTANCE),
        what,
    });
    Observations {
        last: 3,
        items: items.collect(),
    }
}
