//! Nodes on one machine: namespaces with their own libvirtd, and our daemons under a small supervisor.
//!
//! # Processes
//!
//! A lab is one directory, one *guard* process and one *init* process per node:
//!
//! ```text
//! test, xtask ── Lab::up ──► guard                    outside of all namespaces; holds the lab's lock
//!                             ├─► init of "outside"   PID 1: 192.0.2.1, 198.51.100.1 (the simulated internet)
//!                             └─► init of "alder"     PID 1: mounts, network, supervisor
//!                                  ├─ virtlogd, libvirtd ─► QEMU
//!                                  └─ waifud, waifud-metadatad, waifud-agentd
//! ```
//!
//! The namespaces have no names, so they exist as long as their processes. A node's init is PID 1 of its pid namespace,
//! so all processes of the node end with it. The guard makes the rest follow:
//!
//! | event | result |
//! |---|---|
//! | `down`, or the process that owns the lab ends | the inits stop their services in reverse order, and the guard removes the directory |
//! | an init ends, even by SIGKILL | the guard stops the other nodes and removes the directory |
//! | the guard ends, even by SIGKILL | the kernel kills the inits (`PDEATHSIG`); the next `up` or `down` removes the directory |
//!
//! Inside a node, `/run`, `/etc`, `/tmp`, `/var/lib`, `/var/log` and `/var/cache` are directories of the lab. The rest
//! of the machine is visible read-only, `/sys` is new (own network devices, no cgroups), and `/etc/passwd` contains the
//! accounts of a packaged installation. So the machine is not changed, and [`Lab::path_outside`] returns the path
//! outside of a file that a node writes.
//!
//! waifud in a lab listens on its node's loopback. The guard relays a loopback port of the machine to it. With the data
//! of [`Lab::https`], `waifuctl`, `curl` or a browser outside the namespaces can use it.
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
//!     Ok(()) // dropping the lab stops it
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
pub mod ssh;
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

/// The name of the namespace that simulates the home network and the internet.
pub const OUTSIDE: &str = "outside";
