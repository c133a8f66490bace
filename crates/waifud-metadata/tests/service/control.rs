//! The control socket, used with the agent's typed client.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Notify, Semaphore},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use waifud_api::{
    MetadatadClient, MetadatadError,
    metadatad::{Assignment, Held, Observed, Tunnel},
};
use waifud_cloudinit::digest_of;
use waifud_metadata::{
    ControlSocket, DiskStore, FakeStore, GuestLimits, MetadataService, Parts, StateStore,
    StoreError,
};
use waifud_types::{InstanceId, Secret};
use waifud_wireguard::PrivateKey;

use crate::fixture::{A, B, Fixture, Guest, PATIENCE, parts};

struct Agent {
    fixture: Fixture,
    client: MetadatadClient,
    socket: PathBuf,
    serving: JoinHandle<std::io::Result<()>>,
    _directory: tempfile::TempDir,
}

async fn agent() -> Agent {
    let fixture = Fixture::on(FakeStore::default(), GuestLimits::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    let serving = tokio::spawn(socket.serve(Arc::clone(&fixture.service), fixture.stop.clone()));
    Agent {
        fixture,
        client: MetadatadClient::new(path.clone()),
        socket: path,
        serving,
        _directory: directory,
    }
}

fn code(result: Result<(), MetadatadError>) -> (u16, String) {
    match result {
        Err(MetadatadError::Problem(problem)) => (problem.status, problem.code),
        other => panic!("not a problem: {other:?}"),
    }
}

#[tokio::test]
async fn an_instance_is_served_once_its_bundle_and_assignment_are_acknowledged() {
    let agent = agent().await;
    let guest = Guest::new("a", A);
    let early = agent
        .client
        .put_instance(guest.id, &guest.assignment)
        .await
        .unwrap_err();
    assert!(early.is_bundle_missing(), "{early}");
    let digest = guest.sealed.digest;
    for _ in 0..2 {
        agent
            .client
            .put_bundle(digest, guest.sealed.ciphertext.clone())
            .await
            .unwrap();
        agent
            .client
            .put_instance(guest.id, &guest.assignment)
            .await
            .unwrap();
    }
    assert_eq!(agent.fixture.get(A, "/latest/user-data").await.0, 200);
    let status = agent.client.status().await.unwrap();
    let held = Held {
        id: guest.id,
        address: A,
        bundle: digest,
    };
    assert_eq!(status.instances, [held]);
    assert_eq!(status.node_public_key, None);
    for _ in 0..2 {
        agent.client.delete_instance(guest.id).await.unwrap();
    }
    assert_eq!(agent.fixture.get(A, "/latest/user-data").await.0, 404);
    assert!(agent.client.status().await.unwrap().instances.is_empty());
}

#[tokio::test]
async fn inconsistent_requests_are_refused_with_their_code_and_change_nothing() {
    let agent = agent().await;
    let (a, b) = (Guest::new("a", A), Guest::new("b", B));
    agent.fixture.admit(&a).await;
    agent.fixture.admit(&b).await;
    let put = |id, assignment| {
        let client = agent.client.clone();
        async move { code(client.put_instance(id, &assignment).await) }
    };
    let wrong = agent
        .client
        .put_bundle(digest_of(b"x"), b"y".to_vec())
        .await;
    assert_eq!(code(wrong), (400, "digest-mismatch".to_owned()));

    let mut taken = b.assignment.clone();
    taken.address = A;
    assert_eq!(put(b.id, taken).await, (409, "address-taken".to_owned()));

    let mut wrong_key = a.assignment.clone();
    wrong_key.bundle.key = b.assignment.bundle.key.clone();
    assert_eq!(
        put(a.id, wrong_key).await,
        (400, "bundle-unreadable".to_owned())
    );

    let mut others = a.assignment.clone();
    others.bundle = b.assignment.bundle.clone();
    assert_eq!(
        put(a.id, others).await,
        (409, "bundle-of-another".to_owned())
    );

    for (address, guest) in [(A, &a), (B, &b)] {
        let (_, answer) = agent.fixture.get(address, "/latest/user-data").await;
        assert!(answer.contains(&guest.secret()));
    }
}

#[tokio::test]
async fn an_instance_can_change_its_address_and_releases_the_old_one() {
    let agent = agent().await;
    let guest = Guest::new("a", A);
    agent.fixture.admit(&guest).await;
    let mut moved = guest.assignment.clone();
    moved.address = B;
    agent.client.put_instance(guest.id, &moved).await.unwrap();
    assert_eq!(agent.fixture.get(A, "/latest/user-data").await.0, 404);
    assert_eq!(agent.fixture.get(B, "/latest/user-data").await.0, 200);
}

#[tokio::test]
async fn the_nodes_end_of_the_tunnel_is_set_and_an_invalid_key_is_refused() {
    let agent = agent().await;
    let mut tunnel = Tunnel {
        node_public_key: PrivateKey::generate().public_key().to_string(),
        node_endpoint: ([127, 0, 0, 1], 51822).into(),
        subnet: "10.144.3.0/24".parse().unwrap(),
        identities: None,
        moved: Vec::new(),
    };
    for _ in 0..2 {
        let status = agent.client.put_tunnel(&tunnel).await.unwrap();
        assert_eq!(
            status.node_public_key.as_ref(),
            Some(&tunnel.node_public_key)
        );
    }
    assert_eq!(
        agent.fixture.tunnel.peer().unwrap().allowed,
        [tunnel.subnet]
    );
    tunnel.node_public_key = "AAAA".to_owned();
    let refused = agent.client.put_tunnel(&tunnel).await.map(drop);
    assert_eq!(code(refused), (400, "tunnel-refused".to_owned()));
}

#[tokio::test]
async fn a_request_for_observations_waits_for_the_next_one() {
    let agent = agent().await;
    let guest = Guest::new("a", A);
    agent.fixture.admit(&guest).await;
    let none = agent.client.observations(0, Duration::ZERO).await.unwrap();
    assert_eq!((none.last, none.items.len()), (0, 0));
    let (seen, _) = tokio::join!(
        agent.client.observations(0, Duration::from_mins(1)),
        agent.fixture.get(A, "/openstack"),
    );
    let seen = seen.unwrap();
    assert_eq!(seen.last, 1);
    assert!(
        matches!(&seen.items[0].what, Observed::Request { path, status: 200 } if path == "/openstack")
    );
}

#[tokio::test]
async fn a_wait_ends_at_once_when_the_service_stops() {
    let agent = agent().await;
    let waiting = tokio::spawn({
        let client = agent.client.clone();
        async move { client.observations(0, Duration::from_mins(1)).await }
    });
    agent.client.status().await.unwrap();
    agent.fixture.stop.cancel();
    tokio::time::timeout(PATIENCE, agent.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    // It got an answer, or its request had not been read yet.
    let _ = tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(!agent.socket.exists());
}

#[tokio::test]
async fn only_the_owner_can_open_the_socket_and_a_stale_socket_is_replaced() {
    let agent = agent().await;
    let mode = std::fs::metadata(&agent.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = ControlSocket::bind(&path).unwrap();
    tokio::spawn(socket.serve(
        Arc::clone(&agent.fixture.service),
        agent.fixture.stop.clone(),
    ));
    MetadatadClient::new(path).status().await.unwrap();
}

#[tokio::test]
async fn a_missing_socket_and_a_service_that_does_not_answer_are_distinguished() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let client = MetadatadClient::new(path.clone()).with_timeout(Duration::from_millis(50));
    let error = client.status().await.unwrap_err();
    assert!(
        matches!(error, MetadatadError::Unreachable { .. }),
        "{error}"
    );
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, MetadatadError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn problems_about_malformed_requests_do_not_quote_them() {
    let agent = agent().await;
    let key = Secret::new("hunter2".to_owned());
    let ask = |line: &'static str, body: String| {
        let socket = agent.socket.clone();
        async move {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            let request = format!(
                "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }
    };
    let body = format!(
        "{{\"name\": \"a\", \"address\": 7, \"key\": \"{}\"}}",
        key.expose()
    );
    for (line, wanted) in [
        (
            "PUT /v1/instances/0198d2a8-1111-7000-8000-00000000000a",
            "400",
        ),
        ("PUT /v1/instances/not-a-uuid", "400"),
        ("PUT /v1/bundles/nothing", "400"),
        ("GET /v1/observations?after=x", "400"),
        ("GET /v1/other", "404"),
    ] {
        let answer = ask(line, body.clone()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {wanted}")),
            "{line}: {answer}"
        );
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(!answer.contains("hunter2"), "{answer}");
    }
    assert!(
        agent
            .client
            .delete_instance(InstanceId::generate())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn another_user_is_refused_even_if_the_mode_allows_it() {
    const UNASSIGNED: u32 = 65_534;
    if !nix::unistd::Uid::effective().is_root() {
        waifud_kit::testing::skip("needs root to switch to another user");
        return;
    }
    let agent = agent().await;
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(&agent.socket, open.clone()).unwrap();
    std::fs::set_permissions(agent.socket.parent().unwrap(), open).unwrap();
    let ask = |uid| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--max-time", "20", "http://localhost/v1/status"]);
        curl.arg("--unix-socket").arg(&agent.socket);
        std::os::unix::process::CommandExt::uid(&mut curl, uid);
        tokio::task::spawn_blocking(move || curl.output().unwrap())
    };
    // The socket is accessible to this user: the permission to write is the permission to connect.
    let mut test = std::process::Command::new("test");
    test.arg("-w").arg(&agent.socket);
    std::os::unix::process::CommandExt::uid(&mut test, UNASSIGNED);
    assert!(test.status().unwrap().success(), "its path is closed");
    let refused = ask(UNASSIGNED).await.unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    assert!(refused.stdout.is_empty(), "{refused:?}");
    let answered = ask(0).await.unwrap();
    assert_eq!(answered.status.code(), Some(0), "{answered:?}");
    assert!(answered.stdout.starts_with(b"{"), "{answered:?}");
}

/// A store on disk that delays the answer to an assignment: the data is written, but the call returns only when
/// allowed.
struct Slow {
    disk: DiskStore,
    written: Notify,
    resume: Semaphore,
}

#[async_trait::async_trait]
impl StateStore for Slow {
    async fn put_assignment(
        &self,
        instance: InstanceId,
        assignment: &Assignment,
    ) -> Result<(), StoreError> {
        self.disk.put_assignment(instance, assignment).await?;
        self.written.notify_one();
        self.resume.acquire().await.unwrap().forget();
        Ok(())
    }

    async fn delete_assignment(&self, instance: InstanceId) -> Result<(), StoreError> {
        self.disk.delete_assignment(instance).await
    }

    async fn assignments(&self) -> Result<Vec<(InstanceId, Assignment)>, StoreError> {
        self.disk.assignments().await
    }

    async fn put_tunnel(&self, tunnel: &Tunnel) -> Result<(), StoreError> {
        self.disk.put_tunnel(tunnel).await
    }

    async fn tunnel(&self) -> Result<Option<Tunnel>, StoreError> {
        self.disk.tunnel().await
    }
}

#[tokio::test]
async fn a_change_completes_even_if_its_caller_disconnects() {
    let directory = tempfile::tempdir().unwrap();
    let disk = DiskStore::open(directory.path()).unwrap();
    let slow = Arc::new(Slow {
        disk: disk.clone(),
        written: Notify::new(),
        resume: Semaphore::new(0),
    });
    let service = MetadataService::start(Parts {
        state: Arc::<Slow>::clone(&slow),
        ..parts(disk.clone(), disk.clone())
    })
    .await
    .unwrap();
    let path = directory.path().join("control.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    let serving = tokio::spawn(socket.serve(Arc::clone(&service), CancellationToken::new()));
    let client = MetadatadClient::new(path.clone());
    let guest = Guest::new("a", A);
    let digest = guest.sealed.digest;
    client
        .put_bundle(digest, guest.sealed.ciphertext.clone())
        .await
        .unwrap();

    let body = serde_json::to_string(&guest.assignment).unwrap();
    let request = format!(
        "PUT /v1/instances/{} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        guest.id,
        body.len()
    );
    let mut caller = UnixStream::connect(&path).await.unwrap();
    caller.write_all(request.as_bytes()).await.unwrap();
    slow.written.notified().await;
    caller.shutdown().await.unwrap();
    // The server ends the connection without an answer as soon as it sees the end of the caller's side.
    let mut answer = String::new();
    let ended = caller.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, ended)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, "");
    slow.resume.add_permits(1);
    let stored = disk.assignments().await.unwrap();
    assert_eq!(stored.len(), 1, "{stored:?}");
    let status = client.status().await.unwrap();
    let listed: Vec<_> = status.instances.iter().map(|held| held.id).collect();
    assert_eq!(listed, [guest.id]);
    serving.abort();
}

#[tokio::test]
async fn an_unused_bundle_is_listed_until_it_is_deleted() {
    let agent = agent().await;
    let (used, unused) = (Guest::new("a", A), Guest::new("b", B));
    agent.fixture.admit(&used).await;
    let digest = unused.sealed.digest;
    let put = async || {
        let ciphertext = unused.sealed.ciphertext.clone();
        agent.client.put_bundle(digest, ciphertext).await.unwrap();
        agent.client.status().await.unwrap().unused_bundles
    };
    assert_eq!(put().await, [digest]);
    for bundle in [digest, used.sealed.digest] {
        agent.client.drop_bundle(bundle).await.unwrap();
    }
    let status = agent.client.status().await.unwrap();
    assert_eq!(status.unused_bundles, []);
    assert_eq!(agent.fixture.get(A, "/latest/user-data").await.0, 200);
    // It was really dropped: it must be put again before it can be assigned.
    let assign = || agent.client.put_instance(unused.id, &unused.assignment);
    assert!(assign().await.unwrap_err().is_bundle_missing());
    assert_eq!(put().await, [digest]);
    assign().await.unwrap();
    assert_eq!(agent.client.status().await.unwrap().unused_bundles, []);
}

#[tokio::test]
async fn an_unreadable_assignment_is_listed_and_can_be_deleted() {
    let store = FakeStore::default();
    let guest = Guest::new("a", A);
    store
        .put_assignment(guest.id, &guest.assignment)
        .await
        .unwrap();
    let fixture = Fixture::on(store.clone(), GuestLimits::default()).await;
    let status = fixture.service.status().await;
    assert_eq!(
        (status.instances, status.unserved),
        (vec![], vec![guest.id])
    );
    fixture.service.delete_instance(guest.id).await.unwrap();
    assert_eq!(fixture.service.status().await.unserved, []);
    assert_eq!(store.assignments().await.unwrap(), []);
}
