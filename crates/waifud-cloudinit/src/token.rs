//! EC2's session tokens (IMDSv2). They are not stored: a token contains its expiry and a signature.
//!
//! 40 bytes in URL-safe base64: the Unix second of its expiry (8 bytes, big-endian) and an HMAC-SHA256 of the instance and
//! that second (32 bytes). A token is valid for one instance only.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use waifud_types::InstanceId;

/// The maximum validity of a token in seconds: six hours, as in EC2.
pub const TTL_MAX: u32 = 21_600;

/// Issues and checks tokens.
#[derive(Clone)]
pub struct Tokens(hmac::Key);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(…)")
    }
}

impl Tokens {
    /// Uses a key of 32 random bytes. Tokens stay valid as long as the key is the same.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// A token for `instance` that is valid for `ttl` seconds from `now`.
    pub fn issue(&self, instance: InstanceId, now: u64, ttl: u32) -> String {
        let end = now.saturating_add(u64::from(ttl)).to_be_bytes();
        let seal = hmac::sign(&self.0, &message(instance, end));
        let mut token = end.to_vec();
        token.extend_from_slice(seal.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Whether a token is valid for `instance` and has not expired.
    pub fn holds(&self, token: &str, instance: InstanceId, now: u64) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token.trim()) else {
            return false;
        };
        let Some((end, seal)) = bytes.split_first_chunk::<8>() else {
            return false;
        };
        u64::from_be_bytes(*end) > now
            && hmac::verify(&self.0, &message(instance, *end), seal).is_ok()
    }
}

fn message(instance: InstanceId, end: [u8; 8]) -> Vec<u8> {
    let mut message = instance.as_uuid().as_bytes().to_vec();
    message.extend_from_slice(&end);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_token_is_valid_until_it_expires_for_its_instance_and_key_only() {
        let (a, b) = (InstanceId::generate(), InstanceId::generate());
        let tokens = Tokens::new(&[1; 32]);
        let token = tokens.issue(a, NOW, 60);
        assert!(tokens.holds(&token, a, NOW));
        assert!(tokens.holds(&token, a, NOW + 59));
        assert!(!tokens.holds(&token, a, NOW + 60));
        assert!(!tokens.holds(&token, b, NOW));
        assert!(!Tokens::new(&[2; 32]).holds(&token, a, NOW));
    }

    #[test]
    fn a_token_with_a_changed_expiry_is_refused() {
        let instance = InstanceId::generate();
        let tokens = Tokens::new(&[1; 32]);
        let token = tokens.issue(instance, NOW, 60);
        let mut bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
        bytes[0] = 0x7f;
        assert!(!tokens.holds(&URL_SAFE_NO_PAD.encode(bytes), instance, NOW));
        for junk in ["", "AAAA", "not base64 !", &"A".repeat(56)] {
            assert!(!tokens.holds(junk, instance, NOW), "{junk}");
        }
    }
}
