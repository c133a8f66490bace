//! QEMU's user as an attacker: it leaves links, FIFOs and files in the agent's directories, where root must stay safe.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncReadExt;
use waifud_api::agent::AgentInstance;
use waifud_api::metadatad::Observed;
use waifud_api::stream::{RefusalReason, StreamId, StreamKind, StreamOrder};
use waifud_hypervisor::DomainState;
use waifud_types::template::Datasource;
use waifud_types::{InstanceId, MacAddr, Timestamp};

use crate::datasource::bundle;
use crate::rescue;
use crate::test_node::TestNode;
use waifud_kit::testing::skip_if;

/// A user that owns nothing on this machine.
const QEMU: u32 = 64_055;
const DEADLINE: Duration = Duration::from_mins(1);

/// A node whose QEMU runs as another user, and a file of root that this user tries to reach.
struct Node {
    inner: TestNode,
    secret: PathBuf,
}

impl Node {
    /// `None` without root; the skip is reported.
    fn new() -> Option<Self> {
        let root = nix::unistd::geteuid().is_root();
        if skip_if((!root).then(|| "acting as another user needs root".to_owned())) {
            return None;
        }
        let mut inner = TestNode::new();
        inner.settings.qemu_owner = Some((QEMU, QEMU));
        let top = inner.settings.state_dir.parent().unwrap().to_owned();
        fs::set_permissions(&top, Permissions::from_mode(0o711)).unwrap();
        let secret = top.join("secret");
        fs::write(&secret, "root's alone\n").unwrap();
        fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        Some(Self { inner, secret })
    }

    /// An instance with its documents on a disk, so that the node writes a seed and a log for it.
    fn instance(&self, name: &str, host: u8) -> AgentInstance {
        let mut instance = instance(&self.inner, name, host);
        instance.datasource = Datasource::Cidata;
        instance.bundle = bundle(&self.inner, instance.id, "#!/bin/sh\n# first\n");
        instance
    }

    fn dir(&self, id: InstanceId) -> PathBuf {
        self.inner
            .settings
            .state_dir
            .join(format!("instances/{id}"))
    }

    fn log(&self, id: InstanceId) -> PathBuf {
        self.dir(id).join("console.log")
    }

