//! Start, stop, crash, and invalid configuration.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{process::Command, time::timeout};
use waifud_types::InstanceId;
use waifud_wireguard::PrivateKey;

use crate::process::{Home, PATIENCE, PROGRAM, command, crash, serve, tunnel};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 10);
const ANYWHERE: &str = "127.0.0.1:0";

#[tokio::test]
async fn acknowledged_changes_survive_a_crash() {
    let home = Home::new(ANYWHERE);
    let (child, first) = home.start().await;
    assert!(first.instances.is_empty() && first.node_public_key.is_none());
    let id = InstanceId::generate();
    serve(&home.client(), id, ADDRESS, "words").await;
    let node = PrivateKey::generate().public_key();
    home.client().put_tunnel(&tunnel(node)).await.unwrap();
    crash(child).await;
    assert!(home.socket().exists());
    let (_child, second) = home.start().await;
    assert_ne!(second.process, first.process);
    assert_eq!(second.public_key, first.public_key);
    assert_eq!(second.node_public_key, Some(node.to_string()));
    let held: Vec<_> = second
        .instances
        .iter()
        .map(|held| (held.id, held.address))
        .collect();
    assert_eq!(held, [(id, ADDRESS)]);
}

#[tokio::test]
async fn sigterm_ends_it_successfully_even_while_a_caller_waits() {
    let home = Home::new(ANYWHERE);
    let (mut child, _) = home.start().await;
    let waiting = tokio::spawn({
        let client = home.client();
        async move { client.observations(0, PATIENCE * 2).await }
    });
    home.client().status().await.unwrap();
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    let status = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(!home.socket().exists());
    // The caller gets an answer or a closed connection; it does not hang.
    let _ = timeout(PATIENCE, waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_state_directory_is_created_for_the_service_only_whatever_the_umask_is() {
    let home = Home::new(ANYWHERE);
    let program = command(&home.config());
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 0; exec \"$@\"", "sh"]);
    shell.arg(program.as_std().get_program());
    let mut shell = shell
        .args(program.as_std().get_args())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ready = async {
        while home.client().status().await.is_err() {
            assert!(shell.try_wait().unwrap().is_none(), "it ended");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ready).await.unwrap();
    let mode = fs::metadata(home.state_dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn an_unknown_option_is_an_error_with_exit_code_1() {
    let home = Home::new(ANYWHERE);
    let output = command(&home.config()).arg("--colour").output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--colour"), "{text}");
}

async fn fails(home: &Home) -> String {
    let output = command(&home.config()).stdin(Stdio::null()).output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_refused() {
    let home = Home::new(ANYWHERE);
    let (_child, first) = home.start().await;
    let output = fails(&home).await;
    assert!(output.contains("another waifud-metadatad"), "{output}");
    assert_eq!(home.client().status().await.unwrap().process, first.process);
}

#[tokio::test]
async fn an_unknown_key_or_a_public_address_is_refused_with_a_reason() {
    let home = Home::new(ANYWHERE);
    let text = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), text.clone() + "colour = \"blue\"\n").unwrap();
    let output = fails(&home).await;
    assert!(output.contains("colour"), "{output}");
    fs::write(home.config(), text.replace("127.0.0.1", "0.0.0.0")).unwrap();
    let output = fails(&home).await;
    assert!(output.contains("loopback"), "{output}");
}

#[tokio::test]
async fn logs_contain_no_secret_even_at_the_most_verbose_level() {
    let home = Home::new(ANYWHERE);
    let text = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), text.replace("debug", "trace")).unwrap();
    let log = home.state_dir().with_file_name("log");
    let mut child = command(&home.config());
    let mut child = child
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let ready = async {
        while home.client().status().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, ready).await.unwrap();
    serve(&home.client(), InstanceId::generate(), ADDRESS, "hunter2").await;
    let instances = home.state_dir().join("instances");
    let file = fs::read_dir(instances)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    child.kill().await.unwrap();
    let output = fs::read_to_string(log).unwrap();
    assert!(output.contains("assigned"), "{output}");
    assert!(!output.contains("hunter2"));
    for secret in ["wireguard.key", "token.key"] {
        let secret = fs::read_to_string(home.state_dir().join(secret)).unwrap();
        assert!(!output.contains(secret.trim()));
    }
    let assignment = fs::read_to_string(file).unwrap();
    let key = assignment
        .split("\"key\":\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(!output.contains(key));
}

#[tokio::test]
async fn it_prints_its_version() {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .await
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        output,
        format!("waifud-metadatad {}\n", env!("CARGO_PKG_VERSION"))
    );
}
