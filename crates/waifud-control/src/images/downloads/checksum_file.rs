//! Finds the checksum of an image in its publisher's list.
//!
//! | form | publishers |
//! |---|---|
//! | `DIGITS  NAME`, `DIGITS *NAME` (GNU coreutils) | Debian, Ubuntu, `AlmaLinux`, Arch, `openSUSE` |
//! | `SHA256 (NAME) = DIGITS` (BSD), among comments and perhaps inside a signed message | Fedora |
//! | `DIGITS` without a name, in a file for one image | Alpine |
//!
//! Pure. The file is untrusted: for any contents, the result is a checksum or an error.

use waifud_types::Checksum;

/// Why no checksum was found.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChecksumFileError {
    /// The file contains no SHA-256 or SHA-512.
    #[error("it contains no SHA-256 or SHA-512 checksum")]
    NoChecksums,
    /// The image is not listed.
    #[error("it does not list {0:?}")]
    NotListed(String),
    /// The image is listed with different checksums of one algorithm.
    #[error("it lists {0:?} twice, with different checksums")]
    Ambiguous(String),
}

/// The checksum of the file `name`; SHA-512 if both algorithms are listed.
///
/// `for_one` means that the list is for this image only (its URL is the image's URL plus a suffix). Then its only entry is
/// used under any name, since some publishers list the name of the build instead of the link. A single checksum without a
/// name is always used.
pub fn find(text: &str, name: &str, for_one: bool) -> Result<Checksum, ChecksumFileError> {
    // Editors on Windows add a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let entries: Vec<Entry> = text.lines().filter_map(entry).collect();
    if entries.is_empty() {
        return Err(ChecksumFileError::NoChecksums);
    }
    let mut ours: Vec<&Entry> = entries
        .iter()
        .filter(|entry| {
            entry
                .name
                .as_deref()
                .is_some_and(|listed| same(listed, name))
        })
        .collect();
    if ours.is_empty()
        && let [only] = entries.as_slice()
        && (for_one || only.name.is_none())
    {
        ours.push(only);
    }
    let strongest = ours
        .iter()
        .map(|entry| entry.checksum.algorithm().digits())
        .max()
        .ok_or_else(|| ChecksumFileError::NotListed(name.to_owned()))?;
    ours.retain(|entry| entry.checksum.algorithm().digits() == strongest);
    match ours.as_slice() {
        [first, others @ ..] if others.iter().all(|other| other.checksum == first.checksum) => {
            Ok(first.checksum.clone())
        }
        _ => Err(ChecksumFileError::Ambiguous(name.to_owned())),
    }
}

/// Whether a listed name is the file's; some lists use percent-encoding.
fn same(listed: &str, name: &str) -> bool {
    listed == name
        || percent_encoding::percent_decode_str(listed)
            .decode_utf8()
            .is_ok_and(|decoded| decoded == name)
}

/// Whether a list is for one image only: its URL is the image's URL plus a suffix.
pub fn is_for_one(checksums_url: &str, image_url: &str) -> bool {
    checksums_url
        .strip_prefix(image_url)
        .is_some_and(|ending| ending.starts_with('.') && !ending.contains('/'))
}

struct Entry {
    name: Option<String>,
    checksum: Checksum,
}

fn entry(line: &str) -> Option<Entry> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    bsd(line).or_else(|| gnu(line))
}

fn bsd(line: &str) -> Option<Entry> {
    let (kind, rest) = line.split_once(" (")?;
    let (name, digits) = rest.rsplit_once(") = ")?;
    let checksum = Checksum::from_hex(digits.trim())?;
    (checksum.algorithm().as_str() == kind.to_ascii_lowercase()).then(|| Entry {
        name: Some(name.to_owned()),
        checksum,
    })
}

