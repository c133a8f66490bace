//! Bundles: an instance's documents, encrypted, named by the digest of what anybody may store.
//!
//! ```text
//!  byte 0      the format, 1; also the associated data, so that it can't be changed
//!  bytes 1-12  the nonce
//!  the rest    ChaCha20-Poly1305 (RFC 8439) of the documents as JSON, and its tag of 16 bytes
//! ```
//!
//! Whoever stores a bundle is trusted for being there and for nothing else: without the key it can't be read, and with
//! another byte in it, it has another digest and does not open.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use waifud_types::{Digest, Secret};

use crate::Documents;

/// Bytes of entropy that [`seal`] takes: a key of 32 and a nonce of 12.
pub const SEAL_ENTROPY: usize = KEY_LEN + NONCE_LEN;

const KEY_LEN: usize = 32;
const FORMAT: u8 = 1;
const HEAD_LEN: usize = 1 + NONCE_LEN;

/// An encrypted bundle and what opens it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedBundle {
    /// The SHA-256 of `ciphertext`: the bundle's name.
    pub digest: Digest,
    /// The key, 32 bytes in base64 (RFC 4648, section 4). Used for this bundle only.
    pub key: Secret<String>,
    /// What may be stored anywhere.
    pub ciphertext: Vec<u8>,
}

/// Why a bundle could not be sealed or opened. Says nothing of what is inside.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Other bytes than were asked for: damaged, or somebody changed them.
    #[error("the bundle's digest is {found}, not {wanted}")]
    WrongDigest {
        /// What was asked for.
        wanted: Digest,
        /// What the bytes have.
        found: Digest,
    },
    /// The key is not 32 bytes in base64.
    #[error("the bundle's key is not 32 bytes in base64")]
    NotAKey,
    /// Made by another version of waifud, or no bundle at all.
    #[error("the bundle is of format {found:?}, and this version reads format {FORMAT} only")]
    Format {
        /// Its first byte, if it has one.
        found: Option<u8>,
    },
    /// The key is not this bundle's.
    #[error("the bundle does not open with its key")]
    Sealed,
    /// It opened, and what is inside are no documents that this version knows.
    #[error("the bundle's contents can't be understood")]
    Contents,
}

/// The digest of stored bytes: the name that [`seal`] would give them.
pub fn digest_of(ciphertext: &[u8]) -> Digest {
    Digest::of(ciphertext)
}

/// Encrypts `documents`. `entropy` must be fresh from a good source for each call: it becomes the key and the nonce.
pub fn seal(
    documents: &Documents,
    entropy: &[u8; SEAL_ENTROPY],
) -> Result<SealedBundle, BundleError> {
    let (key, nonce) = entropy
        .split_first_chunk::<KEY_LEN>()
        .ok_or(BundleError::NotAKey)?;
    let cipher = cipher(key)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| BundleError::Sealed)?;
    let mut ciphertext = vec![FORMAT];
    ciphertext.extend_from_slice(nonce.as_ref());
    let mut contents = serde_json::to_vec(documents).map_err(|_| BundleError::Contents)?;
    cipher
        .seal_in_place_append_tag(nonce, Aad::from([FORMAT]), &mut contents)
        .map_err(|_| BundleError::Sealed)?;
    ciphertext.append(&mut contents);
    Ok(SealedBundle {
        digest: digest_of(&ciphertext),
        key: Secret::new(STANDARD.encode(key)),
        ciphertext,
    })
}

/// Opens a bundle, and believes nothing: neither the digest nor the contents.
pub fn open(
    ciphertext: &[u8],
    wanted: Digest,
    key: &Secret<String>,
) -> Result<Documents, BundleError> {
    let found = digest_of(ciphertext);
    if found != wanted {
        return Err(BundleError::WrongDigest { wanted, found });
    }
    let key: [u8; KEY_LEN] = STANDARD
        .decode(key.expose())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(BundleError::NotAKey)?;
    let found = ciphertext.first().copied();
    let (head, sealed) = ciphertext
        .split_at_checked(HEAD_LEN)
        .filter(|_| found == Some(FORMAT))
        .ok_or(BundleError::Format { found })?;
    let nonce = head.get(1..).unwrap_or_default();
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| BundleError::Sealed)?;
    let mut contents = sealed.to_vec();
    let contents = cipher(&key)?
        .open_in_place(nonce, Aad::from([FORMAT]), &mut contents)
        .map_err(|_| BundleError::Sealed)?;
    serde_json::from_slice(contents).map_err(|_| BundleError::Contents)
}

fn cipher(key: &[u8; KEY_LEN]) -> Result<LessSafeKey, BundleError> {
    UnboundKey::new(&CHACHA20_POLY1305, key)
        .map(LessSafeKey::new)
        .map_err(|_| BundleError::NotAKey)
}
