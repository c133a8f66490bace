//! Writes an initramfs: the "newc" format of cpio, as the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` defines it.

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;

/// An archive under construction. Entries belong to root and have no time.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// A directory, mode 0755; its parent must come first.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    /// A file.
    pub fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, REGULAR | mode, contents);
    }

    /// The archive, closed.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY & !0o777 {
            2
        } else {
            1
        };
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend(b"070701");
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_format_that_busybox_and_cpio_read() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/hello", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 3);
        // Inode, mode, owner, group, links, time, size.
        assert!(text.contains("00000002000081ed000000000000000000000001000000000000000500000000"));
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
