//! Problems with downloads.

use reqwest::Url;
use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind};
use waifud_types::qcow2::{Qcow2Error, packing};
use waifud_types::{ByteSize, Checksum, Name};

fn upload() -> Hint {
    Hint::on_kind(&HintAction::Upload, HintKind::Template)
}

pub(super) fn invalid_image(head: &[u8], error: &Qcow2Error) -> Problem {
    match packing(head) {
        Some(packed) => Problem::new(
            422,
            "invalid-image",
            format!("the image is compressed with {}", packed.name),
        )
        .field("url")
        .hint(format!(
            "download it and decompress it with {}",
            packed.tool
        ))
        .hint(upload()),
        None => Problem::new(
            422,
            "invalid-image",
            format!("the downloaded file is not an acceptable image: {error}"),
        )
        .field("url")
        .hint(
            "the URL must point to a qcow2 image; for other formats, download the file and run qemu-img convert -O qcow2 OLD \
             NEW.qcow2",
        )
        .hint(upload()),
    }
}

pub(super) fn mismatch(expected: &Checksum, actual: Option<&Checksum>) -> Problem {
    let actual = actual.map_or_else(|| "none".to_owned(), ToString::to_string);
    Problem::new(
        422,
        "checksum-mismatch",
        "the downloaded file does not match the published checksum",
    )
    .field("checksum")
    .detail(format!("expected {expected}, got {actual}"))
    .hint("the publisher may be replacing the image right now: try again later, and do not use the image if the mismatch persists")
}

pub(super) fn too_large(limit: ByteSize) -> Problem {
    Problem::new(
        413,
        "image-too-large",
        format!("the image exceeds the limit of {limit}"),
    )
    .field("url")
    .hint("choose a smaller cloud image; an instance's disk can be larger than its image")
}

pub(super) fn bad_list(url: &Url, why: &str) -> Problem {
    Problem::new(
        422,
        "invalid-checksums",
        format!("cannot use the list of checksums: {why}"),
    )
    .field("checksums_url")
    .detail(shown(url))
    .hint("check the list in a browser")
    .hint(Hint::action(&HintAction::NameInChecksums))
}

pub(super) fn source_refused(url: &Url, status: u16, what: &str) -> Problem {
    Problem::new(
        422,
        "source-refused",
        format!("the server returned HTTP status {status} for {what}"),
    )
    .field("url")
    .detail(shown(url))
    .hint("find the current URL of the image on its publisher's website")
}

pub(super) fn refused(why: &str) -> Problem {
    Problem::new(422, "invalid-url", why.to_owned())
        .field("url")
        .hint("use a URL that waifud is allowed to download from")
}

pub(super) fn source_unreachable(attempts: u32, why: &str) -> Problem {
    Problem::new(
        422,
        "source-unreachable",
        format!("gave up after {attempts} attempts without progress: {why}"),
    )
    .field("url")
    .hint("when the server or the network is available again, repeat the download with the same source")
}

/// No attempt connected to the server. The request contains the URL, unless the image is one of the catalog.
pub(super) fn no_connection(from_catalog: bool, attempts: u32, why: &str) -> Problem {
    let problem = Problem::new(
        422,
        "source-unreachable",
        format!("gave up after {attempts} attempts without a connection: {why}"),
    )
    .hint(
        "if waifud's machine reaches the internet only through a proxy, set HTTPS_PROXY in waifud's environment; without \
         internet access, set catalog_mirror in waifud.toml, or download the image elsewhere",
    )
    .hint(upload());
    if from_catalog {
        problem
    } else {
        problem.field("url")
    }
}

/// Any failure at a private address. Users who may add templates must not learn whether and which services listen there.
pub(super) fn private() -> Problem {
    Problem::new(
        422,
        "source-unreachable",
        "cannot download the image from this private address",
    )
    .field("url")
    .hint(
        "see waifud's log for the reason. Check the URL from another machine, then repeat the download with the same source",
    )
}

/// The reason that is shown while a private address is tried again.
pub(super) const PRIVATE_WAIT: &str = "the image has not been downloaded yet";

/// The URL without its query, which may contain a key.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.query().is_some() {
        url.set_query(Some("…"));
    }
    url.to_string()
}

/// The catalog has no such entry.
pub(super) fn not_in_catalog(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        422,
        "not-in-catalog",
        format!("there is no {shown:?} in the catalog"),
    )
    .field("catalog")
    .hint(Hint::on_kind(&HintAction::List, HintKind::Catalog))
    .hint("for other images, give a URL and a checksum, or upload a file")
}

/// There is no checksum to verify the image with.
pub(super) fn no_checksum() -> Problem {
    Problem::new(422, "no-checksum", "the publisher's checksum is missing")
        .field("checksum")
        .hint(Hint::action(&HintAction::GiveChecksum))
}

/// The template is being downloaded from another source.
pub(super) fn download_running(name: &Name) -> Problem {
    Problem::new(
        409,
        "download-running",
        format!("template {name} is being downloaded from another source"),
    )
    .field("name")
    .hint("choose another name, or cancel that download")
    .hint(Hint::on(
        &HintAction::Cancel,
        HintKind::Download,
        name.as_str(),
    ))
}

/// The limit of concurrent downloads is reached.
pub(super) fn too_many_downloads(most: u64) -> Problem {
    Problem::new(
        429,
        "too-many-downloads",
        format!("the limit of {most} concurrent downloads is reached"),
    )
    .hint("wait until one has finished, or cancel one")
    .hint(Hint::on_kind(&HintAction::List, HintKind::Download))
    .hint(Hint::on_kind(&HintAction::Cancel, HintKind::Download))
}

/// The template was not downloaded from a URL.
pub(super) fn no_source(name: &Name) -> Problem {
    Problem::new(
        409,
        "template-without-source",
        format!("template {name} was created from an uploaded file and has no URL to refresh from"),
    )
    .hint(Hint::on(
        &HintAction::Upload,
        HintKind::Template,
        name.as_str(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_images_get_a_hint_to_decompress_them() {
        let hint = invalid_image(b"\xfd7zXZ\0\0", &Qcow2Error::NotQcow2)
            .hint
            .unwrap();
        assert!(hint.contains("unxz"), "{hint}");
        let hint = invalid_image(b"<html>", &Qcow2Error::NotQcow2)
            .hint
            .unwrap();
        assert!(hint.contains("qemu-img convert"), "{hint}");
    }

    #[test]
    fn a_query_is_not_shown() {
        let url = Url::parse("https://example.org/a?token=secret").unwrap();
        assert!(!shown(&url).contains("secret"));
    }
}
