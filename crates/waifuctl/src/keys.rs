//! Public SSH keys for a guest.

use std::path::{Path, PathBuf};

use waifud_cloudinit::SSH_KEY_TYPES;

use crate::failure::Failure;

/// Maximum size of a file with keys in bytes.
const KEY_FILE_MAX: u64 = 64 << 10;

/// Reads the arguments of `--ssh-key`: each is a file or a key.
pub fn named(arguments: &[String]) -> Result<Vec<String>, Failure> {
    named_from(Path::new(""), "--ssh-key", arguments)
}

/// Reads keys, or files with keys; relative paths start at `base`. Errors name `field`.
pub fn named_from(base: &Path, field: &str, arguments: &[String]) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    for argument in arguments {
        if argument.contains(' ') {
            keys.push(argument.trim().to_owned());
            continue;
        }
        let found = read(&base.join(argument)).map_err(|e| {
            Failure::input(
                "ssh-key-unreadable",
                format!("cannot read SSH key {argument:?}"),
            )
            .field(field)
            .cause(&e)
            .hint("pass a .pub file, or the key itself in quotes")
        })?;
        if found.is_empty() {
            return Err(Failure::input(
                "ssh-key-empty",
                format!("{argument:?} does not contain a key"),
            )
            .field(field));
        }
        keys.extend(found);
    }
    Ok(keys)
}

/// The user's own keys: every `~/.ssh/*.pub`, ordered by name. Unreadable and unusable files are ignored.
pub fn own() -> Vec<String> {
    std::env::var_os("HOME").map_or_else(Vec::new, |home| usable(&PathBuf::from(home).join(".ssh")))
}

fn usable(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "pub"))
        // A host certificate is not a key.
        .filter(|path| {
            !path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().ends_with("-cert.pub"))
        })
        .collect();
    files.sort();
    files
        .iter()
        .filter_map(|file| read(file).ok())
        .flatten()
        .filter(|line| {
            line.split(' ')
                .next()
                .is_some_and(|kind| SSH_KEY_TYPES.contains(&kind))
        })
        .collect()
}

/// The lines of a file with keys, without comments. The text of a private key never leaves this function.
fn read(path: &Path) -> std::io::Result<Vec<String>> {
    if std::fs::metadata(path)?.len() > KEY_FILE_MAX {
        return Err(std::io::Error::other(
            "the file is too large for public keys",
        ));
    }
    let text = std::fs::read_to_string(path)?;
    if text.contains("PRIVATE KEY") {
        return Err(std::io::Error::other(
            "this is a private key; public keys end in .pub",
        ));
    }
    Ok(text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(text: &str) -> Result<Vec<String>, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        named(&[file.path().display().to_string()])
    }

    #[test]
    fn private_keys_are_refused_without_being_shown() {
        let failure = in_file("-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n").unwrap_err();
        assert!(!format!("{failure:?}").contains("hunter2"));
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn unusable_files_in_the_users_ssh_directory_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("id_dsa.pub", "ssh-dss AAAA old"),
            ("id_ed25519.pub", "ssh-ed25519 AAAA a"),
            (
                "id_ed25519-cert.pub",
                "ssh-ed25519-cert-v01@openssh.com AAAA c",
            ),
            ("putty.pub", "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(usable(dir.path()), ["ssh-ed25519 AAAA a"]);
    }

    #[test]
    fn a_file_may_hold_several_keys_and_comments() {
        assert_eq!(
            in_file("# mine\nssh-ed25519 AAAA a\n\nssh-rsa BBBB b\n").unwrap(),
            ["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"]
        );
        assert_eq!(
            named(&["ssh-ed25519 AAAA x".into()]).unwrap(),
            ["ssh-ed25519 AAAA x"]
        );
    }
}
