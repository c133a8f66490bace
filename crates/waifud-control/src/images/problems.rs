//! Problems with images: uploads, missing files, images in use.

use waifud_api::Problem;
use waifud_api::hint::{Hint, HintAction, HintKind, HintWhen};
use waifud_types::{ByteSize, Digest, Name};

/// The upload is not an acceptable image.
pub fn bad_image(head: &[u8], error: &waifud_types::qcow2::Qcow2Error) -> Problem {
    if let Some(packed) = waifud_types::qcow2::packing(head) {
        return Problem::new(
            422,
            "invalid-image",
            format!("the image is compressed with {}", packed.name),
        )
        .field("body")
        .hint(format!("decompress it with {} first", packed.tool));
    }
    Problem::new(
        422,
        "invalid-image",
        format!("the image cannot be used: {error}"),
    )
    .field("body")
    .hint("convert it to a standalone image: qemu-img convert -O qcow2 OLD NEW.qcow2")
}

/// The file of a known image is missing or damaged.
pub fn image_missing(digest: Digest, templates: &[Name]) -> Problem {
    let problem = Problem::new(
        503,
        "image-missing",
        format!(
            "the file of image {} in waifud's image store is missing or damaged",
            digest.short()
        ),
    );
    let upload = HintAction::Upload;
    match templates.first().map(Name::as_str) {
        None => problem.hint(Hint::on_kind(&upload, HintKind::Template)),
        Some(name) => problem
            .hint(Hint::on(&HintAction::Refresh, HintKind::Template, name))
            .hint(Hint::on(&upload, HintKind::Template, name).when(HintWhen::Uploaded)),
    }
}

/// The upload has a different digest.
pub fn digest_mismatch(expected: Digest, actual: Digest) -> Problem {
    Problem::new(
        422,
        "digest-mismatch",
        format!("the uploaded file has the digest {actual} instead of {expected}"),
    )
    .field("digest")
    .hint("the file changed or was damaged during the transfer: compute its SHA-256 and upload it again")
}

/// The upload exceeds the size limit.
pub fn image_too_large(limit: ByteSize) -> Problem {
    Problem::new(
        413,
        "image-too-large",
        format!("the image exceeds the limit of {limit}"),
    )
    .field("body")
    .hint("shrink the image; an instance's disk can be larger than its image")
}

/// The upload ended early.
pub fn upload_interrupted() -> Problem {
    Problem::new(400, "upload-interrupted", "the upload was interrupted")
        .field("body")
        .hint("upload the image again; nothing was stored")
}

/// The range starts after the end of the image.
pub fn range_not_satisfiable(length: u64) -> Problem {
    Problem::new(
        416,
        "range-not-satisfiable",
        format!("the image has {length} bytes"),
    )
    .field("Range")
    .hint("repeat the request without Range")
}

/// A template or an instance uses the image.
pub fn image_in_use(digest: Digest) -> Problem {
    Problem::new(409, "image-in-use", format!("image {digest} is in use"))
        .hint("first delete the templates and instances that use it")
}

/// The image does not exist.
pub fn unknown_image(digest: Digest) -> Problem {
    Problem::new(422, "unknown-image", format!("there is no image {digest}"))
        .field("image")
        .hint("upload it first: PUT /v1/images/DIGEST")
}
