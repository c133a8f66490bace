//! Writes `ar` archives, of which a Debian package is one (deb(5)).

use std::io::{self, Seek, SeekFrom, Write};

/// The first bytes of an archive.
const MAGIC: &[u8] = b"!<arch>\n";
/// The offset of the size within a member's header, and its width; see `ar(5)`.
const SIZE_AT: u64 = 48;
const SIZE_WIDTH: usize = 10;

/// An archive that is being written.
pub struct Archive<W> {
    out: W,
}

impl<W: Write + Seek> Archive<W> {
    /// Begins an archive.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out })
    }

    /// Adds a member, which `write` writes. A name has at most 16 bytes.
    pub fn add(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        let header = self.out.stream_position()?;
        // Name, modification time, owner, group, mode, size: decimal, but the mode octal.
        writeln!(
            self.out,
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<SIZE_WIDTH$}`",
            0, 0, 0, "100644", 0
        )?;
        let begin = self.out.stream_position()?;
        write(&mut self.out)?;
        let end = self.out.stream_position()?;
        self.out.seek(SeekFrom::Start(header + SIZE_AT))?;
        write!(self.out, "{:<SIZE_WIDTH$}", end - begin)?;
        self.out.seek(SeekFrom::Start(end))?;
        if (end - begin) % 2 == 1 {
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// The written archive.
    pub fn into_inner(self) -> W {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn members_have_their_sizes_and_begin_at_even_offsets() {
        let mut archive = Archive::new(Cursor::new(Vec::new())).unwrap();
        archive.add("one", |out| out.write_all(b"abc")).unwrap();
        archive.add("two", |out| out.write_all(b"de")).unwrap();
        let bytes = archive.into_inner().into_inner();
        let text = String::from_utf8(bytes).unwrap();
        let member = |name: &str, size: u32| {
            format!("{name:<16}0           0     0     100644  {size:<10}`\n")
        };
        let expected = format!("!<arch>\n{}abc\n{}de", member("one", 3), member("two", 2));
        assert_eq!(text, expected);
    }
}
