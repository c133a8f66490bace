//! Runs a test machine whose boot sector switches to 32-bit code, counts down and reports through QEMU's exit code.
//!
//! With hardware virtualization, this takes a tenth of a second, most of it for SeaBIOS. If the hypervisor interprets
//! the guest's instructions one by one, the count takes minutes and exceeds the deadline. If the CPU model cannot be
//! set up (`-cpu host`, which real guests use too), QEMU exits with another code.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist, setgid, setgroups, setuid};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// The time limit of the test machine. An idle host needs a thirtieth of it.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// The value that the boot sector writes to the exit port. QEMU exits with `(value << 1) | 1`.
const DONE: u8 = 0x2a;
const EXIT_CODE: i32 = (DONE as i32) << 1 | 1;
/// The port of QEMU's `isa-debug-exit` device, as configured here.
const EXIT_PORT: u8 = 0xf4;
/// The start of the countdown, which takes 30 to 50 ms at one step a cycle.
const COUNT: u32 = 100_000_000;

/// How to run the test machine.
#[derive(Clone, Debug)]
pub struct Run {
    /// The path of QEMU, from libvirt's capabilities.
    pub emulator: PathBuf,
    /// `kvm`, or `tcg` to check the test machine itself.
    pub accelerator: &'static str,
    /// `host` for KVM, `max` for emulation.
    pub cpu: &'static str,
    /// User and group ids to run as: those of guests' QEMU, so that permissions are tested too.
    pub user: Option<(u32, u32)>,
    /// The time limit.
    pub deadline: Duration,
}

/// The result of a successful run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// The duration.
    pub duration: Duration,
}

impl Run {
    /// A run with KVM, with the same CPU model as a guest.
    pub fn kvm(emulator: PathBuf, user: Option<(u32, u32)>) -> Self {
        Self {
            emulator,
            accelerator: "kvm",
            cpu: "host",
            user,
            deadline: DEADLINE,
        }
    }

