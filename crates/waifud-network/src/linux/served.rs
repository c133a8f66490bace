//! The dnsmasq processes that serve guests' names to other machines: one for each configured address of the host.
//!
//! They are not the guests' dnsmasq, and each has an address of its own, so a port that another program has, or an address
//! that the host lacks, affects nothing else. Like the guests' dnsmasq they run as daemons, so names resolve while agentd
//! restarts. The agent recognizes a process that it has started by its pid file, and by the configuration file in its command line.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::process::Process;
use super::tool::Tool;
use super::{dnsmasq, files, listeners, probe};
use crate::dhcp::mark;
use crate::served::{self, ServedFiles};
use crate::{DnsAddress, DnsTrouble, HostAddresses, NetworkError, NetworkState};

/// A reload takes milliseconds; this is for machines that swap.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(2);
/// After a failure, changes of guests do not wait for another attempt for this time.
const RETRY: Duration = Duration::from_secs(30);

/// Files of an address are named `served-ADDRESS-PORT.conf` and `.pid`.
const PREFIX: &str = "served-";

#[derive(Debug)]
pub(super) struct Served {
    tool: Tool,
    run_dir: PathBuf,
    user: Option<(String, String)>,
    listen: Vec<SocketAddrV4>,
    /// One for each configured address, after the first `ensure`.
    status: Vec<DnsAddress>,
    /// When an address that failed is tried again.
    next_try: Option<Instant>,
}

impl Served {
    pub(super) fn new(tool: Tool, run_dir: &Path, listen: Vec<SocketAddrV4>) -> Self {
        Self {
            tool,
            run_dir: run_dir.to_owned(),
            user: dnsmasq::unprivileged(),
            listen,
            status: Vec::new(),
            next_try: None,
        }
    }

    /// The addresses as the last `ensure` left them.
    pub(super) fn status(&self) -> Vec<DnsAddress> {
        self.status.clone()
    }

    /// Serves the names of `state` at the configured addresses, and nowhere else. Failures become a part of the status.
    pub(super) async fn ensure(&mut self, state: &NetworkState, host: &HostAddresses) {
        if let Err(error) = self.end_others().await {
            tracing::warn!(%error, "cannot stop serving names at an address that is not configured anymore");
        }
        if self.listen.is_empty() {
            return;
        }
        let loaded = self.load(state);
        let may_try = self.next_try.is_none_or(|at| at <= Instant::now());
        let mut status = Vec::new();
        for address in self.listen.clone() {
            let before = self.status.iter().find(|known| known.address == address);
            let before = before.and_then(|known| known.trouble.clone());
            let trouble = match (&loaded, before) {
                _ if !has(host, address) => Some(DnsTrouble::NoAddress),
                (Err(error), _) => Some(DnsTrouble::Failed(waifud_kit::error::with_causes(error))),
                (Ok(_), Some(trouble)) if !may_try && trouble != DnsTrouble::NoAddress => {
                    Some(trouble)
                }
                (Ok(load), _) => self.ensure_at(address, state, *load).await.err(),
            };
            status.push(DnsAddress { address, trouble });
        }
        let failed = status.iter().any(|one| {
            let trouble = one.trouble.as_ref();
            trouble.is_some_and(|trouble| *trouble != DnsTrouble::NoAddress)
        });
        match (failed, may_try) {
            (true, true) => self.next_try = Some(Instant::now() + RETRY),
            (true, false) => {}
            (false, _) => self.next_try = None,
        }
        self.status = status;
    }

    /// A difference to what was ensured, as text, which another `ensure` may repair. `host` is needed to notice addresses
    /// that came or went, and ports that are free again.
    pub(super) fn difference(
        &mut self,
        host: Option<&HostAddresses>,
    ) -> Result<Option<String>, NetworkError> {
        for DnsAddress { address, trouble } in &self.status {
            let what = match (trouble, host) {
                (None, _) if self.process(*address).is_none() => "dnsmasq has ended",
                (None, Some(host)) if !has(host, *address) => "the address was removed",
                (Some(DnsTrouble::NoAddress), Some(host)) if has(host, *address) => {
                    "the address was added"
                }
                (Some(DnsTrouble::PortTaken), Some(_)) if listeners::is_free(*address)? => {
                    "the port is free again"
                }
                _ => continue,
            };
            self.next_try = None;
            return Ok(Some(format!("names at {address}: {what}")));
        }
        Ok(None)
    }

    /// Ends all processes and removes their files. Returns the addresses of those that ran, as text.
    pub(super) async fn remove(&mut self) -> Result<Vec<String>, NetworkError> {
        self.status.clear();
        let mut removed = Vec::new();
        for (address, _) in self.configurations()? {
            if self.process(address).is_some() {
                removed.push(format!("names at {address}"));
            }
            self.end(address).await?;
        }
        for file in [self.names(), self.zones()] {
            files::remove(&file)?;
        }
        Ok(removed)
    }

