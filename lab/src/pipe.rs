//! One direction of a slow link: which frames it drops, and when the others leave it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::shape::Shape;

/// What a link with a rate holds back before it drops: this time's worth of frames, as the buffer of a router.
const BUFFER: Duration = Duration::from_millis(200);
/// The least that it holds back, in bits.
const BUFFER_MIN: u64 = 64 * 1024 * 8;
/// The most memory of the frames that a link holds.
const BUFFER_MAX: usize = 64 * 1024 * 1024;

/// A queue of frames.
pub(crate) struct Pipe {
    shape: Shape,
    /// The time at which the last frame has been sent completely.
    free_at: Instant,
    /// Frames in the order in which they leave, with their times.
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// Their length in bytes.
    held: usize,
    chance: Chance,
}

impl Pipe {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        Self {
            shape,
            free_at: Instant::now(),
            queue: VecDeque::new(),
            held: 0,
            chance: Chance::new(seed),
        }
    }

    /// Takes a frame that was sent at `now`, or drops it. `size` is its length on the wire.
    pub(crate) fn push(&mut self, now: Instant, size: usize, frame: &[u8]) {
        if self.chance.of_a_million() < self.shape.loss {
            return;
        }
        let begins = self.free_at.max(now);
        if let Some(rate) = self.shape.rate {
            let bits = u64::try_from(size).unwrap_or(u64::MAX).saturating_mul(8);
            let waiting = begins.duration_since(now);
            if waiting > BUFFER.max(time(BUFFER_MIN, rate)) {
                return;
            }
            self.free_at = begins + time(bits, rate);
        } else {
            self.free_at = now;
        }
        if self.held > BUFFER_MAX {
            return;
        }
        self.held += frame.len();
        let leaves = self.free_at + self.shape.delay;
        self.queue.push_back((leaves, frame.to_vec()));
    }

    /// The next frame that has left the link at `now`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (_, frame) = self.queue.pop_front_if(|(leaves, _)| *leaves <= now)?;
        self.held -= frame.len();
        Some(frame)
    }

    /// The time at which the next frame leaves.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(leaves, _)| *leaves)
    }
}

/// The time that `bits` take.
fn time(bits: u64, rate: u64) -> Duration {
    let nanos = u128::from(bits) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A small generator of random numbers (xorshift64*).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        // 0 would stay 0.
        Self(seed | 1)
    }

    fn of_a_million(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        u32::try_from((mixed * 1_000_000) >> 32).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The times, in milliseconds after their start, at which `count` frames of 1250 bytes leave that are sent at once.
    fn leave(shape: Shape, count: usize) -> Vec<u128> {
        let mut pipe = Pipe::new(shape, 7);
        let start = Instant::now() + Duration::from_secs(1);
        for _ in 0..count {
            pipe.push(start, 1250, b"frame");
        }
        let mut times = Vec::new();
        while let Some(leaves) = pipe.next() {
            let before = leaves.checked_sub(Duration::from_nanos(1)).unwrap();
            assert!(pipe.pop(before).is_none());
            assert_eq!(pipe.pop(leaves).unwrap(), b"frame");
            times.push(leaves.duration_since(start).as_millis());
        }
        times
    }

    #[test]
    fn a_delay_applies_to_each_frame_and_a_rate_to_their_sum() {
        let shape = Shape {
            delay: Duration::from_millis(50),
            ..Shape::default()
        };
        assert_eq!(leave(shape, 3), [50, 50, 50]);
        let rate = Some(1_000_000);
        assert_eq!(leave(Shape { rate, ..shape }, 3), [60, 70, 80]);
    }

    #[test]
    fn a_rate_drops_what_its_buffer_cannot_hold() {
        let shape = Shape {
            rate: Some(100_000_000),
            ..Shape::default()
        };
        // 200 ms at 100 Mbit/s are 2000 such frames.
        let count = leave(shape, 5000).len();
        assert!((1990..=2010).contains(&count), "{count}");
    }

    #[test]
    fn a_loss_drops_its_share_and_nothing_else() {
        let lost = |loss| {
            let shape = Shape {
                loss,
                ..Shape::default()
            };
            10_000 - leave(shape, 10_000).len()
        };
        assert_eq!(lost(0), 0);
        assert_eq!(lost(1_000_000), 10_000);
        let tenth = lost(100_000);
        assert!((900..1100).contains(&tenth), "{tenth}");
    }
}
