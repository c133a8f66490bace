//! Waits whose result cannot be known.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn waits_end_with_exit_code_1_and_the_reason_if_cloud_init_cannot_be_observed() {
    let because = "the user-data disables the reporter";
    let cloud_init = |because: Option<&str>| {
        json!({"ready": false, "ready_by": null, "cloud_init": {"state": "unknown", "instance_id": null,
            "datasource": null, "errors": [], "unknown_because": because}})
    };
    let states = || {
        [
            instance("web", ID, cloud_init(None)),
            instance("web", ID, cloud_init(None)),
            instance("web", ID, cloud_init(Some(because))),
        ]
    };
    let create = "create web -t a --no-ssh-key --wait --timeout 1h";
    for line in ["wait web --for ready --timeout 1h", create] {
        let created = instance("web", ID, cloud_init(None));
        let fake = Fake::start(states(), &[("POST /v1/instances", created)]);
        let (_, err) = fake.run(line, 1).await;
        assert!(err.contains(because), "{line}: {err}");
        assert!(
            err.contains("waifuctl wait web --for running"),
            "{line}: {err}"
        );
        assert_eq!(fake.unread(), 0, "{line}");
    }
}
