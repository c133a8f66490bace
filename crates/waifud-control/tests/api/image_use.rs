//! `DELETE /v1/images/{digest}`: refused while something uses the image.

use crate::common::{Server, digest, image, tombstone};
use axum::http::Method;
use serde_json::json;
use waifud_types::{ByteSize, Digest};

impl Server {
    async fn upload(&self, virtual_size: u64) -> Digest {
        let bytes = image(virtual_size);
        let digest = digest(&bytes);
        let path = format!("/v1/images/{digest}");
        self.call(Method::PUT, &path, &[], bytes).await.expect(201);
        digest
    }

    fn has_file(&self, image: Digest) -> bool {
        self.dir.path().join("images").join(image.hex()).exists()
    }

    /// Tries to delete an image that `user` uses.
    async fn keeps(&self, image: Digest, user: &str) {
        let answer = self.delete(&format!("/v1/images/{image}")).await;
        assert_eq!(answer.status.as_u16(), 409, "{user}");
        assert_eq!(answer.problem().code, "image-in-use", "{user}");
        assert!(self.has_file(image), "{user}");
    }
}

#[tokio::test]
async fn an_unused_image_is_deleted_with_its_file() {
    let server = Server::start().await;
    let unused = server.upload(1 << 30).await;
    assert!(server.has_file(unused));
    let path = format!("/v1/images/{unused}");
    server.delete(&path).await.expect(204);
    assert!(!server.has_file(unused));
    server.delete(&path).await.expect(404);
    let kinds = server.kinds(&unused.to_string()).await;
    assert_eq!(kinds, ["image.uploaded", "image.deleted"]);
}

#[tokio::test]
async fn an_image_is_not_deleted_while_a_template_or_an_instance_uses_it() {
    let server = Server::start().await;
    let used = server.template().await;
    let agent = server.join("alder", ByteSize::gib(8)).await;
    server.keeps(used, "a template").await;
    let web = server.create_instance("web").await;
    server.delete("/v1/templates/debian-12").await.expect(204);
    server.keeps(used, "an instance").await;
    server.delete("/v1/instances/web").await.expect(202);
    server.keeps(used, "an instance that is deleted").await;
    agent.destroyed(tombstone(&web)).await;
    // Without a user it is removed at once.
    server.get(&format!("/v1/images/{used}")).await.expect(404);
    assert!(!server.has_file(used));
}

#[tokio::test]
async fn an_image_is_not_deleted_while_a_rescue_uses_it() {
    let server = Server::with_running_instance().await;
    let used = server.upload(1 << 30).await;
    let body = json!({"name": "small", "image": used});
    server.post("/v1/templates", &body).await.expect(201);
    let begin = json!({"rescue": {"begin": {"template": "small", "ssh_keys": []}}});
    server.patched("web", &begin).await;
    server.delete("/v1/templates/small").await.expect(204);
    server.keeps(used, "a rescue").await;
    server.patched("web", &json!({"rescue": "end"})).await;
    assert!(!server.has_file(used));
}
