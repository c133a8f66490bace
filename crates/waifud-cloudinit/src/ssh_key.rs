//! Public SSH keys in OpenSSH's one-line form: `TYPE BASE64 [COMMENT]`.

use base64::{Engine, engine::general_purpose::STANDARD};
use std::{fmt, str::FromStr};

/// The types that OpenSSH makes and takes today (`PubkeyAcceptedAlgorithms` of 9.2, without certificates and DSA).
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Bytes of a line at most: a key of RSA's 16,384 bits takes 2.8 KiB.
const LINE_MAX: usize = 8 << 10;

/// A public key that was checked.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SshKey(String);

/// Why a text is no public key. Never shows the text: people paste private keys by mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshKeyError {
    /// Nothing there.
    #[error("the SSH key is empty")]
    Empty,
    /// More than one line, or other control characters.
    #[error("an SSH key is one line, such as ~/.ssh/id_ed25519.pub holds")]
    NotOneLine,
    /// Longer than any key.
    #[error("the SSH key is longer than {LINE_MAX} bytes")]
    TooLong,
    /// A secret was pasted.
    #[error(
        "this is a private key: keep it to yourself and give the line of its .pub file instead"
    )]
    Private,
    /// The first word is no type of key; options before it are not taken either.
    #[error(
        "an SSH key begins with its type: ssh-ed25519, ecdsa-sha2-nistp256 (384, 521), ssh-rsa, sk-ssh-ed25519@openssh.com or sk-ecdsa-sha2-nistp256@openssh.com"
    )]
    UnknownType,
    /// The second word is not base64, or was cut off.
    #[error("the SSH key's second word is damaged: copy the whole line again")]
    Damaged,
    /// What is inside is of another type than the first word says.
    #[error("the SSH key says one type and holds another")]
    TypesDiffer,
}

impl SshKey {
    /// The line, without white space at its ends.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SshKey {
    type Err = SshKeyError;

    fn from_str(text: &str) -> Result<Self, SshKeyError> {
        let line = text.trim();
        if line.is_empty() {
            return Err(SshKeyError::Empty);
        }
        // "-----BEGIN OPENSSH PRIVATE KEY-----" and its cousins; PuTTY's own format.
        if line.contains("PRIVATE KEY") || line.starts_with("PuTTY-User-Key-File") {
            return Err(SshKeyError::Private);
        }
        if line.len() > LINE_MAX {
            return Err(SshKeyError::TooLong);
        }
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(SshKeyError::NotOneLine);
        }
        let mut words = line.split_ascii_whitespace();
        let kind = words
            .next()
            .filter(|word| TYPES.contains(word))
            .ok_or(SshKeyError::UnknownType)?;
        let blob = words
            .next()
            .and_then(|word| STANDARD.decode(word).ok())
            .ok_or(SshKeyError::Damaged)?;
        let mut rest = blob.as_slice();
        // RFC 4253, section 6.6: the type comes first inside, too; then fields, each with its length (RFC 4251, section 5).
        let inner = field(&mut rest).ok_or(SshKeyError::Damaged)?;
        if inner != kind.as_bytes() {
            return Err(SshKeyError::TypesDiffer);
        }
        let mut fields = 0;
        while !rest.is_empty() {
            field(&mut rest).ok_or(SshKeyError::Damaged)?;
            fields += 1;
        }
        if fields == fields_of(kind) {
            Ok(Self(line.to_owned()))
        } else {
            Err(SshKeyError::Damaged)
        }
    }
}

/// How many fields follow the type: the point of Ed25519 (RFC 8709); curve and point of ECDSA (RFC 5656, section 3.1);
/// exponent and modulus of RSA (RFC 4253, section 6.6); one more, the application, for security keys (PROTOCOL.u2f).
fn fields_of(kind: &str) -> usize {
    match kind {
        "ssh-ed25519" => 1,
        "sk-ecdsa-sha2-nistp256@openssh.com" => 3,
        _ => 2,
    }
}

/// Takes one field off the front: a length of four bytes, and that many bytes.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (field, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = after;
    Some(field)
}
