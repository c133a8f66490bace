//! Slow sources, the limit of concurrent downloads, and failures of the image store.

use super::*;

#[tokio::test]
async fn a_download_from_a_source_that_is_too_slow_fails() {
    let bytes = large_image();
    let mirror = Mirror::serve(&[("/a.qcow2", &bytes)]).await;
    mirror.script("/a.qcow2", vec![Reply::Drip; 100]);
    let server = Server::with(|config| {
        settings(config);
        config.downloads.pace = Pace {
            bytes: ByteSize(64 << 10),
            window: Duration::from_millis(100),
        };
    })
    .await;
    let body =
        json!({"name": "a", "url": mirror.url("/a.qcow2"), "checksum": digest(&bytes).to_string()});
    begin(&server, &body).await.expect(202);
    let problem = end(&server, "a").await.unwrap_err();
    assert_eq!(problem["code"], "source-unreachable");
    let title = problem["title"].as_str().unwrap();
    assert!(title.contains("sends less than"), "{title}");
}

#[tokio::test]
async fn the_number_of_concurrent_downloads_is_limited() {
    let bytes = large_image();
    let mirror = Mirror::serve(&[]).await;
    let server = Server::with(|config| {
        settings(config);
        config.downloads.at_once = 2;
    })
    .await;
    let body = |name: &str| {
        let url = mirror.url(&format!("/{name}"));
        json!({"name": name, "url": url, "checksum": digest(&bytes).to_string()})
    };
    for name in ["a", "b", "c"] {
        mirror.put(&format!("/{name}"), &bytes);
        mirror.script(&format!("/{name}"), vec![Reply::stall(10)]);
    }
    begin(&server, &body("a")).await.expect(202);
    begin(&server, &body("b")).await.expect(202);
    let problem = begin(&server, &body("c")).await.expect(429).problem();
    assert_eq!(problem.code, "too-many-downloads");
    begin(&server, &body("b")).await.expect(202);
    server.delete("/v1/downloads/a").await.expect(204);
    begin(&server, &body("c")).await.expect(202);
}

#[tokio::test]
async fn a_download_survives_a_failure_of_the_image_store() {
    let (mirror, server, bytes) = scripted(Vec::new()).await;
    let images = server.dir.path().join("images");
    let away = server.dir.path().join("away");
    std::fs::rename(&images, &away).unwrap();
    let checksum = digest(&bytes).to_string();
    begin_a(&server, &mirror, &bytes).await;
    let waiting = async {
        loop {
            let download = server.get("/v1/downloads/a").await.expect(200).json();
            assert_eq!(download["state"], "running");
            if download["waiting_for"].is_string() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap();
    std::fs::rename(&away, &images).unwrap();
    let template = end(&server, "a").await.unwrap();
    assert_eq!(template["current"], checksum.as_str());
}