fn gnu(line: &str) -> Option<Entry> {
    let (digits, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let checksum = Checksum::from_hex(digits)?;
    let name = rest.trim_start().trim_start_matches('*');
    let name = name.strip_prefix("./").unwrap_or(name);
    Some(Entry {
        name: (!name.is_empty()).then(|| name.to_owned()),
        checksum,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(digit: &str, digits: usize) -> String {
        digit.repeat(digits)
    }

    /// The checksum of the file in this list of many files.
    #[track_caller]
    fn found(text: &str, name: &str) -> String {
        find(text, name, false).unwrap().to_string()
    }

    #[test]
    fn debian_lists_sha512_and_ubuntu_marks_files_as_binary() {
        let [a, b, c] = ["a", "b", "c"].map(|digit| hex(digit, 128));
        let [one, two] = ["1", "2"].map(|digit| hex(digit, 64));
        for (text, name, checksum) in [
            (
                format!(
                    "{a}  debian-12-generic-amd64.qcow2\n{b}  debian-12-genericcloud-amd64.qcow2\n{c}  debian-12-genericcloud-amd64.tar.xz\n"
                ),
                "debian-12-genericcloud-amd64.qcow2",
                format!("sha512:{b}"),
            ),
            (
                format!(
                    "{one} *ubuntu-24.04-server-cloudimg-amd64.img\n{two} *ubuntu-24.04-server-cloudimg-amd64.manifest\n"
                ),
                "ubuntu-24.04-server-cloudimg-amd64.img",
                format!("sha256:{one}"),
            ),
        ] {
            assert_eq!(found(&text, name), checksum);
        }
    }

    #[test]
    fn fedora_signs_a_list_with_comments() {
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2: 583532544 bytes\n\
             SHA256 (Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2) = {}\n# other: 1 bytes\nSHA256 (other) = {}\n\
             -----BEGIN PGP SIGNATURE-----\n\niQIzBAEBCAAdFiEE\n-----END PGP SIGNATURE-----\n",
            hex("D", 64),
            hex("e", 64)
        );
        let found = found(&text, "Fedora-Cloud-Base-Generic-44-1.7.x86_64.qcow2");
        assert_eq!(found, format!("sha256:{}", hex("d", 64)));
    }

    #[test]
    fn alpine_lists_digits_without_a_name_and_opensuse_another_name() {
        let bare = hex("7", 128);
        assert!(find(&bare, "generic_alpine.qcow2", true).is_ok());
        assert!(find(&bare, "generic_alpine.qcow2", false).is_ok());
        let two = format!("{bare}\n{}", hex("8", 128));
        assert_eq!(
            find(&two, "generic_alpine.qcow2", false),
            Err(ChecksumFileError::NotListed("generic_alpine.qcow2".into()))
        );
        let build = format!(
            "{}  Leap-16.0-Minimal-VM.x86_64-16.0.0-Cloud-Build16.2.qcow2\n",
            hex("8", 64)
        );
        assert!(find(&build, "Leap-16.0-Minimal-VM.x86_64-Cloud.qcow2", true).is_ok());
        let image = "https://x/Leap.qcow2";
        assert!(is_for_one("https://x/Leap.qcow2.sha256", image));
        assert!(!is_for_one("https://x/SHA256SUMS", image));
        assert!(!is_for_one("https://x/Leap.qcow2/../SHA256SUMS", image));
    }

    #[test]
    fn almalinux_lists_links_and_builds() {
        let text = format!(
            "{0}  AlmaLinux-9-GenericCloud-9.6-20250522.x86_64.qcow2\n{0}  AlmaLinux-9-GenericCloud-latest.x86_64.qcow2\n",
            hex("9", 64)
        );
        let name = "AlmaLinux-9-GenericCloud-latest.x86_64.qcow2";
        assert!(find(&text, name, false).is_ok());
    }

    #[test]
    fn the_stronger_algorithm_is_used_and_weak_ones_are_ignored() {
        let text = format!(
            "MD5 (a) = {}\nSHA256 (a) = {}\nSHA512 (a) = {}\nSHA1 (a) = {}\n",
            hex("1", 32),
            hex("2", 64),
            hex("3", 128),
            hex("4", 40)
        );
        assert_eq!(found(&text, "a"), format!("sha512:{}", hex("3", 128)));
        let weak = format!("{}  a\n", hex("1", 32));
        assert_eq!(find(&weak, "a", true), Err(ChecksumFileError::NoChecksums));
    }

    #[test]
    fn names_as_in_urls_and_a_byte_order_mark_are_understood() {
        let digits = hex("a", 64);
        let name = "my disk+1.qcow2";
        for line in [
            format!("\u{feff}{digits}  my disk+1.qcow2\r\n"),
            format!("{digits} *my%20disk%2B1.qcow2\n{digits}  other\n"),
            format!("\u{feff}SHA256 (my disk+1.qcow2) = {digits}"),
            format!("\u{feff}{digits}\r\n"),
        ] {
            assert!(find(&line, name, false).is_ok(), "{line:?}");
        }
        let of_another = format!("{digits}  my%2520disk%2B1.qcow2");
        assert!(find(&of_another, name, false).is_err());
    }

    #[test]
    fn two_checksums_for_one_name_are_ambiguous() {
        let text = format!("{}  a\n{}  ./a\n", hex("1", 64), hex("2", 64));
        assert_eq!(
            find(&text, "a", false),
            Err(ChecksumFileError::Ambiguous("a".into()))
        );
        let page = "<html><body>404 not here</body></html>";
        assert_eq!(find(page, "a", true), Err(ChecksumFileError::NoChecksums));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,300}", name in ".{0,20}", for_one in any::<bool>()) {
            let _ = find(&text, &name, for_one);
        }
    }
}
