//! Reports of guests, and the instance that they are about.

use waifud_api::metadatad::Observed;
use waifud_types::evidence::ModuleResult;

use crate::fixture::{A, B, Fixture, status};

fn post(form: &str) -> String {
    format!(
        "POST /waifud/phone-home HTTP/1.1\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    )
}

#[tokio::test]
async fn a_report_is_about_the_caller_regardless_of_the_form() {
    let (fixture, a, b) = Fixture::new().await;
    let form = format!("instance_id=i-{}-1&hostname=b", b.id);
    assert_eq!(status(&fixture.raw(A, post(&form).as_bytes()).await), 200);
    let seen = fixture.seen().await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].instance, a.id);
    let Observed::PhoneHome { hostname, .. } = &seen[0].what else {
        panic!("{seen:?}");
    };
    assert_eq!(hostname.as_deref(), Some("b"));
}

#[tokio::test]
async fn requests_are_recorded_with_path_and_status_and_without_control_characters() {
    let (fixture, _, b) = Fixture::new().await;
    fixture.get(B, "/openstack/latest/user_data?x=y").await;
    fixture.get(B, "http://other/nothing").await;
    let seen = fixture.seen().await;
    let wanted = [("/openstack/latest/user_data", 200), ("/nothing", 404)];
    assert_eq!(seen.len(), wanted.len());
    for (item, (wanted_path, wanted_status)) in seen.iter().zip(wanted) {
        assert_eq!(item.instance, b.id);
        let Observed::Request { path, status } = &item.what else {
            panic!("{item:?}");
        };
        assert_eq!((path.as_str(), *status), (wanted_path, wanted_status));
    }
}

#[tokio::test]
async fn requests_that_are_not_a_posted_form_are_refused() {
    let (fixture, ..) = Fixture::new().await;
    let json = post("{}").replace("application/x-www-form-urlencoded", "application/json");
    assert_eq!(status(&fixture.raw(A, json.as_bytes()).await), 415);
    let put = post("a=b").replace("POST", "PUT");
    let answer = fixture.raw(A, put.as_bytes()).await;
    assert_eq!(status(&answer), 405);
    assert!(answer.contains("allow: POST"), "{answer}");
    assert!(fixture.seen().await.is_empty());
}

fn event(body: &str) -> String {
    // cloud-init sends no media type.
    format!(
        "POST /waifud/cloud-init HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn an_event_is_about_the_caller_and_invalid_events_are_dropped() {
    let (fixture, a, b) = Fixture::new().await;
    let body = format!(
        r#"{{"name": "modules-final/config-scripts-user", "event_type": "finish", "result": "FAIL", "description": "instance {}", "origin": "cloudinit", "timestamp": 1.5}}"#,
        b.id
    );
    let forged = event(&body).replace(
        "Content-Length",
        "X-Forwarded-For: 10.0.0.2\r\nContent-Length",
    );
    assert_eq!(status(&fixture.raw(A, forged.as_bytes()).await), 200);
    // Dropped instead of refused, because cloud-init would log a refusal in the guest.
    assert_eq!(status(&fixture.raw(A, event("{}").as_bytes()).await), 200);
    let get = event("").replace("POST", "GET");
    assert_eq!(status(&fixture.raw(A, get.as_bytes()).await), 405);
    let seen = fixture.seen().await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(seen[0].instance, a.id);
    let Observed::CloudInit(event) = &seen[0].what else {
        panic!("{seen:?}");
    };
    assert_eq!(event.name, "modules-final/config-scripts-user");
    assert_eq!(event.result, Some(ModuleResult::Fail));
    assert_eq!(event.guest_micros, Some(1_500_000));
}

#[tokio::test]
async fn an_event_over_4_kib_is_refused() {
    let (fixture, ..) = Fixture::new().await;
    let pad = "x".repeat(4096);
    let body =
        format!(r#"{{"name": "init-network", "event_type": "start", "description": "{pad}"}}"#);
    assert_eq!(status(&fixture.raw(A, event(&body).as_bytes()).await), 413);
    assert!(fixture.seen().await.is_empty());
}
