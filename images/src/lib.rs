//! Builds guest images from Debian packages: the Debian cloud image and the tiny test guest.
//!
//! ```text
//!  apt sources ──► mmdebstrap ──► a directory ──► mke2fs -d ──┐
//!  (sources.rs)   (bootstrap.rs)  (debian.rs, tiny/)          ├─► raw disk ──► qemu-img ──► CACHE/GUEST-DIGEST.qcow2
//!                       GPT, GRUB for BIOS and UEFI, ESP ─────┘   (disk.rs)                 (cache.rs)
//!                       (gpt.rs, grub.rs)
//! ```
//!
//! Loop devices and mounts are not needed: the file system is written directly into the disk image, and the partition
//! table and the boot loader's block lists are computed here. An image is named after the digest of its recipe: every
//! text that goes into the guest, the package list, the release and [`recipe::VERSION`]. Concurrent callers build it
//! once.
//!
//! Guests have no passwords. Logins use an SSH key from the metadata service.

mod bootstrap;
mod cache;
mod cloud_init;
mod debian;
mod disk;
mod gpt;
mod grub;
mod guest;
mod hash;
pub mod recipe;
mod run;
pub mod sources;
mod tiny;
mod tree;
mod unpacked;

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use cloud_init::cloud_init_package;
pub use guest::Guest;
pub use sources::apt_sources;
pub use unpacked::unpacked;

/// A finished image.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// Its path in the cache directory.
    pub qcow2: PathBuf,
    /// Lower-case hex SHA-256 of the qcow2 file.
    pub sha256: String,
    /// Size of the qcow2 file in bytes.
    pub size_bytes: u64,
    /// Size of the guest's disk in bytes.
    pub virtual_size_bytes: u64,
    /// Duration of this call, in seconds.
    pub seconds: f64,
    /// Whether it was in the cache.
    pub from_cache: bool,
}

/// Builds an image, or finds it in `cache_dir`. Needs root and the host packages of [`packages`].
/// Concurrent callers build it once. `progress` gets a readable line for each step.
///
/// # Errors
/// A package is missing, a tool fails (the error contains the end of its output), or a file cannot be written.
pub fn build(guest: Guest, cache_dir: &Path, progress: &dyn Fn(&str)) -> Result<BuiltImage> {
    cache::build(guest, cache_dir, progress)
}

/// `$XDG_CACHE_HOME/waifud/images`, else `~/.cache/waifud/images`, else the same below the temporary directory.
pub fn default_cache_dir() -> PathBuf {
    let from_env = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    from_env("XDG_CACHE_HOME")
        .or_else(|| from_env("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("waifud/images")
}

/// The host's Debian packages with the tools of a build.
pub fn packages(_guest: Guest) -> &'static [&'static str] {
    &[
        "mmdebstrap",
        "debian-archive-keyring",
        "e2fsprogs",
        "dosfstools",
        "mtools",
        "grub-common",
        "grub-pc-bin",
        "grub-efi-amd64-bin",
        "qemu-utils",
    ]
}
