//! Streams through the real program: over TLS, a node can tell an orderly end from a reset.

use std::io::ErrorKind;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;
use waifud_agent::interfaces::{ControlLink, FrameStream, HttpLink};
use waifud_api::agent::{AgentReport, InstanceReport, WatchFrame, WatchStart};
use waifud_api::client::ClientStream;
use waifud_types::node::Resources;
use waifud_types::{ByteSize, InstanceState};

use crate::joining::{join_ready, name};
use crate::kit::{DEADLINE, Waifud, upload_template};

/// A waifud with a running instance on a node whose agent is the test.
struct StreamTest {
    waifud: Waifud,
    link: HttpLink,
    watch: Box<dyn FrameStream>,
    _membership: tempfile::TempDir,
}

impl StreamTest {
    async fn start() -> Self {
        let waifud = Waifud::start();
        let client = waifud.client();
        upload_template(waifud.dir.path(), &client).await;
        let membership = tempfile::tempdir().unwrap();
        let capacity = Resources {
            cpus: 8,
            memory_bytes: ByteSize::gib(8),
        };
        let link = join_ready(&waifud, name(), membership.path(), capacity).await;
        let request = serde_json::from_str(r#"{"name": "web", "template": "debian-12"}"#);
        let web = client
            .create_instance(&request.unwrap(), "a")
            .await
            .unwrap();
        let watch = link.watch(WatchStart::default()).await.unwrap();
        let running = InstanceReport::of_state(web.id, InstanceState::Running);
        let report = AgentReport {
            instances: vec![running],
            ..AgentReport::default()
        };
        link.report(&report).await.unwrap();
        Self {
            waifud,
            link,
            watch,
            _membership: membership,
        }
    }

    /// Opens a stream to port 22; `end` ends it as its client. Returns what the node then reads.
    async fn ended_by(&mut self, end: impl AsyncFnOnce(ClientStream)) -> std::io::Result<usize> {
        let client = self.waifud.client();
        let opening = tokio::spawn(async move { client.open_stream("web", "ssh", None).await });
        let order = async {
            loop {
                if let Some(WatchFrame::Stream(order)) = self.watch.next().await.unwrap() {
                    return order;
                }
            }
        };
        let order = timeout(DEADLINE, order).await.unwrap();
        let mut agent = self.link.stream(order.id).await.unwrap();
        end(opening.await.unwrap().unwrap()).await;
        let mut rest = Vec::new();
        timeout(DEADLINE, agent.read_to_end(&mut rest))
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_stream_ends_the_nodes_connection_in_order() {
    let mut test = StreamTest::start().await;
    let closed = async |mut client: ClientStream| client.to.close().await;
    assert_eq!(test.ended_by(closed).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_or_drops_its_stream_resets_the_nodes_connection() {
    let mut test = StreamTest::start().await;
    let dropped = async |client: ClientStream| drop(client);
    let error = test.ended_by(dropped).await.unwrap_err();
    // TLS without its closing message: the agent resets the guest's connection then.
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let reset = async |mut client: ClientStream| client.to.reset().await;
    let error = test.ended_by(reset).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}
