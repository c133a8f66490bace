//! Starts a node's init with one `clone` into new namespaces. It ends with the guard.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::libc::execv;
use nix::sched::{CloneFlags, clone};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup2_stdin};

/// Starts `/proc/self/exe lab-init DIR NODE` as PID 1 of new pid, network, mount and uts namespaces, and returns its
/// PID in the caller's namespace. It gets SIGKILL when the caller ends.
pub(crate) fn init(dir: &Path, node: &str) -> Result<Pid> {
    let exe = c"/proc/self/exe".to_owned();
    let arguments = [
        c"waifud-lab-init".to_owned(),
        c"lab-init".to_owned(),
        CString::new(dir.as_os_str().as_bytes())?,
        CString::new(node)?,
    ];
    let mut pointers: Vec<_> = arguments.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    let child = Box::new(move || {
        // After the exec it would be too late: the guard may have ended by then. `init` checks that again.
        let _ = set_pdeathsig(Signal::SIGKILL);
        let _ = dup2_stdin(&null);
        // SAFETY: both are strings that end with a zero, and a list of them that ends with a null pointer. They outlive the
        // call: the child is a copy of this process, in which `arguments` exists. It returns only on failure; the guard
        // reads the exit status.
        unsafe { execv(exe.as_ptr(), pointers.as_ptr()) };
        127
    });
    let mut stack = vec![0; 64 * 1024];
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS;
    // SAFETY: the guard has other threads, which may hold locks in the child, a copy of this process (no CLONE_VM). So the
    // child makes only system calls, with memory that was prepared before, and ends in exec or exit. The stack outlives the
    // call, and the child has its own copy.
    let pid = unsafe { clone(child, &mut stack, flags, Some(Signal::SIGCHLD as i32)) };
    pid.with_context(|| format!("cannot create the namespaces of {node} (this needs root)"))
}
