//! A guest that is slow or sends too much affects only itself.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use waifud_metadata::{FakeStore, GuestLimits};

use crate::fixture::{A, B, Fixture, Guest, PATIENCE, status};

const PATH: &str = "/openstack/latest/meta_data.json";

async fn fixture(limits: GuestLimits) -> Fixture {
    let fixture = Fixture::on(FakeStore::default(), limits).await;
    fixture.admit(&Guest::new("a", A)).await;
    fixture.admit(&Guest::new("b", B)).await;
    fixture
}

fn impatient() -> GuestLimits {
    GuestLimits {
        head_timeout: Duration::from_millis(200),
        body_timeout: Duration::from_millis(200),
        ..GuestLimits::default()
    }
}

#[tokio::test]
async fn others_are_served_during_a_thousand_connections_with_incomplete_requests() {
    let fixture = fixture(GuestLimits::default()).await;
    let mut slow = Vec::new();
    for _ in 0..1000 {
        let mut stream = fixture.connect(A);
        stream
            .write_all(b"GET /openstack HTTP/1.1\r\nX-Slow: ")
            .await
            .unwrap();
        slow.push(stream);
    }
    for _ in 0..20 {
        for stream in &mut slow {
            stream.write_all(b"x").await.unwrap();
        }
        assert_eq!(fixture.get(B, PATH).await.0, 200);
    }
}

/// Repeats an exchange on a connection until the service has closed it: neither before the limit, nor because of the first
/// exchange.
async fn repeat_until_closed(limit: Duration, mut exchange: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    let mut done = 0;
    let exchanges = async {
        while exchange().await {
            done += 1;
        }
    };
    timeout(PATIENCE, exchanges).await.unwrap();
    assert!(begun.elapsed() >= limit);
    assert!(done > 1, "{done} exchanges");
}

#[tokio::test]
async fn a_connection_with_a_slow_request_head_is_closed() {
    let limits = impatient();
    let fixture = fixture(limits.clone()).await;
    let mut stream = fixture.connect(A);
    repeat_until_closed(limits.head_timeout, async || {
        // Each byte arrives within the time limit of the head, but all together take longer.
        let taken = stream.write_all(b"G").await.is_ok();
        tokio::time::sleep(Duration::from_millis(10)).await;
        taken
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_before_and_after_its_first_request() {
    let fixture = fixture(impatient()).await;
    for request in [String::new(), format!("GET {PATH} HTTP/1.1\r\n\r\n")] {
        let mut stream = fixture.connect(A);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        timeout(PATIENCE, read).await.unwrap().unwrap();
        assert_eq!(answer.is_empty(), request.is_empty());
    }
}

#[tokio::test]
async fn a_busy_connection_ends_with_its_lifetime() {
    /// Time for many requests, also on a busy machine.
    const LIFETIME: Duration = Duration::from_secs(2);
    let fixture = fixture(GuestLimits {
        lifetime: LIFETIME,
        ..GuestLimits::default()
    })
    .await;
    let mut stream = fixture.connect(A);
    let mut buffer = vec![0; 4096];
    let request = format!("GET {PATH} HTTP/1.1\r\n\r\n");
    repeat_until_closed(LIFETIME, async || {
        // A pause leaves the processor to other tests. The connection is never idle for as long as its limits allow.
        tokio::time::sleep(Duration::from_millis(1)).await;
        stream.write_all(request.as_bytes()).await.is_ok()
            && matches!(stream.read(&mut buffer).await, Ok(1..))
    })
    .await;
}

#[tokio::test]
async fn a_missing_body_is_answered_408() {
    let fixture = fixture(impatient()).await;
    let request = "POST /waifud/phone-home HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 10\r\n\r\nhalf";
    assert_eq!(status(&fixture.raw(A, request.as_bytes()).await), 408);
}

#[tokio::test]
async fn heads_and_bodies_beyond_their_limits_are_refused() {
    let fixture = fixture(GuestLimits::default()).await;
    let line = format!("X-Long: {}\r\n", "x".repeat(9000));
    assert_eq!(fixture.get_with(A, PATH, &line).await.0, 431);
    let body = "x".repeat((16 << 10) + 1);
    for framing in [
        format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        format!(
            "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ),
    ] {
        let request = format!(
            "POST /waifud/phone-home HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n{framing}"
        );
        assert_eq!(status(&fixture.raw(A, request.as_bytes()).await), 413);
    }
}

#[tokio::test]
async fn requests_beyond_the_rate_get_429_and_other_guests_are_not_affected() {
    let fixture = fixture(GuestLimits {
        requests_per_second: 1,
        burst: 5,
        ..GuestLimits::default()
    })
    .await;
    let mut refused = 0;
    for _ in 0..20 {
        let (status, answer) = fixture.get(A, PATH).await;
        if status == 429 {
            assert!(answer.contains("retry-after: 1"), "{answer}");
            refused += 1;
        } else {
            assert_eq!(status, 200);
        }
    }
    assert!(refused >= 10, "{refused}");
    assert_eq!(fixture.get(B, PATH).await.0, 200);
}

#[tokio::test]
async fn a_boot_stays_far_below_the_limits() {
    let fixture = fixture(GuestLimits::default()).await;
    for _ in 0..200 {
        assert_eq!(fixture.get(A, PATH).await.0, 200);
    }
}

#[tokio::test]
async fn running_requests_are_completed_when_the_service_stops() {
    let fixture = fixture(GuestLimits::default()).await;
    let mut stream = fixture.connect(A);
    stream.write_all(b"POST /waifud/phone-home HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na").await.unwrap();
    // Once another request was answered, the head above has been read.
    fixture.get(B, PATH).await;
    fixture.stop.cancel();
    stream.write_all(b"=b").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status(&answer), 200);
    timeout(PATIENCE, fixture.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_before_the_answer_is_answered() {
    let fixture = fixture(GuestLimits::default()).await;
    let head = "Host: 169.254.169.254\r\n";
    let token = format!(
        "PUT /latest/api/token HTTP/1.1\r\n{head}X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
    );
    let home = "hostname=a&instance_id=i-1";
    let home = format!(
        "POST /waifud/phone-home HTTP/1.1\r\n{head}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{home}",
        home.len()
    );
    let get = format!("GET {PATH} HTTP/1.1\r\n{head}\r\n");
    for round in 0..50 {
        for request in [&get, &token, &home] {
            let mut stream = fixture.connect(A);
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            timeout(PATIENCE, read).await.unwrap().unwrap();
            let code = status(&answer);
            assert!(
                (200..300).contains(&code),
                "{round}: {request:?}: {answer:?}"
            );
        }
    }
}
