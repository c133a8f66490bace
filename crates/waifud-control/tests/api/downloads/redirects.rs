//! Redirects, and which requests share a download.

use serde_json::json;

use super::{begin, begin_a, end, scripted, sha512};
use crate::common::digest;
use crate::mirror::Reply;

#[tokio::test]
async fn five_redirects_are_followed_and_six_are_refused() {
    let (mirror, server, bytes) = scripted(Vec::new()).await;
    for hop in 1..6 {
        mirror.redirect(&format!("/{hop}"), &format!("/{}", hop + 1));
    }
    mirror.redirect("/6", "/a.qcow2");
    let checksum = digest(&bytes).to_string();
    let body = |name: &str, path: &str| json!({"name": name, "url": mirror.url(path), "checksum": checksum});
    begin(&server, &body("six", "/1")).await.expect(202);
    let problem = end(&server, "six").await.unwrap_err();
    assert_eq!(problem["code"], "invalid-url");
    assert_eq!(mirror.requests("/a.qcow2").len(), 0);
    begin(&server, &body("five", "/2")).await.expect(202);
    end(&server, "five").await.unwrap();
    assert_eq!(mirror.requests("/a.qcow2").len(), 1);
}

#[tokio::test]
async fn requests_for_one_url_with_other_checksums_do_not_share_a_download() {
    let (mirror, server, bytes) = scripted(vec![Reply::stall(1000), Reply::stall(1000)]).await;
    let checksum = digest(&bytes).to_string();
    begin_a(&server, &mirror, &bytes).await;
    let other = format!("sha512:{}", sha512(&bytes));
    let body = json!({"name": "b", "url": mirror.url("/a.qcow2"), "checksum": other});
    begin(&server, &body).await.expect(202);
    // Both requests are open at the same time.
    mirror.until_sent("/a.qcow2", 2000).await;
    assert_eq!(mirror.requests("/a.qcow2").len(), 2);
    mirror.release();
    for name in ["a", "b"] {
        assert_eq!(
            end(&server, name).await.unwrap()["current"],
            checksum.as_str()
        );
    }
}
