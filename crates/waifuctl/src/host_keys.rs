//! SSH host keys of a guest from its console. cloud-init prints them there, and the console is read through the node
//! and waifud instead of the network that the keys protect.
//!
//! This trusts users who can write to the console inside the guest, usually root, who has access to the host keys
//! anyway. The last complete block is used; lines that are not keys of a known type are ignored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN SSH HOST KEY KEYS-----";
const END: &str = "-----END SSH HOST KEY KEYS-----";
/// Types of host keys of OpenSSH that are not obsolete.
const TYPES: [&str; 5] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
];
/// Maximum length of a line; a key of 16384 bits with a comment is shorter.
const LINE_MAX: usize = 8 << 10;
/// Maximum number of lines of a block: one key per type, and messages in between.
const BLOCK_MAX: usize = 64;

/// Finds host keys in a console log that is read in chunks.
#[derive(Default)]
pub struct Scanner {
    line: Vec<u8>,
    block: Option<Block>,
    last: Vec<String>,
}

#[derive(Default)]
struct Block {
    lines: usize,
    keys: Vec<String>,
}

impl Scanner {
    /// Processes the next chunk.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.end_of_line(&line);
            } else if self.line.len() <= LINE_MAX {
                self.line.push(*byte);
            }
        }
    }

    /// Returns the keys of the last complete block, each as `TYPE BASE64`.
    pub fn finish(mut self) -> Vec<String> {
        let line = std::mem::take(&mut self.line);
        self.end_of_line(&line);
        self.last
    }

    fn end_of_line(&mut self, line: &[u8]) {
        let short = line.len() <= LINE_MAX;
        let text = std::str::from_utf8(line).ok().filter(|_| short);
        match text.unwrap_or_default().trim() {
            // A login prompt can precede it; keys and the end are complete lines.
            text if text.ends_with(BEGIN) => self.block = Some(Block::default()),
            END => {
                if let Some(block) = self.block.take() {
                    self.last = block.keys;
                }
            }
            text => {
                if let Some(block) = &mut self.block {
                    block.lines += 1;
                    if let Some(key) = key(text)
                        && !block.keys.contains(&key)
                    {
                        block.keys.push(key);
                    }
                    if block.lines > BLOCK_MAX {
                        self.block = None;
                    }
                }
            }
        }
    }
}

/// Parses a public key and removes its comment. The type must be known and match the one in the key (RFC 4253, section
/// 6.6).
pub fn key(text: &str) -> Option<String> {
    let mut words = text.split_ascii_whitespace();
    let kind = words.next().filter(|kind| TYPES.contains(kind))?;
    let base64 = words.next()?;
    let blob = STANDARD.decode(base64).ok()?;
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (inner, rest) = rest.split_at_checked(length)?;
    (inner == kind.as_bytes() && rest.len() > 4).then(|| format!("{kind} {base64}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a_key(kind: &str, fill: u8) -> String {
        let mut blob = u32::try_from(kind.len()).unwrap().to_be_bytes().to_vec();
        blob.extend(kind.as_bytes());
        blob.extend([0, 0, 0, 32]);
        blob.extend([fill; 32]);
        format!("{kind} {}", STANDARD.encode(blob))
    }

    fn scan(text: &str) -> Vec<String> {
        let mut scanner = Scanner::default();
        scanner.feed(text.as_bytes());
        scanner.finish()
    }

    #[test]
    fn keys_are_found_in_other_console_output() {
        let ed = a_key("ssh-ed25519", 1);
        let rsa = a_key("ssh-rsa", 2);
        let text = format!(
            "Linux version 6\r\n{BEGIN}\r\n{ed} root@web\r\n[   12.3] eth0: up\r\n{rsa} root@web\r\n{END}\r\nweb login: "
        );
        assert_eq!(scan(&text), [ed, rsa]);
    }

    #[test]
    fn the_last_complete_block_is_used() {
        let (one, two, three) = (
            a_key("ssh-ed25519", 1),
            a_key("ssh-ed25519", 2),
            a_key("ssh-ed25519", 3),
        );
        let whole = |key: &str| format!("{BEGIN}\n{key}\n{END}\n");
        assert_eq!(
            scan(&format!("{}{}", whole(&one), whole(&two))),
            [two.as_str()]
        );
        // A block without an end is ignored, and a new beginning starts a new block.
        assert_eq!(
            scan(&format!("{}{BEGIN}\n{three}\n", whole(&one))),
            [one.as_str()]
        );
        assert_eq!(
            scan(&format!("{BEGIN}\n{one}\n{BEGIN}\n{two}\n{END}\n")),
            [two.as_str()]
        );
        assert_eq!(scan(&format!("{one}\n{END}\n")), [""; 0]);
        // An empty block means that there are no keys.
        assert_eq!(scan(&format!("{}{BEGIN}\n{END}\n", whole(&one))), [""; 0]);
        // The last line needs no end.
        assert_eq!(scan(&format!("{BEGIN}\n{one}\n{END}")), [one.as_str()]);
    }

    #[test]
    fn lines_other_than_known_host_keys_are_ignored() {
        let good = a_key("ssh-ed25519", 1);
        let base64 = good.split(' ').nth(1).unwrap();
        for bad in [
            format!("@cert-authority * {good}"),
            format!("ssh-rsa {base64}"),
            "ssh-ed25519".to_owned(),
            "ssh-ed25519 AAAA".to_owned(),
            "ssh-ed25519 !!!!".to_owned(),
            a_key("ssh-dss", 1),
            a_key("ssh-ed25519-cert-v01@openssh.com", 1),
            format!("\u{1b}[0m{good}"),
        ] {
            assert_eq!(key(&bad), None, "{bad}");
        }
        let long = format!("{good} {}", "x".repeat(LINE_MAX));
        assert_eq!(scan(&format!("{BEGIN}\n{long}\n{END}\n")), [""; 0]);
        let many = "noise\n".repeat(BLOCK_MAX + 1);
        assert_eq!(scan(&format!("{BEGIN}\n{good}\n{many}{END}\n")), [""; 0]);
        for (before, begin, end) in [
            ("", format!("{BEGIN} x"), END.to_owned()),
            ("", BEGIN.to_owned(), format!("x {END}")),
            ("sshd: ", BEGIN.to_owned(), END.to_owned()),
        ] {
            let text = format!("{begin}\n{before}{good}\n{end}\n");
            assert_eq!(scan(&text), [""; 0], "{text}");
        }
        let prompt = format!("web login: {BEGIN}\r\n{good}\r\n{END}\r\n");
        assert_eq!(scan(&prompt), [good]);
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_chunks(
            noise in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..400,
        ) {
            let mut text = noise.clone();
            text.extend(format!("\n{BEGIN}\n{}\n{END}\n", a_key("ssh-ed25519", 9)).bytes());
            text.extend(&noise);
            let (a, b) = text.split_at(cut.min(text.len()));
            let mut scanner = Scanner::default();
            scanner.feed(a);
            scanner.feed(b);
            prop_assert_eq!(scanner.finish(), vec![a_key("ssh-ed25519", 9)]);
        }
    }
}
