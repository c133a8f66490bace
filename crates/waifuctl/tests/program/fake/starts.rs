//! `--wait` of start, reboot and rescue: which boots end with a ready guest, and what ends a wait early.

use super::*;

/// A status of generation 2 that is not ready, with changes.
fn booting(changes: Value) -> Value {
    let mut status = json!({"observed_generation": 2, "state": "running", "ready": false, "ready_by": null,
        "cloud_init": {"state": "pending", "instance_id": null, "datasource": null, "errors": []}});
    if let (Some(to), Value::Object(from)) = (status.as_object_mut(), changes) {
        to.extend(from);
    }
    status
}

/// `before` as it is read first, then the states of generation 2 after the change.
fn states(before: Value, after: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut states = vec![instance("web", ID, before)];
    states.extend(after.into_iter().map(|status| {
        let mut after = instance("web", ID, status);
        after["generation"] = json!(2);
        after
    }));
    states
}

fn off(last_ready_by: &Value, changes: Value) -> Value {
    let mut status = json!({"state": "stopped", "stopped_by": "user", "ready": false, "ready_by": null,
        "last_ready_by": last_ready_by});
    if let (Some(to), Value::Object(from)) = (status.as_object_mut(), changes) {
        to.extend(from);
    }
    status
}

fn start(states: Vec<Value>) -> Fake {
    let patched = states[1].clone();
    Fake::start(states, &[(&format!("PATCH /v1/instances/{ID}"), patched)])
}

#[tokio::test(flavor = "multi_thread")]
async fn start_with_wait_of_an_instance_that_has_been_ready_waits_until_it_is_ready_again() {
    let after = [
        booting(json!({"state": "starting"})),
        booting(json!({})),
        booting(json!({})),
        json!({"observed_generation": 2, "ready_by": "reporter"}),
    ];
    let fake = start(states(off(&json!("reporter"), json!({})), after));
    let (out, _) = fake.run("start web --wait", 0).await;
    assert_eq!(out, "web: running and ready\n");
    assert_eq!(fake.unread(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn start_with_wait_does_not_wait_for_readiness_that_this_boot_cannot_show() {
    for last in [json!("phone-home"), Value::Null] {
        let after = [booting(json!({"state": "starting"})), booting(json!({}))];
        let fake = start(states(off(&last, json!({})), after));
        let (out, _) = fake.run("start web --wait --timeout 1h", 0).await;
        assert_eq!(out, "web: running\n", "{last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn start_with_wait_of_an_instance_that_never_ran_waits_for_its_first_boot() {
    let never = off(
        &Value::Null,
        json!({"stopped_by": null, "cloud_init": {"state": "pending", "instance_id": null, "datasource": null,
            "errors": []}}),
    );
    let after = [
        booting(json!({"state": "preparing"})),
        booting(json!({})),
        json!({"observed_generation": 2, "ready_by": "phone-home"}),
    ];
    let fake = start(states(never, after));
    let (out, _) = fake.run("start web --wait", 0).await;
    assert_eq!(out, "web: running and ready\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_readiness_ends_when_the_guest_powers_itself_off() {
    for line in [
        "start web --wait --timeout 1h",
        "rescue web -t a --wait --timeout 1h",
    ] {
        let after = [
            booting(json!({})),
            booting(json!({})),
            booting(json!({"state": "stopped", "stopped_by": "guest"})),
        ];
        let fake = start(states(off(&json!("guest-agent"), json!({})), after));
        let (_, err) = fake.run(line, 1).await;
        assert!(err.contains("web powered itself off"), "{line}: {err}");
        assert!(err.contains("waifuctl why web"), "{line}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_rescue_is_not_awaited_by_how_the_rescue_system_became_ready() {
    let mut before = instance(
        "web",
        ID,
        json!({"ready_by": "reporter", "last_ready_by": null}),
    );
    before["spec"]["rescue"] = json!({"template": "rescue", "image": format!("sha256:{}", "0".repeat(64)),
        "datasource": "openstack", "firmware": "bios"});
    let mut states = states(json!({}), [booting(json!({}))]);
    states[0] = before;
    let fake = start(states);
    let (out, _) = fake.run("rescue web --end --wait --timeout 1h", 0).await;
    assert_eq!(out, "web: running\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_whose_cloud_init_cannot_be_observed_ends_the_wait_with_the_reason() {
    let because = "the console shows a login prompt";
    let unknown = booting(
        json!({"cloud_init": {"state": "unknown", "instance_id": null, "datasource": null,
        "errors": [], "unknown_because": because}}),
    );
    let fake = start(states(json!({}), [booting(json!({})), unknown]));
    let (_, err) = fake.run("rescue web -t a --wait --timeout 1h", 1).await;
    assert!(err.contains(because), "{err}");
    assert!(err.contains("waifuctl console web"), "{err}");
}
