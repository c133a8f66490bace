//! A guest can read only its own documents, whatever it sends.

use std::sync::LazyLock;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::fixture::{A, B, Fixture, Guest, UNASSIGNED, status};

const USER_DATA: &str = "/openstack/latest/user_data";

#[tokio::test]
async fn each_guest_reads_its_own_documents() {
    let (fixture, a, b) = Fixture::new().await;
    for (address, guest) in [(A, &a), (B, &b)] {
        for path in [USER_DATA, "/latest/user-data"] {
            let (status, answer) = fixture.get(address, path).await;
            assert_eq!(status, 200);
            assert!(answer.contains(&guest.secret()), "{answer}");
        }
    }
}

#[tokio::test]
async fn an_unassigned_address_can_read_nothing() {
    let (fixture, ..) = Fixture::new().await;
    for path in [
        "/",
        "/openstack",
        USER_DATA,
        "/latest/meta-data/",
        "/waifud/phone-home",
    ] {
        let (status, answer) = fixture.get(UNASSIGNED, path).await;
        assert_eq!(status, 404, "{path}");
        assert!(answer.ends_with("Not Found"), "{answer}");
    }
    assert!(fixture.seen().await.is_empty());
}

#[tokio::test]
async fn a_token_of_one_guest_is_refused_for_another() {
    let (fixture, ..) = Fixture::new().await;
    let put = "PUT /latest/api/token HTTP/1.1\r\nConnection: close\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let answer = fixture.raw(A, put.as_bytes()).await;
    assert!(
        answer.contains("x-aws-ec2-metadata-token-ttl-seconds: 60"),
        "{answer}"
    );
    let token = answer.rsplit("\r\n").next().unwrap();
    let line = format!("X-aws-ec2-metadata-token: {token}\r\n");
    let path = "/latest/meta-data/instance-id";
    assert_eq!(fixture.get_with(A, path, &line).await.0, 200);
    assert_eq!(fixture.get_with(B, path, &line).await.0, 401);
    assert_eq!(
        fixture.get_with(A, path, &format!("{line}{line}")).await.0,
        401
    );
    let forwarded = put.replace("Connection", "X-Forwarded-For: 127.0.0.1\r\nConnection");
    assert_eq!(status(&fixture.raw(A, forwarded.as_bytes()).await), 403);
}

#[tokio::test]
async fn a_kept_connection_gets_no_documents_after_its_assignment_is_deleted() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (fixture, a, _) = Fixture::new().await;
    let mut stream = fixture.connect(A);
    let mut buffer = vec![0; 4096];
    for (wanted, last) in [(200, false), (404, true)] {
        let request = format!("GET {USER_DATA} HTTP/1.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let length = stream.read(&mut buffer).await.unwrap();
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert_eq!(status(&answer), wanted, "{answer}");
        assert_eq!(answer.contains(&a.secret()), !last);
        fixture.service.delete_instance(a.id).await.unwrap();
    }
}

#[tokio::test]
async fn a_reassigned_address_serves_its_new_instance_only() {
    let (fixture, a, _) = Fixture::new().await;
    fixture.service.delete_instance(a.id).await.unwrap();
    let next = Guest::new("next", A);
    fixture.admit(&next).await;
    let (_, answer) = fixture.get(A, USER_DATA).await;
    assert!(answer.contains(&next.secret()) && !answer.contains(&a.secret()));
}

#[tokio::test]
async fn head_is_answered_with_the_length_and_no_body() {
    let (fixture, a, _) = Fixture::new().await;
    let head = format!("HEAD {USER_DATA} HTTP/1.1\r\nConnection: close\r\n\r\n");
    let answer = fixture.raw(A, head.as_bytes()).await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("content-length: ") && !answer.contains(&a.secret()));
    assert!(answer.ends_with("\r\n\r\n"));
}

