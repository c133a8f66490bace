//! A cluster in one process: the real control service and the real agents, on fakes of everything below them.
//!
//! One seed decides everything that happens in a run: what users request, what fails, how long each message takes, in which
//! order tasks run, and every random number. The time is simulated, so a run of an hour takes seconds. The same seed with the
//! same code gives the same history; see ADR 19.
//!
//! | module | purpose |
//! |---|---|
//! | [`run`] | one run from a seed to its outcome |
//! | [`acts`] | what can happen: requests of users, faults, the end of faults |
//! | [`world`] | the parts: waifud, nodes, the wires between them, and what users were promised |
//! | [`invariants`] | what must always be true, and what must be true once the cluster has come to rest |
//! | [`history`] | what happened, its digest, and a shortened text |
//! | [`random`], [`clock`], [`disk`] | the sources of chance and time, and what a power cut leaves on disks |
//! | [`errors`] | errors that no caller sees |
//! | [`totals`] | what runs did, for the program's output |
//!
//! A run needs a process of its own, because the process has one source of random numbers. So the program of this crate runs
//! one seed, and starts itself again for each of several seeds.

pub mod acts;
pub mod clock;
pub mod disk;
pub mod errors;
pub mod history;
pub mod invariants;
pub mod random;
pub mod run;
pub mod totals;
pub mod world;