    /// What libvirt's virtlogd does as root at every start of a guest: it appends to the path, whatever is there.
    fn virtlogd(&self, id: InstanceId, text: &str) {
        use std::io::Write;
        let spec = self.inner.hypervisor.spec(id).unwrap();
        let open = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(spec.console_log);
        open.unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Runs a script as QEMU's user; its failures are ignored.
    fn attack(&self, dir: &Path, script: &str) -> Child {
        Command::new("sh")
            .args(["-c", script, "sh"])
            .args([dir, self.secret.as_path()])
            .uid(QEMU)
            .gid(QEMU)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn secret_is_intact(&self, when: &str) {
        let facts = fs::symlink_metadata(&self.secret).unwrap();
        assert_eq!((facts.uid(), facts.mode() & 0o777), (0, 0o600), "{when}");
        let text = fs::read_to_string(&self.secret).unwrap();
        assert_eq!(text, "root's alone\n", "{when}");
    }

    /// The console log, or the refusal.
    async fn read_log(&self, instance: &AgentInstance) -> Result<String, RefusalReason> {
        static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let order = StreamOrder {
            id: StreamId::from_bytes([number; 32]),
            instance: instance.id,
            epoch: instance.epoch,
            kind: StreamKind::ConsoleLog {
                lines: 100,
                follow: false,
            },
        };
        let asked = tokio::time::timeout(DEADLINE, self.inner.waifud.request_stream(order));
        let mut wire = match asked.await.unwrap().unwrap() {
            Ok(wire) => wire,
            Err(refusal) => return Err(refusal.reason),
        };
        let mut text = String::new();
        let read = tokio::time::timeout(DEADLINE, wire.read_to_string(&mut text));
        read.await.unwrap().unwrap();
        Ok(text)
    }

    async fn until_console_lines(&self, id: InstanceId, words: &str) {
        self.inner
            .until(&format!("{words:?} in why"), async || {
                let reports = self.inner.waifud.status_history(id);
                let mut evidence = reports
                    .into_iter()
                    .rev()
                    .filter_map(|report| report.evidence);
                evidence.next().is_some_and(|seen| seen.console == [words])
            })
            .await;
    }

    /// Changes the documents, and waits until the agent has received them.
    async fn change_documents(&self, id: InstanceId, text: &str) {
        let inner = &self.inner;
        let before = inner.waifud.status(id).unwrap().observed_generation;
        let other = bundle(inner, id, text);
        inner.waifud.edit(id, |want| want.bundle = other.clone());
        inner
            .until_status(id, "observed", |s| s.observed_generation > before)
            .await;
    }

    async fn reboot(&self, id: InstanceId) {
        let starts = self.inner.hypervisor.starts();
        self.inner.hypervisor.crash(id);
        self.inner
            .until("started again", async || {
                self.inner.hypervisor.starts() > starts
                    && self.inner.domain(id).await == Some(DomainState::Running)
            })
            .await;
        self.inner.until_ready(id).await;
    }
}

/// An instance with unique addresses.
fn instance(inner: &TestNode, name: &str, host: u8) -> AgentInstance {
    let mut instance = inner.instance(name);
    let nic = instance.spec.nics.first_mut().unwrap();
    nic.mac = MacAddr::of_guest([2, 2, host]);
    nic.address = Some([10, 144, 1, host].into());
    instance
}

/// Everything that a user with write access to the directory would try, once.
const ONCE: &str = r#"cd "$1" || exit 0
for name in console.log cidata.iso cidata.new console.log.0; do
    rm -rf "$name"
    ln -s "$2" "$name"
    ln "$2" "$name.hard"
done
mkfifo fifo
mkdir below"#;

/// The same in a loop, to race with a file that is written and renamed.
const LOOP: &str = r#"cd "$1" || exit 0
while :; do
    for name in cidata.new console.log; do
        rm -rf "$name"
        ln -s "$2" "$name"
        mkfifo other
        mv -T other "$name"
    done
done"#;

#[tokio::test]
async fn qemus_user_cannot_use_links_to_reach_files_of_root() {
    let Some(node) = Node::new() else { return };
    let inner = &node.inner;
    inner.start();
    let instance = node.instance("web", 10);
    let id = instance.id;
    inner.waifud.put(instance.clone());
    inner.until_ready(id).await;
    node.virtlogd(id, "booted\n");

    // It fails at every step.
    node.attack(&node.dir(id), ONCE).wait().unwrap();
    node.virtlogd(id, "crashed\n");
    node.secret_is_intact("after the console was written to");
    assert_eq!(node.read_log(&instance).await.unwrap(), "booted\ncrashed\n");
    node.until_console_lines(id, "crashed").await;
    let mut names: Vec<_> = fs::read_dir(node.dir(id))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["cidata.iso", "console.log"]);
    let dir = node.dir(id).metadata().unwrap();
    assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (0, 0, 0o711));
    let seed = node.dir(id).join("cidata.iso").metadata().unwrap();
    assert_eq!((seed.uid(), seed.mode() & 0o777), (QEMU, 0o600));

    let mut attacker = node.attack(&node.dir(id), LOOP);
    for round in 0..20 {
        let text = format!("#!/bin/sh\n# {round}\n");
        node.change_documents(id, &text).await;
        node.reboot(id).await;
        node.virtlogd(id, &format!("round {round}\n"));
        node.secret_is_intact("while links came and went");
    }
    let image = rescue::image(inner);
    rescue::begin(inner, id, &image);
    rescue::until_disks(inner, id, &["rescue", "root"]).await;
    rescue::end(inner, id);
    rescue::until_disks(inner, id, &["root"]).await;
    drop(attacker.kill());
    attacker.wait().unwrap();
    node.secret_is_intact("after a rescue");
    node.virtlogd(id, "the last line\n");
    node.until_console_lines(id, "the last line").await;
    inner.delete(id).await;
    node.secret_is_intact("after the instance was deleted");
}

