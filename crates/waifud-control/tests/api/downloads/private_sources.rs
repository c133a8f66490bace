//! Failures of downloads from private addresses: the same for users, with their reasons in the log, and in the problem if
//! the administrator chose the source.

use std::time::Duration;

use serde_json::json;
use waifud_kit::testing::captured_log::CapturedLog;

use super::{begin, end, large_image, settings};
use crate::common::{Server, digest};
use crate::mirror::{Mirror, Reply};

/// The codes of the failures that were hidden from users.
fn codes(log: &str) -> Vec<String> {
    let lines = log.lines();
    let hidden = lines.filter(|line| {
        line.contains(" WARN ") && line.contains("a download from a private address failed")
    });
    hidden
        .map(|line| {
            let code = line.split("code=\"").nth(1).unwrap();
            code.split('"').next().unwrap().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn failures_at_private_addresses_are_indistinguishable_and_logged_with_their_reasons() {
    let bytes = large_image();
    let packed = [b"\xfd7zXZ\0".to_vec(), vec![0; 4096]].concat();
    let mirror = Mirror::serve(&[("/mismatch", &bytes), ("/packed", &packed)]).await;
    mirror.text("/page", "<html>a router</html>");
    mirror.script("/silent", vec![Reply::stall(0); 8]);
    mirror.text("/silent", "x");
    mirror.script("/busy", vec![Reply::status(503); 8]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = format!("http://{}/a", free.local_addr().unwrap());
    drop(free);
    let server = Server::with(|config| {
        settings(config);
        config.downloads.silence = Duration::from_millis(50);
        config.downloads.private = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let log = CapturedLog::begin();
    let mut failures = Vec::new();
    for (name, url) in [
        ("refused", refused),
        ("silent", mirror.url("/silent")),
        ("busy", mirror.url("/busy")),
        ("absent", mirror.url("/absent")),
        ("page", mirror.url("/page")),
        ("packed", mirror.url("/packed")),
        ("mismatch", mirror.url("/mismatch")),
    ] {
        let body = json!({"name": name, "url": url, "checksum": digest(b"other").to_string()});
        begin(&server, &body).await.expect(202);
        let problem = end(&server, name).await.unwrap_err();
        let events = server
            .get(&format!("/v1/events?object={name}"))
            .await
            .json();
        let last = events["items"].as_array().unwrap().last().unwrap();
        assert_eq!(last["kind"], "template.download-failed");
        failures.push((
            name,
            problem,
            last["message"].clone(),
            last["reason"].clone(),
        ));
    }
    for (name, problem, message, reason) in &failures {
        assert_eq!(
            (problem, message, reason),
            (&failures[0].1, &failures[0].2, &failures[0].3),
            "{name}"
        );
    }
    let mut logged = codes(&log.text());
    logged.sort();
    assert_eq!(
        logged,
        [
            "checksum-mismatch",
            "checksum-mismatch",
            "invalid-image",
            "source-refused",
            "source-unreachable",
            "source-unreachable",
            "source-unreachable",
        ]
    );
}

#[tokio::test]
async fn failures_of_catalog_mirror_name_their_reason_even_at_a_private_address() {
    let mirror = Mirror::serve(&[]).await;
    let entry = waifud_control::images::catalog::entry("debian-12").unwrap();
    let list = entry.checksums_url.strip_prefix("https:/").unwrap();
    let base = mirror.url("");
    let server = Server::with(|config| {
        settings(config);
        config.downloads.mirror = base;
        config.downloads.private = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    let body = json!({"name": "debian-12"});
    begin(&server, &body).await.expect(202);
    let absent = end(&server, "debian-12").await.unwrap_err();
    assert_eq!(absent["code"], "source-refused");
    mirror.text(list, "no checksums at all\n");
    begin(&server, &body).await.expect(202);
    let invalid = end(&server, "debian-12").await.unwrap_err();
    assert_eq!(invalid["code"], "invalid-checksums");
}
