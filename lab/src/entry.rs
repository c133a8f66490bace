//! The hidden commands that turn a program into a lab's guard or a node's init.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{guard, init};

/// Must be called first in `main` of a program that starts labs.
///
/// If the program was called as `lab-guard DIR` or `lab-init DIR NODE`, which only this crate does, this function does
/// that work and ends the process. Otherwise it returns at once.
pub fn init_if_asked() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = match arguments.as_slice() {
        [word, dir] if word == "lab-guard" => guard::run(Path::new(dir)),
        [word, dir, node] if word == "lab-init" => {
            init::run(&PathBuf::from(dir), &node.to_string_lossy())
        }
        _ => return,
    };
    if let Err(error) = result {
        eprintln!(
            "{}: {error:#}",
            arguments
                .iter()
                .map(|word| word.to_string_lossy())
                .collect::<Vec<_>>()
                .join(" ")
        );
        std::process::exit(1);
    }
    std::process::exit(0);
}
