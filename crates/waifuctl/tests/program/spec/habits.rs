//! What users of kubectl, uv and Incus expect of a command line: forms of output, selectors, dry runs, completions.

use super::*;

impl Server {
    async fn three(&self) {
        for (name, more) in [
            ("web", "-l tier=front"),
            ("db", "-l tier=back --cpus 4"),
            ("old", "-l tier=back"),
        ] {
            let line = format!("create {name} -t debian-12 --no-ssh-key {more}");
            self.run(&line.split_whitespace().collect::<Vec<_>>(), 0)
                .await;
        }
    }

    /// Runs a line; stdout of what succeeded, stderr of what failed.
    async fn line(&self, line: &str, code: i32) -> String {
        self.run(&line.split_whitespace().collect::<Vec<_>>(), code)
            .await
    }

    /// Each of these lines is refused with an error that contains the words beside it.
    async fn refuses(&self, lines: &[(&str, &str)]) {
        for (line, words) in lines {
            let said = self.line(line, 1).await;
            assert!(said.contains(words), "{line}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_the_requested_format_order_and_filter() {
    let server = Server::start().await;
    server.three().await;
    assert_eq!(server.line("list -o name", 0).await, "db\nold\nweb\n");
    assert_eq!(
        server
            .line("list -o name --sort -cpu", 0)
            .await
            .lines()
            .next(),
        Some("db")
    );
    assert_eq!(
        server.line("list -o name --sort age", 0).await,
        "old\ndb\nweb\n"
    );
    let columns = "list web db --no-headers -o columns=name,cpu,TIER:.labels.tier,X:.nothing";
    assert_eq!(
        server.line(columns, 0).await,
        "web  1  front  -\ndb   4  back   -\n"
    );
    let headed = server.line("list web -o columns=name,state", 0).await;
    assert_eq!(headed, "NAME  STATE\nweb   pending\n");
    assert_eq!(
        server.line("list -l tier!=front,tier -o name", 0).await,
        "db\nold\n"
    );
    let page = read(&server.line("list web -o json", 0).await);
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    assert!(page["revision"].is_string());
    server
        .refuses(&[
            ("list nosuch", "nosuch"),
            ("list -o columns=colour", "colour"),
            ("list --sort colour", "colour"),
            ("list -l ,", "--label"),
            ("list web --state running", "--state"),
        ])
        .await;
    let shown = server.line("show web db", 0).await;
    assert!(shown.contains("\n\nname         db\n"), "{shown}");
    let both = read(&server.line("show web db --json", 0).await);
    assert_eq!(both["items"][1]["name"], "db");
    assert_eq!(
        read(&server.line("show web --json", 0).await)["name"],
        "web"
    );
    let yaml = server.line("show web db -o yaml", 0).await;
    assert_eq!(yaml.matches("\n---\n").count(), 1, "{yaml}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_list_prints_changes() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let server = Server::start().await;
    server.three().await;
    let mut command = server.command(&["list", "--watch", "-o", "name"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let next = tokio::time::timeout(std::time::Duration::from_mins(1), lines.next_line());
        next.await.unwrap().unwrap().unwrap()
    };
    for name in ["db", "old", "web"] {
        assert_eq!(next().await, name);
    }
    server.line("label db a=b", 0).await;
    assert_eq!(next().await, "db");
    server.line("create new -t debian-12 --no-ssh-key", 0).await;
    assert_eq!(next().await, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_accept_label_selectors_and_all() {
    let server = Server::start().await;
    server.three().await;
    let stopped = server.line("stop -l tier=back", 0).await;
    assert_eq!(stopped, "db: shutting down\nold: shutting down\n");
    let runs = async |name: &str| server.client().instance(name).await.unwrap().spec.run;
    assert_eq!((runs("web").await, runs("db").await), (true, false));
    assert_eq!(server.line("start --all", 0).await.lines().count(), 3);
    assert_eq!(server.line("reboot -l tier=nothing", 0).await, "");
    server
        .refuses(&[
            ("stop", "required"),
            ("stop web --all", "cannot be used with"),
            ("stop web -l a=b", "cannot be used with"),
            ("delete", "required"),
            ("delete --all --unmanaged", "cannot be used with"),
        ])
        .await;
    // Without a terminal there is no prompt, and nothing is done.
    let said = server.line("delete --all", 1).await;
    assert!(said.contains("--yes"), "{said}");
    assert_eq!(server.names().await.len(), 3);
    server.line("delete nosuch db --yes", 1).await;
    assert_eq!(server.names().await.len(), 3, "all names are checked first");
    server
        .line("delete nosuch db --yes --ignore-missing --wait", 0)
        .await;
    server.line("delete nosuch --yes --ignore-missing", 0).await;
    assert_eq!(server.names().await, ["old", "web"]);
    server.line("delete -l tier --yes --wait", 0).await;
    assert!(server.names().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_checks_everything_and_creates_nothing() {
    let server = Server::start().await;
    let said = server
        .line("create web -t debian-12 --no-ssh-key --dry-run", 0)
        .await;
    assert_eq!(
        said,
        "web: would be created from debian-12 (dry run)\n  would stay pending, waiting for: a node; none has joined yet\n"
    );
    let said = server
        .line("create web -t debian-12 --no-ssh-key --dry-run --json", 0)
        .await;
    let placement = &read(&said)["items"][0]["placement"];
    assert_eq!(placement["node"], Value::Null);
    assert_eq!(placement["cause"]["code"], "no-nodes");
    for (more, word) in [
        ("--disk 1G", "--disk"),
        ("-t nosuch", "nosuch"),
        ("--memory 2048", "2048M"),
    ] {
        let line = format!("create web -t debian-12 --no-ssh-key --dry-run {more}");
        let line = if more.starts_with("-t") {
            line.replace("-t debian-12", "")
        } else {
            line
        };
        let said = server.line(&line, 1).await;
        assert!(said.contains(word), "{said}");
    }
    let two = server.file("two.yaml", TWO);
    server.file("web.sh", "#!/bin/sh\n");
    let said = server
        .line(&format!("create -f {two} --dry-run --json"), 0)
        .await;
    assert_eq!(read(&said)["items"][1]["action"], "create");
    assert!(server.names().await.is_empty());
    server.line(&format!("create -f {two}"), 0).await;
    let said = server
        .line(&format!("create -f {two} --dry-run --json"), 0)
        .await;
    assert_eq!(read(&said)["items"][1]["action"], "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_a_file_is_created_before_those_that_are_to_be_near_it() {
    let server = Server::start().await;
    let one = |name: &str, near: &str| {
        format!("name: {name}\ntemplate: debian-12\nssh_keys: []\nplacement: {{near: {near}}}\n")
    };
    let file = format!("{}---\n{}", one("web", "db"), one("db", ""));
    let file = server.file("near.yaml", &file);
    server.line(&format!("create -f {file} --dry-run"), 0).await;
    let said = server.line(&format!("create -f {file} --json"), 0).await;
    let made = read(&said);
    let names = [&made["items"][0]["name"], &made["items"][1]["name"]];
    assert_eq!(names, ["db", "web"]);
    assert_eq!(made["items"][1]["spec"]["placement"]["near"], "db");
    server.line(&format!("create -f {file}"), 0).await;
    let shown = server.line("show web -o yaml", 0).await;
    assert!(shown.contains("near: db"), "{shown}");

    let one = |name: &str, other: &str| {
        let rule = format!("{{direction: in, action: allow, peer: 'instance:{other}'}}");
        format!(
            "name: {name}\ntemplate: debian-12\nssh_keys: []\nfirewall: {{in: deny, rules: [{rule}]}}\n"
        )
    };
    let cache = "name: cache\ntemplate: debian-12\nssh_keys: []\n";
    let file = server.file(
        "rules.yaml",
        &format!("{}---\n{cache}", one("app", "cache")),
    );
    let said = server.line(&format!("create -f {file} --json"), 0).await;
    let made = read(&said);
    let names = [&made["items"][0]["name"], &made["items"][1]["name"]];
    assert_eq!(names, ["cache", "app"]);
    server.line(&format!("create -f {file}"), 0).await;

    let circle = format!("{}---\n{}", one("a", "b"), one("b", "a"));
    let circle = server.file("circle.yaml", &circle);
    server
        .refuses(&[
            (
                &format!("create -f {circle}"),
                "each of a, b names another one",
            ),
            (
                "create c -t debian-12 --no-ssh-key --near nowhere",
                "there is no instance nowhere",
            ),
            ("create c -t debian-12 --near nowhere", "--near"),
            ("create c -t debian-12 --no-ssh-key --near c", "--near"),
            ("create c -t debian-12 --near No", "--near"),
        ])
        .await;
    assert_eq!(server.names().await, ["app", "cache", "db", "web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn version_events_resize_and_usage_errors_print_the_documented_output() {
    let server = Server::start().await;
    server.three().await;
    let version = env!("CARGO_PKG_VERSION");
    let both = read(&server.line("version --json", 0).await);
    assert_eq!(both["client"]["version"], version);
    assert_eq!(both["server"]["version"], version);
    let own = server
        .line("version --client --socket /nonexistent", 0)
        .await;
    assert_eq!(own, format!("waifuctl {version}\n"));
    server.line("version --socket /nonexistent", 2).await;

    let said = server.line("events nosuch", 1).await;
    assert!(said.contains("no object or event for"), "{said}");
    server.line("events template/nosuch", 1).await;
    server.line("events web", 0).await;
    server.line("events debian-12", 0).await;

    let said = server.line("resize web --cpus 1", 0).await;
    assert!(said.contains("unchanged"), "{said}");
    let said = server.line("resize web --cpus 2", 0).await;
    assert_eq!(said, "web: resized\n", "it never ran: no restart is needed");

    let unset = server.line("create x", 1).await;
    assert!(unset.contains("waifuctl template list"), "{unset}");
    let usage = server.line("show", 1).await;
    assert!(!usage.contains("--socket"), "{usage}");
    let quiet = server
        .command(&["-q", "delete", "nosuch", "--ignore-missing", "--yes"])
        .output()
        .await
        .unwrap();
    assert_eq!((quiet.stdout, quiet.stderr), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_completes_commands_and_names() {
    let server = Server::start().await;
    server.three().await;
    let complete = async |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let mut command = server.command(&[&["--"], words.as_slice()].concat());
        command
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        command
            .env("_CLAP_IFS", "\n")
            .env("_CLAP_COMPLETE_COMP_TYPE", "9");
        let output = command.output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        complete("waifuctl show ")
            .await
            .lines()
            .filter(|l| !l.starts_with('-'))
            .collect::<Vec<_>>(),
        ["db", "old", "web"]
    );
    assert_eq!(complete("waifuctl create -t d").await, "debian-12");
    assert_eq!(complete("waifuctl network show d").await, "default");
    assert_eq!(complete("waifuctl exec w").await, "web");
    assert_eq!(complete("waifuctl passwd w").await, "web");
    assert_eq!(complete("waifuctl template show d").await, "debian-12");
    assert_eq!(complete("waifuctl resc").await, "rescue");
    // Hidden verbs stay hidden.
    assert_eq!(complete("waifuctl ssh").await, "ssh\nssh-config");
    // Without a waifud there are no names, and no error either.
    assert_eq!(complete("waifuctl --socket /nonexistent stop w").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_options_are_passed_on_and_a_failed_ssh_prints_a_hint() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start().await;
    let user_data = server.file("ud", "#cloud-config\nusers: [{name: ana}]\n");
    server
        .line(
            &format!("create web -t debian-12 --no-ssh-key --user-data {user_data}"),
            0,
        )
        .await;
    std::fs::create_dir(server.path("bin")).unwrap();
    let ssh = server.file(
        "bin/ssh",
        "#!/bin/sh\nprintf '%s\\n' \"$@\" > \"$HOME/asked\"\nexit ${SSH_EXIT:-0}\n",
    );
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        server.path("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let run = async |line: &str, exit: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let mut command = server.command(&words);
        command
            .env("PATH", &path)
            .env("SSH_EXIT", exit)
            .env("WAIFUD_SOCKET", server.path("quiet"));
        let output = command.output().await.unwrap();
        let asked = std::fs::read_to_string(server.path("asked")).unwrap_or_default();
        (output, asked)
    };
    let (output, asked) = run("ssh -t -L 1:h:2 debian@web --accept-new-key -- ls -t", "7").await;
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(
        asked.contains("\nRemoteCommand=none\n-t\n-L\n1:h:2\nweb\n--\nls\n-t\n"),
        "{asked}"
    );
    let (_, asked) = run("ssh web --accept-new-key", "0").await;
    assert!(
        !asked.contains("RemoteCommand"),
        "a command of the user's own for every host stays: {asked}"
    );
    let (output, _) = run("ssh web --accept-new-key", "255").await;
    assert_eq!(output.status.code(), Some(255));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("hint: none of the keys"), "{said}");
}
