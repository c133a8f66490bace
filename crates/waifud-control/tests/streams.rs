//! Streams over real sockets between a client with a WebSocket and an agent driven by the test.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::extract::ConnectInfo;
use bytes::Bytes;
use common::{Agent, DEADLINE, Server, report};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use waifud_api::agent::WatchFrame;
use waifud_api::agent_client::AgentClient;
use waifud_api::client::{Client, ClientError, ClientStream, StreamEnd};
use waifud_api::stream::{RefusalReason, StreamKind, StreamOrder, StreamRefusal};
use waifud_control::streams::StreamLimits;
use waifud_control::{Peer, http};
use waifud_types::{ByteSize, InstanceId, InstanceState};

struct World {
    server: Server,
    client: Client,
    user_socket: PathBuf,
    agent: Agent,
    id: InstanceId,
}

impl World {
    /// An instance that runs on a node whose watch is open.
    async fn with(change: impl FnOnce(&mut StreamLimits)) -> Self {
        let server = Server::with(|config| change(&mut config.streams)).await;
        let user_socket = server.dir.path().join("user.sock");
        let listener = UnixListener::bind(&user_socket).unwrap();
        let service =
            http::user_router(server.control.clone()).into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        server.template().await;
        let mut agent = server.join("alder", ByteSize::gib(8)).await;
        let made = server.create_instance("web").await;
        agent
            .send_report(report(made.id, InstanceState::Running))
            .await;
        agent.watch(None).await;
        agent.until_sync().await;
        Self {
            client: Client::unix(&user_socket).unwrap(),
            user_socket,
            agent,
            id: made.id,
            server,
        }
    }

    fn ask(
        &self,
        what: &'static str,
    ) -> tokio::task::JoinHandle<Result<ClientStream, ClientError>> {
        let client = self.client.clone();
        tokio::spawn(async move { client.open_stream("web", what, None).await })
    }

    async fn order(&mut self) -> StreamOrder {
        loop {
            if let WatchFrame::Stream(order) = self.agent.frame().await {
                return order;
            }
        }
    }

    fn node(&self) -> AgentClient {
        self.client_of(&self.agent)
    }

    /// A client whose connections are treated as the node's.
    fn client_of(&self, agent: &Agent) -> AgentClient {
        let socket = self.server.dir.path().join(format!("{}.sock", agent.id));
        if !socket.exists() {
            let listener = UnixListener::bind(&socket).unwrap();
            let router = http::tls_router(self.server.control.clone())
                .layer(axum::Extension(ConnectInfo(agent.peer())));
            tokio::spawn(async move { axum::serve(listener, router).await });
        }
        AgentClient::unix(socket)
    }

    async fn open(
        &mut self,
    ) -> (
        ClientStream,
        waifud_api::agent_client::AgentStream,
        StreamOrder,
    ) {
        self.open_kind("console", StreamKind::Console).await
    }

    async fn open_kind(
        &mut self,
        what: &'static str,
        kind: StreamKind,
    ) -> (
        ClientStream,
        waifud_api::agent_client::AgentStream,
        StreamOrder,
    ) {
        let asked = self.ask(what);
        let order = self.order().await;
        assert_eq!((order.instance, order.kind), (self.id, kind));
        let agent = self.node().stream(order.id).await.unwrap();
        (asked.await.unwrap().unwrap(), agent, order)
    }
}

fn code(error: &ClientError) -> (u16, &str) {
    let problem = error.problem().unwrap();
    (problem.status, &problem.code)
}

async fn end(client: &mut ClientStream) -> StreamEnd {
    let all = async {
        loop {
            if let Err(end) = client.from.next().await {
                return end;
            }
        }
    };
    tokio::time::timeout(DEADLINE, all).await.unwrap()
}

fn cut(reason: &str) -> StreamEnd {
    StreamEnd::Closed(reason.to_owned())
}

#[tokio::test]
async fn data_flows_in_both_directions_until_the_guest_ends_its_side() {
    let mut world = World::with(|_| {}).await;
    let (mut client, mut agent, _) = world.open().await;
    client.to.send(Bytes::from_static(b"root\r")).await.unwrap();
    let mut typed = [0; 5];
    agent.read_exact(&mut typed).await.unwrap();
    assert_eq!(&typed, b"root\r");
    agent.write_all(b"Password: ").await.unwrap();
    assert_eq!(client.from.next().await.unwrap(), "Password: ");
    client.to.finish().await.unwrap();
    assert_eq!(
        agent.read(&mut typed).await.unwrap(),
        0,
        "no end was passed on"
    );
    agent.write_all(b"bye").await.unwrap();
    assert_eq!(client.from.next().await.unwrap(), "bye");
    agent.shutdown().await.unwrap();
    assert_eq!(end(&mut client).await, StreamEnd::Done);
}

