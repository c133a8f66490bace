//! Network namespaces without names: threads enter them, and they end with their last descriptor.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use waifud_kit::testing::skip_if;

#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Creates a namespace with its loopback interface up.
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self { file };
        namespace.ip("link set lo up");
        namespace
    }

    /// The namespace of the calling thread.
    pub fn current() -> Self {
        let file = File::open("/proc/thread-self/ns/net").unwrap();
        Self { file }
    }

    /// Another handle of the same namespace.
    pub fn of(other: &Self) -> Self {
        let file = other.file.try_clone().unwrap();
        Self { file }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Moves the calling thread into the namespace, permanently.
    pub fn enter(&self) {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs `work` in the namespace, on a separate thread.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter();
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip ARGUMENTS` in the namespace; arguments are separated by spaces.
    pub fn ip(&self, arguments: &str) -> String {
        self.tool(
            "ip",
            &arguments.split_ascii_whitespace().collect::<Vec<_>>(),
        )
    }

    /// Runs a program in the namespace, which must succeed, and returns its stdout.
    pub fn tool(&self, tool: &str, arguments: &[&str]) -> String {
        let output = self.run(|| Command::new(tool).args(arguments).output());
        let output = output.unwrap_or_else(|error| panic!("{tool}: {error}"));
        assert!(
            output.status.success(),
            "{tool} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// A value below `/proc/sys/net` in the namespace; empty if it does not exist.
    pub fn sysctl(&self, path: &str) -> String {
        let path = format!("/proc/sys/net/{path}");
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        self.run(read).trim().to_owned()
    }
}

/// Whether these tests can run, which needs root and some tools. Otherwise reports that the test is skipped.
pub fn can_run() -> bool {
    let missing = if nix::unistd::geteuid().is_root() {
        ["/usr/sbin/nft", "/usr/sbin/dnsmasq", "/usr/sbin/ip"]
            .into_iter()
            .find(|tool| !std::path::Path::new(tool).exists())
    } else {
        Some("root")
    };
    !skip_if(missing.map(|missing| format!("a node needs {missing}")))
}
