//! One node in namespaces with everything that waifud needs. The tests of one suite share it.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::NamedTempFile;
use waifud_images::{BuiltImage, Guest as Image};
use waifud_lab::{Lab, LabOptions, ssh, testing, wait};

use crate::{Guest, Waifuctl};

/// The node's name.
pub const NODE: &str = "alder";
/// The template of the small guest.
pub const TINY: &str = "tiny";
/// Limit of operations that take seconds. Long, because the machine may be busy.
pub const SOON: Duration = Duration::from_mins(2);

/// A lab with our daemons, a template, and an SSH key.
pub struct World {
    /// The lab itself.
    pub lab: Lab,
    /// Controls it.
    pub waifuctl: Waifuctl,
    /// The small guest's image.
    pub tiny: BuiltImage,
    /// The private key, as the node sees it.
    pub key: PathBuf,
    /// The public key, as the machine sees it.
    pub public_key: PathBuf,
}

/// The arguments that create a small guest: with 128 MiB of memory, unless `more` has another size.
#[must_use]
pub fn creation<'a>(template: &'a str, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let memory: &[&str] = if more.contains(&"--memory") {
        &[]
    } else {
        &["--memory", "128M"]
    };
    let always = ["create", name, "-t", template, "--disk", "1G"];
    [&always[..], memory, more].concat()
}

/// A file with these contents, and its path as an argument. It is removed when it is dropped.
pub fn file(contents: &[u8]) -> Result<(NamedTempFile, String)> {
    let file = NamedTempFile::new()?;
    std::fs::write(file.path(), contents)?;
    let path = file.path().display().to_string();
    Ok((file, path))
}

static SHARED: OnceLock<Mutex<Option<World>>> = OnceLock::new();

impl World {
    /// Runs `test` in the suite's world, one test at a time. Reports a skipped test where no lab can run.
    ///
    /// The lab's guard stops the lab when the test process ends.
    pub fn with(test: impl FnOnce(&World) -> Result<()>) -> Result<()> {
        Self::with_options(&LabOptions::with_daemons(), "", test)
    }

    /// The same, with this number of nodes (alder, birch, …) and with Redis. All tests of a suite use the same number.
    pub fn with_nodes_and_redis(
        nodes: usize,
        test: impl FnOnce(&World) -> Result<()>,
    ) -> Result<()> {
        let options = LabOptions {
            nodes,
            redis: true,
            ..LabOptions::with_daemons()
        };
        Self::with_options(&options, "", test)
    }

    /// The same, with these lines in `waifud.toml`, which must be the same in all tests of a suite.
    pub fn with_settings(settings: &str, test: impl FnOnce(&World) -> Result<()>) -> Result<()> {
        Self::with_options(&LabOptions::with_daemons(), settings, test)
    }

    fn with_options(
        options: &LabOptions,
        settings: &str,
        test: impl FnOnce(&World) -> Result<()>,
    ) -> Result<()> {
        if let Some(why) = testing::why_no_lab() {
            return testing::skip(&why);
        }
        let shared = SHARED.get_or_init(|| Mutex::new(None));
        let mut world: MutexGuard<'_, Option<World>> =
            shared.lock().unwrap_or_else(PoisonError::into_inner);
        if world.is_none() {
            *world = Some(Self::up(options, settings)?);
        }
        let world = world.as_ref().context("no world")?;
        world.lab.wait_ready(SOON)?;
        let result = test(world);
        if result.is_err() {
            world.print_logs();
        }
        result
    }

