//! Deletions that a node holds until it is confirmed.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_held_deletion_is_reported_and_with_wait_it_fails_instead_of_waiting() {
    let fake = Fake::start(
        [instance("web", ID, json!({}))],
        &[("GET /v1/nodes/alder", node(json!({"confirmed": false})))],
    );
    let delete = format!("DELETE /v1/instances/{ID}");
    let deleting = instance("web", ID, json!({"state": "deleting"}));
    fake.script(&delete, [(202, deleting)]);
    let (out, _) = fake.run("delete web --yes", 0).await;
    assert_eq!(
        out,
        "web: deleting; held until you run waifuctl node confirm alder\n"
    );
    // Far longer than this test may take.
    let (out, err) = fake
        .run("delete web --yes --wait --timeout 1h --json", 1)
        .await;
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(result[0]["held_until"], "waifuctl node confirm alder");
    let problem: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(problem["code"], "deletion-held");
    assert_eq!(problem["hint"], "waifuctl node confirm alder");
    assert_eq!(fake.count(&delete), 2, "one request for each command");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_on_a_confirmed_node_is_not_reported_as_held() {
    let fake = Fake::start(
        [instance("web", ID, json!({}))],
        &[("GET /v1/nodes/alder", node(json!({})))],
    );
    let delete = format!("DELETE /v1/instances/{ID}");
    let deleting = instance("web", ID, json!({"state": "deleting"}));
    fake.script(&delete, [(202, deleting)]);
    let (out, _) = fake.run("delete web --yes", 0).await;
    assert_eq!(out, "web: deleting\n");
}
