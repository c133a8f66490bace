//! The handle of a lab: creates, uses and stops it.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

use crate::control::{Reply, Request, ServiceState, ServiceStatus, ask};
use crate::guard::{self, Pids};
use crate::options::{LabOptions, LabSpec, check_name, specify};
use crate::stale::{create, default_base, remove, remove_stale};
use crate::{Https, OUTSIDE, https, join, layout, testing, wait};

const START_LIMIT: Duration = Duration::from_mins(1);
/// Longer than the guard takes to kill processes that do not stop.
const DOWN_LIMIT: Duration = Duration::from_secs(40);
/// The longest path in the address of a unix socket (`unix(7)`: 108 bytes with the final zero).
const SOCKET_PATH: usize = 107;

/// A running lab. Dropping a handle of [`Lab::up`] stops the lab, unless the options say that it stays.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    spec: LabSpec,
    pids: Pids,
    /// The guard, if this process started it. It notices the end of this process by its standard input.
    guard: Option<Child>,
    owned: bool,
}

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
        check_name(&options.node)?;
        let init_exe = match &options.init_exe {
            Some(path) => path.clone(),
            None => testing::init_exe()?,
        };
        let base = options.base.clone().unwrap_or_else(default_base);
        remove_stale(Some(&base))?;
        let spec = specify(options, &init_exe)?;
        let dir = base.join(&spec.name);
        let longest = layout::outside_path(
            &dir,
            &options.node,
            Path::new("/run/waifud-metadata/metadatad.sock"),
        );
        ensure!(
            longest.as_os_str().len() <= SOCKET_PATH,
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
        for node in &spec.nodes {
            let extra = if node.name == options.node {
                options.files.as_slice()
            } else {
                &[]
            };
            layout::write(dir, &spec, node, extra)?;
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
            pids,
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
        for node in self.spec.nodes.iter().filter(|node| node.daemons) {
            let file = self.path_outside_of(&node.name, join::TOKEN);
            join::join(
                |words| self.command(&node.name, words.iter().copied()),
                &file,
            )
            .with_context(|| format!("node {}", node.name))?;
        }
        if self.spec.stay && self.spec.nodes.iter().any(|node| node.daemons) {
            self.https()?;
        }
        Ok(())
    }

    /// Access to the lab's waifud over HTTPS from outside. The first call creates a token.
    ///
    /// # Errors
    /// No waifud runs in the lab, or it creates no token.
    pub fn https(&self) -> Result<Https> {
        if let Some(made) = https::read(&self.dir)? {
            return Ok(made);
        }
        let mut nodes = self.spec.nodes.iter();
        let node = nodes.find(|node| node.daemons);
        https::make(self, &node.context("no waifud runs in this lab")?.name)?;
        https::read(&self.dir)?.context("the lab's relay is not running")
    }

    /// A handle of the lab in `dir`, which another process started. Dropping the handle does not stop the lab.
    ///
    /// # Errors
    /// No lab runs in `dir`.
    pub fn attach(dir: &Path) -> Result<Self> {
        ensure!(guard::alive(dir), "no lab runs in {}", dir.display());
        Ok(Self {
            dir: dir.to_owned(),
            spec: LabSpec::read(dir)?,
            pids: Pids::read(dir)?,
            guard: None,
            owned: false,
        })
    }

    /// The lab's directory on the machine.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lab's name. Its processes have it in the environment variable `WAIFUD_LAB`.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The nodes' names, without "outside".
    pub fn nodes(&self) -> Vec<&str> {
        self.spec
            .nodes
            .iter()
            .skip(1)
            .map(|node| node.name.as_str())
            .collect()
    }

    /// The guard's PID on the machine.
    pub fn guard_pid(&self) -> i32 {
        self.pids.guard
    }

    /// The PID, on the machine, of the init of `node` (or of "outside").
    ///
    /// # Errors
    /// The node does not exist.
    pub fn init_pid(&self, node: &str) -> Result<i32> {
        let found = self.pids.inits.iter().find(|(name, _)| name == node);
        found
            .map(|(_, pid)| *pid)
            .with_context(|| format!("the lab has no node {node:?}"))
    }

    /// A command inside `node` (or "outside") as root. Arguments that are paths must be absolute.
    ///
    /// # Errors
    /// The node does not exist, or `argv` is empty.
    pub fn command<I, S>(&self, node: &str, argv: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let bin_dir = &self.spec.node(node)?.bin_dir;
        let mut argv = argv.into_iter().peekable();
        ensure!(argv.peek().is_some(), "no program given");
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init_pid(node)?))
            .args(["--mount", "--net", "--uts", "--pid", "--"])
            .args(argv)
            .env("PATH", search_path(bin_dir))
            .env("WAIFUD_LAB", &self.spec.name)
            // Their values are paths outside the lab.
            .env_remove("WAIFUD_SOCKET")
            .env_remove("TMPDIR")
            .env_remove("XDG_RUNTIME_DIR");
        Ok(command)
    }

    /// As [`Lab::command`], as the node's user `user` with that user's groups and without capabilities.
    ///
    /// # Errors
    /// As [`Lab::command`].
    pub fn command_as<I, S>(&self, node: &str, user: &str, argv: I) -> Result<Command>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = self.command(node, ["setpriv"])?;
        command
            .args([
                &format!("--reuid={user}"),
                "--init-groups",
                "--bounding-set=-all",
                "--inh-caps=-all",
            ])
            .arg(format!("--regid={user}"))
            .args(["--no-new-privs", "--"])
            .args(argv);
        Ok(command)
    }

    /// The path on the machine of the first node's `path`.
    pub fn path_outside(&self, path: impl AsRef<Path>) -> PathBuf {
        let node = self.nodes().first().copied().unwrap_or(OUTSIDE);
        self.path_outside_of(node, path)
    }

    /// The path on the machine of `path` in `node`.
    pub fn path_outside_of(&self, node: &str, path: impl AsRef<Path>) -> PathBuf {
        layout::outside_path(&self.dir, node, path.as_ref())
    }

    /// The environment variables with which processes outside use the lab, in the order of `lab env`. A lab without
    /// waifud has no URL.
    ///
    /// # Errors
    /// The caller may not read the token.
    pub fn env(&self) -> Result<Vec<(String, String)>> {
        let bin_dir = self
            .spec
            .nodes
            .get(1)
            .map_or(Path::new("/"), |node| &node.bin_dir);
        let before = std::env::var("PATH").unwrap_or_default();
        let bin = bin_dir.to_string_lossy().into_owned();
        let path = if before.split(':').any(|part| part == bin) {
            before
        } else {
            format!("{bin}:{before}")
        };
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let socket = self.path_outside("/run/waifud/waifud.sock");
        let mut list = vec![("WAIFUD_SOCKET", text(&socket))];
        if let Some(https) = https::read(&self.dir)? {
            list.extend([
                ("WAIFUD_URL", https.url),
                ("WAIFUD_CA", text(&https.ca)),
                ("WAIFUD_TOKEN", https.token),
            ]);
        }
        list.extend([
            ("WAIFUD_LAB_DIR", text(&self.dir)),
            ("WAIFUD_LAB_NODES", self.nodes().join(" ")),
            ("PATH", path),
        ]);
        let owned = list.into_iter().map(|(key, value)| (key.to_owned(), value));
        Ok(owned.collect())
    }

    /// The services of `node`.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn status(&self, node: &str) -> Result<Vec<ServiceStatus>> {
        match ask(&self.dir, node, &Request::Status)? {
            Reply::Services(list) => Ok(list),
            other => bail!("{node} answered {other:?} to a question for its status"),
        }
    }

    /// The PID, on the machine, of the first node's `service`; `None` if it is not running.
    ///
    /// # Errors
    /// The node does not answer, or has no such service.
    pub fn pid_of(&self, service: &str) -> Result<Option<i32>> {
        let node = self.first_node()?;
        let inside = self.one(service)?.pid;
        inside.map_or(Ok(None), |inside| host_pid(self.init_pid(&node)?, inside))
    }

    /// Sends `signal` to the first node's `service`. The supervisor restarts it if it ends.
    ///
    /// # Errors
    /// The service is not running, or does not exist.
    pub fn kill(&self, service: &str, signal: Signal) -> Result<()> {
        self.order(
            |service| Request::Kill {
                service,
                signal: signal as i32,
            },
            service,
        )
    }

    /// Stops the first node's `service` with SIGTERM and starts it again. Returns when it is ready.
    ///
    /// # Errors
    /// The service does not exist, or does not become ready.
    pub fn restart(&self, service: &str) -> Result<()> {
        let before = self.one(service)?.restarts;
        self.order(|service| Request::Restart { service }, service)?;
        wait::until(
            &format!("{service} to be started again"),
            START_LIMIT,
            || {
                let now = self.one(service)?;
                Ok((now.restarts > before && now.state == ServiceState::Ready).then_some(()))
            },
        )
    }

    /// Stops the first node's `service` until [`Lab::start`]. Returns when it has ended.
    ///
    /// # Errors
    /// The service does not exist, or does not end.
    pub fn stop(&self, service: &str) -> Result<()> {
        self.order(|service| Request::Stop { service }, service)?;
        wait::until(&format!("{service} to stop"), START_LIMIT, || {
            Ok((self.one(service)?.state == ServiceState::Stopped).then_some(()))
        })
    }

    /// Starts the first node's `service` after [`Lab::stop`], or ends its back-off. Returns when it is ready.
    ///
    /// # Errors
    /// The service does not exist, or does not become ready.
    pub fn start(&self, service: &str) -> Result<()> {
        self.order(|service| Request::Start { service }, service)?;
        wait::until(&format!("{service} to be ready"), START_LIMIT, || {
            Ok((self.one(service)?.state == ServiceState::Ready).then_some(()))
        })
    }

    /// The first node's `service`.
    fn one(&self, service: &str) -> Result<ServiceStatus> {
        let node = self.first_node()?;
        let found = self
            .status(&node)?
            .into_iter()
            .find(|entry| entry.name == service);
        found.with_context(|| format!("{node} has no service {service:?}"))
    }

    fn order(&self, request: impl FnOnce(String) -> Request, service: &str) -> Result<()> {
        ask(&self.dir, &self.first_node()?, &request(service.to_owned())).map(|_| ())
    }

    fn first_node(&self) -> Result<String> {
        Ok((*self.nodes().first().context("the lab has no node")?).to_owned())
    }

    /// Returns when every service of every node is ready.
    ///
    /// # Errors
    /// `limit` has passed. The error contains the state of each service.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let ready = wait::until("the lab's services", limit, || {
            let unready = self.unready();
            last = unready.join(", ");
            Ok(unready.is_empty().then_some(()))
        });
        ready.with_context(|| format!("not ready: {last}"))
    }

    fn unready(&self) -> Vec<String> {
        let mut unready = Vec::new();
        for node in &self.spec.nodes {
            match self.status(&node.name) {
                Err(_) => unready.push(format!("{} (no answer)", node.name)),
                Ok(list) => unready.extend(
                    list.iter()
                        .filter(|entry| entry.state != ServiceState::Ready)
                        .map(|entry| {
                            format!(
                                "{} ({:?}, {} restarts)",
                                entry.name, entry.state, entry.restarts
                            )
                        }),
                ),
            }
        }
        unready
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
        let dir = self.path_outside("/var/log/waifud");
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if let Ok(mut file) = fs::File::open(entry.path()) {
                let name = entry.file_name();
                let _ = write!(
                    text,
                    "
--- {}
{}",
                    name.to_string_lossy(),
                    tail(&mut file)
                );
            }
        }
        text
    }

    /// Stops the lab and returns when its processes have ended and its directory is removed.
    ///
    /// # Errors
    /// Something remains.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.owned = false;
        if let Some(mut child) = self.guard.take() {
            stop_guard(&mut child);
        } else if guard::alive(&self.dir) {
            let _ = kill(Pid::from_raw(self.pids.guard), Signal::SIGTERM);
            wait::until("the lab's guard to end", DOWN_LIMIT, || {
                Ok((!guard::alive(&self.dir)).then_some(()))
            })?;
        }
        // The directory still exists only if the guard was killed.
        remove(&self.dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.end()
        {
            eprintln!(
                "the lab in {} was not removed: {error:#}",
                self.dir.display()
            );
        }
    }
}

/// The search path of all processes in a node.
pub(crate) fn search_path(bin_dir: &Path) -> String {
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        bin_dir.display()
    )
}

/// The PID in this namespace of the process with PID `inside` in the namespace of `init`.
fn host_pid(init: i32, inside: i32) -> Result<Option<i32>> {
    let namespace =
        fs::read_link(format!("/proc/{init}/ns/pid")).context("the node's init has ended")?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        if fs::read_link(entry.path().join("ns/pid")).ok().as_ref() != Some(&namespace) {
            continue;
        }
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let innermost = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .and_then(|pids| pids.split_whitespace().last()?.parse::<i32>().ok());
        if innermost == Some(inside) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn stop_guard(child: &mut Child) {
    // The guard ends on either. The guard of a lab that stays has no standard input.
    drop(child.stdin.take());
    let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    let ended = wait::until("the guard", DOWN_LIMIT, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
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
