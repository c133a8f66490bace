//! Finds the shared libraries of a program in the unpacked packages. The packages' own dynamic loader lists them,
//! so that no library of the host is used.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::run::Tool;

const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
const DIRECTORIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// One library.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Library {
    /// Its unpacked path.
    pub on_host: PathBuf,
    /// Its path in the guest.
    pub in_guest: String,
}

/// The libraries of `program`, a path below `packages`, including the loader.
pub fn of(packages: &Path, program: &str) -> Result<Vec<Library>> {
    let loader = packages.join(LOADER);
    let path = DIRECTORIES
        .map(|directory| packages.join(directory).display().to_string())
        .join(":");
    let listing = Tool::new(loader.display().to_string(), "libc6")
        .args(["--inhibit-cache", "--library-path", &path, "--list"])
        .arg(packages.join(program))
        .run()?;
    let mut libraries = vec![Library {
        on_host: loader,
        in_guest: LOADER.to_owned(),
    }];
    for (name, on_host) in parse(&listing) {
        ensure!(
            on_host.starts_with(packages),
            "{program} needs {name}, which no unpacked package contains"
        );
        libraries.push(Library {
            in_guest: format!("lib/x86_64-linux-gnu/{name}"),
            on_host,
        });
    }
    Ok(libraries)
}

/// Names and paths from the loader's list. It lists itself with an absolute name, and the kernel's vDSO without a path.
fn parse(listing: &str) -> Vec<(&str, PathBuf)> {
    listing
        .lines()
        .filter_map(|line| {
            let (name, place) = line.trim().split_once(" => ")?;
            let place = place.rsplit_once(" (").map_or(place, |(place, _)| place);
            (!name.starts_with('/')).then(|| (name, PathBuf::from(place)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_listing_is_parsed() {
        let listing = "\tlinux-vdso.so.1 (0x00007f08)\n\
            \tlibz.so.1 => /p/lib/x86_64-linux-gnu/libz.so.1 (0x00007f09)\n\
            \tlibodd.so.1 => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 => lib64/ld-linux-x86-64.so.2 (0x00007f0a)\n";
        assert_eq!(
            parse(listing),
            [
                (
                    "libz.so.1",
                    PathBuf::from("/p/lib/x86_64-linux-gnu/libz.so.1")
                ),
                // Fails the check for the packages' directory.
                ("libodd.so.1", PathBuf::from("not found")),
            ]
        );
    }
}