    fn up(options: &LabOptions, settings: &str) -> Result<Self> {
        let tiny =
            waifud_images::build(Image::Tiny, &waifud_images::default_cache_dir(), &|line| {
                eprintln!("{line}");
            })?;
        let init = testing::init_exe()?;
        let bin_dir = init.parent().context("xtask has no directory")?.to_owned();
        let file = ("/etc/waifud/waifud.toml".into(), settings.to_owned());
        let files = if settings.is_empty() {
            Vec::new()
        } else {
            vec![file]
        };
        let lab = Lab::up(&LabOptions {
            node: NODE.to_owned(),
            bin_dir: Some(bin_dir.clone()),
            init_exe: Some(init),
            files,
            ..options.clone()
        })?;
        let key = PathBuf::from("/etc/waifud/test-key");
        let private = lab.path_outside(&key);
        ssh::make_key(&private, "test")?;
        // In the lab's directory, which its guard removes: values in a static are never dropped.
        let home = lab.path_outside("/etc/waifud/home");
        std::fs::create_dir(&home)?;
        // With several nodes, waifud has a machine of its own.
        let machines = lab.machines();
        let own = machines
            .into_iter()
            .find(|name| !lab.nodes().contains(name));
        let waifud = own.unwrap_or(NODE).to_owned();
        let waifuctl = Waifuctl {
            program: bin_dir.join("waifuctl"),
            socket: lab.path_outside_of(&waifud, "/run/waifud/waifud.sock"),
            https: None,
            home,
        };
        let world = Self {
            public_key: private.with_extension("pub"),
            lab,
            waifuctl,
            tiny,
            key,
        };
        world.lab.wait_nodes_ready(SOON)?;
        world.add_template(TINY, &[])?;
        Ok(world)
    }

    /// Adds a template of the small guest's image.
    pub fn add_template(&self, name: &str, more: &[&str]) -> Result<()> {
        let image = self.tiny.qcow2.display().to_string();
        let args = [
            "template", "add", name, "--user", "debian", "--file", &image,
        ];
        self.waifuctl.json(&[&args, more].concat())?;
        Ok(())
    }

    /// Waits until the node accepts instances.
    pub fn node_is_ready(&self) -> Result<()> {
        wait::until("the node to be ready", SOON, || {
            let nodes = self.waifuctl.json(&["node", "list"])?;
            Ok(
                (nodes.pointer("/items/0/state").and_then(Value::as_str) == Some("ready"))
                    .then_some(()),
            )
        })
    }

    /// Creates a small guest and waits until it is ready.
    pub fn ready_guest(&self, name: &str, more: &[&str]) -> Result<Guest<'_>> {
        self.ready_guest_of(TINY, name, more)
    }

    /// The same, of another template.
    pub fn ready_guest_of(&self, template: &str, name: &str, more: &[&str]) -> Result<Guest<'_>> {
        let key = self.public_key.display().to_string();
        let ready = ["--ssh-key", &key, "--wait", "--timeout", "5m"];
        let more = [&ready[..], more].concat();
        let instance = self.waifuctl.json(&creation(template, name, &more))?;
        let address = instance
            .pointer("/status/addresses/0/address")
            .and_then(Value::as_str)
            .context("no address")?;
        Ok(Guest {
            world: self,
            name: name.to_owned(),
            address: address.to_owned(),
        })
    }

    /// Requests a small guest of [`TINY`] and does not wait for it.
    pub fn create(&self, name: &str, more: &[&str]) -> Result<Value> {
        self.waifuctl.json(&creation(TINY, name, more))
    }

    /// Deletes an instance and waits until that is complete.
    pub fn delete(&self, name: &str) -> Result<()> {
        let outcome = self
            .waifuctl
            .run(&["delete", name, "--yes", "--wait", "--timeout", "2m"])?;
        ensure!(
            outcome.code == 0,
            "delete {name} ended with {}: {}",
            outcome.code,
            outcome.stderr
        );
        Ok(())
    }

    /// The output of `show --json`.
    pub fn show(&self, name: &str) -> Result<Value> {
        self.waifuctl.json(&["show", name])
    }

    /// Waits until `condition` holds for the output of `show --json`.
    pub fn until(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::until(&format!("{name}: {what}"), SOON, || {
            let instance = self.show(name)?;
            Ok(condition(&instance).then_some(instance))
        })
        .with_context(|| {
            self.waifuctl
                .run(&["why", name])
                .map_or_else(|e| e.to_string(), |o| o.stdout)
        })
    }

    /// Runs a program in the node, as root, and returns its output.
    pub fn node(&self, argv: &[&str]) -> Result<String> {
        wait::run(&mut self.lab.command(NODE, argv)?, SOON)
    }

    /// Prints the last lines of our daemons' logs on standard error.
    fn print_logs(&self) {
        let Ok(files) = std::fs::read_dir(self.lab.path_outside("/var/log/waifud")) else {
            return;
        };
        for file in files.flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            eprintln!("--- {}", file.file_name().display());
            for line in lines.iter().skip(lines.len().saturating_sub(40)) {
                eprintln!("{line}");
            }
        }
    }
}
