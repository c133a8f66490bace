//! What a client gets for each reason for which a node refuses a stream.

use super::*;

/// The status and code of a reason, as in docs/reference/api.md.
const fn expected(reason: RefusalReason) -> (u16, &'static str) {
    use RefusalReason as R;
    match reason {
        R::NotHere => (409, "instance-not-on-node"),
        R::NotRunning => (409, "instance-not-running"),
        R::NoAddress => (409, "no-address"),
        R::NothingListens => (409, "connection-refused"),
        R::NoAnswer => (409, "guest-unreachable"),
        R::NotTheGuest => (409, "guest-identity-mismatch"),
        R::NoGuestAgent => (409, "no-guest-agent"),
        R::GuestRefused => (409, "guest-refused"),
        R::NoLog => (404, "no-log"),
        R::TooMany => (429, "too-many-streams"),
        R::Other => (502, "stream-failed"),
    }
}

#[tokio::test]
async fn each_reason_of_a_node_has_its_status_its_code_and_a_hint() {
    let mut test = StreamTest::with(|_| {}).await;
    for reason in RefusalReason::ALL {
        let opening = test.request("ssh");
        let order = test.order().await;
        let refusal = StreamRefusal {
            reason,
            message: "port 22 does not answer".to_owned(),
        };
        test.node().refuse_stream(order.id, &refusal).await.unwrap();
        let error = opening.await.unwrap().unwrap_err();
        assert_eq!(code(&error), expected(reason), "{reason:?}");
        let problem = error.problem().unwrap();
        assert!(problem.title.contains("port 22 does not answer"));
        assert!(problem.hint.is_some(), "{reason:?}");
    }
}