    /// Runs the test machine until it exits. The error is a sentence.
    pub async fn attempt(&self) -> Result<Attempt, String> {
        let disk = boot_disk().map_err(|error| format!("cannot create the disk: {error}"))?;
        let exit_device = format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1");
        let mut command = Command::new(&self.emulator);
        command
            .args(["-accel", self.accelerator, "-cpu", self.cpu])
            .args(["-machine", "q35", "-m", "64", "-smp", "1"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-device", &exit_device])
            .args([
                "-drive",
                "if=none,id=d,format=raw,readonly=on,file.driver=file,file.filename=/dev/fd/0,file.locking=off",
                "-device",
                "virtio-blk-pci,drive=d",
            ])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/")
            .stdin(Stdio::from(disk))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some((uid, gid)) = self.user {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let groups = groups(uid, gid);
            // SAFETY: the closure runs in the child between fork and exec. It makes system calls only, through wrappers
            // that neither allocate nor lock, and accesses only what it owns.
            unsafe {
                command.pre_exec(move || {
                    if geteuid().is_root() {
                        setgroups(&groups)?;
                    }
                    setgid(gid)?;
                    setuid(uid)?;
                    Ok(())
                });
            }
        }
        let start = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", self.emulator.display()))?;
        let stderr = child.stderr.take();
        let run = async {
            let mut output = Vec::new();
            if let Some(stderr) = stderr {
                // If the output cannot be read, the reason is only shorter.
                let _read = stderr.take(8192).read_to_end(&mut output).await;
            }
            (child.wait().await, output)
        };
        match tokio::time::timeout(self.deadline, run).await {
            Ok((Ok(status), _)) if status.code() == Some(EXIT_CODE) => Ok(Attempt {
                duration: start.elapsed(),
            }),
            Ok((Ok(status), output)) => {
                let output = String::from_utf8_lossy(&output);
                let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
                let words: String = words.chars().take(300).collect();
                Err(if words.is_empty() {
                    format!("QEMU exited with {status}")
                } else {
                    words
                })
            }
            Ok((Err(error), _)) => Err(format!("cannot wait for QEMU: {error}")),
            Err(_late) => {
                let _gone = child.kill().await;
                Err(format!("it did not finish within {:?}", self.deadline))
            }
        }
    }
}

/// All groups of a user, which libvirt also gives to guests' QEMU. One of them, `kvm`, grants access to `/dev/kvm`
/// (mode 0660 on Debian), regardless of the group in `qemu.conf`.
fn groups(uid: Uid, gid: Gid) -> Vec<Gid> {
    let listed = || {
        let user = User::from_uid(uid).ok()??;
        getgrouplist(&CString::new(user.name).ok()?, gid).ok()
    };
    listed().unwrap_or_else(|| vec![gid])
}

/// An in-memory disk that contains only the boot sector.
fn boot_disk() -> std::io::Result<File> {
    let mut disk = File::from(memfd_create("waifud-kvm-probe", MFdFlags::MFD_CLOEXEC)?);
    disk.write_all(&boot_sector())?;
    // SeaBIOS does not boot from a disk smaller than one cylinder (16 heads of 63 sectors).
    disk.set_len(1 << 20)?;
    Ok(disk)
}

/// The program, assembled by hand. Opcodes: Intel's Software Developer's Manual, volume 2.
fn boot_sector() -> [u8; 512] {
    /// The address to which a BIOS loads a boot sector.
    const BASE: u16 = 0x7c00;
    const START32: u16 = BASE + 0x18;
    const GDTR: u16 = BASE + 0x30;
    const GDT: u16 = BASE + 0x38;
    let [start_lo, start_hi] = START32.to_le_bytes();
    let [pointer_lo, pointer_hi] = GDTR.to_le_bytes();
    let [table_lo, table_hi] = GDT.to_le_bytes();
    let count = COUNT.to_le_bytes();

    let mut program = vec![
        0xfa, // cli
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x0f, 0x01, 0x16, pointer_lo, pointer_hi, // lgdt [GDTR]
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x0c, 0x01, // or al, 1: protected mode
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0xea, start_lo, start_hi, 0x08, 0x00, // jmp 8:START32
    ];
    program.resize(usize::from(START32 - BASE), 0x90);
    program.push(0xb9); // mov ecx, COUNT
    program.extend(count);
    program.extend([
        0x49, // dec ecx
        0x75, 0xfd, // jnz to the line above
        0xb0, DONE, // mov al, DONE
        0xe6, EXIT_PORT, // out EXIT_PORT, al
        0xf4,      // hlt
        0xeb, 0xfd, // jmp to hlt
    ]);
    program.resize(usize::from(GDTR - BASE), 0x90);
    // Limit 15 (two entries of 8 bytes, less one) and linear address of the descriptor table.
    program.extend([15, 0, table_lo, table_hi, 0, 0]);
    program.resize(usize::from(GDT - BASE), 0);
    program.extend([0; 8]);
    // Code, base 0, limit 4 GiB, 32 bits (volume 3A, 3.4.5).
    program.extend([0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0]);
    program.resize(510, 0);
    program.extend([0x55, 0xaa]);

    let mut sector = [0; 512];
    sector.copy_from_slice(&program);
    sector
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// Creates a shell script that replaces QEMU, and lets every user run it.
    pub(in super::super) fn script(directory: &Path, text: &str) -> PathBuf {
        let script = directory.join("qemu");
        std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        for path in [directory, &script] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        script
    }

    /// The same machine works with emulation, so a failure with KVM is caused by KVM.
    #[tokio::test]
    async fn the_test_machine_works_with_emulation() {
        let emulator = PathBuf::from("/usr/bin/qemu-system-x86_64");
        if !emulator.exists() {
            waifud_kit::testing::skip("qemu-system-x86_64 is not installed");
            return;
        }
        let run = Run {
            emulator,
            accelerator: "tcg",
            cpu: "max",
            user: None,
            deadline: Duration::from_mins(1),
        };
        let attempt = run.attempt().await.unwrap();
        eprintln!(
            "the test machine took {:?} with emulation",
            attempt.duration
        );
    }

    #[tokio::test]
    async fn a_test_machine_that_exceeds_its_deadline_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let mut run = Run::kvm(script(directory.path(), "exec sleep 1000"), None);
        run.deadline = Duration::from_millis(300);
        let why = run.attempt().await.unwrap_err();
        assert_eq!(why, "it did not finish within 300ms");
    }

    #[tokio::test]
    async fn qemus_last_message_is_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let text = "echo 'failed to set MSR 0x10a' >&2\nexit 134";
        let script = script(directory.path(), text);
        let why = Run::kvm(script, None).attempt().await.unwrap_err();
        assert_eq!(why, "failed to set MSR 0x10a");
    }

    /// Uses the user of this host with the most groups.
    #[tokio::test]
    async fn the_test_machine_runs_with_all_groups_of_its_user() {
        if !geteuid().is_root() {
            waifud_kit::testing::skip("needs root to act as another user");
            return;
        }
        // A group that no user has: the group in `qemu.conf` need not be the primary group of the user.
        let gid = Gid::from_raw(54_321);
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let (uid, expected) = passwd
            .lines()
            .filter_map(|line| line.split(':').nth(2)?.parse().ok())
            .map(|uid| (uid, groups(Uid::from_raw(uid), gid)))
            .max_by_key(|(_, groups)| groups.len())
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let script = script(directory.path(), "id -G >&2\nexit 1");
        let run = Run::kvm(script, Some((uid, gid.as_raw())));
        let output = run.attempt().await.unwrap_err();
        let mut found: Vec<u32> = output.split(' ').map(|id| id.parse().unwrap()).collect();
        let mut expected: Vec<u32> = expected.into_iter().map(Gid::as_raw).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(found.contains(&gid.as_raw()));
    }
}