#[tokio::test]
async fn directories_of_an_older_version_are_secured_without_following_links() {
    let Some(node) = Node::new() else { return };
    let inner = &node.inner;
    let linked = node.instance("linked", 10);
    let piped = node.instance("piped", 11);
    let honest = node.instance("honest", 12);
    let everyone = [&linked, &piped, &honest];
    inner.start();
    for instance in everyone {
        inner.waifud.put(instance.clone());
        inner.until_ready(instance.id).await;
    }
    inner.kill().await;
    // As left by an older version and then changed by QEMU's user.
    for instance in everyone {
        let dir = node.dir(instance.id);
        chown(&dir, Some(QEMU), Some(QEMU)).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    }
    let cidata = |instance: &AgentInstance| node.dir(instance.id).join("cidata.iso");
    symlink(&node.secret, node.log(linked.id)).unwrap();
    fs::remove_file(cidata(&linked)).unwrap();
    symlink("/dev/zero", cidata(&linked)).unwrap();
    symlink(&node.secret, node.dir(linked.id).join("cidata.new")).unwrap();
    fs::hard_link(&node.secret, node.dir(linked.id).join("console.log.0")).unwrap();
    mkfifo(&node.log(piped.id), Mode::from_bits_truncate(0o666)).unwrap();
    fs::create_dir(node.dir(piped.id).join("cidata.new")).unwrap();
    fs::write(node.log(honest.id), "an old line\n").unwrap();
    chown(node.log(honest.id), Some(QEMU), Some(QEMU)).unwrap();
    let seed = cidata(&honest).metadata().unwrap().ino();

    inner.start();
    for instance in everyone {
        inner.until_ready(instance.id).await;
        let dir = node.dir(instance.id).metadata().unwrap();
        assert_eq!((dir.uid(), dir.mode() & 0o7777), (0, 0o711));
    }
    node.secret_is_intact("after the take-over");
    let log = node.log(honest.id).metadata().unwrap();
    assert_eq!((log.uid(), log.mode() & 0o777), (0, 0o600));
    assert_eq!(cidata(&honest).metadata().unwrap().ino(), seed);
    for instance in everyone {
        let text = "#!/bin/sh\n# second\n";
        node.change_documents(instance.id, text).await;
        node.reboot(instance.id).await;
        let facts = fs::symlink_metadata(cidata(instance)).unwrap();
        assert!(facts.is_file() && facts.uid() == QEMU);
    }
    let gone = Err(RefusalReason::NoLog);
    assert_eq!(node.read_log(&linked).await, gone, "a link was followed");
    assert_eq!(node.read_log(&piped).await, gone, "a pipe was kept");
    assert_eq!(node.read_log(&honest).await.unwrap(), "an old line\n");
    for instance in everyone {
        node.virtlogd(instance.id, "up again\n");
        node.until_console_lines(instance.id, "up again").await;
        inner.delete(instance.id).await;
    }
    node.secret_is_intact("at the end");
}

/// Does not need root: a pipe or a link in the directory only affects the log of its own guest, regardless of the
/// owner.
#[tokio::test]
async fn a_pipe_in_place_of_a_log_blocks_no_other_guest() {
    let inner = TestNode::started();
    let mut ids = Vec::new();
    for (name, host) in [("piped", 10), ("linked", 11), ("honest", 12)] {
        let instance = instance(&inner, name, host);
        ids.push(instance.id);
        inner.waifud.put(instance);
    }
    let [piped, linked, honest] = ids.try_into().unwrap();
    for id in [piped, linked, honest] {
        inner.until_ready(id).await;
    }
    let log = |id: InstanceId| {
        let dir = inner.settings.state_dir.join(format!("instances/{id}"));
        dir.join("console.log")
    };
    mkfifo(&log(piped), Mode::from_bits_truncate(0o600)).unwrap();
    symlink(log(honest), log(linked)).unwrap();
    fs::write(log(honest), "its own words\n").unwrap();
    inner
        .until("the honest guest's words", async || {
            let reports = inner.waifud.status_history(honest);
            let mut evidence = reports
                .into_iter()
                .rev()
                .filter_map(|report| report.evidence);
            evidence
                .next()
                .is_some_and(|seen| seen.console == ["its own words"])
        })
        .await;
    for id in [piped, linked] {
        let evidence = || {
            let reports = inner.waifud.status_history(id).into_iter();
            reports.filter_map(|report| report.evidence)
        };
        // Evidence that was gathered after the pipe and the link exist, because it shows this request.
        let path = "/openstack/latest/user_data".to_owned();
        let request = Observed::Request { path, status: 200 };
        inner.metadata.observe(id, Timestamp::now(), request);
        inner
            .until("later evidence", async || {
                evidence().any(|seen| !seen.requests.is_empty())
            })
            .await;
        let consoles: Vec<_> = evidence().map(|seen| seen.console).collect();
        assert!(consoles.iter().all(Vec::is_empty), "{consoles:?}");
    }
}
