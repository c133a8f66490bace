//! Every command of waifuctl, as a program against a real control server with one node that runs nothing.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::extract::ConnectInfo;
use tower::ServiceExt as _;
use waifud_api::join::{CreateJoinToken, JoinRequest, JoinToken, Joined};
use waifud_pki::NodeKey;

use super::*;

impl Server {
    /// A request of this peer at the routes of nodes, which must succeed.
    async fn as_node(&self, peer: Peer, path: &str, body: Vec<u8>) -> Vec<u8> {
        let mut request = axum::http::Request::post(path)
            .body(Body::from(body))
            .unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = self.nodes.clone().oneshot(request).await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        axum::body::to_bytes(answer.into_body(), 1 << 20)
            .await
            .unwrap()
            .to_vec()
    }

    /// Admits the node `alder` and sends its hello.
    async fn join(&self) {
        let (client, wanted) = (self.client(), CreateJoinToken::default());
        let made = client.create_join_token(&wanted).await.unwrap();
        self.join_with(made.token.expose()).await;
    }

    /// The same, with this join token.
    pub(super) async fn join_with(&self, token: &str) {
        let token = JoinToken::parse(token).unwrap();
        let key = NodeKey::generate().unwrap();
        let request = JoinRequest::new(
            token.secret.expose(),
            key.request().unwrap(),
            "alder".parse().unwrap(),
        );
        let from = "192.0.2.9:4321".parse().unwrap();
        let body = serde_json::to_vec(&request).unwrap();
        let answer = self
            .as_node(Peer::Tls { from }, "/v1/agent/join", body)
            .await;
        let joined: Joined = serde_json::from_slice(&answer).unwrap();
        let peer = Peer::Certificate {
            from,
            node: joined.node,
            key: key.digest(),
        };
        let pool = json!({"name": "main", "kind": "qcow2", "size_bytes": 1_u64 << 40, "used_bytes": 0,
            "promised_bytes": 0, "health": "ok"});
        let facts = json!({"arch": "x86_64", "cpu_model": "a CPU", "hypervisor": {"kind": "tcg", "reason": "no /dev/kvm"},
            "agent_version": "0.1.0", "capacity": {"cpus": 8, "memory_bytes": 8_u64 << 30},
            "used": {"cpus": 0, "memory_bytes": 0}, "pools": [pool], "bridges": ["br0"], "routes": [], "conditions": [],
            "labels": {}, "features": ["firewall", "nics"]});
        let hello = json!({"name": "alder", "facts": facts, "now": jiff::Timestamp::now(), "boot_id": null});
        let body = serde_json::to_vec(&hello).unwrap();
        self.as_node(peer, "/v1/agent/hello", body).await;
    }
}

/// The commands in the reference that have no commands below them.
fn leaf_commands() -> BTreeSet<String> {
    let reference = include_str!("../../../../../docs/reference/cli.md");
    let all: Vec<&str> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("## `waifuctl ")?.strip_suffix('`'))
        .collect();
    let is_group = |command: &str| {
        let below = format!("{command} ");
        all.iter().any(|other| other.starts_with(&below))
    };
    let leaves = all.iter().filter(|command| !is_group(command));
    leaves.map(|command| (*command).to_owned()).collect()
}

