//! A network namespace without a name, which ends with its thread.

use std::{fs, os::linux::fs::MetadataExt, process::Command, sync::mpsc, thread};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, gettid},
};
use tokio::runtime::{Builder, Runtime};

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// A thread in its own namespace, with a runtime whose workers are in it too.
pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    id: i32,
}

/// Whether namespaces can be created and configured here.
pub fn available() -> Result<(), String> {
    if !Uid::effective().is_root() {
        return Err("needs root for network namespaces".into());
    }
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        return Err("needs /dev/net/tun".into());
    }
    Command::new("ip")
        .arg("-V")
        .output()
        .map(|_| ())
        .map_err(|error| format!("needs the ip tool: {error}"))
}

/// Identifies the namespace of the calling thread.
fn identity() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").unwrap().st_ino()
}

impl Namespace {
    pub fn new() -> Self {
        let outside = identity();
        let (jobs, work) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert_ne!(identity(), outside, "still in the machine's own network");
            let runtime = Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            ready.send(gettid().as_raw()).unwrap();
            for job in work {
                job(&runtime);
            }
        });
        let id = is_ready.recv().unwrap();
        let namespace = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            id,
        };
        namespace.ip("link set lo up");
        namespace
    }

    /// The argument for `ip link … netns`.
    pub fn thread_id(&self) -> i32 {
        self.id
    }

    /// Runs a future in the namespace and waits for it. Tasks that it spawns continue.
    pub fn run<F, R>(&self, task: impl FnOnce() -> F + Send + 'static) -> R
    where
        F: Future<Output = R>,
        R: Send + 'static,
    {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move |runtime| {
            let _ = answer.send(runtime.block_on(async { task().await }));
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result
            .recv()
            .expect("the task in the namespace has panicked")
    }

    /// Runs `ip` with these words; it must succeed.
    pub fn ip(&self, words: &str) {
        let words: Vec<String> = words.split(' ').map(Into::into).collect();
        self.run(move || async move {
            let output = Command::new("ip").args(&words).output().unwrap();
            assert!(
                output.status.success(),
                "ip {words:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        });
    }

    /// Whether this kernel has WireGuard: tries to create a link of that kind. A kernel without it refuses with
    /// "Unknown device type" (`EOPNOTSUPP`); any other failure is an error of the test's environment.
    pub fn kernel_has_wireguard(&self) -> bool {
        self.run(|| async {
            let ip = |words: &[&str]| Command::new("ip").args(words).output().unwrap();
            let added = ip(&["link", "add", "wgprobe0", "type", "wireguard"]);
            if added.status.success() {
                assert!(ip(&["link", "delete", "wgprobe0"]).status.success());
                return true;
            }
            let error = String::from_utf8_lossy(&added.stderr);
            assert!(
                error.contains("Unknown device type") || error.contains("not supported"),
                "unknown whether the kernel has WireGuard: {error}"
            );
            false
        })
    }

    /// Whether the link exists.
    pub fn has_link(&self, name: &str) -> bool {
        let name = name.to_owned();
        self.run(move || async move {
            Command::new("ip")
                .args(["link", "show", &name])
                .output()
                .unwrap()
                .status
                .success()
        })
    }

    /// Sets a value below `/proc/sys/net`, which shows the namespace of the calling thread.
    pub fn sysctl(&self, path: &str, value: &str) {
        let (path, value) = (format!("/proc/sys/net/{path}"), value.to_owned());
        self.run(move || async move {
            fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
