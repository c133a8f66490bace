//! The SHA-256 of a file, read once and in pieces, whatever its size.

use std::io::{self, Read};

use ring::digest::{Context, SHA256};
use waifud_types::Digest;

/// Reads to the end. Blocking: call it where blocking is allowed.
pub(crate) fn of_reader(mut reader: impl Read) -> io::Result<Digest> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => context.update(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Ok(Digest::from_bytes(bytes))
}

/// Of bytes in memory.
pub(crate) fn of_bytes(bytes: &[u8]) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&SHA256, bytes).as_ref());
    Digest::from_bytes(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_in_pieces_gives_the_digest_of_the_whole() {
        let bytes = vec![7; (3 << 20) + 5];
        assert_eq!(of_reader(bytes.as_slice()).unwrap(), of_bytes(&bytes));
        // FIPS 180-4 test vector of the empty message.
        assert_eq!(
            of_bytes(b"").hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