/// Lines in their order, with their exit codes and a part of their stdout, or of stderr if they fail. FILE is a file with
/// user-data, OTHER an image, and DIGEST the digits of the image of debian-12.
const LINES: &[(&str, i32, &str)] = &[
    ("version", 0, "waifuctl "),
    ("schema instance", 0, "\"properties\""),
    ("completions bash", 0, "waifuctl"),
    ("doctor", 0, "ok     waifud: version"),
    ("create web -t debian-12 --no-ssh-key", 0, "web: "),
    ("create db -t debian-12 --no-ssh-key --no-start", 0, "db: "),
    (
        "create more -t debian-12 --no-ssh-key --near web --dry-run",
        0,
        "would be placed on alder\n  alder        0.61  6G free of 8G, next to web\n",
    ),
    (
        "capacity",
        0,
        "alder  6     6G free of 8G\n6 more instances with 1 CPU, 1G of memory and a disk of 10G fit.\n",
    ),
    (
        "capacity --survive 1 --memory 4G",
        0,
        "1 more instance with 1 CPU, 4G of memory and a disk of 10G fits.\n\
         With alder off, 1 of 1 instance that runs there does not fit on other nodes:\n  \
         web (1G on alder): there is no other node\n",
    ),
    ("capacity --survive 1 --json", 0, "\"fits\": false"),
    ("capacity --cpus 0", 1, "--cpus"),
    ("capacity --survive 100000", 1, "--survive"),
    ("list", 0, "web"),
    ("show web", 0, "name         web"),
    ("show web --json", 0, "\"generation\""),
    ("why web", 0, "web: "),
    ("ip web", 0, "10.144."),
    ("wait web --for address", 0, "web: address"),
    ("label web tier=front", 0, "web: tier=front"),
    ("resize web --cpus 2", 0, "web: "),
    ("protect web", 0, "web: "),
    ("delete web --yes", 1, "protected"),
    ("protect web --off", 0, "web: "),
    ("edit web --yes --user-data FILE", 0, "web: "),
    ("publish web 8080:80", 0, "8080"),
    ("unpublish web 8080", 0, "web"),
    (
        "firewall deny web --in",
        0,
        "web: connections to the instance that no rule matches: deny",
    ),
    (
        "firewall allow web --port 22 --from instance:db",
        0,
        "allow in tcp 22 from instance:db",
    ),
    ("firewall deny web --to fd00::1", 1, "--to"),
    (
        "firewall deny web --to instance:missing",
        1,
        "no instance missing",
    ),
    (
        "firewall list web",
        0,
        "  in         allow   tcp       22     instance:db  -        10.144.",
    ),
    (
        "show web",
        0,
        "firewall     allow in tcp 22 from instance:db\nfirewall     otherwise deny in, allow out\n",
    ),
    (
        "firewall remove web 00000000",
        1,
        "no firewall rule 00000000",
    ),
    ("why web", 0, "web: "),
    ("firewall remove web ce0aa5cb", 0, "web: rule removed"),
    ("firewall allow web --in", 0, "web: "),
    ("start db", 0, "db: "),
    ("stop db", 0, "db: "),
    ("reboot web", 0, "web: "),
    ("template add mine --file OTHER", 0, "mine: "),
    (
        "rescue web --template debian-12",
        1,
        "created from the same image",
    ),
    ("rescue web --template mine", 0, "waifuctl rescue web --end"),
    (
        "rescue web --end",
        0,
        "web: booting from its own disk again",
    ),
    ("template delete mine --yes", 0, "mine: deleted"),
    ("console web", 1, "web"),
    ("console web --raw", 1, "web"),
    ("screen web", 1, "instance web is pending, not running"),
    ("exec web -- true", 255, "web"),
    ("passwd web", 1, "--password-file"),
    ("logs web", 2, "not connected to waifud"),
    ("logs web --raw", 2, "not connected to waifud"),
    ("ssh web", 255, "not connected to waifud"),
    ("ssh-config web", 2, "not connected to waifud"),
    (
        "forward web 8080:80",
        1,
        "instance web is pending, not running",
    ),
    ("events web", 0, "instance.created"),
    ("events web --limit 1", 0, "instance"),
    (
        "events web --since 00000001.0 --json",
        0,
        "\"instance.created\"",
    ),
    ("events web --since 1h", 1, "--since"),
    ("events template/debian-12", 0, "template.created"),
    ("template list", 0, "debian-12"),
    ("template show debian-12", 0, "debian-12"),
    ("template catalog", 0, "ubuntu-24-04"),
    ("template refresh debian-12", 1, "debian-12"),
    ("template refresh --all", 0, ""),
    ("image list", 0, "yes"),
    ("image delete sha256:0000000000", 1, "does not exist"),
    ("image delete DIGEST", 1, "is in use"),
    ("pool list", 0, "main"),
    ("pool list alder", 0, "main"),
    ("df", 0, "image store:"),
    ("network add lan --bridge br0", 0, "lan"),
    ("network list", 0, "lan"),
    ("network show lan", 0, "br0"),
    ("nic list web", 0, "eth0"),
    ("nic add web --network nowhere", 1, "nowhere"),
    ("nic remove web eth0", 1, "first nic"),
    ("network delete lan", 0, "lan: deleted"),
    ("fabric show", 0, "fabric: none (default)"),
    ("fabric set static", 0, "fabric: static"),
    ("fabric set tailscale", 1, "invalid value"),
    ("fabric client list", 0, ""),
    ("fabric client add laptop", 1, "the fabric is static"),
    ("fabric client show laptop", 1, "laptop"),
    ("fabric client remove laptop", 1, "laptop"),
    ("fabric set wireguard", 0, "fabric: wireguard"),
    ("fabric client add laptop --qr", 0, "PrivateKey = "),
    ("fabric client add laptop", 1, "already exists"),
    ("fabric client add phone --public-key key", 1, "32 bytes"),
    ("fabric client list", 0, "laptop"),
    ("fabric client show laptop", 0, "# PrivateKey"),
    (
        "fabric client show laptop --json",
        0,
        "\"private_key\": null",
    ),
    ("fabric client remove laptop", 0, "laptop: removed"),
    ("dns show", 0, "domain: waifu.internal"),
    ("dns show --for unbound", 1, "no node serves names"),
    ("dns show --for bind", 1, "invalid value"),
    ("dns show --on alder", 1, "alder serves no names"),
    ("node list", 0, "alder"),
    ("node show alder", 0, "alder"),
    ("node label alder disk=ssd", 0, "alder: disk=ssd"),
    ("node cordon alder", 0, "alder: cordoned"),
    ("node uncordon alder", 0, "alder: uncordoned"),
    (
        "node drain alder --explain",
        0,
        "None of the 2 instances can move now. Nothing was changed.",
    ),
    (
        "node drain alder --new-address",
        1,
        "alder is the only node",
    ),
    ("node drain alder --cancel", 1, "alder is not being drained"),
    ("recreate web --yes", 1, "web has its disks"),
    ("recreate web", 1, "web has its disks"),
    ("move web --to alder", 1, "web is on alder already"),
    ("move web --cancel", 1, "web is not being moved"),
    ("node rename alder birch", 0, "alder: renamed to birch"),
    ("node confirm birch --yes", 0, "birch: confirmed"),
    ("node remove birch --yes", 1, "birch"),
    ("node remove birch --yes --force", 1, "--confirm-off"),
    (
        "node purge birch --yes",
        1,
        "only a removed one can be purged",
    ),
    // This server was not installed from a package.
    ("node add ash", 1, "not installed from a package"),
    ("node token create --name oak", 0, "wfj_"),
    ("node token list", 0, "unused"),
    ("node token revoke 00000000", 1, "00000000"),
    ("token create laptop --role viewer", 0, "waifud_"),
    ("token list", 0, "viewer"),
    ("token revoke laptop", 0, "laptop: revoked"),
    ("context list", 0, "*  local"),
    ("context use nosuch", 1, "context nosuch does not exist"),
    ("context use local", 0, "current context: local"),
    ("context remove nosuch", 1, "context nosuch does not exist"),
    (
        "login https://127.0.0.1:1 --token-file FILE --name x",
        2,
        "waifud is unreachable",
    ),
    ("adopt nosuch", 1, "nosuch"),
    ("delete web db --yes", 0, "web: deleting"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_command_has_its_documented_exit_code_and_output() {
    let server = Server::start().await;
    server.join().await;
    let file = server.file("ud", "#!/bin/sh\ntrue\n");
    let mut bytes = std::fs::read(server.path("image")).unwrap();
    let digest = Digest::of(&bytes).to_string();
    *bytes.last_mut().unwrap() = 1;
    let other = server.path("other").display().to_string();
    std::fs::write(&other, bytes).unwrap();
    let mut failed = Vec::new();
    let mut commands = leaf_commands();
    for (line, code, part) in LINES {
        let words: Vec<_> = line
            .split_whitespace()
            .map(|word| match word {
                "FILE" => file.as_str(),
                "OTHER" => &other,
                "DIGEST" => &digest[..20],
                word => word,
            })
            .collect();
        commands.retain(|command| !format!("{line} ").starts_with(&format!("{command} ")));
        let mut command = server.command(&words);
        command.env_remove("DISPLAY");
        let output = tokio::time::timeout(std::time::Duration::from_mins(1), command.output());
        let output = output.await.unwrap().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = if *code == 0 { &out } else { &err };
        if output.status.code() != Some(*code) || !said.contains(part) {
            failed.push(format!("{line}: {:?}\n{out}{err}", output.status.code()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(commands.is_empty(), "no line for {commands:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_can_be_selected_by_a_digest_prefix() {
    let server = Server::start().await;
    let mut digests = Vec::new();
    // Among 17 images, two begin with the same digit.
    for number in 0..17_u8 {
        let mut bytes = std::fs::read(server.path("image")).unwrap();
        *bytes.last_mut().unwrap() = number + 1;
        let file = server.path("other");
        std::fs::write(&file, &bytes).unwrap();
        let digest = Digest::of(&bytes);
        server
            .client()
            .upload_image(digest, &file, |_| {})
            .await
            .unwrap();
        digests.push(digest.hex());
    }
    let first = |digest: &String| digest[..1].to_owned();
    let shared = digests
        .iter()
        .find(|one| {
            digests
                .iter()
                .filter(|other| first(other) == first(one))
                .count()
                > 1
        })
        .unwrap();
    let said = server.run(&["image", "delete", &first(shared)], 1).await;
    assert!(said.contains("use more digits"), "{said}");
    let said = server.run(&["image", "delete", &shared[..16]], 0).await;
    assert!(said.contains(": deleted"), "{said}");
    let left = server
        .client()
        .images(&ListQuery::all())
        .await
        .unwrap()
        .items;
    assert!(!left.iter().any(|image| image.digest.hex() == *shared));
    assert_eq!(
        left.len(),
        digests.len(),
        "the template's image and 16 others"
    );
}
