//! waifuctl against a waifud behind HTTPS: tokens, login, contexts, and trust.

mod prompts;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use axum::extract::ConnectInfo;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;
use waifud_control::{Peer, http};
use waifud_pki::Authority;

/// A waifud in this process, behind a socket and HTTPS, and the home directory of a user.
struct World {
    dir: tempfile::TempDir,
    port: u16,
    ca: Authority,
}

impl World {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let urls = [
            format!("https://127.0.0.1:{port}"),
            format!("https://localhost:{port}"),
        ];
        let (dir, control) = crate::common::control(urls.to_vec()).await;

        let socket = UnixListener::bind(dir.path().join("u.sock")).unwrap();
        let users = http::user_router(control.clone());
        tokio::spawn(async move {
            axum::serve(socket, users.into_make_service_with_connect_info::<Peer>()).await
        });

        let ca = Authority::open(&dir.path().join("pki")).unwrap();
        let own = ca
            .issue_server(&["127.0.0.1".to_owned(), "localhost".to_owned()])
            .unwrap();
        let acceptor =
            TlsAcceptor::from(waifud_pki::server_config(ca.certificate(), &own).unwrap());
        let router = http::tls_router(control);
        tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(move |mut request: hyper::Request<_>| {
                        let peer = Peer::Tls { from };
                        request.extensions_mut().insert(ConnectInfo(peer));
                        router.clone().call(request.map(axum::body::Body::new))
                    });
                    let _broken_off = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { dir, port, ca }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// waifuctl in an empty environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waifuctl"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.dir.path());
        command
    }

    /// Runs waifuctl in an empty environment but for these variables.
    async fn run(&self, env: &[(&str, &str)], arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        command
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let _not_read = child.stdin.take().unwrap().write_all(input.as_bytes());
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    /// As the administrator at the socket.
    async fn admin(&self, arguments: &[&str]) -> String {
        let socket = self.path("u.sock").display().to_string();
        let output = self.run(&[("WAIFUD_SOCKET", &socket)], arguments, "").await;
        ok(&output)
    }

    async fn token(&self, name: &str, role: &str) -> String {
        let secret = self.admin(&["token", "create", name, "--role", role]).await;
        secret.trim().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Fails with this exit code and this word in what it says.
fn fails(output: &Output, code: i32, word: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(word), "{said}");
    assert_eq!(text(&output.stdout), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_created_at_the_socket_works_remotely_until_it_is_revoked() {
    let world = World::start().await;
    let token = world.token("laptop", "viewer").await;
    let fingerprint = world.ca.fingerprint().to_string();
    let url = world.url();

    // Without a confirmation by the user, no server is trusted and nothing is stored.
    let login = ["login", &url, "--name", "home", "--token-file", "-"];
    fails(&world.run(&[], &login, &token).await, 1, "--fingerprint");
    let other = Authority::generate().unwrap();
    let wrong = other.fingerprint().to_string();
    let output = world
        .run(
            &[],
            &[&login[..], &["--fingerprint", &wrong]].concat(),
            &token,
        )
        .await;
    fails(&output, 1, "does not match the fingerprint");
    let other = world.write("other.crt", &other.to_pem());
    let output = world
        .run(&[], &[&login[..], &["--ca", &other]].concat(), &token)
        .await;
    fails(&output, 2, "certificate");
    let right = [&login[..], &["--fingerprint", &fingerprint]].concat();
    fails(
        &world.run(&[], &right, "waifud_hunter2").await,
        1,
        "unknown, revoked or expired",
    );
    fails(&world.run(&[], &right, "").await, 1, "malformed");
    assert!(!world.path(".config/waifud/contexts.toml").exists());

    let said = ok(&world.run(&[], &right, &token).await);
    assert!(said.contains("token=laptop (viewer)"), "{said}");
    let file = world.path(".config/waifud/contexts.toml");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // The context is in use: lists work, changes are refused with both roles named.
    assert!(ok(&world.run(&[], &["list"], "").await).starts_with("NAME"));
    let output = world.run(&[], &["token", "list"], "").await;
    fails(
        &output,
        1,
        "this requires the role admin; token=laptop has the role viewer",
    );
    let listed = ok(&world.run(&[], &["context", "list", "--json"], "").await);
    assert!(
        !listed.contains(&token) && listed.contains("home"),
        "{listed}"
    );
    // Another machine's socket is not there; `local` says so.
    fails(
        &world.run(&[], &["--context", "local", "list"], "").await,
        2,
        "/run/waifud/waifud.sock",
    );
    fails(
        &world.run(&[], &["--context", "nope", "list"], "").await,
        1,
        "context nope does not exist",
    );

    let events = world.admin(&["events", "token/laptop"]).await;
    assert!(
        events.contains("token.created") && events.contains("(by "),
        "{events}"
    );
    let listed = world.admin(&["token", "list", "--json"]).await;
    assert!(
        !listed.contains(&token) && listed.contains("\"laptop\""),
        "{listed}"
    );
    world.admin(&["token", "revoke", "laptop"]).await;
    fails(
        &world.run(&[], &["list"], "").await,
        1,
        "unknown, revoked or expired",
    );
    ok(&world.run(&[], &["context", "remove", "home"], "").await);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_command_that_token_create_prints_works_on_another_machine() {
    let world = World::start().await;
    let socket = world.path("u.sock").display().to_string();
    let env = [("WAIFUD_SOCKET", socket.as_str())];
    let create = ["token", "create", "laptop", "--role", "viewer"];
    let created = world.run(&env, &create, "").await;
    let secret = ok(&created);
    let note = text(&created.stderr);
    let login = note
        .lines()
        .find_map(|line| line.trim().strip_prefix("waifuctl "));
    let login: Vec<_> = login.unwrap_or_default().split(' ').collect();
    assert_eq!(login.first(), Some(&"login"), "{note}");
    // Only the token is missing.
    let login = [&login[..], &["--token-file", "-"]].concat();
    let said = ok(&world.run(&[], &login, &secret).await);
    assert!(said.contains("token=laptop (viewer)"), "{said}");
    ok(&world.run(&[], &["list"], "").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_create_says_if_waifud_does_not_listen_for_other_machines() {
    let loopback = ["https://127.0.0.1:7373", "https://[::1]:7373"].map(str::to_owned);
    let (dir, control) = crate::common::control(loopback.to_vec()).await;
    let path = dir.path().join("u.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let users = http::user_router(control);
    tokio::spawn(async move {
        axum::serve(socket, users.into_make_service_with_connect_info::<Peer>()).await
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_waifuctl"));
    command
        .args(["token", "create", "ci", "--role", "viewer", "--socket"])
        .arg(&path)
        .env_clear()
        .env("HOME", dir.path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    assert!(ok(&output).starts_with("waifud_"));
    let note = text(&output.stderr);
    assert!(
        note.contains("set `listen` in /etc/waifud/waifud.toml"),
        "{note}"
    );
    assert!(!note.contains("waifuctl login"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_waifud_got_a_new_ca_the_error_says_to_log_in_again() {
    let world = World::start().await;
    let token = world.token("laptop", "viewer").await;
    let (url, fingerprint) = (world.url(), world.ca.fingerprint().to_string());
    let login = ["login", &url, "--name", "home", "--token-file", "-"];
    let login = [&login[..], &["--fingerprint", &fingerprint]].concat();
    ok(&world.run(&[], &login, &token).await);
    ok(&world.run(&[], &["list"], "").await);
    // The same address leads to a waifud with another CA.
    let other = World::start().await;
    let file = world.path(".config/waifud/contexts.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let moved = text.replace(&url, &other.url());
    assert_ne!(text, moved);
    std::fs::write(&file, moved).unwrap();
    let output = world.run(&[], &["list"], "").await;
    fails(&output, 2, "waifuctl login");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_names_a_waifud_and_the_order_is_as_documented() {
    let world = World::start().await;
    let token = world.token("ci", "operator").await;
    let url = world.url();
    let ca = world.write("ca.crt", &world.ca.to_pem());
    let env = [
        ("WAIFUD_URL", url.as_str()),
        ("WAIFUD_CA", &ca),
        ("WAIFUD_TOKEN", &token),
    ];
    ok(&world.run(&env, &["list"], "").await);
    // The system's own CAs know nothing of ours.
    fails(
        &world.run(&[env[0], env[2]], &["list"], "").await,
        2,
        "UnknownIssuer",
    );
    fails(
        &world.run(&env[..2], &["list"], "").await,
        1,
        "the request has no credential",
    );
    let plain = [("WAIFUD_URL", "http://127.0.0.1:1"), env[2]];
    fails(&world.run(&plain, &["list"], "").await, 1, "https");
    // No proxy elsewhere reaches this machine's loopback.
    let proxied = [&env[..], &[("HTTPS_PROXY", "http://127.0.0.1:1")]].concat();
    ok(&world.run(&proxied, &["list"], "").await);
    // Without a name, an address makes one.
    let fingerprint = world.ca.fingerprint().to_string();
    let login = [
        "login",
        &url,
        "--fingerprint",
        &fingerprint,
        "--token-file",
        "-",
    ];
    let said = ok(&world.run(&[], &login, &token).await);
    assert!(said.starts_with("waifud-127-0-0-1: logged in"), "{said}");
    // A socket outranks the URL; a context outranks both; options outrank variables, and variables the current context.
    let socket = world.path("u.sock").display().to_string();
    let both = [&env[..], &[("WAIFUD_SOCKET", socket.as_str())]].concat();
    ok(&world.run(&both, &["token", "list"], "").await);
    let viewer = world.token("phone", "viewer").await;
    let secret = world.write("token", &viewer);
    let login = [
        "login",
        &url,
        "--ca",
        &ca,
        "--token-file",
        &secret,
        "--name",
        "phone",
    ];
    ok(&world.run(&[], &login, "").await);
    let list = ["token", "list"];
    let phone = "token=phone has the role viewer";
    fails(&world.run(&[], &list, "").await, 1, phone);
    let ci = "token=ci has the role operator";
    fails(&world.run(&env, &list, "").await, 1, ci);
    let by_socket = [&["--socket", &socket][..], &list].concat();
    ok(&world.run(&env, &by_socket, "").await);
    let by_context = [&["--context", "phone"][..], &list].concat();
    fails(&world.run(&both, &by_context, "").await, 1, phone);
    let by_both = [&["--context", "phone", "--socket", &socket][..], &list].concat();
    fails(&world.run(&env, &by_both, "").await, 1, phone);
    // Errors are problem bodies with --json, here too.
    let output = world.run(&env, &["token", "list", "--json"], "").await;
    let problem: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(problem["code"], "insufficient-role");
}