#[tokio::test]
async fn data_sent_after_the_guests_end_still_reaches_the_guest() {
    let mut world = World::with(|_| {}).await;
    let (mut client, mut agent, _) = world.open_kind("ssh", StreamKind::Ssh).await;
    agent.write_all(b"220 ready").await.unwrap();
    agent.shutdown().await.unwrap();
    assert_eq!(client.from.next().await.unwrap(), "220 ready");
    assert_eq!(client.from.next().await, Err(StreamEnd::Finished));
    // More than waifud and the two connections hold.
    let upload = Bytes::from(vec![b'u'; 100 << 10]);
    let sending = async {
        for _ in 0..50 {
            client.to.send(upload.clone()).await.unwrap();
        }
        client.to.finish().await.unwrap();
    };
    let mut received = Vec::new();
    let ((), read) = tokio::time::timeout(DEADLINE, async {
        tokio::join!(sending, agent.read_to_end(&mut received))
    })
    .await
    .unwrap();
    read.unwrap();
    assert_eq!(received.len(), 50 * upload.len());
    // Both directions have ended, so the stream has ended.
    assert_eq!(end(&mut client).await, StreamEnd::Done);
}

#[tokio::test]
async fn a_reset_by_the_guest_reaches_the_client() {
    let mut world = World::with(|_| {}).await;
    let (mut client, mut agent, _) = world.open_kind("ssh", StreamKind::Ssh).await;
    client.to.send(Bytes::from_static(b"unread")).await.unwrap();
    agent.write_all(b"seen").await.unwrap();
    assert_eq!(client.from.next().await.unwrap(), "seen");
    until_readable(&mut agent).await;
    // Unread data makes the kernel reset the connection.
    drop(agent);
    assert_eq!(end(&mut client).await, StreamEnd::Reset);
}

