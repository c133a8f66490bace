//! Starts a test machine whose boot sector switches to 32-bit code, counts down and reports through QEMU's exit code.
//!
//! Under hardware virtualisation this takes a tenth of a second, most of it SeaBIOS. Where the hypervisor interprets
//! the guest's instructions one by one, the count takes minutes: the deadline tells the two apart. Where the CPU model
//! can't be set up (`-cpu host`, which real guests get too), QEMU ends by itself with another code.

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

/// How long the test machine has; a calm host needs a thirtieth.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// What the boot sector writes to the exit port; QEMU exits with `(value << 1) | 1`.
const DONE: u8 = 0x2a;
const EXIT_CODE: i32 = (DONE as i32) << 1 | 1;
/// The port of QEMU's `isa-debug-exit` device, as we place it.
const EXIT_PORT: u8 = 0xf4;
/// How far the boot sector counts: 30 to 50 ms at one step a cycle.
const COUNT: u32 = 100_000_000;

/// How to run the test machine.
#[derive(Clone, Debug)]
pub struct Run {
    /// QEMU, as libvirt's capabilities name it.
    pub emulator: PathBuf,
    /// `kvm`; `tcg` shows that the test machine itself is sound.
    pub accelerator: &'static str,
    /// `host` for KVM, `max` for emulation.
    pub cpu: &'static str,
    /// User and group (numbers) to run as: those that guests' QEMU has, so that permissions are tested too.
    pub user: Option<(u32, u32)>,
    /// When to give up.
    pub deadline: Duration,
}

/// The test machine did its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// From start to end.
    pub took: Duration,
}

impl Run {
    /// Under KVM, as a guest would be run.
    pub fn kvm(emulator: PathBuf, user: Option<(u32, u32)>) -> Self {
        Self {
            emulator,
            accelerator: "kvm",
            cpu: "host",
            user,
            deadline: DEADLINE,
        }
    }

    /// Runs it to its end; the error is a reason in words.
    pub async fn attempt(&self) -> Result<Attempt, String> {
        let disk = boot_disk().map_err(|error| format!("no disk could be made: {error}"))?;
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
            // SAFETY: the closure runs in the child between fork and exec. It makes three system calls, through wrappers
            // that neither allocate nor lock, and touches nothing but what it owns.
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
        let begin = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|error| format!("{} can't be run: {error}", self.emulator.display()))?;
        let stderr = child.stderr.take();
        let run = async {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                // Fewer words make a shorter reason, nothing else.
                let _read = stderr.take(8192).read_to_end(&mut said).await;
            }
            (child.wait().await, said)
        };
        match tokio::time::timeout(self.deadline, run).await {
            Ok((Ok(status), _)) if status.code() == Some(EXIT_CODE) => Ok(Attempt {
                took: begin.elapsed(),
            }),
            Ok((Ok(status), said)) => {
                let said = String::from_utf8_lossy(&said);
                let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
                let words: String = words.chars().take(300).collect();
                Err(if words.is_empty() {
                    format!("QEMU ended with {status}")
                } else {
                    words
                })
            }
            Ok((Err(error), _)) => Err(format!("its end could not be awaited: {error}")),
            Err(_late) => {
                let _gone = child.kill().await;
                Err(format!("it was not done in {:?}", self.deadline))
            }
        }
    }
}

/// All groups of a user, as libvirt gives them to a guest's QEMU: by one of them, `kvm`, it may open `/dev/kvm` (0660 on
/// Debian), whatever group `qemu.conf` names.
fn groups(uid: Uid, gid: Gid) -> Vec<Gid> {
    let listed = || {
        let user = User::from_uid(uid).ok()??;
        getgrouplist(&CString::new(user.name).ok()?, gid).ok()
    };
    listed().unwrap_or_else(|| vec![gid])
}

/// A disk in memory that holds nothing but the boot sector.
fn boot_disk() -> std::io::Result<File> {
    let mut disk = File::from(memfd_create("waifud-kvm-probe", MFdFlags::MFD_CLOEXEC)?);
    disk.write_all(&boot_sector())?;
    // SeaBIOS boots from nothing smaller than one cylinder (16 heads of 63 sectors).
    disk.set_len(1 << 20)?;
    Ok(disk)
}

/// The program, assembled by hand. Opcodes: Intel's Software Developer's Manual, volume 2.
fn boot_sector() -> [u8; 512] {
    /// Where a BIOS loads a boot sector to.
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
mod tests {
    use super::*;

    /// Emulation does the same work, so a failure under KVM is KVM's.
    #[tokio::test]
    async fn the_test_machine_is_sound() {
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
        eprintln!("the test machine took {:?} under emulation", attempt.took);
    }

    #[tokio::test]
    async fn a_machine_that_makes_no_progress_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("qemu");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let mut run = Run::kvm(script, None);
        run.deadline = Duration::from_millis(300);
        let why = run.attempt().await.unwrap_err();
        assert_eq!(why, "it was not done in 300ms");
    }

    #[tokio::test]
    async fn what_qemu_says_at_its_end_is_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("qemu");
        std::fs::write(
            &script,
            "#!/bin/sh\necho 'failed to set MSR 0x10a' >&2\nexit 134\n",
        )
        .unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let why = Run::kvm(script, None).attempt().await.unwrap_err();
        assert_eq!(why, "failed to set MSR 0x10a");
    }

    /// Of all users of this machine the one with most groups tells most.
    #[tokio::test]
    async fn it_runs_with_every_group_of_its_user() {
        if !geteuid().is_root() {
            waifud_kit::testing::skip("needs root to act as another user");
            return;
        }
        // Nobody's own: what `qemu.conf` names need not be the user's first group.
        let gid = Gid::from_raw(54_321);
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let (uid, expected) = passwd
            .lines()
            .filter_map(|line| line.split(':').nth(2)?.parse().ok())
            .map(|uid| (uid, groups(Uid::from_raw(uid), gid)))
            .max_by_key(|(_, groups)| groups.len())
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("qemu");
        std::fs::write(&script, "#!/bin/sh\nid -G >&2\nexit 1\n").unwrap();
        for path in [directory.path(), &script] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(path, mode).unwrap();
        }
        let run = Run::kvm(script, Some((uid, gid.as_raw())));
        let said = run.attempt().await.unwrap_err();
        let mut found: Vec<u32> = said.split(' ').map(|id| id.parse().unwrap()).collect();
        let mut expected: Vec<u32> = expected.into_iter().map(Gid::as_raw).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(found.contains(&gid.as_raw()));
    }
}
