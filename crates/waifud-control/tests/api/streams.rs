//! Streams over real sockets, between a client with a WebSocket and an agent that the test drives.

mod refusals;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::common::{Agent, DEADLINE, Server, report};
use axum::extract::ConnectInfo;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use waifud_api::agent::WatchFrame;
use waifud_api::agent_client::AgentClient;
use waifud_api::client::{Client, ClientError, ClientStream, StreamEnd};
use waifud_api::hint::{HintAction, HintKind};
use waifud_api::stream::{RefusalReason, StreamKind, StreamOrder, StreamRefusal};
use waifud_control::streams::StreamLimits;
use waifud_control::{Peer, http};
use waifud_types::{ByteSize, InstanceId, InstanceState};

struct StreamTest {
    server: Server,
    client: Client,
    user_socket: PathBuf,
    agent: Agent,
    id: InstanceId,
}

impl StreamTest {
    /// A running instance on a node whose watch is open.
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
            .report_instance(report(made.id, InstanceState::Running))
            .await;
        agent.watch_from_now().await;
        Self {
            client: Client::unix(&user_socket).unwrap(),
            user_socket,
            agent,
            id: made.id,
            server,
        }
    }

    /// Starts to open a stream of this kind.
    fn request(
        &self,
        kind: &'static str,
    ) -> tokio::task::JoinHandle<Result<ClientStream, ClientError>> {
        let client = self.client.clone();
        tokio::spawn(async move { client.open_stream("web", kind, None).await })
    }

    /// The next order to open a stream that the agent receives.
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

    /// A client whose connections are treated as connections of this agent.
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
        route: &'static str,
        kind: StreamKind,
    ) -> (
        ClientStream,
        waifud_api::agent_client::AgentStream,
        StreamOrder,
    ) {
        let opening = self.request(route);
        let order = self.order().await;
        assert_eq!((order.instance, order.kind), (self.id, kind));
        let agent = self.node().stream(order.id).await.unwrap();
        (opening.await.unwrap().unwrap(), agent, order)
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

fn closed(reason: &str) -> StreamEnd {
    StreamEnd::Closed(reason.to_owned())
}

#[tokio::test]
async fn bytes_flow_both_ways_until_the_guest_closes_its_side() {
    let mut test = StreamTest::with(|_| {}).await;
    let (mut client, mut agent, _) = test.open().await;
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
        "the half-close did not arrive"
    );
    agent.write_all(b"bye").await.unwrap();
    assert_eq!(client.from.next().await.unwrap(), "bye");
    agent.shutdown().await.unwrap();
    assert_eq!(end(&mut client).await, StreamEnd::Done);
}

#[tokio::test]
async fn bytes_sent_after_the_guest_closed_its_side_still_reach_it() {
    let mut test = StreamTest::with(|_| {}).await;
    let (mut client, mut agent, _) = test.open_kind("ssh", StreamKind::Ssh).await;
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
    // Both sides are closed, so the stream has ended.
    assert_eq!(end(&mut client).await, StreamEnd::Done);
}

#[tokio::test]
async fn a_reset_by_the_guest_reaches_the_client() {
    let mut test = StreamTest::with(|_| {}).await;
    let (mut client, mut agent, _) = test.open_kind("ssh", StreamKind::Ssh).await;
    client.to.send(Bytes::from_static(b"unread")).await.unwrap();
    agent.write_all(b"seen").await.unwrap();
    assert_eq!(client.from.next().await.unwrap(), "seen");
    until_readable(&mut agent).await;
    // The kernel resets a connection that is closed with unread bytes.
    drop(agent);
    assert_eq!(end(&mut client).await, StreamEnd::Reset);
}

