//! Bundles: an instance's documents, encrypted and named by the digest of the ciphertext.
//!
//! ```text
//!  byte 0      the format, 1; also the associated data, so that changes are detected
//!  bytes 1-12  the nonce
//!  the rest    ChaCha20-Poly1305 (RFC 8439) of the documents as JSON, and its tag of 16 bytes
//! ```
//!
//! The storage of a bundle is trusted only for availability: without the key a bundle cannot be read, and a changed bundle
//! has another digest and cannot be opened.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use waifud_types::{Digest, Secret};

use crate::Documents;

/// The number of random bytes for [`seal`]: a key of 32 and a nonce of 12.
pub const SEAL_ENTROPY: usize = KEY_LEN + NONCE_LEN;

const KEY_LEN: usize = 32;
const FORMAT: u8 = 1;
const HEAD_LEN: usize = 1 + NONCE_LEN;

/// An encrypted bundle and its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedBundle {
    /// The SHA-256 of `ciphertext`, which is the bundle's name.
    pub digest: Digest,
    /// The key, 32 bytes in base64 (RFC 4648, section 4). Used for this bundle only.
    pub key: Secret<String>,
    /// The encrypted documents.
    pub ciphertext: Vec<u8>,
}

/// Why a bundle could not be sealed or opened. Never contains its contents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The bytes are damaged, or were changed.
    #[error("the bundle has the digest {found} instead of {wanted}")]
    WrongDigest {
        /// The expected digest.
        wanted: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// The key is not 32 bytes in base64.
    #[error("the bundle's key is not 32 bytes in base64")]
    NotAKey,
    /// Created by another version of waifud, or not a bundle.
    #[error("the bundle has format {found:?}; this version supports only format {FORMAT}")]
    Format {
        /// The first byte; `None` if it is empty.
        found: Option<u8>,
    },
    /// The key belongs to another bundle.
    #[error("the key does not decrypt the bundle")]
    Sealed,
    /// The decrypted contents are not documents of this version.
    #[error("the bundle's contents are not valid documents")]
    Contents,
}

/// The digest of a stored bundle, which is its name.
pub fn digest_of(ciphertext: &[u8]) -> Digest {
    Digest::of(ciphertext)
}

/// Encrypts `documents`. `entropy` becomes the key and the nonce, so it must be new random bytes for each call.
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

/// Opens a bundle, after verifying its digest and its contents.
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
