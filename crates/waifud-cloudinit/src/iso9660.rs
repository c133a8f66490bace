//! Writes a small read-only filesystem: ISO 9660 (ECMA-119) with Joliet names, a few files in one directory.
//!
//! ```text
//!  sector 16  primary descriptor       19, 20  its path table, little- and big-endian      23  its root
//!         17  Joliet's descriptor      21, 22  Joliet's                                    24  Joliet's root
//!         18  end of the descriptors   25 ...  the files, shared by both
//! ```
//!
//! The primary directory also has the names, in upper case; without Joliet, Linux shows them in lower case. The image
//! contains no times, so equal files give equal bytes.

/// The size of a sector in bytes (ECMA-119, 6.1.2), which is also the logical block size here.
pub(crate) const SECTOR: usize = 2048;

const PATHS: [u32; 2] = [19, 21];
const ROOTS: [u32; 2] = [23, 24];
const FIRST_FILE: u32 = 25;
/// The size of a path table with only the root in bytes (9.4).
const PATH_TABLE_LEN: u32 = 10;
/// Joliet's escape sequence for UCS-2, level 3.
const JOLIET: &[u8] = b"%/E";
const DIRECTORY: u8 = 2;

/// One of the two directories.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Primary,
    Joliet,
}

impl Names {
    fn index(self) -> usize {
        usize::from(self == Self::Joliet)
    }

    fn root(self) -> u32 {
        ROOTS.get(self.index()).copied().unwrap_or_default()
    }

    fn paths(self) -> u32 {
        PATHS.get(self.index()).copied().unwrap_or_default()
    }

    /// Text padded with spaces to `len` bytes.
    fn text(self, text: &str, len: usize) -> Vec<u8> {
        let (mut bytes, space): (_, &[u8]) = match self {
            Self::Primary => (text.as_bytes().to_vec(), b" "),
            Self::Joliet => (ucs2(text), b"\0 "),
        };
        let missing = len.saturating_sub(bytes.len());
        bytes.extend(space.iter().cycle().take(missing));
        bytes.truncate(len);
        bytes
    }

    fn file(self, name: &str) -> Vec<u8> {
        match self {
            Self::Primary => format!("{};1", name.to_ascii_uppercase()).into_bytes(),
            Self::Joliet => ucs2(name),
        }
    }
}

fn ucs2(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A volume with these files in its root. Their names must be short ASCII names in alphabetical order, and few enough for
/// a directory of one sector (about a dozen).
pub(crate) fn volume(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut next = FIRST_FILE;
    let placed: Vec<(&str, &[u8], u32)> = files
        .iter()
        .map(|(name, bytes)| {
            let at = next;
            next += sectors(bytes.len());
            (*name, *bytes, at)
        })
        .collect();
    let mut image = vec![0; 16 * SECTOR];
    for names in [Names::Primary, Names::Joliet] {
        put(&mut image, &descriptor(names, label, next));
    }
    put(&mut image, b"\xffCD001\x01");
    for names in [Names::Primary, Names::Joliet] {
        put(
            &mut image,
            &path_table(names.root().to_le_bytes(), 1_u16.to_le_bytes()),
        );
        put(
            &mut image,
            &path_table(names.root().to_be_bytes(), 1_u16.to_be_bytes()),
        );
    }
    for names in [Names::Primary, Names::Joliet] {
        put(&mut image, &root(names, &placed));
    }
    for (_, bytes, _) in &placed {
        put(&mut image, bytes);
    }
    image
}

fn sectors(len: usize) -> u32 {
    u32::try_from(len.div_ceil(SECTOR)).unwrap_or(u32::MAX)
}

/// Appends bytes and pads to the next sector.
fn put(image: &mut Vec<u8>, bytes: &[u8]) {
    image.extend_from_slice(bytes);
    image.resize(image.len().next_multiple_of(SECTOR), 0);
}

fn descriptor(names: Names, label: &str, all: u32) -> Vec<u8> {
    let mut out = vec![if names == Names::Primary { 1 } else { 2 }];
    out.extend_from_slice(b"CD001\x01\0");
    out.extend(names.text("", 32));
    out.extend(names.text(label, 32));
    out.extend([0; 8]);
    out.extend(both32(all));
    let mut escapes = [0; 32];
    if names == Names::Joliet {
        for (to, from) in escapes.iter_mut().zip(JOLIET) {
            *to = *from;
        }
    }
    out.extend(escapes);
    // The number of volumes, the number of this one, and the block size.
    out.extend(both16(1));
    out.extend(both16(1));
    out.extend([0, 8, 8, 0]);
    out.extend(both32(PATH_TABLE_LEN));
    out.extend(names.paths().to_le_bytes());
    out.extend([0; 4]);
    out.extend((names.paths() + 1).to_be_bytes());
    out.extend([0; 4]);
    out.extend(record(&[0], names.root(), SECTOR, DIRECTORY));
    // Volume set, publisher, preparer and application; three file names.
    for len in [128, 128, 128, 128, 37, 37, 37] {
        out.extend(names.text("", len));
    }
    for _ in 0..4 {
        // An unspecified time (8.4.26.1).
        out.extend_from_slice(b"0000000000000000\0");
    }
    out.push(1);
    out
}

fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut out = vec![1, 0];
    out.extend(root);
    out.extend(parent);
    out.extend([0, 0]);
    out
}

