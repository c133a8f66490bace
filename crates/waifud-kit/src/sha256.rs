//! SHA-256 (FIPS 180-4) of bytes, readers and files; hexadecimal text.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA256};

/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// A hash.
pub type Hash = [u8; 32];

/// Hashes bytes that arrive in pieces.
#[derive(Clone)]
pub struct Hasher(Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes.
    pub fn finish(self) -> Hash {
        to_hash(self.0.finish().as_ref())
    }
}

/// The hash of bytes in memory.
pub fn of(bytes: &[u8]) -> Hash {
    to_hash(ring::digest::digest(&SHA256, bytes).as_ref())
}

/// Reads to the end and returns the number of bytes and their hash. Blocks.
pub fn of_reader(mut reader: impl Read) -> io::Result<(u64, Hash)> {
    let mut hasher = Hasher::default();
    let mut length = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok((length, hasher.finish()));
        };
        hasher.update(bytes);
        length += bytes.len() as u64;
    }
}

/// Reads a file and returns its length and hash. Blocks.
pub fn of_file(path: &Path) -> io::Result<(u64, Hash)> {
    of_reader(File::open(path)?)
}

/// Lower-case hexadecimal digits, two for each byte.
pub fn hex(bytes: &[u8]) -> String {
    let text = String::with_capacity(bytes.len() * 2);
    bytes.iter().fold(text, |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 always gives 32 bytes.
fn to_hash(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(bytes) {
        *to = *from;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_match_the_test_vectors_of_the_standard() {
        for (bytes, digits) in [
            (
                "",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                "abc",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
        ] {
            assert_eq!(hex(&of(bytes.as_bytes())), digits);
        }
    }

    #[test]
    fn a_reader_and_a_file_have_the_hash_of_their_bytes() {
        let bytes = vec![7; (3 << 20) + 5];
        let expected = (bytes.len() as u64, of(&bytes));
        assert_eq!(of_reader(bytes.as_slice()).unwrap(), expected);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(of_file(file.path()).unwrap(), expected);
        assert!(of_file(Path::new("/nonexistent")).is_err());
    }
}
