//! waifuctl against a real control server: files of descriptions, edits, waits and labels.

mod commands;
mod habits;
mod node_add;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::process::Command;
use waifud_api::CreateTemplate;
use waifud_api::client::{Client, ListQuery};
use waifud_control::{Peer, http};
use waifud_types::{Digest, Secret};

struct Server {
    dir: tempfile::TempDir,
    /// The routes of nodes.
    nodes: axum::Router,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    /// With these URLs.
    async fn start_with(addresses: Vec<String>) -> Self {
        let (dir, control) = crate::common::control(addresses).await;
        // As waifud does when it begins to listen.
        let authority = control.authority();
        authority.open_server(&control.pki_dir(), &[]).unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let nodes = http::tls_router(control.clone());
        let router = http::user_router(control);
        // The same waifud, with instances that are running and have no console output yet.
        let quiet = UnixListener::bind(dir.path().join("quiet")).unwrap();
        let no_log = async || {
            let problem = waifud_api::Problem::new(404, "no-log", "no log");
            let kind = [("content-type", "application/problem+json")];
            (
                axum::http::StatusCode::NOT_FOUND,
                kind,
                serde_json::to_string(&problem).unwrap(),
            )
        };
        let running = axum::Router::new()
            .route("/v1/instances/{name}/log", axum::routing::get(no_log))
            .fallback_service(router.clone());
        for (listener, router) in [(listener, router), (quiet, running)] {
            let service = router.into_make_service_with_connect_info::<Peer>();
            tokio::spawn(async move { axum::serve(listener, service).await });
        }
        let server = Self { dir, nodes };
        server.template().await;
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> Client {
        Client::unix(&self.path("sock")).unwrap()
    }

    /// The header of an empty qcow2 image of 2 GiB; waifud reads only that.
    async fn template(&self) {
        let mut bytes = vec![0_u8; 4096];
        bytes.splice(..4, *b"QFI\xfb");
        bytes.splice(4..8, 3_u32.to_be_bytes());
        bytes.splice(20..24, 16_u32.to_be_bytes());
        bytes.splice(24..32, (2_u64 << 30).to_be_bytes());
        let path = self.path("image");
        std::fs::write(&path, &bytes).unwrap();
        let digest = Digest::of(&bytes);
        let uploaded = self.client().upload_image(digest, &path, |_| {}).await;
        uploaded.unwrap();
        let request: CreateTemplate =
            serde_json::from_value(json!({"name": "debian-12", "image": digest})).unwrap();
        self.client().create_template(&request).await.unwrap();
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waifuctl"));
        command
            .args(args)
            .env("WAIFUD_SOCKET", self.path("sock"))
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .env_remove("VISUAL")
            .env_remove("EDITOR")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str], code: i32) -> String {
        expect(&self.command(args).output().await.unwrap(), code, args)
    }

    /// With an editor that is a script: `$1` is the file.
    async fn edit(&self, args: &[&str], script: &str, code: i32) -> String {
        let script = self.file("editor.sh", script);
        let mut command = self.command(args);
        command.env("EDITOR", format!("sh {script}"));
        expect(&command.output().await.unwrap(), code, args)
    }

    async fn user_data(&self, name: &str) -> String {
        let (description, _) = self.client().description(name).await.unwrap();
        description
            .user_data
            .map(Secret::into_inner)
            .unwrap_or_default()
    }

    async fn generation(&self, name: &str) -> u64 {
        self.client().instance(name).await.unwrap().generation.0
    }

    async fn names(&self) -> Vec<String> {
        let page = self.client().instances(&ListQuery::all()).await.unwrap();
        page.items.into_iter().map(|i| i.name.to_string()).collect()
    }
}

/// stdout of what succeeded, stderr of what failed.
fn expect(output: &Output, code: i32, args: &[&str]) -> String {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{err}");
    if code == 0 { out } else { err }
}