#[tokio::test]
async fn a_reset_after_the_guest_closed_its_side_reaches_the_client() {
    let mut test = StreamTest::with(|_| {}).await;
    let (mut client, mut agent, _) = test.open_kind("ssh", StreamKind::Ssh).await;
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

/// Waits until bytes have arrived and reads only the first of them.
async fn until_readable(agent: &mut waifud_api::agent_client::AgentStream) {
    let mut one = [0];
    tokio::time::timeout(DEADLINE, agent.read_exact(&mut one))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_connection_of_the_agent_ends_when_the_client_disconnects() {
    // A unix socket does not tell an orderly end from a reset; TLS does (waifud/tests/program/streams.rs).
    for orderly in [true, false] {
        let mut test = StreamTest::with(|_| {}).await;
        let (mut client, mut agent, _) = test.open().await;
        if orderly {
            client.to.close().await;
        }
        drop(client);
        let mut rest = Vec::new();
        let read = tokio::time::timeout(DEADLINE, agent.read_to_end(&mut rest));
        read.await.unwrap().unwrap();
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn a_stream_id_is_valid_once_and_for_its_node_only() {
    let mut test = StreamTest::with(|_| {}).await;
    let other = test.server.join("birch", ByteSize::gib(8)).await;
    let opening = test.request("console");
    let order = test.order().await;
    let intruder = test.client_of(&other);
    assert_eq!(
        intruder.stream(order.id).await.unwrap_err().status(),
        Some(404)
    );
    let refusal = StreamRefusal {
        reason: RefusalReason::NotHere,
        message: "refused by another node".to_owned(),
    };
    let refused = intruder.refuse_stream(order.id, &refusal).await;
    assert_eq!(refused.unwrap_err().status(), Some(404));
    // The attempts of the other node do not use up the ID.
    let agent = test.node().stream(order.id).await.unwrap();
    let client = opening.await.unwrap().unwrap();
    assert_eq!(
        test.node().stream(order.id).await.unwrap_err().status(),
        Some(404),
        "replayed"
    );
    drop((agent, client));
    let unknown = waifud_api::stream::StreamId::from_bytes([7; 32]);
    assert_eq!(
        test.node().stream(unknown).await.unwrap_err().status(),
        Some(404)
    );
}

#[tokio::test]
async fn an_agent_that_does_not_connect_times_out_and_its_id_expires() {
    let mut test =
        StreamTest::with(|limits| limits.agent_timeout = Duration::from_millis(200)).await;
    let opening = test.request("console");
    let order = test.order().await;
    let error = opening.await.unwrap().unwrap_err();
    assert_eq!(code(&error), (504, "agent-timeout"));
    assert_eq!(
        test.node().stream(order.id).await.unwrap_err().status(),
        Some(404)
    );
}

#[tokio::test]
async fn a_refusal_by_the_node_becomes_a_problem_without_control_characters() {
    let mut test = StreamTest::with(|_| {}).await;
    let opening = test.request("console");
    let order = test.order().await;
    let refusal = StreamRefusal {
        reason: RefusalReason::NotRunning,
        message: "it is \u{1b}[31moff".to_owned(),
    };
    test.node().refuse_stream(order.id, &refusal).await.unwrap();
    let error = opening.await.unwrap().unwrap_err();
    assert_eq!(code(&error), (409, "instance-not-running"));
    let problem = error.problem().unwrap();
    assert!(!problem.title.contains('\u{1b}'));
    let start = (HintAction::Start, HintKind::Instance);
    assert!(problem.hints[0].is(&start.0, start.1, "web"), "{problem:?}");
}

#[tokio::test]
async fn streams_that_cannot_be_opened_are_refused_before_the_upgrade() {
    let mut test = StreamTest::with(|_| {}).await;
    test.server
        .get("/v1/instances/web/console")
        .await
        .expect(426);
    let missing = test.client.open_stream("missing", "console", None).await;
    assert_eq!(code(&missing.unwrap_err()), (404, "not-found"));
    test.agent
        .report_instance(report(test.id, InstanceState::Stopped))
        .await;
    let off = test.request("console").await.unwrap().unwrap_err();
    assert_eq!(code(&off), (409, "instance-not-running"));
    assert!(off.problem().unwrap().hint.is_some());
    test.agent
        .report_instance(report(test.id, InstanceState::Running))
        .await;
    // Without a watch, the agent cannot receive the order.
    test.agent.hang_up();
    let away = async {
        loop {
            let error = test.request("console").await.unwrap().unwrap_err();
            if code(&error) == (504, "node-unreachable") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, away).await.unwrap();
}

#[tokio::test]
async fn stopping_or_deleting_the_instance_and_stopping_waifud_close_streams() {
    let mut test = StreamTest::with(|_| {}).await;
    let (mut client, _agent, _) = test.open().await;
    test.agent
        .report_instance(report(test.id, InstanceState::Stopped))
        .await;
    assert_eq!(end(&mut client).await, closed("the instance stopped"));

    test.agent
        .report_instance(report(test.id, InstanceState::Running))
        .await;
    let (mut client, mut agent, _) = test.open().await;
    test.server.delete("/v1/instances/web").await.expect(202);
    assert_eq!(
        end(&mut client).await,
        closed("the instance is being deleted")
    );
    let mut rest = Vec::new();
    let read = tokio::time::timeout(DEADLINE, agent.read_to_end(&mut rest));
    read.await.unwrap().unwrap();
    assert!(rest.is_empty());
    let error = test.request("console").await.unwrap().unwrap_err();
    assert_eq!(code(&error).0, 409);

    let mut test = StreamTest::with(|_| {}).await;
    let (mut client, _agent, _) = test.open().await;
    test.server.control.stop_token().cancel();
    assert_eq!(end(&mut client).await, closed("waifud is stopping"));
}

#[tokio::test]
async fn revoking_a_token_closes_its_streams() {
    let mut test = StreamTest::with(|_| {}).await;
    let secret = test.server.token("laptop", "operator", None).await;
    let opening = tokio::spawn(upgrade(test.user_socket.clone(), secret));
    let order = test.order().await;
    let _agent = test.node().stream(order.id).await.unwrap();
    let mut client = opening.await.unwrap();
    test.server.delete("/v1/tokens/laptop").await.expect(204);
    let mut received = Vec::new();
    tokio::time::timeout(DEADLINE, client.read_to_end(&mut received))
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8_lossy(&received);
    assert!(answer.contains("the token was revoked"), "{answer}");
}

/// Opens a console with a token by hand-written HTTP and returns the upgraded connection.
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
    // A pause of the whole machine counts as idle, too. After a pause longer than half the limit, try a larger limit.
    let mut idle = Duration::from_millis(250);
    loop {
        let mut test = StreamTest::with(|limits| limits.idle = idle).await;
        let (mut client, mut agent, _) = test.open().await;
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
            assert_eq!(end(&mut client).await, closed("idle for too long"));
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
async fn an_oversized_message_closes_the_stream() {
    let mut test = StreamTest::with(|limits| limits.message = 1024).await;
    let (mut client, _agent, _) = test.open().await;
    client.to.send(Bytes::from(vec![0; 4096])).await.unwrap();
    assert_eq!(
        end(&mut client).await,
        closed("the client sent a message that exceeds the limit")
    );
}

#[tokio::test]
async fn streams_are_limited_per_instance() {
    let mut test = StreamTest::with(|limits| limits.per_instance = 1).await;
    let (mut client, agent, _) = test.open().await;
    let error = test.request("console").await.unwrap().unwrap_err();
    assert_eq!(code(&error), (429, "too-many-streams"));
    drop(agent);
    assert_eq!(end(&mut client).await, StreamEnd::Done);
    // Another stream can be opened once the first one is closed.
    let again = async {
        loop {
            let mut opening = test.request("console");
            tokio::select! {
                order = test.order() => {
                    let _agent = test.node().stream(order.id).await.unwrap();
                    return opening.await.unwrap().unwrap();
                }
                // Refused, because the place of the first one is not free yet.
                refused = &mut opening => {
                    assert_eq!(code(&refused.unwrap().unwrap_err()), (429, "too-many-streams"));
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn a_slow_client_slows_the_guest_down_and_buffers_stay_bounded() {
    let mut test = StreamTest::with(|_| {}).await;
    let (mut client, mut agent, _) = test.open().await;
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0_usize;
    // The client does not read. waifud and the two sockets buffer little, so writing blocks.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), agent.write(&chunk)).await
    {
        sent += written.unwrap();
        assert!(sent < 16 << 20, "16 MiB are in flight");
    }
    assert!(sent > 0);
    let mut received = 0;
    while received < sent {
        received += client.from.next().await.unwrap().len();
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn each_route_opens_its_kind_of_stream() {
    let mut test = StreamTest::with(|_| {}).await;
    for (route, port, kind) in [
        ("ssh", None, StreamKind::Ssh),
        ("screen", None, StreamKind::Screen),
        ("forward", Some(8080), StreamKind::Forward { port: 8080 }),
    ] {
        let client = test.client.clone();
        let opening = tokio::spawn(async move { client.open_stream("web", route, port).await });
        let order = test.order().await;
        assert_eq!((order.instance, order.kind), (test.id, kind));
        let mut agent = test.node().stream(order.id).await.unwrap();
        let mut client = opening.await.unwrap().unwrap();
        agent.write_all(b"RFB").await.unwrap();
        assert_eq!(client.from.next().await.unwrap(), "RFB");
    }
    for port in [None, Some(0)] {
        let error = test.client.open_stream("web", "forward", port).await;
        assert_eq!(code(&error.unwrap_err()), (400, "invalid-query"));
    }
}

#[tokio::test]
async fn a_log_is_streamed_as_an_ordinary_response() {
    use futures::StreamExt;
    let mut test = StreamTest::with(|_| {}).await;
    let client = test.client.clone();
    let opening = tokio::spawn(async move {
        let log = client.log("web", "console", 5, true).await.unwrap();
        log.map(|bytes| bytes.unwrap().to_vec()).concat().await
    });
    let order = test.order().await;
    assert_eq!(
        order.kind,
        StreamKind::ConsoleLog {
            lines: 5,
            follow: true
        }
    );
    let mut agent = test.node().stream(order.id).await.unwrap();
    agent.write_all(b"Linux version 6\n").await.unwrap();
    agent.shutdown().await.unwrap();
    assert_eq!(opening.await.unwrap(), b"Linux version 6\n");
    for bad in [
        "source=nowhere",
        "source=cloud-init&follow=true",
        "lines=1000000",
        "who=me",
    ] {
        let path = format!("/v1/instances/web/log?{bad}");
        test.server.get(&path).await.expect(400);
    }
}
