//! Fields that are out of bounds are refused with their names, and can be truncated.

use serde_json::{Value, json};

use super::*;

const ID: &str = "00000000-0000-7000-8000-000000000001";

fn digest() -> String {
    format!("sha256:{}", "0".repeat(64))
}

fn record(id: &str) -> Value {
    json!({
        "id": id, "name": "web", "epoch": 1, "generation": 1,
        "spec": {
            "template": "debian-12", "image": digest(), "cpus": 1, "memory_bytes": 1 << 30, "run": true,
            "restart": "on-crash", "priority": 0, "protected": false, "publish": [],
            "disks": [{"name": "root", "size_bytes": 1, "pool": "main"}],
            "nics": [{"name": "eth0", "network": "default", "mac": "02:00:00:00:00:01", "address": null,
                      "allow_addresses": []}],
            "placement": {"node": null, "spread": null}, "user_data": null,
        },
        "image_size_bytes": 1, "image_virtual_size_bytes": 1, "datasource": "nocloud", "firmware": "bios",
        "bundle": {"digest": digest(), "key": "a2V5", "size_bytes": 1}, "bridges": {"lan": "br0"},
    })
}

fn condition() -> Value {
    json!({"type": "state-dir", "ok": false, "reason": "low", "message": "it is low", "since": "2026-01-02T03:04:05Z"})
}

fn report() -> Value {
    json!({
        "facts": {
            "arch": "x86_64", "cpu_model": "a CPU", "agent_version": "1",
            "hypervisor": {"kind": "tcg", "reason": "no /dev/kvm"},
            "capacity": {"cpus": 4, "memory_bytes": 1}, "used": {"cpus": 0, "memory_bytes": 0},
            "pools": [{"name": "main", "kind": "qcow2", "size_bytes": 1, "used_bytes": 0, "promised_bytes": 0,
                       "health": "ok", "images": [digest()]}],
            "bridges": ["br0"], "unfit_bridges": {"wlan0": "it is wireless"}, "routes": ["10.0.0.0/8"],
            "conditions": [condition()], "labels": {"disk": "ssd"}, "features": ["release"],
        },
        "now": null,
        "instances": [{
            "id": ID, "epoch": 1, "observed_generation": 1, "state": "running", "reason": "it runs",
            "stopped_by": null, "hypervisor": "tcg", "ready": false, "ready_by": null, "addresses": [],
            "step": {"name": "image", "percent": 7, "since": "2026-01-02T03:04:05Z", "waiting_for": "bytes"},
            "restart_needed": ["cpus"],
            "cloud_init": {"state": "running", "instance_id": "i-1", "datasource": "None", "errors": ["none"],
                           "unknown_because": "there is no agent"},
            "conditions": [condition()],
            "evidence": {
                "requests": [{"path": "/latest", "status": 200, "count": 1, "at": "2026-01-02T03:04:05Z"}],
                "dhcp_acknowledged_at": null, "dropped": {"spoofed": 0, "to_host": 0}, "console": ["login:"],
                "firewall": {"in": 1, "out": 0, "rules": [{"id": "3fa9c1d2", "packets": 7}]},
                "modules": [{"name": "init/seed", "at": "2026-01-02T03:04:05Z", "result": "success", "took_ms": 3}],
            },
        }],
        "destroyed": [{"instance": ID, "name": "web", "epoch": 1}],
        "released": [{"instance": ID, "epoch": 1, "off": true}],
        "unmanaged": [{
            "kind": "domain", "instance": ID, "name": "web", "volume": null, "running": true,
            "addresses": ["10.0.0.2"], "record": record(ID), "bundle": "AAAA",
        }],
    })
}

fn parsed(value: Value) -> AgentReport {
    serde_json::from_value(value).unwrap()
}

/// Every text, number and list of a whole report, by JSON pointer.
fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                leaves(value, &format!("{at}/{key}"), found);
            }
        }
        Value::Array(items) => {
            found.push(at.to_owned());
            for (index, value) in items.iter().enumerate() {
                leaves(value, &format!("{at}/{index}"), found);
            }
        }
        Value::String(_) | Value::Number(_) => found.push(at.to_owned()),
        Value::Null | Value::Bool(_) => {}
    }
}

/// The values that a hostile node might send, as far as the type of the field allows them.
fn worse(field: &str, value: &Value) -> Vec<Value> {
    let long = if field.ends_with("/bundle") {
        BUNDLE
    } else {
        16 << 10
    };
    match value {
        Value::String(text) => vec![
            json!(format!("{text}{}", "x".repeat(long))),
            json!(format!("{text}\u{1b}[2J")),
        ],
        Value::Number(_) => vec![json!(u64::MAX), json!(u32::MAX), json!(255)],
        Value::Array(items) => vec![json!(vec![items.first().cloned(); UNMANAGED_MAX + 1])],
        _ => Vec::new(),
    }
}

#[test]
fn a_usual_report_is_within_bounds_and_stays_as_it_is() {
    let mut usual = parsed(report());
    usual.check().unwrap();
    let before = usual.clone();
    usual.fit();
    assert_eq!(usual, before);
}

