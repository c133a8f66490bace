//! Bundles keep their contents secret from readers without the key, and detect changes by writers.

use crate::common::{KEY, documents, source};
use proptest::prelude::*;
use waifud_cloudinit::{BundleError, SEAL_ENTROPY, SealedBundle, digest_of, open, render, seal};
use waifud_types::Secret;

const ENTROPY: [u8; SEAL_ENTROPY] = [9; SEAL_ENTROPY];

/// The same documents, sealed with different keys.
fn sealed_twice() -> (SealedBundle, SealedBundle) {
    let sealed = |entropy| seal(&documents(), entropy).unwrap();
    (sealed(&ENTROPY), sealed(&[8; SEAL_ENTROPY]))
}

/// After a restore, waifud reads both from the bundles on the nodes.
#[test]
fn the_keys_and_the_instance_id_can_be_read_from_the_documents() {
    let mut source = source();
    let other = KEY.replace("me@desk", "me@laptop");
    source.ssh_keys.push(other.clone());
    let documents = render(&source);
    assert_eq!(documents.ssh_keys(), [KEY, &other]);
    assert_eq!(documents.instance_id(), source.instance_id);
    assert_eq!(documents.instance(), source.instance);
}

#[test]
fn another_key_does_not_open_it() {
    let (sealed, other) = sealed_twice();
    assert!(matches!(
        open(&sealed.ciphertext, sealed.digest, &other.key),
        Err(BundleError::Sealed)
    ));
    for key in ["", "AAAA", "not base64"] {
        let key = Secret::new(key.to_owned());
        assert!(matches!(
            open(&sealed.ciphertext, sealed.digest, &key),
            Err(BundleError::NotAKey)
        ));
    }
}

#[test]
fn another_digest_or_format_is_refused_before_the_key_is_used() {
    let (sealed, other) = sealed_twice();
    assert!(matches!(
        open(&sealed.ciphertext, other.digest, &sealed.key),
        Err(BundleError::WrongDigest { .. })
    ));
    let mut bytes = sealed.ciphertext.clone();
    bytes[0] = 2;
    assert!(matches!(
        open(&bytes, digest_of(&bytes), &sealed.key),
        Err(BundleError::Format { found: Some(2) })
    ));
    assert!(matches!(
        open(&[], digest_of(&[]), &sealed.key),
        Err(BundleError::Format { found: None })
    ));
}

#[test]
fn neither_ciphertext_nor_debug_output_contains_documents() {
    let sealed = seal(&documents(), &ENTROPY).unwrap();
    assert!(!sealed.ciphertext.windows(4).any(|w| w == b"htop"));
    assert!(!format!("{sealed:?}").contains(sealed.key.expose().as_str()));
}

proptest! {
    #[test]
    fn a_sealed_bundle_opens_unchanged(text in "#cloud-config\n.{0,200}", entropy: [u8; 32]) {
        let mut all = ENTROPY;
        all[..32].copy_from_slice(&entropy);
        let mut source = source();
        source.user_data = Some(Secret::new(text));
        let documents = render(&source);
        let sealed = seal(&documents, &all).unwrap();
        prop_assert_eq!(digest_of(&sealed.ciphertext), sealed.digest);
        let opened = open(&sealed.ciphertext, sealed.digest, &sealed.key).unwrap();
        prop_assert_eq!(opened, documents);
    }

    #[test]
    fn any_changed_bit_is_detected_even_with_a_matching_digest(at: prop::sample::Index, bit in 0..8) {
        let sealed = seal(&documents(), &ENTROPY).unwrap();
        let mut bytes = sealed.ciphertext.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(open(&bytes, sealed.digest, &sealed.key).is_err());
        prop_assert!(open(&bytes, digest_of(&bytes), &sealed.key).is_err());
    }

    #[test]
    fn a_truncated_bundle_is_detected(length: prop::sample::Index) {
        let sealed = seal(&documents(), &ENTROPY).unwrap();
        let bytes = &sealed.ciphertext[..length.index(sealed.ciphertext.len())];
        prop_assert!(open(bytes, digest_of(bytes), &sealed.key).is_err());
    }
}
