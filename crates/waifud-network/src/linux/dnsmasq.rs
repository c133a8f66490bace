//! One dnsmasq for the guests: started as a daemon, adopted after our own restart, reloaded or restarted.
//!
//! It runs as a daemon, so guests keep their leases and names while agentd restarts. (With systemd this needs
//! `KillMode=process`, because systemd otherwise kills the complete control group.) A process is ours if its id and start
//! time are the recorded ones, or if our pid file names it and its command line has our configuration file. It is
//! restarted when its configuration changes, when the bridge that its socket is bound to was created again, and when it
//! has ended. All other changes are a reload.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Group, User};
use waifud_types::{MacAddr, Timestamp};

use super::files;
use super::process::Process;
use super::record::DnsmasqRecord;
use super::tool::Tool;
use super::{probe, release};
use crate::dhcp::{self, DhcpFiles, DhcpSettings};
use crate::{NetworkError, NetworkState};

/// A reload takes milliseconds; this is for machines that swap.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// Unprivileged users of Debian, in order of preference.
const USERS: [&str; 2] = ["dnsmasq", "nobody"];

#[derive(Debug)]
pub(super) struct Dnsmasq {
    tool: Tool,
    config: PathBuf,
    settings: DhcpSettings,
}

impl Dnsmasq {
    pub(super) fn new(
        tool: Tool,
        run_dir: &Path,
        state_dir: &Path,
        resolv_conf: PathBuf,
        lease_time: Duration,
    ) -> Self {
        Self {
            tool,
            config: run_dir.join("dnsmasq.conf"),
            settings: DhcpSettings {
                files: DhcpFiles {
                    leases: run_dir.join("dnsmasq.hosts"),
                    names: run_dir.join("dnsmasq.names"),
                    remote_names: run_dir.join("dnsmasq.names.remote"),
                    remote_zones: run_dir.join("dnsmasq.zones"),
                    memory: state_dir.join("dnsmasq.leases"),
                    pid: run_dir.join("dnsmasq.pid"),
                },
                resolv_conf,
                user: unprivileged(),
                lease_time,
            },
        }
    }

    /// Starts or reloads it for `state`, and returns its record. Leases and names are then in force.
    pub(super) async fn ensure(
        &self,
        before: Option<&DnsmasqRecord>,
        state: &NetworkState,
        bridge_index: u32,
    ) -> Result<DnsmasqRecord, NetworkError> {
        let config = dhcp::configuration(state, &self.settings);
        let fits = before.filter(|record| {
            record.bridge_index == bridge_index
                && process(record).is_some()
                && matches!(files::read(&self.config), Ok(Some(text)) if text == config)
        });
        let Some(record) = fits else {
            return self.restart(before, state, bridge_index, &config).await;
        };
        let Some(record) = self.reload(record, state).await? else {
            return self.restart(before, state, bridge_index, &config).await;
        };
        if self.forget_stale(state).await? {
            Ok(record)
        } else {
            self.restart(Some(&record), state, bridge_index, &config)
                .await
        }
    }

    /// Ends it and removes its files.
    pub(super) async fn remove(&self, record: Option<&DnsmasqRecord>) -> Result<(), NetworkError> {
        self.stop(record).await?;
        for file in [
            &self.config,
            &self.settings.files.leases,
            &self.settings.files.names,
            &self.settings.files.remote_names,
            &self.settings.files.remote_zones,
            &self.settings.files.memory,
            &self.settings.files.pid,
        ] {
            files::remove(file)?;
        }
        Ok(())
    }

    /// When each guest's lease was last confirmed, by MAC address.
    pub(super) fn acknowledged(&self) -> Result<BTreeMap<MacAddr, Timestamp>, NetworkError> {
        let memory = files::read(&self.settings.files.memory)?.unwrap_or_default();
        Ok(release::acknowledged(&memory, self.settings.lease_time))
    }

    fn argument(&self) -> PathBuf {
        let mut argument = std::ffi::OsString::from("--conf-file=");
        argument.push(&self.config);
        argument.into()
    }

    /// A process without a record, found by its pid file and command line.
    fn left_over(&self) -> Option<Process> {
        let pid = files::read(&self.settings.files.pid).ok()??;
        let process = Process::find(pid.trim().parse().ok()?)?;
        process
            .was_started_with(&self.argument())
            .then_some(process)
    }

