//! Creates a lab.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;

use super::{Lab, START_LIMIT, stop_guard};
use crate::options::{LabOptions, LabSpec, Role, specify};
use crate::pids::Pids;
use crate::stale::{create, default_base, remove, remove_stale};
use crate::{guard, join, layout, testing, wait};

/// The longest path in the address of a unix socket (`unix(7)`: 108 bytes with the final zero).
const SOCKET_PATH: usize = 107;

impl Lab {
    /// Creates a lab and returns when all its services are ready.
    ///
    /// # Errors
    /// The caller is not root, a program is missing, or a service does not become ready (the error contains the end of
    /// its log). Nothing remains of the lab then.
    pub fn up(options: &LabOptions) -> Result<Self> {
        ensure!(
            Uid::effective().is_root(),
            "a lab needs root, because it creates namespaces"
        );
        let init_exe = match &options.init_exe {
            Some(path) => path.clone(),
            None => testing::init_exe()?,
        };
        let base = options.base.clone().unwrap_or_else(default_base);
        remove_stale(Some(&base))?;
        let spec = specify(options, &init_exe)?;
        let dir = base.join(&spec.name);
        let socket = Path::new("/run/waifud-metadata/metadatad.sock");
        let lengths = spec.machines.iter().map(|machine| {
            let path = layout::outside_path(&dir, &machine.name, socket);
            path.as_os_str().len()
        });
        ensure!(
            lengths.max().unwrap_or_default() <= SOCKET_PATH,
            "{} is too long for unix sockets: set WAIFUD_LAB_BASE to a shorter directory",
            base.display()
        );
        let maker = create(&dir)?;
        let made = Self::make(&dir, maker, spec, options, &init_exe);
        if made.is_err() {
            // The guard may have removed it already. Obstacles appear in the error below.
            let _ = remove(&dir);
        }
        made
    }

    fn make(
        dir: &Path,
        maker: fs::File,
        spec: LabSpec,
        options: &LabOptions,
        init_exe: &Path,
    ) -> Result<Self> {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        for machine in &spec.machines {
            let inside = machine.role != Role::Outside;
            let extra = if inside {
                options.files.as_slice()
            } else {
                &[]
            };
            layout::write(dir, &spec, machine, extra)?;
        }
        fs::write(dir.join("lab.json"), serde_json::to_vec_pretty(&spec)?)?;
        let log = guard::log(dir)?;
        let mut child = Command::new(init_exe)
            .arg("lab-guard")
            .arg(dir)
            .current_dir("/")
            .stdin(if spec.stay {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", init_exe.display()))?;
        // Read before the guard can fail: a failing guard removes the directory.
        let mut said = fs::File::open(dir.join("guard.log"))?;
        let pids = wait::until("the lab's guard", START_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("the lab's guard ended with {status}: {}", tail(&mut said));
            }
            Ok(Pids::read(dir).ok())
        });
        let pids = match pids {
            Ok(pids) => pids,
            Err(error) => {
                stop_guard(&mut child);
                return Err(error);
            }
        };
        drop(maker);
        let mut lab = Self {
            dir: dir.to_owned(),
            spec,
            guard_pid: pids.guard,
            guard: Some(child),
            owned: true,
        };
        let ready = lab
            .ready_or_guard_gone(options.start_limit, &mut said)
            .and_then(|()| lab.join_all());
        match ready {
            Ok(()) => {
                lab.owned = !lab.spec.stay;
                Ok(lab)
            }
            Err(error) => {
                let logs = lab.logs();
                lab.end()?;
                Err(error.context(logs))
            }
        }
    }

    /// Joins nodes with daemons to waifud. A lab that stays is for interactive use and gets an API token.
    fn join_all(&self) -> Result<()> {
        let Some(waifud) = self.spec.waifud() else {
            return Ok(());
        };
        for node in self.spec.nodes() {
            join::join(
                |words| self.command(&waifud.name, words.iter().copied()),
                |words| self.command(&node.name, words.iter().copied()),
                &self.path_outside_of(&node.name, join::TOKEN),
            )
            .with_context(|| format!("node {}", node.name))?;
        }
        if self.spec.stay {
            self.https()?;
        }
        Ok(())
    }

    /// As [`Lab::wait_ready`], but ends early if the guard ends.
    fn ready_or_guard_gone(&mut self, limit: Duration, said: &mut fs::File) -> Result<()> {
        let mut last = Vec::new();
        let mut guard = self.guard.take();
        let ready = wait::until("the lab's services", limit, || {
            if let Some(status) = guard
                .as_mut()
                .and_then(|guard| guard.try_wait().ok().flatten())
            {
                bail!("the lab ended with {status}: {}", tail(said));
            }
            last = self.unready();
            Ok(last.is_empty().then_some(()))
        });
        self.guard = guard;
        ready.with_context(|| format!("not ready: {}", last.join(", ")))
    }

    /// The last lines of all services' logs, for an error message.
    fn logs(&self) -> String {
        let mut text = String::from("the lab did not start; the last lines of its logs:");
        for machine in self.machines() {
            let dir = self.path_outside_of(machine, "/var/log/waifud");
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if let Ok(mut file) = fs::File::open(entry.path()) {
                    let name = entry.file_name();
                    let (name, tail) = (name.to_string_lossy(), tail(&mut file));
                    let _ = write!(text, "\n--- {machine}: {name}\n{tail}");
                }
            }
        }
        text
    }
}

/// The last 2,000 bytes of a log.
fn tail(file: &mut fs::File) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let length = file.metadata().map_or(0, |data| data.len());
    let mut text = Vec::new();
    let _ = file.seek(SeekFrom::Start(length.saturating_sub(2000)));
    let _ = file.read_to_end(&mut text);
    String::from_utf8_lossy(&text).trim().to_owned()
}
