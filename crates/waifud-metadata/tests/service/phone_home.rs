//! What a guest reports, and of whom.

use waifud_api::metadatad::Observed;

use crate::house::{A, B, House, status};

fn post(form: &str) -> String {
    format!(
        "POST /waifud/phone-home HTTP/1.1\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    )
}

#[tokio::test]
async fn a_report_is_the_callers_own_whatever_the_form_says() {
    let (house, a, b) = House::new().await;
    let form = format!("instance_id=i-{}-1&hostname=b", b.id);
    assert_eq!(status(&house.raw(A, post(&form).as_bytes()).await), 200);
    let seen = house.seen().await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].instance, a.id);
    let Observed::PhoneHome { hostname, .. } = &seen[0].what else {
        panic!("{seen:?}");
    };
    assert_eq!(hostname.as_deref(), Some("b"));
}

#[tokio::test]
async fn requests_are_seen_with_path_and_status_and_without_control_characters() {
    let (house, _, b) = House::new().await;
    house.get(B, "/openstack/latest/user_data?x=y").await;
    house.get(B, "http://other/nothing").await;
    let seen = house.seen().await;
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
async fn what_is_no_form_or_no_post_is_refused() {
    let (house, ..) = House::new().await;
    let json = post("{}").replace("application/x-www-form-urlencoded", "application/json");
    assert_eq!(status(&house.raw(A, json.as_bytes()).await), 415);
    let put = post("a=b").replace("POST", "PUT");
    let answer = house.raw(A, put.as_bytes()).await;
    assert_eq!(status(&answer), 405);
    assert!(answer.contains("allow: POST"), "{answer}");
    assert!(house.seen().await.is_empty());
}
