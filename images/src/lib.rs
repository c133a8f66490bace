//! Builds guests from the machine's own Debian packages: the real Debian cloud image and the tiny test guest.
//!
//! ```text
//!  apt sources ──► mmdebstrap ──► a directory ──► mke2fs -d ──┐
//!  (sources.rs)   (bootstrap.rs)  (debian.rs, tiny/)          ├─► raw disk ──► qemu-img ──► CACHE/GUEST-DIGEST.qcow2
//!                       GPT, GRUB for BIOS and UEFI, ESP ─────┘   (disk.rs)                 (cache.rs)
//!                       (gpt.rs, grub.rs)
//! ```
//!
//! No loop device and no mount is needed: the file system is written straight into its place in the disk image, the
//! partition table and the boot loader's block lists are computed here. A finished image is named by the digest of its
//! recipe: every text that goes into the guest, the package list, the release and [`recipe::VERSION`]. It is made once,
//! however many ask for it at the same time.
//!
//! No guest has a password; the way in is an SSH key that the metadata service hands out.

mod bootstrap;
mod cache;
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

use std::path::{Path, PathBuf};

use anyhow::Result;

pub use guest::Guest;
pub use sources::apt_sources;

/// A finished image.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    /// Where it lies, inside of the cache directory.
    pub qcow2: PathBuf,
    /// Lower-case hex SHA-256 of the qcow2 file.
    pub sha256: String,
    /// Bytes of the qcow2 file.
    pub size_bytes: u64,
    /// Bytes of the disk that a guest sees.
    pub virtual_size_bytes: u64,
    /// What this call took, in seconds.
    pub seconds: f64,
    /// Nothing had to be built.
    pub from_cache: bool,
}

/// Builds an image, or finds it in `cache_dir`. Needs root and the host packages that [`packages`] names; two callers
/// at once build once. `progress` gets one line for each step, in words for people.
///
/// # Errors
/// One sentence that names the missing package, the tool that failed (with the end of what it said) or the file.
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

/// The host's Debian packages that a build runs tools of.
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