fn root(names: Names, files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    // The directory itself and its parent, which for the root is the root.
    for name in [[0], [1]] {
        out.extend(record(&name, names.root(), SECTOR, DIRECTORY));
    }
    for (name, bytes, at) in files {
        out.extend(record(&names.file(name), *at, bytes.len(), 0));
    }
    out
}

/// A directory record (9.1).
fn record(name: &[u8], at: u32, len: usize, flags: u8) -> Vec<u8> {
    let padding = usize::from(name.len().is_multiple_of(2));
    let size = 33 + name.len() + padding;
    let mut out = vec![byte(size), 0];
    out.extend(both32(at));
    out.extend(both32(u32::try_from(len).unwrap_or(u32::MAX)));
    // An unspecified time.
    out.extend([0; 7]);
    out.extend([flags, 0, 0]);
    out.extend(both16(1));
    out.push(byte(name.len()));
    out.extend_from_slice(name);
    out.resize(size, 0);
    out
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// A number in both byte orders (7.3.3).
fn both32(number: u32) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

/// A 16-bit number in both byte orders (7.2.3).
fn both16(number: u16) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(image: &[u8], at: usize) -> usize {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
    }

    /// The names and contents of the files below a descriptor.
    fn read(image: &[u8], descriptor: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let root = number(image, descriptor * SECTOR + 156 + 2) * SECTOR;
        let mut at = root;
        let mut found = Vec::new();
        while image[at] != 0 {
            let (from, len) = (number(image, at + 2) * SECTOR, number(image, at + 10));
            let name = image[at + 33..at + 33 + usize::from(image[at + 32])].to_vec();
            found.push((name, image[from..from + len].to_vec()));
            at += usize::from(image[at]);
        }
        found.split_off(2)
    }

    #[test]
    fn a_descriptor_has_its_fields_where_the_standard_has_them() {
        for names in [Names::Primary, Names::Joliet] {
            let bytes = descriptor(names, "cidata", 30);
            assert_eq!(bytes.len(), 882);
            assert_eq!(number(&bytes, 80), 30);
            assert_eq!(bytes[128..132], [0, 8, 8, 0]);
            assert_eq!(number(&bytes, 158), names.root() as usize);
            assert_eq!(bytes[881], 1);
        }
        assert_eq!(
            descriptor(Names::Primary, "cidata", 1)[40..48],
            *b"cidata  "
        );
    }

    proptest! {
        #[test]
        fn file_contents_are_read_back_under_both_names(
            a in proptest::collection::vec(any::<u8>(), 0..5000),
            b in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let files = [("meta-data", a.as_slice()), ("user-data", b.as_slice())];
            let image = volume("cidata", &files);
            prop_assert_eq!(image.len() % SECTOR, 0);
            prop_assert_eq!(number(&image, 16 * SECTOR + 80) * SECTOR, image.len());
            prop_assert_eq!(read(&image, 16), vec![
                (b"META-DATA;1".to_vec(), a.clone()),
                (b"USER-DATA;1".to_vec(), b.clone()),
            ]);
            prop_assert_eq!(read(&image, 17), vec![(ucs2("meta-data"), a.clone()), (ucs2("user-data"), b.clone())]);
            prop_assert_eq!(volume("cidata", &files), image);
        }
    }
}
