//! `node add`: the printed commands, and the wait for the new node.

use tokio::io::{AsyncBufReadExt, BufReader};

use super::*;

/// A server that other machines can reach at two addresses, and that was installed from a package.
async fn server() -> Server {
    let addresses = [
        "https://127.0.0.1:7373",
        "https://192.0.2.1:7373",
        "https://192.0.2.9:7373",
    ];
    let server = Server::start_with(addresses.map(str::to_owned).to_vec()).await;
    let dir = server.path("installation/usr/share/waifud/package");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, text) in [
        ("control", "Version: 1.2.3\nArchitecture: amd64\n"),
        ("files", ""),
    ] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn node_add_prints_only_commands_on_stdout_and_other_addresses_on_stderr() {
    let server = server().await;
    let output = server
        .command(&["node", "add", "birch"])
        .output()
        .await
        .unwrap();
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{err}");
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(
        out.starts_with("curl ") && out.ends_with(" | sudo sh\n"),
        "{out}"
    );
    assert!(
        out.contains(" https://192.0.2.1:7373/v1/agent/install "),
        "{out}"
    );
    assert!(
        err.contains("replace it with https://192.0.2.9:7373\n"),
        "{err}"
    );
    assert!(!err.contains("127.0.0.1"), "{err}");

    let out = server.run(&["node", "add", "--read-first"], 0).await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(lines[0].ends_with(" -o join-waifud.sh)"), "{out}");
    assert_eq!(lines[1], "less join-waifud.sh");
    assert_eq!(lines[2], "sudo sh join-waifud.sh; rm join-waifud.sh");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_add_with_wait_ends_when_the_node_of_its_token_is_ready() {
    let server = server().await;
    let mut command = server.command(&["node", "add", "--wait", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let created = read(&lines.next_line().await.unwrap().unwrap());
    assert!(
        created["install"]["run"]
            .as_str()
            .unwrap()
            .starts_with("curl ")
    );
    server.join_with(created["token"].as_str().unwrap()).await;
    let node = read(&lines.next_line().await.unwrap().unwrap());
    assert_eq!(
        (&node["name"], &node["state"]),
        (&json!("alder"), &json!("ready"))
    );
    assert!(child.wait().await.unwrap().success());
}