#[test]
fn every_field_of_a_report_is_bounded_and_named_and_can_be_fitted() {
    // Numbers that are bounded by their type, or chosen by a user.
    let free = ["/status", "/priority", "/cpus"];
    let mut fields = Vec::new();
    leaves(&report(), "", &mut fields);
    assert!(fields.len() > 60);
    for field in fields {
        let whole = report();
        let mut refused = 0;
        for bad in worse(&field, whole.pointer(&field).unwrap()) {
            let mut changed = whole.clone();
            *changed.pointer_mut(&field).unwrap() = bad.clone();
            let Ok(mut report) = serde_json::from_value::<AgentReport>(changed) else {
                // The type refuses the value.
                refused += 1;
                continue;
            };
            if serde_json::to_value(&report).unwrap().pointer(&field) != Some(&bad) {
                // The type has a value for all that it does not know.
                refused += 1;
                continue;
            }
            let mut checked = report.clone();
            let Err(error) = checked.check() else {
                // Bridges with impossible names are dropped.
                refused += i32::from(checked != report);
                continue;
            };
            refused += 1;
            let named = error
                .field
                .rsplit(['.', '['])
                .find(|part| !part.ends_with(']'));
            assert!(
                field.contains(&format!("/{}", named.unwrap())),
                "{field}: {error}"
            );
            report.fit();
            report
                .check()
                .unwrap_or_else(|e| panic!("{field} is not fitted: {e}"));
        }
        assert!(
            refused > 0 || free.iter().any(|end| field.ends_with(end)),
            "{field} has no bound"
        );
    }
}

#[test]
fn duplicate_instances_and_records_of_other_instances_are_refused() {
    let mut twice = report();
    let one = twice["instances"][0].clone();
    twice["instances"].as_array_mut().unwrap().push(one);
    assert_eq!(parsed(twice).check().unwrap_err().field, "instances");
    let mut other = report();
    other["unmanaged"][0]["record"] = record("00000000-0000-7000-8000-000000000002");
    let mut other = parsed(other);
    let field = other.check().unwrap_err().field;
    assert_eq!(field, "unmanaged[0].record.id");
    other.fit();
    assert!(other.unmanaged.unwrap()[0].record.is_none());
}

#[test]
fn the_addresses_of_a_records_firewall_are_not_reported_and_the_record_is() {
    let mut closed = report();
    let addresses = json!([{"peer": "label:tier=front", "addresses": ["10.144.2.7/32"]}]);
    closed["unmanaged"][0]["record"]["firewall_peers"] = addresses;
    let mut closed = parsed(closed);
    let field = closed.check().unwrap_err().field;
    assert_eq!(field, "unmanaged[0].record.firewall_peers");
    closed.fit();
    closed.check().unwrap();
    let record = closed.unmanaged.unwrap().remove(0).record.unwrap();
    assert!(record.firewall_peers.is_empty());
}

#[test]
fn bridges_with_names_that_linux_does_not_allow_are_dropped_from_facts_and_refused_in_records() {
    for bad in [
        "",
        ".",
        "br 0",
        "br/0",
        "br:0",
        "br0123456789abcd",
        "br\u{a0}0",
    ] {
        let mut bridges = report();
        bridges["facts"]["bridges"] = json!(["br0", bad]);
        bridges["facts"]["unfit_bridges"] =
            json!({bad: "it is wireless", "wlan0": "it is wireless"});
        let (mut checked, mut fitted) = (parsed(bridges.clone()), parsed(bridges));
        checked.check().unwrap();
        fitted.fit();
        for report in [checked, fitted] {
            let facts = report.facts.unwrap();
            assert_eq!(facts.bridges, ["br0"], "{bad:?}");
            let unfit: Vec<_> = facts.unfit_bridges.keys().collect();
            assert_eq!(unfit, ["wlan0"], "{bad:?}");
        }

        let mut of_record = report();
        of_record["unmanaged"][0]["record"]["bridges"]["lan"] = json!(bad);
        let mut of_record = parsed(of_record);
        let error = of_record.check().unwrap_err();
        assert_eq!(error.field, "unmanaged[0].record.bridges", "{bad:?}");
    }
    for good in ["br0", "br-lan.7", "vmbr0", "brücke", "br;$(id)"] {
        let mut bridges = report();
        bridges["facts"]["bridges"] = json!([good]);
        parsed(bridges).check().unwrap();
    }
}

#[test]
fn truncated_routes_are_aggregated_first() {
    let mut many = parsed(report());
    let facts = many.facts.as_mut().unwrap();
    facts.routes = (0..2048_u32)
        .map(|index| ipnet::Ipv4Net::new((index << 8).into(), 24).unwrap())
        .collect();
    many.fit();
    let joined: ipnet::Ipv4Net = "0.0.0.0/13".parse().unwrap();
    assert_eq!(many.facts.unwrap().routes, [joined]);
}