    /// Ends processes at addresses that are not configured.
    async fn end_others(&mut self) -> Result<(), NetworkError> {
        if self.listen.is_empty() {
            return self.remove().await.map(drop);
        }
        for (address, _) in self.configurations()? {
            if !self.listen.contains(&address) {
                self.end(address).await?;
            }
        }
        Ok(())
    }

    /// Writes the names and zones if they have changed. Returns the number of the load that the files contain.
    fn load(&self, state: &NetworkState) -> Result<u64, NetworkError> {
        let before = files::read(&self.names())?.unwrap_or_default();
        let load = served::load_of(&before).unwrap_or(0);
        let zones = served::zones(state);
        let zones_are_current = files::read(&self.zones())?.is_some_and(|text| text == zones);
        if load > 0 && zones_are_current && before == served::names(state, load) {
            return Ok(load);
        }
        files::replace(&self.zones(), &zones)?;
        files::replace(&self.names(), &served::names(state, load + 1))?;
        Ok(load + 1)
    }

    /// Starts or reloads the process of one address. The load is in force when this returns.
    async fn ensure_at(
        &self,
        address: SocketAddrV4,
        state: &NetworkState,
        load: u64,
    ) -> Result<(), DnsTrouble> {
        let failed =
            |error: NetworkError| DnsTrouble::Failed(waifud_kit::error::with_causes(&error));
        let files = self.files_of(address);
        let config = served::configuration(address, &state.domain, &files, self.user.as_ref());
        let is_current =
            matches!(files::read(&self.config(address)), Ok(Some(text)) if text == config);
        if is_current && let Some(process) = self.process(address) {
            if probe::answers_at_once(address, &mark(load)).await {
                return Ok(());
            }
            process.signal(Signal::SIGHUP).map_err(failed)?;
            if probe::knows(address, &mark(load), RELOAD_TIMEOUT).await {
                return Ok(());
            }
        }
        self.end(address).await.map_err(failed)?;
        files::replace(&self.config(address), &config).map_err(failed)?;
        // It returns once the daemon has opened its sockets, or with an error.
        if let Err(error) = self.tool.run(&[self.argument(address)], "").await {
            let message = waifud_kit::error::with_causes(&error);
            return Err(if message.contains("Address already in use") {
                DnsTrouble::PortTaken
            } else {
                DnsTrouble::Failed(message)
            });
        }
        if probe::knows(address, &mark(load), RELOAD_TIMEOUT).await {
            return Ok(());
        }
        Err(DnsTrouble::Failed(format!(
            "dnsmasq is running but does not answer at {address}; can its user read {}?",
            files.names.display()
        )))
    }

    /// Ends the process of an address, and removes its files.
    async fn end(&self, address: SocketAddrV4) -> Result<(), NetworkError> {
        if let Some(process) = self.process(address) {
            process.end().await?;
        }
        files::remove(&self.files_of(address).pid)?;
        files::remove(&self.config(address))
    }

    /// The running process of an address.
    fn process(&self, address: SocketAddrV4) -> Option<Process> {
        let pid = files::read(&self.files_of(address).pid).ok()??;
        let process = Process::find(pid.trim().parse().ok()?)?;
        process
            .was_started_with(&self.argument(address))
            .then_some(process)
    }

    fn argument(&self, address: SocketAddrV4) -> PathBuf {
        let mut argument = std::ffi::OsString::from("--conf-file=");
        argument.push(self.config(address));
        argument.into()
    }

    fn config(&self, address: SocketAddrV4) -> PathBuf {
        self.named(address, "conf")
    }

    fn named(&self, address: SocketAddrV4, suffix: &str) -> PathBuf {
        let (ip, port) = (address.ip(), address.port());
        self.run_dir.join(format!("{PREFIX}{ip}-{port}.{suffix}"))
    }

    /// The names, which all addresses share.
    fn names(&self) -> PathBuf {
        self.run_dir.join("dns.names")
    }

    /// The reverse zones, which all addresses share.
    fn zones(&self) -> PathBuf {
        self.run_dir.join("dns.zones")
    }

    fn files_of(&self, address: SocketAddrV4) -> ServedFiles {
        ServedFiles {
            names: self.names(),
            zones: self.zones(),
            pid: self.named(address, "pid"),
        }
    }

    /// The configuration files in our directory, with their addresses: those of this process and of its predecessors.
    fn configurations(&self) -> Result<Vec<(SocketAddrV4, PathBuf)>, NetworkError> {
        let entries = match std::fs::read_dir(&self.run_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(files::io("reading", &self.run_dir)(error)),
        };
        let address = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            let (ip, port) = name
                .strip_prefix(PREFIX)?
                .strip_suffix(".conf")?
                .split_once('-')?;
            Some(SocketAddrV4::new(ip.parse().ok()?, port.parse().ok()?))
        };
        let paths = entries.flatten().map(|entry| entry.path());
        Ok(paths
            .filter_map(|path| Some((address(&path)?, path)))
            .collect())
    }
}

/// Whether the host has the address.
fn has(host: &HostAddresses, address: SocketAddrV4) -> bool {
    address.ip().is_loopback() || host.own.contains(address.ip())
}
