//! The agent of a node, driven step by step by a test.

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use waifud_api::agent::{
    AgentInstance, AgentReport, BundleRef, Hello, InstanceReport, NAMES_HEADER, Released, SliceKey,
    SliceObject, Tombstone, Unmanaged, WatchFrame,
};
use waifud_cloudinit::Documents;
use waifud_control::Peer;
use waifud_types::node::NodeFacts;
use waifud_types::{Digest, Epoch, InstanceId, NodeId};

use super::{Answer, DEADLINE, call, collect};

/// The agent of a node, driven by a test.
pub struct Agent {
    pub id: NodeId,
    pub key: Digest,
    router: Router,
    watch: Option<Body>,
    line: Vec<u8>,
}

impl Agent {
    pub fn new(id: NodeId, key: Digest, router: &Router) -> Self {
        Self {
            id,
            key,
            router: router.clone(),
            watch: None,
            line: Vec::new(),
        }
    }

    /// The node as the server sees it: by its certificate.
    pub fn peer(&self) -> Peer {
        Peer::Certificate {
            from: "192.0.2.2:4321".parse().unwrap(),
            node: self.id,
            key: self.key,
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> axum::response::Response {
        let request = Request::builder().method(method).uri(path);
        call(
            &self.router,
            request.body(body.into()).unwrap(),
            self.peer(),
        )
        .await
    }

    pub async fn hello(&self, hello: &Hello) -> Answer {
        let body = serde_json::to_vec(hello).unwrap();
        collect(self.call(Method::POST, "/v1/agent/hello", body).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        collect(self.call(Method::GET, path, Body::empty()).await).await
    }

    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Answer {
        let body = serde_json::to_vec(body).unwrap();
        collect(self.call(Method::POST, path, body).await).await
    }

    /// Downloads an image.
    pub async fn image(&self, digest: Digest) -> Answer {
        self.get(&format!("/v1/agent/images/{digest}")).await
    }

    pub async fn get_from(&self, path: &str, from: usize) -> Answer {
        let request = Request::builder()
            .uri(path)
            .header("range", format!("bytes={from}-"));
        let request = request.body(Body::empty()).unwrap();
        collect(call(&self.router, request, self.peer()).await).await
    }

    pub async fn report(&self, report: &AgentReport) {
        self.try_to_report(report).await.expect(204);
    }

    pub async fn try_to_report(&self, report: &AgentReport) -> Answer {
        let body = serde_json::to_vec(report).unwrap();
        collect(self.call(Method::POST, "/v1/agent/report", body).await).await
    }

    pub async fn report_instance(&self, instance: InstanceReport) {
        self.report(&AgentReport {
            instances: vec![instance],
            ..AgentReport::default()
        })
        .await;
    }

    pub async fn report_facts(&self, facts: NodeFacts) {
        self.report(&AgentReport {
            facts: Some(facts),
            ..AgentReport::default()
        })
        .await;
    }

    pub async fn report_unmanaged(&self, unmanaged: Vec<Unmanaged>) {
        self.report(&AgentReport {
            unmanaged: Some(unmanaged),
            ..AgentReport::default()
        })
        .await;
    }

    /// Reports that it has recorded the release of an instance, whose guest is off.
    pub async fn report_released(&self, instance: InstanceId, epoch: Epoch) {
        let released = Released {
            instance,
            epoch,
            off: true,
        };
        self.report(&AgentReport {
            released: vec![released],
            ..AgentReport::default()
        })
        .await;
    }

    pub async fn destroyed(&self, tombstone: Tombstone) {
        self.report(&AgentReport {
            destroyed: vec![tombstone],
            ..AgentReport::default()
        })
        .await;
    }

    /// Opens the watch at the beginning and discards the frames before its first `sync`.
    pub async fn watch_from_now(&mut self) {
        self.watch(None).await;
        self.until_sync().await;
    }

    pub async fn watch(&mut self, since: Option<&str>) {
        let path = since.map_or_else(
            || "/v1/agent/watch".to_owned(),
            |since| format!("/v1/agent/watch?since={since}"),
        );
        let response = self.call(Method::GET, &path, Body::empty()).await;
        assert_eq!(response.status(), StatusCode::OK);
        self.watch = Some(response.into_body());
        self.line.clear();
    }

    /// Opens the watch at the beginning, and asks for names after this revision.
    pub async fn watch_names(&mut self, stored: &str) {
        let request = Request::get("/v1/agent/watch").header(NAMES_HEADER, stored);
        let request = request.body(Body::empty()).unwrap();
        let response = call(&self.router, request, self.peer()).await;
        assert_eq!(response.status(), StatusCode::OK);
        self.watch = Some(response.into_body());
        self.line.clear();
    }

    /// Closes the connection of the watch.
    pub fn hang_up(&mut self) {
        self.watch = None;
    }

    /// The next frame about the node's own objects, other than a ping.
    pub async fn frame(&mut self) -> WatchFrame {
        loop {
            let frame = self.any_frame().await;
            let of_peer = matches!(
                frame,
                WatchFrame::Put {
                    object: SliceObject::Peer(_),
                    ..
                } | WatchFrame::Delete {
                    key: SliceKey::Peer(_),
                    ..
                }
            );
            if !of_peer {
                return frame;
            }
        }
    }

    /// The next frame other than a ping.
    pub async fn any_frame(&mut self) -> WatchFrame {
        tokio::time::timeout(DEADLINE, async {
            loop {
                if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<_> = self.line.drain(..=end).collect();
                    match serde_json::from_slice(&line).unwrap() {
                        WatchFrame::Ping => {}
                        frame => return frame,
                    }
                    continue;
                }
                let chunk = self.watch.as_mut().unwrap().frame().await.unwrap().unwrap();
                self.line.extend_from_slice(&chunk.into_data().unwrap());
            }
        })
        .await
        .unwrap()
    }

    /// Whether the server ends the watch within [`DEADLINE`], with or without an error.
    pub async fn watch_ends(&mut self) -> bool {
        let ends = async { while let Some(Ok(_)) = self.watch.as_mut().unwrap().frame().await {} };
        tokio::time::timeout(DEADLINE, ends).await.is_ok()
    }

    /// The frames before the next `sync`.
    pub async fn until_sync(&mut self) -> Vec<WatchFrame> {
        let mut frames = Vec::new();
        loop {
            match self.frame().await {
                WatchFrame::Sync { .. } => return frames,
                frame => frames.push(frame),
            }
        }
    }

    /// The next frame, which must put an instance.
    pub async fn put(&mut self) -> AgentInstance {
        match self.frame().await {
            WatchFrame::Put {
                object: SliceObject::Instance(instance),
                ..
            } => *instance,
            other => panic!("an instance was expected, not {other:?}"),
        }
    }

    pub async fn tombstone(&mut self) -> Tombstone {
        match self.frame().await {
            WatchFrame::Tombstone { tombstone, .. } => tombstone,
            other => panic!("a tombstone was expected, not {other:?}"),
        }
    }

    /// Receives the order to release an instance. Returns the instance and the epoch.
    pub async fn release(&mut self) -> (InstanceId, Epoch) {
        match self.frame().await {
            WatchFrame::Release { release, .. } => (release.instance, release.epoch),
            other => panic!("a release was expected, not {other:?}"),
        }
    }

    /// Receives the order to destroy an instance and confirms it.
    pub async fn confirm_deletion(&mut self) {
        let tombstone = self.tombstone().await;
        self.destroyed(tombstone).await;
    }

    pub async fn bundle(&self, bundle: &BundleRef) -> Vec<u8> {
        let path = format!("/v1/agent/bundles/{}", bundle.digest);
        self.get(&path).await.expect(200).bytes
    }

    /// The decrypted cloud-init documents of an instance.
    pub async fn documents(&self, bundle: &BundleRef) -> Documents {
        let bytes = self.bundle(bundle).await;
        waifud_cloudinit::open(&bytes, bundle.digest, &bundle.key).unwrap()
    }

    /// What the agent reports when this instance is on the node but not in the node's slice.
    pub async fn unmanaged(&self, instance: &AgentInstance) -> Unmanaged {
        let bundle = self.bundle(&instance.bundle).await;
        let addresses = instance.spec.nics.iter().filter_map(|nic| nic.address);
        Unmanaged {
            kind: "domain".to_owned(),
            instance: instance.id,
            name: Some(instance.name.to_string()),
            volume: None,
            running: true,
            addresses: addresses.collect(),
            record: Some(Box::new(instance.clone())),
            bundle: Some(STANDARD.encode(bundle)),
        }
    }
}