    async fn stop(&self, record: Option<&DnsmasqRecord>) -> Result<(), NetworkError> {
        let recorded = record.and_then(process);
        for process in recorded.into_iter().chain(self.left_over()) {
            process.end().await?;
        }
        Ok(())
    }

    async fn restart(
        &self,
        before: Option<&DnsmasqRecord>,
        state: &NetworkState,
        bridge_index: u32,
        config: &str,
    ) -> Result<DnsmasqRecord, NetworkError> {
        self.stop(before).await?;
        let load = before.map_or(1, |record| record.load + 1);
        release::prune(&self.settings.files.memory, state)?;
        for (file, content) in self.contents(state, load) {
            files::replace(file, &content)?;
        }
        files::replace(&self.config, config)?;
        files::remove(&self.settings.files.pid)?;
        // It returns once the daemon has opened its sockets, or with an error.
        self.tool.run(&[self.argument()], "").await?;
        let process = self
            .left_over()
            .ok_or_else(|| self.tool.failed("it ended right after it was started"))?;
        let record = DnsmasqRecord {
            pid: process.pid,
            start_time: process.start_time,
            bridge_index,
            load,
        };
        if probe::knows(dns(state), &dhcp::mark(load), RELOAD_TIMEOUT).await {
            Ok(record)
        } else {
            Err(self.tool.failed(format!(
                "it is running but does not answer on {}, port 53; can its user read {}?",
                state.gateway,
                self.settings.files.names.display()
            )))
        }
    }

    /// The files that it reads again on a signal. The one with the mark of the load is the last.
    fn contents(&self, state: &NetworkState, load: u64) -> [(&Path, String); 4] {
        let files = &self.settings.files;
        [
            (files.leases.as_path(), dhcp::leases(state)),
            (&files.remote_zones, dhcp::remote_zones(state)),
            (&files.remote_names, dhcp::remote_names(state)),
            (&files.names, dhcp::names(state, load)),
        ]
    }

    /// Reloads leases and names; `None` if dnsmasq did not read them in time.
    async fn reload(
        &self,
        record: &DnsmasqRecord,
        state: &NetworkState,
    ) -> Result<Option<DnsmasqRecord>, NetworkError> {
        let mut current = true;
        for (file, content) in self.contents(state, record.load) {
            current &= files::read(file)?.is_some_and(|text| text == content);
        }
        if current {
            return Ok(Some(record.clone()));
        }
        let record = DnsmasqRecord {
            load: record.load + 1,
            ..record.clone()
        };
        for (file, content) in self.contents(state, record.load) {
            if files::read(file)?.is_none_or(|text| text != content) {
                files::replace(file, &content)?;
            }
        }
        let Some(process) = process(&record) else {
            return Ok(None);
        };
        process.signal(Signal::SIGHUP)?;
        let mark = dhcp::mark(record.load);
        let taken_over = probe::knows(dns(state), &mark, RELOAD_TIMEOUT).await;
        Ok(taken_over.then_some(record))
    }

    /// Releases leases of guests that no longer exist. False if dnsmasq does not release them.
    async fn forget_stale(&self, state: &NetworkState) -> Result<bool, NetworkError> {
        let read_stale = || {
            let memory = files::read(&self.settings.files.memory)?.unwrap_or_default();
            Ok::<_, NetworkError>(release::stale(&memory, state))
        };
        let leases = read_stale()?;
        if leases.is_empty() {
            return Ok(true);
        }
        release::send(&leases, state).await?;
        let forgotten = async {
            while !read_stale()?.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok::<_, NetworkError>(())
        };
        match tokio::time::timeout(RELOAD_TIMEOUT, forgotten).await {
            Ok(result) => result.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

/// The recorded process, if it still runs. Its command line is not compared, because a process that is ending loses it
/// before it closes its sockets.
pub(super) fn process(record: &DnsmasqRecord) -> Option<Process> {
    let process = Process {
        pid: record.pid,
        start_time: record.start_time,
    };
    process.runs().then_some(process)
}

/// Where it answers guests.
fn dns(state: &NetworkState) -> SocketAddrV4 {
    SocketAddrV4::new(state.gateway, waifud_types::dns::PORT)
}

/// The first of [`USERS`] that this host has, with its group.
pub(super) fn unprivileged() -> Option<(String, String)> {
    USERS.iter().find_map(|name| {
        let user = User::from_name(name).ok()??;
        let group = Group::from_gid(Gid::from_raw(user.gid.as_raw())).ok()??;
        Some((user.name, group.name))
    })
}
