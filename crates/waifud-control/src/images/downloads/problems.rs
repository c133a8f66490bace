//! The problems of a download: what it was, and what a person can do.

use reqwest::Url;
use waifud_api::Problem;
use waifud_types::qcow2::{Qcow2Error, packing};
use waifud_types::{ByteSize, Checksum, Name};

pub(super) fn no_image(head: &[u8], error: &Qcow2Error) -> Problem {
    match packing(head) {
        Some(packed) => Problem::new(
            422,
            "invalid-image",
            format!("the image is compressed with {}", packed.name),
        )
        .field("url")
        .hint(format!(
            "download it, unpack it with {}, and then: waifuctl template add NAME --file FILE (a qcow2 image)",
            packed.tool
        )),
        None => Problem::new(
            422,
            "invalid-image",
            format!("what came can't be used: {error}"),
        )
        .field("url")
        .hint(
            "the URL must lead to a qcow2 image; others: download it, qemu-img convert -O qcow2 OLD NEW.qcow2, and \
             waifuctl template add NAME --file NEW.qcow2",
        ),
    }
}

pub(super) fn mismatch(expected: &Checksum, actual: Option<&Checksum>) -> Problem {
    let actual = actual.map_or_else(|| "none".to_owned(), ToString::to_string);
    Problem::new(
        422,
        "checksum-mismatch",
        "what came does not have its publisher's checksum",
    )
    .field("checksum")
    .detail(format!("expected {expected}, got {actual}"))
    .hint("the image and its list may have been between two releases: try again later; if it stays so, do not use it")
}

pub(super) fn too_large(limit: ByteSize) -> Problem {
    Problem::new(
        413,
        "image-too-large",
        format!("images of more than {limit} are not taken"),
    )
    .field("url")
    .hint("images are small and disks are large: choose a cloud image, and give the instance a larger disk")
}

pub(super) fn bad_list(url: &Url, why: &str) -> Problem {
    Problem::new(
        422,
        "invalid-checksums",
        format!("the list of checksums can't be used: {why}"),
    )
    .field("checksums_url")
    .detail(shown(url))
    .hint("look at it in a browser; --checksums-file NAME says what the image is called in it")
}

pub(super) fn answered(url: &Url, status: u16, what: &str) -> Problem {
    Problem::new(
        422,
        "source-refused",
        format!("the server of {what} answers {status}"),
    )
    .field("url")
    .detail(shown(url))
    .hint("look for the image's present URL on its publisher's pages")
}

pub(super) fn refused(why: &str) -> Problem {
    Problem::new(422, "invalid-url", why.to_owned())
        .field("url")
        .hint("give a URL on a server that this machine may ask")
}

pub(super) fn gave_up(attempts: u32, why: &str) -> Problem {
    Problem::new(
        422,
        "source-unreachable",
        format!("{attempts} attempts got nothing more: {why}"),
    )
    .field("url")
    .hint("when the server or the network is back: waifuctl template add NAME again, with the same source")
}

/// Whatever went wrong at an address of a private network: whether something listens there, and what, is not for
/// everybody who may add templates.
pub(super) fn private() -> Problem {
    Problem::new(
        422,
        "source-unreachable",
        "the image could not be downloaded from this private address",
    )
    .field("url")
    .hint(
        "waifud's log says why. Check the URL from another machine, then: waifuctl template add NAME again, with the same \
         source",
    )
}

/// What is told while such an address is tried again.
pub(super) const PRIVATE_WAIT: &str = "the image could not be downloaded yet";

/// A URL without its query, which may hold a key.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.query().is_some() {
        url.set_query(Some("…"));
    }
    url.to_string()
}

/// The catalog does not have it.
pub(super) fn not_in_catalog(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        422,
        "not-in-catalog",
        format!("there is no {shown:?} in the catalog"),
    )
    .field("catalog")
    .hint("waifuctl template catalog shows what is in it; others: --url and --checksum, or --file")
}

/// Nothing would prove the bytes.
pub(super) fn no_checksum() -> Problem {
    Problem::new(
        422,
        "no-checksum",
        "an image needs its publisher's checksum",
    )
    .field("checksum")
    .hint("--checksum sha256:… or --checksums-url URL of the publisher's list; --insecure-no-checksum does without")
}

/// The template is on its way from elsewhere.
pub(super) fn download_running(name: &Name) -> Problem {
    Problem::new(
        409,
        "download-running",
        format!("template {name} is being downloaded from another source"),
    )
    .field("name")
    .hint(format!(
        "waifuctl template delete {name} ends that; or choose another name"
    ))
}

/// As many as waifud runs at once.
pub(super) fn too_many_downloads(most: u64) -> Problem {
    Problem::new(
        429,
        "too-many-downloads",
        format!("{most} downloads are running, the most at once"),
    )
    .hint("wait until one has ended, or end one: waifuctl template list shows them, waifuctl template delete NAME ends one")
}

/// The template did not come from a URL.
pub(super) fn no_source(name: &Name) -> Problem {
    Problem::new(
        409,
        "template-without-source",
        format!("template {name} was made from an uploaded file: there is no URL to ask for a newer image"),
    )
    .hint(format!("upload the newer image: waifuctl template add {name} --file FILE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_told_how_to_unpack() {
        let hint = no_image(b"\xfd7zXZ\0\0", &Qcow2Error::NotQcow2)
            .hint
            .unwrap();
        assert!(hint.contains("unxz"), "{hint}");
        let hint = no_image(b"<html>", &Qcow2Error::NotQcow2).hint.unwrap();
        assert!(hint.contains("qemu-img convert"), "{hint}");
    }

    #[test]
    fn a_query_is_not_shown() {
        let url = Url::parse("https://example.org/a?token=secret").unwrap();
        assert!(!shown(&url).contains("secret"));
    }
}