fn read(text: &str) -> Value {
    let last = text.trim();
    serde_json::from_str(last)
        .or_else(|_| serde_json::from_str(last.lines().last().unwrap_or_default()))
        .unwrap_or_else(|e| panic!("{e}: {text}"))
}

const TWO: &str = "name: web\ntemplate: debian-12\nmemory: 2G\nlabels: {tier: front}\n\
                   user_data_file: web.sh\nrun: false\n---\nname: db\ntemplate: debian-12\n\
                   placement: {node: alder}\ncloud_config:\n  packages: [postgresql]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_descriptions_is_created_once_and_printed_back() {
    let server = Server::start().await;
    server.file("web.sh", "#!/bin/sh\ntrue\n");
    let two = server.file("two.yaml", TWO);
    let made = read(&server.run(&["create", "-f", &two, "--json"], 0).await);
    assert_eq!(made["items"].as_array().unwrap().len(), 2);
    assert_eq!(server.user_data("web").await, "#!/bin/sh\ntrue\n");
    let packages = "#cloud-config\npackages: [postgresql]\n";
    assert_eq!(server.user_data("db").await, packages);

    let again = read(&server.run(&["create", "-f", &two, "--json"], 0).await);
    assert_eq!(again["items"][0]["id"], made["items"][0]["id"]);
    let other = TWO.replace("2G", "3G").replace("name: db", "name: new");
    let other = server.file("other.yaml", &other);
    let refused = read(&server.run(&["create", "-f", &other, "--json"], 1).await);
    assert_eq!(refused["code"], "exists-with-differences");
    assert_eq!(refused["field"], "memory");
    assert_eq!(
        server.names().await,
        ["db", "web"],
        "none of a refused file"
    );

    let printed = server.run(&["list", "-o", "yaml"], 0).await;
    for name in ["web", "db"] {
        server.run(&["delete", name, "--yes", "--wait"], 0).await;
        server.run(&["wait", name, "--for", "deleted"], 0).await;
    }
    let back = server.file("back.yaml", &printed);
    server.run(&["create", "-f", &back], 0).await;
    assert_eq!(server.run(&["list", "-o", "yaml"], 0).await, printed);
    let one = server.run(&["show", "web", "-o", "yaml"], 0).await;
    assert!(printed.contains(one.trim_end()), "{one}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_description_is_checked_before_the_first_is_created() {
    let server = Server::start().await;
    for (second, code, place) in [
        (
            "name: b\ntemplate: nowhere\n",
            "unknown-template",
            "document 2",
        ),
        (
            "name: b\ntemplate: debian-12\nmemroy: 1G\n",
            "unknown-field",
            "line 7",
        ),
        (
            "name: b\ntemplate: debian-12\nuser_data: no\n",
            "unsupported-user-data",
            "document 2",
        ),
        (
            "name: b\ntemplate: debian-12\ndisks: [{size: 1G}]\n",
            "disk-too-small",
            "document 2",
        ),
        ("name: a\ntemplate: debian-12\n", "duplicate-name", "name a"),
    ] {
        let text = format!("name: a\ntemplate: debian-12\n\n---\n{second}");
        let file = server.file("two.yaml", &text);
        let problem = read(&server.run(&["create", "-f", &file, "--json"], 1).await);
        assert_eq!(problem["code"], code, "{problem}");
        let title = problem["title"].as_str().unwrap();
        assert!(title.contains(place), "{problem}");
        assert!(server.names().await.is_empty(), "{second}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn options_override_one_description_and_are_refused_with_several() {
    let server = Server::start().await;
    let typed = "create -f - --memory 3G --disk 30G -l a=b --no-start --priority -4 --spread g,strict \
                 --restart never --require disk=ssd --protect --json";
    let typed: Vec<_> = typed.split_whitespace().collect();
    let mut command = server.command(&typed);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let text = b"name: web\ntemplate: debian-12\nmemory: 1G\nlabels: {c: d}\n";
    child.stdin.take().unwrap().write_all(text).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let made = &read(&expect(&output, 0, &typed))["items"][0];
    let spec = &made["spec"];
    assert_eq!(made["labels"], json!({"a": "b", "c": "d"}));
    assert_eq!(spec["memory_bytes"], 3_u64 << 30);
    assert_eq!(spec["disks"][0]["size_bytes"], 30_u64 << 30);
    assert_eq!(spec["run"], false);
    assert_eq!(spec["protected"], true);
    assert_eq!(spec["restart"], "never");
    assert_eq!(spec["priority"], -4);
    assert_eq!(
        spec["placement"],
        json!({"node": null, "require": {"disk": "ssd"}, "spread": {"group": "g", "strict": true}, "near": null})
    );
    let two = server.file("two.yaml", TWO);
    let more = ["create", "-f", &two, "--cpus", "2", "--json"];
    let refused = server.run(&more, 1).await;
    assert_eq!(read(&refused)["code"], "options-with-several-descriptions");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_data_is_edited_checked_and_saved_and_nothing_is_lost() {
    let server = Server::start().await;
    let create = ["create", "web", "-t", "debian-12", "--no-ssh-key"];
    server.run(&create, 0).await;
    let add = "printf 'packages: [htop]\\n' >> \"$1\"";
    server.edit(&["edit", "web"], add, 0).await;
    let text = "#cloud-config\npackages: [htop]\n";
    assert_eq!(server.user_data("web").await, text);
    assert_eq!(server.generation("web").await, 2);
    server.edit(&["edit", "web"], "true", 0).await;
    assert_eq!(server.generation("web").await, 2, "nothing changed");
    server.edit(&["edit", "web", "--re-run"], "true", 0).await;
    assert_eq!(server.generation("web").await, 3);

    let broken = "printf 'a: [\\n' >> \"$1\"";
    let bad = server.edit(&["edit", "web"], broken, 1).await;
    assert!(bad.contains("line "), "{bad}");
    let kept = bad.split("saved in ").nth(1).unwrap();
    let kept = std::fs::read_to_string(kept.lines().next().unwrap()).unwrap();
    assert_eq!(kept, format!("{text}a: [\n"));
    let failed = server.edit(&["edit", "web"], "exit 3", 1).await;
    assert!(failed.contains("editor"), "{failed}");
    // The text was not changed: no copy of a possible secret is kept.
    assert!(!failed.contains("saved in"), "{failed}");
    let left = std::fs::read_dir(server.dir.path()).unwrap();
    let left = left.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("waifuctl-")
    });
    assert_eq!(left.count(), 1, "only the text saved above");
    assert_eq!(server.generation("web").await, 3);

    // Another client changes the instance during the edit: the editor script itself.
    let program = env!("CARGO_BIN_EXE_waifuctl");
    let theirs = server.file("theirs.sh", "#!/bin/sh\n# theirs\n");
    let script = format!(
        "{program} edit web --yes --user-data {theirs} >/dev/null && printf '# mine\\n' >> \"$1\""
    );
    let refused = server.edit(&["edit", "web", "--json"], &script, 1).await;
    let problem = read(&refused);
    assert_eq!(problem["code"], "stale-generation");
    assert!(problem["detail"].as_str().unwrap().contains("saved in"));
    assert_eq!(server.user_data("web").await, "#!/bin/sh\n# theirs\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn visual_outranks_editor_and_without_an_editor_the_error_names_both() {
    let server = Server::start().await;
    let create = ["create", "web", "-t", "debian-12", "--no-ssh-key"];
    server.run(&create, 0).await;
    let script = server.file("visual.sh", "printf '# visual\\n' >> \"$1\"");
    let mut command = server.command(&["edit", "web", "--yes"]);
    command
        .env("VISUAL", format!("sh {script}"))
        .env("EDITOR", "/nonexistent/editor");
    expect(&command.output().await.unwrap(), 0, &["edit"]);
    assert!(server.user_data("web").await.ends_with("# visual\n"));
    // Neither is set, and there is no vi.
    let mut command = server.command(&["edit", "web"]);
    command.env("PATH", "/nonexistent");
    let said = expect(&command.output().await.unwrap(), 1, &["edit"]);
    assert!(said.contains("VISUAL or EDITOR"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn create_warns_about_user_data_that_disables_the_reports_of_cloud_init() {
    let server = Server::start().await;
    let text = "#cloud-config\nvendor_data: {enabled: false}\n";
    let user_data = server.file("ud", text);
    for (name, quiet) in [("web", false), ("db", true)] {
        let mut line = vec!["create", name, "-t", "debian-12", "--no-ssh-key"];
        line.extend(["--user-data", &user_data]);
        line.extend(quiet.then_some("-q"));
        let output = server.command(&line).output().await.unwrap();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        expect(&output, 0, &line);
        if quiet {
            assert_eq!(said, "");
        } else {
            assert!(said.contains("vendor_data.enabled"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_is_edited_and_changes_of_fixed_fields_are_refused() {
    let server = Server::start().await;
    let create = "create web -t debian-12 --no-ssh-key -l a=1 -l b=2";
    let create: Vec<_> = create.split_whitespace().collect();
    server.run(&create, 0).await;
    let spec = ["edit", "web", "--spec"];
    let script = "sed -i -e 's/restart: .*/restart: never/' -e '/^ *a: /d' -e 's/priority: 0/priority: 5/' \"$1\"";
    server.edit(&spec, script, 0).await;
    let instance = server.client().instance("web").await.unwrap();
    assert_eq!(instance.spec.priority, 5);
    assert_eq!(instance.labels.keys().collect::<Vec<_>>(), ["b"]);
    let before = server.client().description("web").await.unwrap();
    let error = server.edit(&spec, "sed -i 's/debian-12/other/' \"$1\"", 1);
    assert!(error.await.contains("template"));
    let error = server.edit(&spec, "sed -i 's/priority/priorty/' \"$1\"", 1);
    assert!(error.await.contains("did you mean priority?"));
    assert_eq!(server.client().description("web").await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_3_at_its_deadline_and_with_0_when_it_is_reached() {
    let server = Server::start().await;
    let create = ["create", "web", "-t", "debian-12", "--no-ssh-key"];
    server.run(&create, 0).await;
    let late = [
        "wait",
        "web",
        "--for",
        "running",
        "--timeout",
        "1s",
        "--json",
    ];
    assert_eq!(read(&server.run(&late, 3).await)["code"], "deadline");
    server
        .run(&["wait", "missing", "--for", "running"], 1)
        .await;
    // A misspelled name is not a deletion.
    server
        .run(&["wait", "missing", "--for", "deleted"], 1)
        .await;
    let mut waiting = server.command(&["wait", "web", "--for", "deleted", "--json"]);
    let waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
    server.run(&["delete", "web", "--yes"], 0).await;
    let output = waiting.wait_with_output().await.unwrap();
    assert_eq!(read(&expect(&output, 0, &["wait"])), json!({"items": []}));
    server.run(&["wait", "web", "--for", "deleted"], 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_set_and_removed_and_listed() {
    let server = Server::start().await;
    let create = [
        "create",
        "web",
        "-t",
        "debian-12",
        "--no-ssh-key",
        "-l",
        "a=1",
    ];
    server.run(&create, 0).await;
    let shown = server.run(&["label", "web", "tier=front", "a-"], 0).await;
    assert_eq!(shown.trim(), "web: tier=front");
    let wide = ["list", "-l", "tier=front", "-o", "wide"];
    let listed = server.run(&wide, 0).await;
    assert!(
        listed.contains("LABELS") && listed.contains("tier=front"),
        "{listed}"
    );
    let refused = server.run(&["label", "web", "a b=1", "--json"], 1).await;
    assert_eq!(read(&refused)["code"], "invalid-label");
    assert_eq!(server.generation("web").await, 1);
}
