//! A node on fakes. Its agent can be killed and started again while everything else keeps running.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use waifud_agent::fake::{
    FakeDialer, FakeHost, FakeMetadata, FakeTunnel, FakeWaifud, fast_timing, sample_instance,
    sample_settings,
};
use waifud_agent::interfaces::{NoPeers, PeerNetwork, SystemClock};
use waifud_agent::{Adapters, Agent, Settings};
use waifud_api::agent::{AgentInstance, InstanceReport};
use waifud_hypervisor::fake::{AgentScript, FakeHypervisor, Op};
use waifud_hypervisor::{DomainState, Hypervisor, OffReason};
use waifud_network::fabric::fake::FakeFabric;
use waifud_network::fake::FakeNetwork;
use waifud_storage::StoragePool;
use waifud_storage::fake::{FakePool, image_bytes};
use waifud_types::status::StoppedBy;
use waifud_types::{ByteSize, Incarnation, InstanceId, InstanceState};

/// Far longer than any wait takes. A test that waits this long has failed.
const DEADLINE: Duration = Duration::from_mins(1);

pub struct TestNode {
    pub hypervisor: FakeHypervisor,
    pub pool: FakePool,
    pub network: Arc<FakeNetwork>,
    pub fabric: Arc<FakeFabric>,
    pub waifud: FakeWaifud,
    pub metadata: FakeMetadata,
    pub tunnel: FakeTunnel,
    pub dialer: FakeDialer,
    pub host: FakeHost,
    pub peers: Arc<dyn PeerNetwork>,
    pub settings: Settings,
    image: (Vec<u8>, waifud_types::Digest),
    /// Stops the agent cleanly.
    stop: Mutex<CancellationToken>,
    agent: Mutex<Option<JoinHandle<()>>>,
    _dir: tempfile::TempDir,
}

