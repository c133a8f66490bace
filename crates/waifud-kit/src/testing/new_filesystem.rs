//! Running a test on a real filesystem that is small enough to fill, or that the machine's own disks do not have.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set in the process that has the mount.
const INSIDE: &str = "WAIFUD_TEST_DISK_AT";

/// A filesystem in a file, mounted through a loop device.
#[derive(Clone, Copy, Debug)]
pub struct NewFilesystem<'a> {
    /// Its type, for `mount -t`.
    pub kind: &'a str,
    /// The arguments of `mkfs.KIND`, without the file.
    pub options: &'a [&'a str],
    /// Its size. The file is sparse.
    pub bytes: u64,
}

impl NewFilesystem<'_> {
    /// ext4. No blocks are reserved for root, so that it can be full for root as for any user.
    #[must_use]
    pub fn ext4(bytes: u64) -> Self {
        Self {
            kind: "ext4",
            options: &["-q", "-m", "0", "-b", "4096"],
            bytes,
        }
    }

    /// Why this machine cannot mount it; `None` if it can.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("mounting needs root".to_owned());
        }
        let mkfs = self.mkfs();
        let missing = |tool: &&str| Command::new(tool).arg("-V").output().is_err();
        let missing = [mkfs.as_str(), "unshare", "mount"]
            .into_iter()
            .find(missing);
        missing.map(|tool| format!("cannot run {tool}"))
    }

    /// Runs the test called `name` again in a process that has the filesystem, in a mount namespace that ends with it.
    /// Returns the mount point in that process, and `None` in the calling one, where the test has passed then.
    ///
    /// The file and the mount point are created in `directory`.
    ///
    /// # Errors
    /// The filesystem cannot be created, the test failed, or there is no test of that name.
    pub fn run_again(&self, name: &str, directory: &Path) -> io::Result<Option<PathBuf>> {
        if let Some(path) = std::env::var_os(INSIDE) {
            let path = PathBuf::from(path);
            File::create(witness(&path))?;
            return Ok(Some(path));
        }
        let (disk, mount) = (directory.join("disk"), directory.join("at"));
        fs::create_dir(&mount)?;
        File::create(&disk)?.set_len(self.bytes)?;
        succeeds(Command::new(self.mkfs()).args(self.options).arg(&disk))?;
        let words: [&OsStr; 4] = [
            "sh".as_ref(),
            self.kind.as_ref(),
            disk.as_os_str(),
            mount.as_os_str(),
        ];
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .args(["/bin/sh", "-c"])
            // Positional parameters are not parsed as shell text.
            .arg("mount -t \"$1\" -o loop \"$2\" \"$3\" && shift 3 && exec \"$@\"")
            .args(words)
            .arg(std::env::current_exe()?)
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, &mount);
        succeeds(&mut command)?;
        // The harness also succeeds if it finds no test of that name.
        if !witness(&mount).exists() {
            let message = format!("no test called {name} has run; is it the test's full path?");
            return Err(io::Error::other(message));
        }
        Ok(None)
    }

    fn mkfs(&self) -> String {
        format!("mkfs.{}", self.kind)
    }
}

/// The file, next to the mount point, which shows that the test ran in the other process.
fn witness(mount: &Path) -> PathBuf {
    mount.with_file_name("ran")
}

fn succeeds(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() {
        return Ok(());
    }
    let program = command.get_program().display();
    Err(io::Error::other(format!("{program} ended with {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::skip_if;

    const ITSELF: &str =
        "testing::new_filesystem::tests::the_second_process_runs_the_test_on_the_new_filesystem";

    /// A filesystem and the directory for it; `None` where the test is skipped.
    fn disk() -> Option<(NewFilesystem<'static>, tempfile::TempDir)> {
        let disk = NewFilesystem::ext4(16 << 20);
        (!skip_if(disk.obstacle())).then(|| (disk, tempfile::tempdir().unwrap()))
    }

    #[test]
    fn the_second_process_runs_the_test_on_the_new_filesystem() {
        let Some((disk, directory)) = disk() else {
            return;
        };
        let Some(mount) = disk.run_again(ITSELF, directory.path()).unwrap() else {
            return;
        };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let at = format!(" {} ", mount.display());
        assert!(mounts.lines().any(|line| line.contains(&at)), "{mounts}");
    }

    #[test]
    fn an_unknown_test_name_is_an_error() {
        let Some((disk, directory)) = disk() else {
            return;
        };
        let none = disk.run_again("no_such_test", directory.path());
        let message = none.unwrap_err().to_string();
        assert!(message.contains("no_such_test"), "{message}");
    }
}
