//! A plain QEMU for one test: no host network, a console, a guest agent. It ends when dropped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

/// Limit for emulated guests. Long, because the machine may be compiling at the same time.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// Whether root rights or one of `tools` are missing. Reports a skipped test then, or fails where skipping is not
/// allowed.
pub fn missing(tools: &[&str]) -> bool {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let absent = tools
        .iter()
        .filter(|tool| {
            !Path::new(tool).is_absolute()
                && !path
                    .split(':')
                    .any(|directory| Path::new(directory).join(tool).exists())
                || Path::new(tool).is_absolute() && !Path::new(tool).exists()
        })
        .map(|tool| format!("{tool} is missing"));
    let root = (!nix::unistd::geteuid().is_root()).then(|| "not root".to_owned());
    let reasons: Vec<String> = root.into_iter().chain(absent).collect();
    if reasons.is_empty() {
        return false;
    }
    waifud_kit::testing::skip(&reasons.join(", "));
    true
}

/// A lock for running one emulated machine at a time, across processes.
pub fn turn() -> std::fs::File {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu.lock");
    let file = std::fs::File::create(path).unwrap();
    file.lock().unwrap();
    file
}

/// A running machine.
pub struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    dir: PathBuf,
}

impl Machine {
    /// 96 MiB, q35, the disk (a qcow2 that is written to), an agent channel; `dir` is for sockets.
    pub fn start(disk: &Path, dir: &Path, more: &[&str]) -> Self {
        let agent = format!(
            "socket,id=agent,path={},server=on,wait=off",
            dir.join("agent").display()
        );
        let control = format!("unix:{},server=on,wait=off", dir.join("control").display());
        let drive = format!("file={},if=virtio,format=qcow2", disk.display());
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg", "-m", "96"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
            .args(["-drive", &drive, "-device", "virtio-serial"])
            .args(["-chardev", &agent])
            .args([
                "-device",
                "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            ])
            .args(["-qmp", &control])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let console = qemu.stdout.take().unwrap();
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            qemu,
            lines,
            seen: Vec::new(),
            dir: dir.to_owned(),
        }
    }

    /// Waits for a line on the console that contains `words`, and returns it.
    pub fn wait_for(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(words) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!(
                        "the console did not print \"{words}\":\n{}",
                        self.seen.join("\n")
                    );
                }
            }
        }
    }

    /// The console's output during the waits.
    pub fn seen(&self) -> String {
        self.seen.join("\n")
    }

    /// Sends a command to the guest agent and returns the `return` value.
    pub fn agent(&self, command: &str, arguments: &Value) -> Value {
        let mut stream = self.connect("agent");
        ask(&mut stream, command, arguments)
    }

    /// Sends the agent a command that ends the guest, so there is no answer. Keep the connection until the guest
    /// reacts.
    #[must_use]
    pub fn agent_last_words(&self, command: &str, arguments: &Value) -> UnixStream {
        let mut stream = self.connect("agent");
        send(&mut stream, command, arguments);
        stream
    }

    /// The contents of a file in the guest, read with the agent.
    pub fn read(&self, path: &str) -> String {
        let ran = self.agent(
            "guest-exec",
            &json!({"path": "/bin/cat", "arg": [path], "capture-output": true}),
        );
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let status = self.agent("guest-exec-status", &json!({"pid": ran["pid"]}));
            if status["exited"] == json!(true) {
                return decode(status["out-data"].as_str().unwrap_or_default());
            }
        }
        panic!("cat {path} does not end");
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        let mut stream = self.connect("control");
        let mut greeting = String::new();
        BufReader::new(stream.try_clone().unwrap())
            .read_line(&mut greeting)
            .unwrap();
        ask(&mut stream, "qmp_capabilities", &json!({}));
        ask(&mut stream, "system_powerdown", &json!({}));
    }

    /// Waits until the guest has powered itself off.
    pub fn wait_for_end(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the guest is still on:\n{}", self.seen());
                }
            }
        }
        assert!(self.qemu.wait().unwrap().success());
    }

    fn connect(&self, socket: &str) -> UnixStream {
        let stream = UnixStream::connect(self.dir.join(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn send(stream: &mut UnixStream, command: &str, arguments: &Value) {
    let request = json!({"execute": command, "arguments": arguments});
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
}

fn ask(stream: &mut UnixStream, command: &str, arguments: &Value) -> Value {
    send(stream, command, arguments);
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        if let Some(value) = answer.get("return") {
            return value.clone();
        }
    }
}

fn decode(base64: &str) -> String {
    let bytes = base64::prelude::BASE64_STANDARD.decode(base64).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A temporary disk on top of `image`, which receives all writes of the guest.
pub fn overlay(image: &Path, dir: &Path) -> PathBuf {
    let disk = dir.join("disk.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(image)
        .arg(&disk)
        .status()
        .unwrap();
    assert!(made.success());
    disk
}
