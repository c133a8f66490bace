//! `waifuctl doctor`: its checks, its exit codes, and its JSON.

use super::*;

/// A waifud of the version of this waifuctl, with these nodes, without images and downloads.
fn waifud(nodes: &[Value]) -> Fake {
    Fake::start(
        [],
        &[
            (
                "GET /v1/version",
                json!({"version": env!("CARGO_PKG_VERSION"), "incarnation": "0000000a"}),
            ),
            ("GET /v1/nodes", page(nodes)),
            ("GET /v1/images", page(&[])),
            ("GET /v1/templates", page(&[])),
            ("GET /v1/instances", page(&[])),
            ("GET /v1/downloads", page(&[])),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_1_if_a_check_fails_and_0_if_there_are_only_warnings() {
    let healthy = waifud(&[node(json!({}))]);
    let (out, _) = healthy.run("doctor", 0).await;
    assert!(!out.contains("warn") && !out.contains("fail"), "{out}");

    let slow_clock = waifud(&[node(json!({"clock_skew_s": -90.0}))]);
    let (out, _) = slow_clock.run("doctor", 0).await;
    assert!(
        out.contains("warn   node alder clock") && out.contains("hint: enable NTP"),
        "{out}"
    );

    let unreachable = waifud(&[node(json!({"state": "unreachable"}))]);
    let (out, err) = unreachable.run("doctor", 1).await;
    assert!(out.contains("fail   node alder: unreachable"), "{out}");
    assert!(err.contains("1 of "), "{err}");
    let (out, err) = unreachable.run("doctor --json", 1).await;
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(result["ok"], false);
    let items = result["items"].as_array().unwrap();
    let failed: Vec<_> = items
        .iter()
        .filter(|one| one["verdict"] == "fail")
        .collect();
    assert_eq!(failed.len(), 1, "{items:?}");
    assert_eq!(failed[0]["subject"], "node alder");
    assert!(
        failed[0]["hint"]
            .as_str()
            .unwrap()
            .contains("waifud-agentd")
    );
    let problem: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(problem["code"], "doctor");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_waifud_doctor_fails_and_names_its_socket() {
    let fake = waifud(&[]);
    let (out, err) = fake
        .run("doctor --socket /nonexistent/waifud.sock", 2)
        .await;
    assert_eq!(out, "");
    assert!(err.contains("/nonexistent/waifud.sock"), "{err}");
}