static WORLD: LazyLock<(Runtime, Fixture, Guest, Guest)> = LazyLock::new(|| {
    let runtime = Runtime::new().unwrap();
    let (fixture, a, b) = runtime.block_on(Fixture::new());
    (runtime, fixture, a, b)
});

/// All headers by which proxies pass on the client's address, with values that an attacker would send.
fn lie() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "Host",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "Forwarded",
        "X-Real-IP",
        "X-Client-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Instance-ID",
        "X-Tenant-ID",
        "X-Instance-ID-Signature",
        "X-Original-URL",
        "X-Rewrite-URL",
        "Via",
        "Cookie",
        "Authorization",
        "X-aws-ec2-metadata-token",
    ]);
    let value = prop_oneof![
        Just(B.to_string()),
        Just(format!("for={B};host=b")),
        Just("b".to_owned()),
        Just(WORLD.3.id.to_string()),
        Just(USER_DATA.to_owned()),
        "[ -~]{0,40}",
    ];
    (name, value).prop_map(|(name, value)| format!("{name}: {value}\r\n"))
}

fn target() -> impl Strategy<Value = String> {
    let tail = prop_oneof![
        Just(USER_DATA.to_owned()),
        Just("/latest/user-data".to_owned()),
        Just(format!("/openstack/latest/../{}/user_data", WORLD.3.id)),
        Just(format!("/{B}{USER_DATA}")),
        Just(format!("/instances/{}/user-data", WORLD.3.id)),
        "/[!-~]{0,60}",
    ];
    let start = prop_oneof![
        Just(String::new()),
        Just(format!("http://{B}")),
        Just("http://b".to_owned()),
        Just(format!("https://{B}:80")),
        Just("http://a@b".to_owned()),
    ];
    (start, tail).prop_map(|(start, tail)| start + &tail)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn guest_a_never_reads_guest_bs_documents(
        method in prop::sample::select(vec!["GET", "HEAD", "PUT", "POST", "OPTIONS", "TRACE", "CONNECT"]),
        target in target(),
        forged in prop::collection::vec(lie(), 0..6),
        body in "[ -~]{0,40}",
    ) {
        let (runtime, fixture, _, b) = &*WORLD;
        let forged = forged.concat();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n{forged}\r\n{body}",
            body.len(),
        );
        let answer = runtime.block_on(fixture.raw(A, request.as_bytes()));
        prop_assert!(!answer.contains(&b.secret()), "{request}\n{answer}");
        prop_assert!(!answer.contains(&b.id.to_string()), "{request}\n{answer}");
        let answer = runtime.block_on(fixture.raw(UNASSIGNED, request.as_bytes()));
        prop_assert!(!answer.contains("secret-of-"), "{request}\n{answer}");
    }

    #[test]
    fn invalid_http_gets_no_document(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        let (runtime, fixture, ..) = &*WORLD;
        let mut bytes = bytes;
        // Ends the head, so that no side waits for more of it.
        bytes.extend_from_slice(b"\r\n\r\n");
        let answer = runtime.block_on(fixture.raw(A, &bytes));
        prop_assert!(!answer.contains("secret-of-"));
    }

    #[test]
    fn two_requests_in_one_packet_belong_to_the_same_guest(
        length in 0usize..200, chunked: bool, forged in prop::collection::vec(lie(), 0..3),
    ) {
        let (runtime, fixture, _, b) = &*WORLD;
        let encoding = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
        let forged = forged.concat();
        let request = format!(
            "POST {USER_DATA} HTTP/1.1\r\nContent-Length: {length}\r\n{encoding}\r\n0\r\n\r\nGET {USER_DATA} HTTP/1.1\r\nConnection: close\r\n{forged}\r\n",
        );
        let stream = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = fixture.connect(A);
            let _ = stream.write_all(request.as_bytes()).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        let answer = runtime.block_on(stream);
        prop_assert!(!answer.contains(&b.secret()));
    }
}
