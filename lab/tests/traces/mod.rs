//! What a lab leaves on a machine, and what a machine looks like without.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use waifud_lab::{Lab, testing, wait};

const LIMIT: Duration = Duration::from_mins(1);

/// The parts of the machine's own network and mounts that a lab might touch by mistake.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    links: BTreeSet<String>,
    rules: String,
    routes: String,
    firewall: String,
    mounts: BTreeSet<String>,
    named_namespaces: BTreeSet<String>,
}

impl Machine {
    /// As it is now; `None`, said loudly, where no lab can be.
    pub fn before() -> Result<Option<Self>> {
        // The same conditions and words as for any lab.
        match testing::why_no_lab() {
            None => Self::look().map(Some),
            Some(why) => testing::skip(&why).map(|()| None),
        }
    }

    fn look() -> Result<Self> {
        let run = |words: &[&str]| {
            let (program, arguments) = words.split_first().context("no program")?;
            wait::run(Command::new(program).args(arguments), LIMIT)
        };
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        Ok(Self {
            // Without the index of a veth's peer and what else is counted.
            links: run(&["ip", "-br", "link"])?
                .lines()
                .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
                .collect(),
            rules: run(&["ip", "rule"])?,
            routes: run(&["ip", "route", "show", "table", "all"])?,
            firewall: run(&["nft", "list", "ruleset"])?,
            mounts: lines(&fs::read_to_string("/proc/mounts")?),
            named_namespaces: namespaces
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
        })
    }

    /// Compares with how it is now.
    pub fn must_be_unchanged(&self) -> Result<()> {
        let now = Self::look()?;
        ensure!(
            now == *self,
            "the machine was changed:\nbefore {self:#?}\nafter {now:#?}"
        );
        Ok(())
    }
}

/// What one lab has: its directory, its processes, and the namespaces that they are in.
#[derive(Debug)]
pub struct Traces {
    dir: PathBuf,
    name: String,
    guard: i32,
    namespaces: BTreeSet<u64>,
}

impl Traces {
    pub fn of(lab: &Lab) -> Result<Self> {
        let mut namespaces = BTreeSet::new();
        for node in ["outside", "alder"] {
            for kind in ["pid", "net", "mnt", "uts"] {
                namespaces.insert(
                    namespace(lab.init_pid(node)?, kind).context("an init without namespaces")?,
                );
            }
        }
        let own = std::process::id().cast_signed();
        for kind in ["pid", "net", "mnt", "uts"] {
            let shared = namespace(own, kind).context("no namespace")?;
            ensure!(
                !namespaces.contains(&shared),
                "a node shares the machine's {kind} namespace"
            );
        }
        let traces = Self {
            dir: lab.dir().to_owned(),
            name: lab.name().to_owned(),
            guard: lab.guard_pid(),
            namespaces,
        };
        let count = traces.processes().len();
        ensure!(
            count >= 5,
            "guard, two inits, virtlogd and libvirtd should be seen, not {count} processes"
        );
        Ok(traces)
    }

    /// Processes that are in one of the namespaces, carry the lab's mark, name its directory, or are its guard.
    fn processes(&self) -> Vec<i32> {
        let own = std::process::id().cast_signed();
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
        pids.filter(|pid| *pid != own && self.owns(*pid)).collect()
    }

    fn owns(&self, pid: i32) -> bool {
        let has = |file: &str, words: &str| {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).contains(words)
        };
        let inside = ["pid", "net", "mnt", "uts"]
            .iter()
            .filter_map(|kind| namespace(pid, kind))
            .any(|id| self.namespaces.contains(&id));
        inside
            || (pid == self.guard && has("cmdline", "lab-guard"))
            || has("environ", &format!("WAIFUD_LAB={}\0", self.name))
            || has("cmdline", &self.name)
    }

    pub fn processes_must_end(&self) -> Result<()> {
        let mut left = Vec::new();
        wait::until("the lab's processes to end", LIMIT, || {
            left = self.processes();
            Ok(left.is_empty().then_some(()))
        })
        .with_context(|| format!("left: {left:?}"))
    }

    pub fn must_be_gone(&self) -> Result<()> {
        self.processes_must_end()?;
        wait::until("the lab's directory to be removed", LIMIT, || {
            Ok((!self.dir.exists()).then_some(()))
        })?;
        // No process is in the namespaces any more; a mount or an open file could still hold one.
        for pid in fs::read_dir("/proc")?.flatten() {
            let mounts = fs::read_to_string(pid.path().join("mountinfo")).unwrap_or_default();
            ensure!(
                !mounts.contains(&self.name),
                "{} still sees a mount of the lab",
                pid.path().display()
            );
            for fd in fs::read_dir(pid.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let target = fs::metadata(fd.path())
                    .map(|data| data.ino())
                    .unwrap_or_default();
                let link = fs::read_link(fd.path()).unwrap_or_default();
                if link.to_string_lossy().starts_with("net:[") && self.namespaces.contains(&target)
                {
                    bail!(
                        "{} holds a network namespace of the lab",
                        fd.path().display()
                    );
                }
            }
        }
        Ok(())
    }
}

/// The number of a namespace of a living process.
fn namespace(pid: i32, kind: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    let text = link.to_string_lossy().into_owned();
    text.split(['[', ']']).nth(1)?.parse().ok()
}

/// Kills one process of ours.
pub fn sigkill(pid: i32) -> Result<()> {
    wait::run(
        Command::new("kill").args(["-KILL", &pid.to_string()]),
        LIMIT,
    )
    .map(|_| ())
}

/// The rest of the first line of `child`'s output that begins with `start`.
pub fn line_after(child: &mut Child, start: &str) -> Result<String> {
    let output = child.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some((_, rest)) = line.split_once(start) {
            return Ok(rest.to_owned());
        }
    }
    bail!("it ended without a line {start:?}")
}
