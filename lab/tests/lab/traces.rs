//! The traces of a lab on a machine, and the state of the machine without it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use waifud_lab::{Lab, OUTSIDE, testing, wait};

const LIMIT: Duration = Duration::from_mins(1);

/// The parts of the machine's network and mounts that a lab could change by mistake.
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
    /// The present state. Reports a skipped test and returns `None` where no lab can run.
    pub fn before() -> Result<Option<Self>> {
        match testing::why_no_lab() {
            None => Self::read().map(Some),
            Some(why) => testing::skip(&why).map(|()| None),
        }
    }

    fn read() -> Result<Self> {
        let run = |words: &[&str]| {
            let (program, arguments) = words.split_first().context("no program")?;
            wait::run(Command::new(program).args(arguments), LIMIT)
        };
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        Ok(Self {
            // Names only: other fields contain counters and indexes.
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

    /// Compares with the present state.
    pub fn must_be_unchanged(&self) -> Result<()> {
        let now = Self::read()?;
        ensure!(
            now == *self,
            "the machine was changed:\nbefore {self:#?}\nafter {now:#?}"
        );
        Ok(())
    }
}

/// A lab's directory and the processes in its namespaces.
#[derive(Debug)]
pub struct Traces {
    dir: PathBuf,
    name: String,
    /// PID and start time, which together identify a process. (The number of a namespace is reused.)
    processes: BTreeSet<(i32, String)>,
}

impl Traces {
    pub fn of(lab: &Lab) -> Result<Self> {
        let own = std::process::id().cast_signed();
        let mut namespaces = BTreeSet::new();
        for kind in ["pid", "net", "mnt", "uts"] {
            let shared = namespace(own, kind).context("no namespace")?;
            for node in std::iter::once(OUTSIDE).chain(lab.machines()) {
                let id =
                    namespace(lab.init_pid(node)?, kind).context("an init without namespaces")?;
                ensure!(id != shared, "{node} shares the machine's {kind} namespace");
                namespaces.insert((kind, id));
            }
        }
        let inside = |pid: &i32| {
            let mut kinds = ["pid", "net", "mnt", "uts"].into_iter();
            kinds.any(|kind| {
                namespace(*pid, kind).is_some_and(|id| namespaces.contains(&(kind, id)))
            })
        };
        let mut processes: BTreeSet<_> = all().filter(inside).filter_map(identity).collect();
        let nodes = lab.nodes().len();
        ensure!(
            processes.len() > 3 * nodes,
            "{nodes} nodes with init, virtlogd and libvirtd, and outside should be seen: {processes:?}"
        );
        processes.extend(identity(lab.guard_pid()));
        Ok(Self {
            dir: lab.dir().to_owned(),
            name: lab.name().to_owned(),
            processes,
        })
    }

    /// Those that show up in the environment, the arguments or the directory of the lab in `dir`, whose processes are not
    /// known.
    pub fn in_dir(dir: &Path) -> Result<Self> {
        let name = dir.file_name().context("a lab without a name")?;
        Ok(Self {
            dir: dir.to_owned(),
            name: name.to_string_lossy().into_owned(),
            processes: BTreeSet::new(),
        })
    }

    /// Processes that still run, have the lab's name in their environment, or have its directory in their arguments.
    fn left(&self) -> Vec<String> {
        let own = std::process::id().cast_signed();
        let marked = |pid: i32| {
            let has = |file: &str, words: &str| {
                let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(words)
            };
            has("environ", &format!("WAIFUD_LAB={}\0", self.name)) || has("cmdline", &self.name)
        };
        let seen =
            |pid: i32| identity(pid).is_some_and(|process| self.processes.contains(&process));
        all()
            .filter(|pid| *pid != own && (seen(*pid) || marked(*pid)))
            .map(|pid| {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.chars().take(40).collect()
            })
            .collect()
    }

    pub fn processes_must_end(&self) -> Result<()> {
        let mut left = Vec::new();
        wait::until("the lab's processes to end", LIMIT, || {
            left = self.left();
            Ok(left.is_empty().then_some(()))
        })
        .with_context(|| format!("left: {left:?}"))
    }

    pub fn must_be_gone(&self) -> Result<()> {
        self.processes_must_end()?;
        wait::until("the lab's directory to be removed", LIMIT, || {
            Ok((!self.dir.exists()).then_some(()))
        })?;
        for pid in all() {
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            ensure!(
                !mounts.contains(&self.name),
                "process {pid} still sees a mount of the lab"
            );
        }
        Ok(())
    }
}

/// All visible processes.
fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
}

/// PID and start time of a running process; `None` for zombies.
fn identity(pid: i32) -> Option<(i32, String)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain any character. The third field follows it.
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?;
    (state != "Z").then(|| (pid, start.to_owned()))
}

/// The number of a namespace of a running process.
fn namespace(pid: i32, kind: &str) -> Option<u64> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    let text = link.to_string_lossy().into_owned();
    text.split(['[', ']']).nth(1)?.parse().ok()
}

/// Kills one of our processes.
pub fn sigkill(pid: i32) -> Result<()> {
    wait::run(
        Command::new("kill").args(["-KILL", &pid.to_string()]),
        LIMIT,
    )
    .map(|_| ())
}

/// The PID of the guard of the lab in `dir`, if it has been started.
pub fn guard_of(dir: &Path) -> Option<i32> {
    let call = format!("lab-guard\0{}\0", dir.display());
    all().find(|pid| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).ends_with(&call)
    })
}

/// The rest of the first line of `child`'s output that starts with `start`.
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
