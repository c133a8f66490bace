//! Public SSH keys in OpenSSH's one-line form: `TYPE BASE64 [COMMENT]`.

use base64::{Engine, engine::general_purpose::STANDARD};
use std::{fmt, str::FromStr};

/// The key types that OpenSSH creates and accepts today (`PubkeyAcceptedAlgorithms` of 9.2, without certificates and DSA).
pub const SSH_KEY_TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// The maximum length of a line in bytes. An RSA key of 16,384 bits has 2.8 KiB.
const LINE_MAX: usize = 8 << 10;

/// A valid public key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SshKey(String);

/// Why a text is not a valid public key. Never contains the text, which may be a private key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshKeyError {
    /// Empty, or white space only.
    #[error("the SSH key is empty")]
    Empty,
    /// More than one line, or other control characters.
    #[error("an SSH key must be one line, as in ~/.ssh/id_ed25519.pub")]
    NotOneLine,
    /// Too long for any key.
    #[error("the SSH key is longer than {LINE_MAX} bytes")]
    TooLong,
    /// A private key.
    #[error("this is a private key: keep it secret, and use the line of its .pub file instead")]
    Private,
    /// The first word is not a supported key type. Options before it are not supported.
    #[error(
        "an SSH key must begin with its type: ssh-ed25519, ecdsa-sha2-nistp256 (384, 521), ssh-rsa, sk-ssh-ed25519@openssh.com or sk-ecdsa-sha2-nistp256@openssh.com"
    )]
    UnknownType,
    /// The second word is not valid base64, or is truncated.
    #[error("the SSH key is damaged or incomplete: copy the complete line again")]
    Damaged,
    /// The type in the encoded key differs from the first word.
    #[error("the SSH key's type does not match its content")]
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
        // "-----BEGIN OPENSSH PRIVATE KEY-----" and similar headers, and PuTTY's format.
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
            .filter(|word| SSH_KEY_TYPES.contains(word))
            .ok_or(SshKeyError::UnknownType)?;
        let blob = words
            .next()
            .and_then(|word| STANDARD.decode(word).ok())
            .ok_or(SshKeyError::Damaged)?;
        let mut rest = blob.as_slice();
        // The encoded key begins with the type (RFC 4253, section 6.6); fields with their length follow (RFC 4251,
        // section 5).
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
