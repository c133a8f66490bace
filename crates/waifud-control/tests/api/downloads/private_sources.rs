//! Failures of downloads from private addresses: the same for users, with their reasons in the log, and in the problem if
//! the administrator chose the source.

use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use serde_json::json;

use super::{begin, end, large_image, settings};
use crate::common::{Server, digest};
use crate::mirror::{Mirror, Reply};

/// While there is a second dispatcher, tracing asks all of them whether a line is wanted, and not only that of the thread
/// that reaches the line first.
static SECOND: LazyLock<tracing::Dispatch> =
    LazyLock::new(|| tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default()));

/// The log of the tasks of a test whose runtime has one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Records until the result is dropped.
    fn record(&self) -> tracing::subscriber::DefaultGuard {
        LazyLock::force(&SECOND);
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The codes of the failures that were hidden from users.
    fn codes(&self) -> Vec<String> {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = log.lines();
        let hidden = lines.filter(|line| line.contains("a download from a private address failed"));
        hidden
            .map(|line| {
                let code = line.split("code=\"").nth(1).unwrap();
                code.split('"').next().unwrap().to_owned()
            })
            .collect()
    }
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
    let log = Log::default();
    let _recorded = log.record();
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
    let mut logged = log.codes();
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
