//! Ctrl-C during a wait ends only the wait.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::downloads::{download, without_template};
use super::*;

impl Fake {
    /// Runs waifuctl, and sends SIGINT once it has made this request twice: it waits then. Returns stderr.
    async fn interrupted(&self, line: &str, request: &str) -> String {
        let mut command = self.command(line);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        let waits = async {
            while self.count(request) < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            kill(pid, Signal::SIGINT).unwrap();
            child.wait_with_output().await.unwrap()
        };
        let output = tokio::time::timeout(Duration::from_mins(1), waits).await;
        let output = output.unwrap_or_else(|_| panic!("{line} does not end"));
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{line}: {err}");
        err
    }

    fn deletions(&self) -> Vec<String> {
        let script = self.script.lock().unwrap();
        let all = script.counts.keys();
        all.filter(|key| key.starts_with("DELETE"))
            .cloned()
            .collect()
    }
}

fn booting() -> Value {
    instance(
        "web",
        ID,
        json!({"ready": false, "ready_by": null,
        "cloud_init": {"state": "running", "instance_id": null, "datasource": null, "errors": []}}),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_the_wait_for_an_instance_and_deletes_nothing() {
    let by_name = "GET /v1/instances/web";
    let by_id = format!("GET /v1/instances/{ID}");
    let waited = Fake::start([booting()], &[]);
    let err = waited.interrupted("wait web --for ready", &by_id).await;
    assert!(err.contains("stopped waiting for web"), "{err}");
    assert_eq!(waited.count(by_name), 1);

    let created = Fake::start([booting()], &[("POST /v1/instances", booting())]);
    let line = "create web -t a --no-ssh-key --wait";
    let err = created.interrupted(line, &by_id).await;
    assert!(err.contains("waifud continues in the background"), "{err}");
    assert_eq!(created.count("POST /v1/instances"), 1);
    for fake in [waited, created] {
        assert_eq!(fake.deletions(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_the_wait_for_a_download_which_continues() {
    let running = download("mine", json!({}));
    let others = [
        ("POST /v1/downloads", running.clone()),
        ("GET /v1/downloads/mine", running),
    ];
    let fake = Fake::start([], &others);
    let line = "template add mine --url https://example.org/a --insecure-no-checksum";
    let err = fake.interrupted(line, "GET /v1/downloads/mine").await;
    assert!(err.contains("the download continues"), "{err}");
    assert_eq!(fake.deletions(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_during_the_download_of_a_missing_template_creates_no_instance() {
    let create = "POST /v1/instances";
    let fake = without_template("debian-12", create, 0);
    let running = (200, download("debian-12", json!({})));
    let absent = problem(404, "not-found", "not found");
    fake.script("GET /v1/downloads/debian-12", [absent, running]);
    let line = "create web -t debian-12 --no-ssh-key";
    let err = fake.interrupted(line, "GET /v1/downloads/debian-12").await;
    assert!(err.contains("the download continues"), "{err}");
    assert!(err.contains("run the same command again"), "{err}");
    assert_eq!(fake.count(create), 1);
    assert_eq!(fake.deletions(), [""; 0]);
}
