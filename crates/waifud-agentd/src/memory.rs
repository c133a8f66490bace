//! The agent's memory: glibc's allocator gets two arenas.
//!
//! By default, glibc gives each thread an arena of its own, up to eight for each processor. The agent has some twenty
//! threads, most of them for blocking calls of libvirt, and each arena keeps the memory that it needed at its peak. With
//! more than 50 guests these unused pages were 5 of 13.5 MiB of private memory (docs/reference/performance.md).

/// The number of arenas: as many as the runtime has worker threads.
#[cfg(target_env = "gnu")]
const ARENAS: nix::libc::c_int = 2;

/// Limits the number of arenas. To be called before the first thread starts. Where it fails, the agent needs more memory.
#[cfg(target_env = "gnu")]
pub fn limit_arenas() {
    // SAFETY: no other thread runs yet, and mallopt(3) only sets a parameter of the allocator.
    let set = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, ARENAS) };
    if set != 1 {
        tracing::debug!("the allocator refused a limit for its arenas");
    }
}

/// Other allocators have no such arenas.
#[cfg(not(target_env = "gnu"))]
pub fn limit_arenas() {}
