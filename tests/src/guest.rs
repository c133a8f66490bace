//! A running guest, reached over SSH from its node.

use anyhow::Result;
use waifud_lab::{ssh, wait};

use crate::World;
use crate::world::{NODE, SOON};

/// A guest that is ready.
pub struct Guest<'a> {
    /// The world that it runs in.
    pub world: &'a World,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
}

impl Guest<'_> {
    /// Runs a shell command in the guest, as root, and returns its output.
    pub fn run(&self, script: &str) -> Result<String> {
        let key = self.world.key.to_string_lossy().into_owned();
        let user = format!("root@{}", self.address);
        // Several guests use the same address one after another, with different host keys.
        let mut argv = ssh::client(&key, None);
        argv.extend([user, "--".to_owned(), script.to_owned()]);
        wait::run(&mut self.world.lab.command(NODE, argv)?, SOON)
    }

    /// The path on the machine of the private key that it accepts.
    pub fn private_key(&self) -> String {
        self.world
            .public_key
            .with_extension("")
            .display()
            .to_string()
    }

    /// Runs a shell command until it succeeds, because the guest may still be booting.
    pub fn run_when_up(&self, script: &str) -> Result<String> {
        wait::until(&format!("SSH to {}", self.name), SOON, || {
            Ok(self.run(script).ok())
        })
    }
}
