//! Nodes on one machine: namespaces, a libvirtd of their own, our daemons under a small supervisor.
//!
//! # The pattern
//!
//! A lab is one directory, one *guard* process and one *init* process per node:
//!
//! ```text
//! test, xtask ── Lab::up ──► guard                    outside of all namespaces; holds the lab's lock
//!                             ├─► init of "outside"   PID 1: 192.0.2.1, 198.51.100.1 (the pretend internet)
//!                             └─► init of "alder"     PID 1: mounts, network, supervisor
//!                                  ├─ virtlogd, libvirtd ─► QEMU
//!                                  └─ waifud, waifud-metadatad, waifud-agentd
//! ```
//!
//! Every namespace is unnamed, so it lives as long as its processes. A node's init is PID 1 of its pid namespace, so
//! its end, however it comes, is the end of all that the node ran. The guard is what ties the ends together:
//!
//! | what ends | what follows |
//! |---|---|
//! | the guard is told to (`down`, or the owner of the lab is gone) | inits stop their services in reverse order; directory removed |
//! | an init, also by SIGKILL | the guard ends the other nodes and removes the directory |
//! | the guard, also by SIGKILL | the kernel kills the inits (`PDEATHSIG`); the next `up` or `down` removes the directory |
//!
//! Inside a node `/run`, `/etc`, `/tmp`, `/var/lib`, `/var/log` and `/var/cache` are directories of the lab, the rest of
//! the machine is visible read-only, `/sys` is fresh (own network devices, no cgroups), and `/etc/passwd` holds the
//! accounts that a packaged installation would have. So nothing on the machine is changed, and what a node writes can
//! be read from outside with [`Lab::path_outside`].
//!
//! A waifud in a lab listens on its node's loopback. The guard relays a loopback port of the machine to it, so that
//! [`Lab::https`] leads there from outside of all namespaces: `waifuctl`, `curl`, a browser.
//!
//! # Use from a test
//!
//! ```no_run
//! use waifud_lab::{LabOptions, testing};
//!
//! fn a_node_answers() -> anyhow::Result<()> {
//!     let Some(lab) = testing::lab_or_skip(&LabOptions::default())? else { return Ok(()) };
//!     let list = lab.command("alder", ["virsh", "-c", "qemu:///system", "list"])?.output()?;
//!     assert!(list.status.success());
//!     Ok(()) // dropping the lab takes it down
//! }
//! ```

mod accounts;
mod backoff;
pub mod control;
pub mod current;
mod entry;
mod files;
mod guard;
mod https;
mod init;
mod join;
mod lab;
mod layout;
mod mounts;
mod net;
mod options;
mod relay;
mod services;
mod spawn;
mod stale;
mod supervisor;
pub mod testing;
pub mod wait;

pub use control::{ServiceState, ServiceStatus};
pub use entry::init_if_asked;
pub use https::Https;
pub use lab::Lab;
pub use nix::sys::signal::Signal;
pub use options::LabOptions;
pub use stale::remove_stale;

/// The name of the namespace that plays the home network and the internet.
pub const OUTSIDE: &str = "outside";
