//! Nodes on one host: namespaces with their own libvirtd, and our daemons under a small supervisor.
//!
//! # Processes
//!
//! A lab is one directory, one *guard* process and one *init* process per machine:
//!
//! ```text
//! test, xtask ── Lab::up ──► guard                    outside of all namespaces; holds the lab's lock
//!                             ├─► init of "outside"   PID 1: 192.0.2.1, 198.51.100.1 (the simulated internet)
//!                             └─► init of "alder"     PID 1: mounts, network, supervisor
//!                                  ├─ virtlogd, libvirtd ─► QEMU
//!                                  └─ waifud, waifud-metadatad, waifud-agentd
//! ```
//!
//! A lab with several nodes has one such set of namespaces for each, and one more for waifud, so that any of them can be
//! off:
//!
//! | machine | address | services |
//! |---|---|---|
//! | `outside` | 192.0.2.1 | none: the bridge of the home network, and the internet |
//! | `alder`, `birch`, `cedar`, … | 192.0.2.2, 192.0.2.3, 192.0.2.4, … | virtlogd, libvirtd, waifud-metadatad, waifud-agentd |
//! | `rowan` | 192.0.2.200 | waifud, for the whole home network |
//!
//! Each has its own machine id, boot id and hardware address. The nodes join over HTTPS with a token, as real ones do.
//! waifud assigns each a guest subnet; nothing routes them between nodes yet.
//!
//! The namespaces have no names, so they exist as long as their processes. A machine's init is PID 1 of its pid namespace,
//! so all processes of the machine end with it. The guard makes the rest follow:
//!
//! | event | result |
//! |---|---|
//! | `down`, or the process that owns the lab ends | the inits stop their services in reverse order, and the guard removes the directory |
//! | an init ends, even by SIGKILL, without [`Lab::kill_machine`] | the guard stops the other machines and removes the directory |
//! | the guard ends, even by SIGKILL | the kernel kills the inits (`PDEATHSIG`); the next `up` or `down` removes the directory |
//!
//! [`Lab::kill_machine`] and [`Lab::boot_machine`] are a power cut and its end. They differ from a real one in what is on the
//! disk: everything that was written, synced or not. [`Lab::cut`], [`Lab::slow`] and [`Lab::heal`] change the
//! links between machines.
//!
//! Inside a node, `/run`, `/etc`, `/tmp`, `/var/lib`, `/var/log` and `/var/cache` are directories of the lab. The rest
//! of the host is visible read-only, `/sys` is new (own network devices, no cgroups), and `/etc/passwd` contains the
//! accounts of a packaged installation. So the host is not changed, and [`Lab::path_outside`] returns the path
//! outside of a file that a node writes.
//!
//! waifud in a lab with one node listens on its node's loopback. The guard relays a loopback port of the host to it. With the data
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
mod links;
mod machines;
mod mounts;
mod names;
mod net;
mod options;
mod orders;
mod packets;
mod pids;
mod pipe;
mod redis;
mod relay;
mod services;
pub mod shape;
mod slow;
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
pub use names::NODES_MAX;
pub use nix::sys::signal::Signal;
pub use options::LabOptions;
pub use orders::{Disturbances, Link};
pub use stale::remove_stale;

/// The name of the namespace that simulates the home network and the internet.
pub const OUTSIDE: &str = "outside";
