//! The source of chance: every random number of a run is derived from its seed.

use std::ffi::{c_uint, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::libc;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use waifud_control::env::Entropy;
use waifud_kit::sync::lock;

/// A generator. Each part of a run has its own, so that a change in one part does not change the numbers of the others.
pub struct Random(Mutex<StdRng>);

impl Random {
    /// The generator of a part, which is named by a number.
    pub fn new(seed: u64, part: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(mixed(
            seed ^ mixed(part.wrapping_add(1)),
        ))))
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        lock(&self.0).random_range(0..bound)
    }

    /// True in this many of 100 cases.
    pub fn percent(&self, share: u64) -> bool {
        self.below(100) < share
    }

    /// One of these.
    pub fn pick<'a, T>(&self, from: &'a [T]) -> Option<&'a T> {
        let index = self.below(from.len() as u64);
        from.get(usize::try_from(index).unwrap_or(0))
    }
}

impl Entropy for Random {
    fn fill(&self, buffer: &mut [u8]) {
        lock(&self.0).fill_bytes(buffer);
    }
}

/// Whether the process has a seed.
static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// Seeds the random numbers that the process requests from the C library: the keys of hash maps, and the generator with which
/// tokio chooses between ready branches. Call this once, before anything has asked for a random number.
pub fn seed_process(seed: u64) {
    STATE.store(mixed(seed), Ordering::SeqCst);
    SEEDED.store(true, Ordering::SeqCst);
}

/// The finalizer of splitmix64.
fn mixed(state: u64) -> u64 {
    let mut mixed = state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Fills the buffer from the seed (splitmix64).
fn fill_from_seed(buffer: &mut [u8]) {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    for part in buffer.chunks_mut(8) {
        let number = mixed(STATE.fetch_add(STEP, Ordering::SeqCst));
        for (to, from) in part.iter_mut().zip(number.to_le_bytes()) {
            *to = from;
        }
    }
}

/// Takes the place of the C library's function in this program. Rust's standard library calls it through a weak symbol, which
/// exists so that it can be replaced. In a process without a seed it asks the kernel, as the original does.
///
/// # Safety
/// As for `getrandom(2)`: `buffer` must be valid for `length` bytes.
// SAFETY: the name and the signature are those of the C library's function, whose contract the body keeps.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if !SEEDED.load(Ordering::SeqCst) || buffer.is_null() {
        // SAFETY: the arguments are passed on unchanged, and the caller vouches for the buffer.
        let result = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(result).unwrap_or(-1);
    }
    // SAFETY: the caller vouches for the buffer, which is not null, and nothing else uses it during the call.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    fill_from_seed(buffer);
    isize::try_from(length).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generators_of_one_seed_repeat_themselves_and_differ_between_parts() {
        let numbers = |seed, part| {
            let random = Random::new(seed, part);
            [(); 8].map(|()| random.below(1 << 40))
        };
        assert_eq!(numbers(1, 2), numbers(1, 2));
        assert_ne!(numbers(1, 2), numbers(1, 3));
        assert_ne!(numbers(1, 2), numbers(2, 2));
        assert_eq!(Random::new(1, 1).below(0), 0);
        assert_eq!(Random::new(1, 1).pick::<u8>(&[]), None);
    }
}
