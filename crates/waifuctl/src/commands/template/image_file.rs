//! Inspects an image file before it is uploaded.

use std::io::Read;
use std::path::Path;

use waifud_kit::sha256::Hasher;
use waifud_types::{Digest, qcow2};

use crate::failure::Failure;
use crate::progress;

/// Computes the digest and size of an image file. Invalid images are refused before the upload.
pub fn inspect(path: &Path, quiet: bool) -> Result<(Digest, u64), Failure> {
    let unreadable = |e: std::io::Error| {
        Failure::input(
            "file-unreadable",
            format!("cannot read image file {}", path.display()),
        )
        .field("--file")
        .cause(&e)
    };
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(
            Failure::input("not-a-file", format!("{} is not a file", path.display()))
                .field("--file"),
        );
    }
    let bar = progress::bytes(meta.len(), "reading", quiet);
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    let mut head = Vec::with_capacity(qcow2::HEADER_BYTES);
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer).map_err(unreadable)?;
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
            break;
        };
        if length == 0 {
            head.extend(bytes.iter().take(qcow2::HEADER_BYTES));
            qcow2::parse(&head).map_err(|e| bad_image(path, &head, &e))?;
        }
        hasher.update(bytes);
        length += bytes.len() as u64;
        bar.set_position(length);
    }
    bar.finish_and_clear();
    if length == 0 {
        return Err(bad_image(path, &[], &qcow2::Qcow2Error::NotQcow2));
    }
    Ok((Digest::from_bytes(hasher.finish()), length))
}

fn bad_image(path: &Path, head: &[u8], error: &qcow2::Qcow2Error) -> Failure {
    if let Some(packed) = qcow2::packing(head) {
        return Failure::input(
            "invalid-image",
            format!("{} is compressed with {}", path.display(), packed.name),
        )
        .field("--file")
        .hint(format!(
            "decompress it first: {} {}, then use the decompressed file",
            packed.tool,
            path.display()
        ));
    }
    Failure::input(
        "invalid-image",
        format!("{} is not usable: {error}", path.display()),
    )
    .field("--file")
    .hint("convert it: qemu-img convert -O qcow2 OLD NEW.qcow2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_for_a_compressed_image_is_to_decompress_it() {
        let path = Path::new("x.qcow2.xz");
        let failure = bad_image(path, b"\xfd7zXZ\0\0", &qcow2::Qcow2Error::NotQcow2);
        let text = failure.to_text();
        assert!(text.contains("compressed with xz"), "{text}");
        assert!(text.contains("unxz x.qcow2.xz"), "{text}");
        assert!(!text.contains("qemu-img"), "{text}");
        let text = bad_image(path, b"raw", &qcow2::Qcow2Error::NotQcow2).to_text();
        assert!(text.contains("qemu-img convert"), "{text}");
    }
}
