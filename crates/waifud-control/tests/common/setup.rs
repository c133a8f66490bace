//! Set-ups that many tests share.

use serde_json::json;
use waifud_api::Instance;
use waifud_types::ByteSize;

use super::{Agent, Server};

impl Server {
    /// Creates an instance of `debian-12`.
    pub async fn create_instance(&self, name: &str) -> Instance {
        let body = json!({"name": name, "template": "debian-12"});
        self.create(&body).await.expect(201).instance()
    }

    /// A server with the template `debian-12` and the node alder with 8 GiB.
    pub async fn with_node() -> (Self, Agent) {
        let server = Self::start().await;
        server.template().await;
        let agent = server.join("alder", ByteSize::gib(8)).await;
        (server, agent)
    }

    /// The same, with a watch of alder that has received its `sync`.
    pub async fn with_watching_node() -> (Self, Agent) {
        let (server, mut agent) = Self::with_node().await;
        agent.watch(None).await;
        agent.until_sync().await;
        (server, agent)
    }
}
