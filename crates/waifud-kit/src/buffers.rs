//! Large buffers that are used again, because the kernel clears the memory of each new one.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// Buffers of one length. Clones share them.
#[derive(Clone)]
pub struct BufferPool {
    length: usize,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer, which returns to its pool when it is dropped. Its contents are those of its last use, at first zeros.
pub struct Buffer {
    bytes: Vec<u8>,
    pool: BufferPool,
}

impl BufferPool {
    /// A pool of buffers of this length in bytes. It has none yet, and keeps as many as were in use at the same time.
    pub fn new(length: usize) -> Self {
        Self {
            length,
            spare: Arc::default(),
        }
    }

    /// A buffer that is not in use, or a new one.
    pub fn get(&self) -> Buffer {
        let spare = lock(&self.spare).pop();
        Buffer {
            bytes: spare.unwrap_or_else(|| vec![0; self.length]),
            pool: self.clone(),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        lock(&self.pool.spare).push(bytes);
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes.len())
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} bytes each)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again() {
        let pool = BufferPool::new(3);
        let (mut one, two) = (pool.get(), pool.get());
        one.as_mut().copy_from_slice(b"abc");
        assert_eq!(two.as_ref(), [0; 3]);
        drop(one);
        assert_eq!(pool.clone().get().as_ref(), b"abc");
        drop(two);
        assert_eq!(lock(&pool.spare).len(), 2);
    }
}