#[tokio::test]
async fn a_reset_after_the_guests_end_is_a_reset() {
    let mut world = World::with(|_| {}).await;
    let (mut client, mut agent, _) = world.open_kind("ssh", StreamKind::Ssh).await;
    agent.shutdown().await.unwrap();
    assert_eq!(client.from.next().await, Err(StreamEnd::Finished));
    drop(agent);
    let sending = async {
        while client.to.send(Bytes::from_static(b"more")).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let ended = async {
        loop {
            match client.from.next().await {
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    };
    let ended = tokio::time::timeout(DEADLINE, async {
        tokio::select! {
            ended = ended => ended,
            () = async { sending.await; std::future::pending().await } => unreachable!(),
        }
    });
    assert_eq!(ended.await.unwrap(), StreamEnd::Reset);
}

/// Waits for data, and reads only one byte of it.
async fn until_readable(agent: &mut waifud_api::agent_client::AgentStream) {
    let mut one = [0];
    tokio::time::timeout(DEADLINE, agent.read_exact(&mut one))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_agent_is_notified_when_the_client_disconnects() {
    let mut world = World::with(|_| {}).await;
    let (mut client, mut agent, _) = world.open().await;
    client.to.close().await;
    drop(client);
    let mut rest = Vec::new();
    let read = tokio::time::timeout(DEADLINE, agent.read_to_end(&mut rest));
    let _end_or_reset = read.await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_stream_id_is_valid_once_and_for_its_node_only() {
    let mut world = World::with(|_| {}).await;
    let other = world.server.join("birch", ByteSize::gib(8)).await;
    let asked = world.ask("console");
    let order = world.order().await;
    let thief = world.client_of(&other);
    assert_eq!(
        thief.stream(order.id).await.unwrap_err().status(),
        Some(404)
    );
    let refusal = StreamRefusal {
        reason: RefusalReason::NotHere,
        message: "a thief's word".to_owned(),
    };
    let refused = thief.refuse_stream(order.id, &refusal).await;
    assert_eq!(refused.unwrap_err().status(), Some(404));
    // The node's own agent can still use the id.
    let agent = world.node().stream(order.id).await.unwrap();
    let client = asked.await.unwrap().unwrap();
    assert_eq!(
        world.node().stream(order.id).await.unwrap_err().status(),
        Some(404),
        "replayed"
    );
    drop((agent, client));
    let unknown = waifud_api::stream::StreamId::from_bytes([7; 32]);
    assert_eq!(
        world.node().stream(unknown).await.unwrap_err().status(),
        Some(404)
    );
}

#[tokio::test]
async fn an_agent_that_does_not_connect_times_out_and_its_id_expires() {
    let mut world = World::with(|limits| limits.agent_timeout = Duration::from_millis(200)).await;
    let asked = world.ask("console");
    let order = world.order().await;
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(code(&error), (504, "agent-timeout"));
    assert_eq!(
        world.node().stream(order.id).await.unwrap_err().status(),
        Some(404)
    );
}

#[tokio::test]
async fn a_refusal_of_the_node_becomes_a_problem_with_its_message() {
    let mut world = World::with(|_| {}).await;
    let asked = world.ask("console");
    let order = world.order().await;
    let refusal = StreamRefusal {
        reason: RefusalReason::NotRunning,
        message: "it is \u{1b}[31moff".to_owned(),
    };
    world
        .node()
        .refuse_stream(order.id, &refusal)
        .await
        .unwrap();
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(code(&error), (409, "instance-not-running"));
    assert!(!error.problem().unwrap().title.contains('\u{1b}'));
}

#[tokio::test]
async fn errors_are_answered_before_the_upgrade() {
    let mut world = World::with(|_| {}).await;
    world
        .server
        .get("/v1/instances/web/console")
        .await
        .expect(426);
    let missing = world.client.open_stream("nobody", "console", None).await;
    assert_eq!(code(&missing.unwrap_err()), (404, "not-found"));
    world
        .agent
        .send_report(report(world.id, InstanceState::Stopped))
        .await;
    let off = world.ask("console").await.unwrap().unwrap_err();
    assert_eq!(code(&off), (409, "instance-not-running"));
    assert!(off.problem().unwrap().hint.is_some());
    world
        .agent
        .send_report(report(world.id, InstanceState::Running))
        .await;
    // Without a watch, the order cannot be delivered.
    world.agent.hang_up();
    let away = async {
        loop {
            let error = world.ask("console").await.unwrap().unwrap_err();
            if code(&error) == (504, "node-unreachable") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, away).await.unwrap();
}

#[tokio::test]
async fn deleting_stopping_and_the_end_of_waifud_close_streams() {
    let mut world = World::with(|_| {}).await;
    let (mut client, _agent, _) = world.open().await;
    world
        .agent
        .send_report(report(world.id, InstanceState::Stopped))
        .await;
    assert_eq!(end(&mut client).await, cut("the instance stopped"));

    world
        .agent
        .send_report(report(world.id, InstanceState::Running))
        .await;
    let (mut client, mut agent, _) = world.open().await;
    world.server.delete("/v1/instances/web").await;
    assert_eq!(end(&mut client).await, cut("the instance is being deleted"));
    let mut rest = Vec::new();
    let _end_or_reset = tokio::time::timeout(DEADLINE, agent.read_to_end(&mut rest))
        .await
        .unwrap();
    let error = world.ask("console").await.unwrap().unwrap_err();
    assert_eq!(code(&error).0, 409);

    let mut world = World::with(|_| {}).await;
    let (mut client, _agent, _) = world.open().await;
    world.server.control.stop_token().cancel();
    assert_eq!(end(&mut client).await, cut("waifud is stopping"));
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_revoked() {
    let mut world = World::with(|_| {}).await;
    let made = world
        .server
        .post("/v1/tokens", &json!({"name": "laptop", "role": "operator"}))
        .await
        .expect(201)
        .json();
    let secret = made["secret"].as_str().unwrap().to_owned();
    let asked = tokio::spawn(upgrade(world.user_socket.clone(), secret));
    let order = world.order().await;
    let _agent = world.node().stream(order.id).await.unwrap();
    let mut client = asked.await.unwrap();
    world.server.delete("/v1/tokens/laptop").await;
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, client.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("the token was revoked"), "{answer}");
}

/// Requests a console with a token, and returns the upgraded connection.
async fn upgrade(socket: PathBuf, token: String) -> tokio::net::UnixStream {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let head = format!(
        "GET /v1/instances/web/console HTTP/1.1\r\nhost: w\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    stream
}

#[tokio::test]
async fn an_idle_stream_is_closed_and_a_busy_one_is_not() {
    // A pause of the whole machine is idleness, too: where one was longer than the limit, the limit is doubled.
    let mut idle = Duration::from_millis(250);
    loop {
        let mut world = World::with(|limits| limits.idle = idle).await;
        let (mut client, mut agent, _) = world.open().await;
        // Busy for longer than the limit, and then idle.
        let begun = Instant::now();
        let mut last = begun;
        let mut longest_pause = Duration::ZERO;
        let mut closed_while_busy = false;
        while begun.elapsed() < 2 * idle && !closed_while_busy {
            closed_while_busy =
                agent.write_all(b"x").await.is_err() || client.from.next().await.is_err();
            longest_pause = longest_pause.max(last.elapsed());
            last = Instant::now();
            tokio::time::sleep(idle / 20).await;
        }
        if !closed_while_busy {
            assert_eq!(end(&mut client).await, cut("idle for too long"));
            return;
        }
        assert!(
            longest_pause >= idle / 2,
            "closed after {longest_pause:?} without data, and the limit is {idle:?}"
        );
        idle *= 2;
        assert!(idle < DEADLINE, "this machine is too slow for this test");
    }
}

#[tokio::test]
async fn a_too_large_message_closes_the_stream() {
    let mut world = World::with(|limits| limits.message = 1024).await;
    let (mut client, _agent, _) = world.open().await;
    client.to.send(Bytes::from(vec![0; 4096])).await.unwrap();
    assert_eq!(end(&mut client).await, cut("message too large"));
}

#[tokio::test]
async fn the_number_of_streams_per_instance_is_limited() {
    let mut world = World::with(|limits| limits.per_instance = 1).await;
    let (mut client, agent, _) = world.open().await;
    let error = world.ask("console").await.unwrap().unwrap_err();
    assert_eq!(code(&error), (429, "too-many-streams"));
    drop(agent);
    assert_eq!(end(&mut client).await, StreamEnd::Done);
    // The permit is released after the close frame.
    let again = async {
        loop {
            let asked = world.ask("console");
            tokio::select! {
                order = world.order() => {
                    let _agent = world.node().stream(order.id).await.unwrap();
                    return asked.await.unwrap().unwrap();
                }
                () = tokio::time::sleep(Duration::from_millis(50)) => asked.abort(),
            }
        }
    };
    tokio::time::timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_slows_down_the_guest_without_using_memory() {
    let mut world = World::with(|_| {}).await;
    let (mut client, mut agent, _) = world.open().await;
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0_usize;
    // Nothing is read: waifud and the sockets buffer little, so writing stops.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), agent.write(&chunk)).await
    {
        sent += written.unwrap();
        assert!(sent < 16 << 20, "16 MiB are in flight");
    }
    let mut got = 0;
    while got < sent {
        got += client.from.next().await.unwrap().len();
    }
    assert_eq!(got, sent);
}

#[tokio::test]
async fn ports_and_the_screen_are_requested_by_kind() {
    let mut world = World::with(|_| {}).await;
    for (what, port, kind) in [
        ("ssh", None, StreamKind::Ssh),
        ("screen", None, StreamKind::Screen),
        ("forward", Some(8080), StreamKind::Forward { port: 8080 }),
    ] {
        let client = world.client.clone();
        let asked = tokio::spawn(async move { client.open_stream("web", what, port).await });
        let order = world.order().await;
        assert_eq!((order.instance, order.kind), (world.id, kind));
        let mut agent = world.node().stream(order.id).await.unwrap();
        let mut client = asked.await.unwrap().unwrap();
        agent.write_all(b"RFB").await.unwrap();
        assert_eq!(client.from.next().await.unwrap(), "RFB");
    }
    for port in [None, Some(0)] {
        let error = world.client.open_stream("web", "forward", port).await;
        assert_eq!(code(&error.unwrap_err()), (400, "invalid-query"));
    }
}

#[tokio::test]
async fn a_log_is_a_plain_response() {
    use futures::StreamExt;
    let mut world = World::with(|_| {}).await;
    let client = world.client.clone();
    let asked = tokio::spawn(async move {
        let log = client.log("web", "console", 5, true).await.unwrap();
        log.map(|bytes| bytes.unwrap().to_vec()).concat().await
    });
    let order = world.order().await;
    assert_eq!(
        order.kind,
        StreamKind::ConsoleLog {
            lines: 5,
            follow: true
        }
    );
    let mut agent = world.node().stream(order.id).await.unwrap();
    agent.write_all(b"Linux version 6\n").await.unwrap();
    agent.shutdown().await.unwrap();
    assert_eq!(asked.await.unwrap(), b"Linux version 6\n");
    for bad in [
        "source=nowhere",
        "source=cloud-init&follow=true",
        "lines=1000000",
        "who=me",
    ] {
        let path = format!("/v1/instances/web/log?{bad}");
        world.server.get(&path).await.expect(400);
    }
}
