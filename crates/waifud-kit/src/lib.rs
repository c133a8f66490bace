//! Small tools that several crates need. Nothing here knows about instances, nodes or images.
//!
//! | module | purpose |
//! |---|---|
//! | [`buffers`] | large buffers that are used again |
//! | [`clock`] | the time, through a trait that simulations replace |
//! | [`config`] | reading a TOML configuration file |
//! | [`config_page`] | a test that a configuration file is documented completely |
//! | [`conformance`] | checking an implementation against the rules of its interface |
//! | [`durable`] | replacing, renaming and removing files so that the result survives a crash |
//! | [`error`] | an error together with its causes |
//! | [`failpoints`] | named points at which tests stop a daemon |
//! | [`fault_injection`] | scripted failures and hanging calls for fakes |
//! | [`filesystem`] | size, free space and state of a filesystem, and lock files |
//! | [`labeled_stream`] | a stream in memory with a value, for fakes of connections |
//! | [`planted_bugs`] | bugs that tests switch on, to show that the simulation finds them |
//! | `program` | the main function of a daemon |
//! | [`sha256`] | SHA-256 of bytes, readers and files; hexadecimal text |
//! | [`sync`] | locking a mutex whatever happened to its last holder |
//! | [`terminal`] | text from elsewhere made safe for a terminal |
//! | [`testing`] | skipping a test where the machine cannot run it; sample texts, filesystems, numbers and the log for tests |

pub mod buffers;
pub mod clock;
pub mod config;
pub mod config_page;
pub mod conformance;
pub mod durable;
pub mod error;
pub mod failpoints;
#[cfg(feature = "fault-injection")]
pub mod fault_injection;
pub mod filesystem;
#[cfg(feature = "labeled-stream")]
pub mod labeled_stream;
pub mod planted_bugs;
#[cfg(feature = "program")]
pub mod program;
pub mod sha256;
pub mod sync;
pub mod terminal;
pub mod testing;
