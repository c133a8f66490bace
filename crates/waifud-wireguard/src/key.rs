//! WireGuard keys: separate types for private and public keys, and a private key that cannot be printed.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use x25519_dalek::StaticSecret;

/// An invalid key: WireGuard keys are 32 bytes in standard base64, which is 44 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WireGuard key must be 32 bytes in base64 (44 characters)")]
pub struct KeyError;

fn parse(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError)?;
    bytes.try_into().map_err(|_| KeyError)
}

/// A private key. Erased from memory when dropped; `Debug` does not print it.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(StaticSecret::from(bytes))
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// The key as text, only for a file with mode 0600.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0.as_bytes())
    }

    pub(crate) fn secret(&self) -> StaticSecret {
        self.0.clone()
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse(text).map(|bytes| Self(StaticSecret::from(bytes)))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

/// A public key. Its text and serialized form is base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The 32 bytes of the curve point.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn point(self) -> x25519_dalek::PublicKey {
        x25519_dalek::PublicKey::from(self.0)
    }
}

impl From<[u8; 32]> for PublicKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse(text).map(Self)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_key_is_unchanged_after_being_written_and_read() {
        let private = PrivateKey::generate();
        let again: PrivateKey = private.to_base64().parse().unwrap();
        assert_eq!(private.public_key(), again.public_key());
        let public: PublicKey = format!(" {}\n", private.public_key()).parse().unwrap();
        assert_eq!(public, private.public_key());
    }

    #[test]
    fn every_byte_of_a_generated_key_is_random() {
        let keys: Vec<_> = (0..64).map(|_| PrivateKey::generate()).collect();
        let secrets = keys
            .iter()
            .map(|key| STANDARD.decode(key.to_base64().as_bytes()));
        let secrets: Vec<Vec<u8>> = secrets.map(Result::unwrap).collect();
        for place in 0..32 {
            let values: HashSet<u8> = secrets.iter().map(|secret| secret[place]).collect();
            // 64 draws of 32 values or more (the ends are clamped) give fewer than 10 in one of 10^20 runs.
            assert!(
                values.len() >= 10,
                "byte {place} took {} values",
                values.len()
            );
        }
    }

    #[test]
    fn debug_does_not_print_the_private_key() {
        let private = PrivateKey::generate();
        let shown = format!("{private:?}");
        assert_eq!(shown, "PrivateKey(redacted)");
        assert!(!shown.contains(&private.to_base64()));
    }

    #[test]
    fn text_of_another_length_is_refused() {
        for text in ["", "AAAA", "not base64 at all", &"A".repeat(44)] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError), "{text:?}");
        }
    }

    #[test]
    fn a_public_key_is_a_string_in_json() {
        let key = PrivateKey::generate().public_key();
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(json, format!("\"{key}\""));
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
    }
}
