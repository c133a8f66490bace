//! A real waifud on a free port.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use waifud_pki::Authority;

/// A running waifud; killed when dropped.
pub struct Waifud {
    pub child: Child,
    pub at: SocketAddr,
    pub dir: tempfile::TempDir,
}

impl Drop for Waifud {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _may_have_ended = self.child.wait();
    }
}

impl Waifud {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display();
        let config = dir.path().join("waifud.toml");
        let text = format!(
            "socket = '{home}/u.sock'\nstate_dir = '{home}/state'\n\
             listen = ['127.0.0.1:0']"
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_waifud"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It prints its address once it listens.
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let at = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, rest)) = line.split_once("listen=[") {
                break rest.split(']').next().unwrap().parse().unwrap();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, at, dir }
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.path().join("state/pki")
    }

    pub fn authority(&self) -> Authority {
        Authority::open(&self.pki()).unwrap()
    }
}