impl TestNode {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let pool = FakePool::new("main".parse().unwrap(), path("pool"));
        let waifud = FakeWaifud::new();
        let image = image_bytes(ByteSize::mib(1), 1);
        waifud.add_image(image.1, image.0.clone());
        let hypervisor = FakeHypervisor::new();
        hypervisor.set_default_agent(Some(cloud_init_done()));
        Self {
            hypervisor,
            pool,
            network: FakeNetwork::new(),
            fabric: FakeFabric::new(1),
            waifud,
            metadata: FakeMetadata::new(),
            tunnel: FakeTunnel::default(),
            dialer: FakeDialer::default(),
            host: FakeHost::default(),
            peers: Arc::new(NoPeers),
            settings: sample_settings(path("state"), path("run"), fast_timing()),
            image,
            stop: Mutex::default(),
            agent: Mutex::default(),
            _dir: dir,
        }
    }

    /// A node whose agent runs.
    pub fn started() -> Self {
        let node = Self::new();
        node.start();
        node
    }

    /// A node that was prepared before its agent started.
    pub fn started_after(prepare: impl FnOnce(&mut Self)) -> Self {
        let mut node = Self::new();
        prepare(&mut node);
        node.start();
        node
    }

    /// A node with one instance, which is ready.
    pub async fn with_instance(name: &str) -> (Self, InstanceId) {
        let node = Self::started();
        let id = node.run_one(name).await;
        (node, id)
    }

    /// Waits until this many more reports have arrived.
    pub async fn until_more_reports(&self, count: u64) {
        let reports = self.waifud.reports();
        self.until("a few more reports", async || {
            self.waifud.reports() > reports + count
        })
        .await;
    }

    /// Waits until the node reports that deletions are held for an administrator.
    pub async fn until_deletions_are_held(&self) {
        self.until("deletions are held", async || {
            self.waifud.facts().is_some_and(|facts| {
                facts
                    .conditions
                    .iter()
                    .any(|c| c.kind == "destruction-held")
            })
        })
        .await;
    }

    /// An instance whose image waifud has.
    pub fn instance(&self, name: &str) -> AgentInstance {
        let mut instance = sample_instance(name);
        instance.spec.image = self.image.1;
        instance.image_size_bytes = ByteSize(self.image.0.len().try_into().unwrap());
        instance
    }

    pub fn start(&self) {
        let agent = self.open();
        self.spawn(agent);
    }

    /// Starts an agent for which an administrator confirms this incarnation.
    pub fn start_confirming(&self, incarnation: Incarnation) {
        let agent = self.open();
        assert!(agent.confirm_incarnation(incarnation).unwrap());
        self.spawn(agent);
    }

    fn open(&self) -> Agent {
        Agent::open(
            self.settings.clone(),
            Adapters {
                hypervisor: Arc::new(self.hypervisor.clone()),
                pools: vec![Arc::new(self.pool.clone())],
                network: self.network.clone(),
                fabric: self.fabric.clone(),
                link: Arc::new(self.waifud.clone()),
                metadata: Arc::new(self.metadata.clone()),
                peers: self.peers.clone(),
                tunnel: Arc::new(self.tunnel.clone()),
                dialer: Arc::new(self.dialer.clone()),
                clock: Arc::new(SystemClock),
                host: Arc::new(self.host.clone()),
            },
        )
        .unwrap()
    }

    fn spawn(&self, agent: Agent) {
        let stop = CancellationToken::new();
        let task = tokio::spawn(agent.run(stop.clone()));
        *self.stop.lock().unwrap() = stop;
        *self.agent.lock().unwrap() = Some(task);
    }

    /// Drops every task of the agent at its current point, like a kill. Its tunnel link is lost too.
    pub async fn kill(&self) {
        let task = self.agent.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let _killed = task.await;
        }
        self.tunnel.lose();
    }

    /// Stops the agent cleanly, as systemd does.
    pub async fn stop_agent(&self) {
        self.stop.lock().unwrap().cancel();
        let task = self.agent.lock().unwrap().take();
        task.unwrap().await.unwrap();
    }

    pub async fn restart(&self) {
        self.kill().await;
        self.start();
    }

    /// Adds an instance.
    pub fn put(&self, name: &str) -> InstanceId {
        let instance = self.instance(name);
        let id = instance.id;
        self.waifud.put(instance);
        id
    }

    /// Starts a change, kills the agent while it runs this operation of the hypervisor, and starts another agent.
    pub async fn kill_inside(&self, op: Op, change: impl FnOnce()) {
        self.hypervisor.hang(op);
        let before = self.hypervisor.calls(op);
        change();
        self.until("the operation runs", async || {
            self.hypervisor.calls(op) > before
        })
        .await;
        self.kill().await;
        self.hypervisor.release(op);
        self.start();
    }

    /// Adds an instance and waits until it is ready.
    pub async fn run_one(&self, name: &str) -> InstanceId {
        self.run(self.instance(name)).await
    }

    /// Adds this instance and waits until it is ready.
    pub async fn run(&self, instance: AgentInstance) -> InstanceId {
        let id = instance.id;
        self.waifud.put(instance);
        self.until_ready(id).await;
        id
    }

    /// Requests a stop as a user, and waits until the instance is stopped.
    pub async fn stop(&self, id: InstanceId) -> InstanceReport {
        self.waifud.edit(id, |instance| instance.spec.run = false);
        self.until_state(id, InstanceState::Stopped).await
    }

    /// Requests a start, and waits until the instance is ready.
    pub async fn start_again(&self, id: InstanceId) {
        self.waifud.edit(id, |instance| instance.spec.run = true);
        self.until_ready(id).await;
    }

    /// Lets QEMU pause the guest because its pool is full, and waits until that is reported.
    pub async fn pause_for_space(&self, id: InstanceId) -> InstanceReport {
        self.pool.set_full(true);
        self.hypervisor.pause(id, true);
        self.until_state(id, InstanceState::Paused).await
    }

    /// Waits until the instance is stopped, and checks who stopped it.
    pub async fn until_stopped_by(&self, id: InstanceId, by: StoppedBy) -> InstanceReport {
        let status = self.until_state(id, InstanceState::Stopped).await;
        assert_eq!(status.stopped_by, Some(by));
        status
    }

    /// Checks that the domain is off for this reason.
    pub async fn is_off(&self, id: InstanceId, reason: OffReason) {
        let state = self.domain(id).await;
        assert_eq!(state, Some(DomainState::Off(reason)));
    }

    pub async fn until_ready(&self, id: InstanceId) {
        self.until_status(id, "ready", |s| {
            s.state == InstanceState::Running && s.ready
        })
        .await;
    }

    pub async fn until_state(&self, id: InstanceId, state: InstanceState) -> InstanceReport {
        self.until_status(id, state.as_str(), |s| s.state == state)
            .await
    }

    pub async fn until_status(
        &self,
        id: InstanceId,
        what: &str,
        is_so: impl Fn(&InstanceReport) -> bool,
    ) -> InstanceReport {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.waifud.status(id);
            if let Some(status) = &status
                && is_so(status)
            {
                return status.clone();
            }
            assert!(
                Instant::now() < deadline,
                "never {what}; the last status was {status:#?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so().await {
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn domain(&self, id: InstanceId) -> Option<DomainState> {
        self.hypervisor.get(id).await.unwrap().map(|d| d.state)
    }

    pub async fn volumes(&self) -> usize {
        self.pool.volumes().await.unwrap().len()
    }

    pub fn ports(&self) -> usize {
        self.network.state().map_or(0, |state| state.ports.len())
    }

    /// Deletes the instance, waits until waifud has received the confirmation, and checks that nothing is left.
    pub async fn delete(&self, id: InstanceId) {
        self.waifud.delete(id);
        self.until_destroyed(id).await;
    }

    pub async fn until_destroyed(&self, id: InstanceId) {
        self.until("destroyed", async || {
            self.waifud.destroyed().iter().any(|t| t.instance == id)
        })
        .await;
        assert_eq!(self.domain(id).await, None);
        let volumes = self.pool.volumes().await.unwrap();
        assert!(volumes.iter().all(|v| v.id.instance != id));
        assert!(!self.metadata.held().contains_key(&id));
        let state = self.network.state();
        assert!(state.is_none_or(|s| s.ports.iter().all(|p| p.instance != id)));
        assert!(
            !self
                .settings
                .state_dir
                .join(format!("instances/{id}"))
                .exists()
        );
        self.until("the record is removed", async || {
            !self
                .settings
                .state_dir
                .join(format!("records/{id}.json"))
                .exists()
        })
        .await;
    }
}

/// Calls `round` with growing pauses until it returns that the work was complete before it killed the agent. The pauses grow
/// by a part of themselves, so that the end is reached on a busy machine, too. Where the work is complete after a few kills,
/// the machine is fast: then all is repeated with smaller steps.
pub async fn until_complete_before_the_kill(round: impl AsyncFn(Duration) -> bool) {
    let mut step = Duration::from_micros(100);
    loop {
        let mut pause = Duration::ZERO;
        let mut interrupted = 0;
        while !round(pause).await {
            interrupted += 1;
            pause += step + pause / 20;
            assert!(pause < DEADLINE, "never complete before the kill");
        }
        if interrupted > 10 {
            return;
        }
        step /= 2;
        assert!(
            !step.is_zero(),
            "only {interrupted} kills came before the end"
        );
    }
}

/// Lets other tasks run for this long, without a timer's precision of a millisecond.
pub async fn keep_busy(pause: Duration) {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

/// A guest agent in a guest whose cloud-init is done.
pub fn cloud_init_done() -> AgentScript {
    guest_with(&[
        (
            "/run/cloud-init/result.json",
            r#"{"v1": {"datasource": "DataSourceOpenStackLocal", "errors": []}}"#,
        ),
        ("/run/cloud-init/.instance-id", "i-1\n"),
    ])
}

/// A guest agent in a guest with these files.
pub fn guest_with(files: &[(&'static str, &'static str)]) -> AgentScript {
    use base64::Engine;
    let files = files.to_vec();
    Arc::new(move |command| {
        let arguments = &command["arguments"];
        match command["execute"].as_str()? {
            "guest-file-open" => {
                let path = arguments["path"].as_str()?;
                let index = files.iter().position(|(name, _)| *name == path);
                // A handle, or null.
                Some(index.map_or(serde_json::json!(null), |i| serde_json::json!(i)))
            }
            "guest-file-read" => {
                let index = usize::try_from(arguments["handle"].as_u64()?).ok()?;
                let text = files.get(index)?.1;
                let encoded = base64::engine::general_purpose::STANDARD.encode(text);
                Some(serde_json::json!({"count": text.len(), "buf-b64": encoded, "eof": true}))
            }
            _ => Some(serde_json::json!({})),
        }
    })
}
