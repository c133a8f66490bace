//! Problems with images: uploads, downloads, and files that are not there.

use waifud_api::Problem;
use waifud_types::{ByteSize, Digest, Name};

/// The upload is no image that may be used.
pub fn bad_image(head: &[u8], error: &waifud_types::qcow2::Qcow2Error) -> Problem {
    if let Some(packed) = waifud_types::qcow2::packing(head) {
        return Problem::new(
            422,
            "invalid-image",
            format!("the image is compressed with {}", packed.name),
        )
        .field("body")
        .hint(format!("unpack it with {} first", packed.tool));
    }
    Problem::new(
        422,
        "invalid-image",
        format!("the image can't be used: {error}"),
    )
    .field("body")
    .hint("make one whole image: qemu-img convert -O qcow2 OLD NEW.qcow2")
}

/// The row is there and the file is not, or not whole.
pub fn image_missing(digest: Digest, templates: &[Name]) -> Problem {
    let of = templates.first().map_or_else(
        || "upload it again: waifuctl template add NAME --file FILE".to_owned(),
        |name| {
            format!(
                "waifuctl template refresh {name} downloads it again; if it was uploaded: waifuctl template add {name} \
                 --file FILE"
            )
        },
    );
    Problem::new(
        503,
        "image-missing",
        format!(
            "the file of image {} in waifud's image store is missing or damaged",
            digest.short()
        ),
    )
    .hint(of)
}

/// The upload has another digest.
pub fn digest_mismatch(expected: Digest, actual: Digest) -> Problem {
    Problem::new(
        422,
        "digest-mismatch",
        format!("the upload has the digest {actual}, not {expected}"),
    )
    .field("digest")
    .hint("it was damaged on its way, or the file changed: compute its SHA-256 and upload again")
}

/// The upload is larger than allowed.
pub fn image_too_large(limit: ByteSize) -> Problem {
    Problem::new(
        413,
        "image-too-large",
        format!("images of more than {limit} are not taken"),
    )
    .field("body")
    .hint("images are small and disks are large: shrink it, and give the instance a larger disk")
}

/// The upload broke off.
pub fn upload_broken() -> Problem {
    Problem::new(400, "upload-interrupted", "the upload ended before its end")
        .field("body")
        .hint("upload it again; nothing was kept")
}

/// The image ends before that byte.
pub fn no_such_byte(length: u64) -> Problem {
    Problem::new(
        416,
        "range-not-satisfiable",
        format!("the image has {length} bytes"),
    )
    .field("Range")
    .hint("begin again without Range")
}

/// A template or an instance needs it.
pub fn image_in_use(digest: Digest) -> Problem {
    Problem::new(409, "image-in-use", format!("image {digest} is in use"))
        .hint("delete the templates and instances that need it first")
}

/// The image was not uploaded.
pub fn unknown_image(digest: Digest) -> Problem {
    Problem::new(422, "unknown-image", format!("there is no image {digest}"))
        .field("image")
        .hint("upload it first: PUT /v1/images/DIGEST")
}
