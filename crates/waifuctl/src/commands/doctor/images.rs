//! The image store, as `doctor` checks it.

use waifud_api::Image;

use super::{Check, Verdict, ok};

/// Images that waifud knows but whose files are missing or damaged.
pub fn image_check(images: &[Image]) -> Option<Check> {
    let missing: Vec<String> = images
        .iter()
        .filter(|image| !image.available)
        .map(|image| image.digest.short())
        .collect();
    (!missing.is_empty()).then(|| {
        ok(
            "image store",
            format!("files are missing or damaged: {}", missing.join(", ")),
        )
        .with_hint(
            Verdict::Warn,
            "waifuctl template refresh --all downloads them again; for uploaded images, use waifuctl template add NAME --file FILE",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::image::tests::image;

    #[test]
    fn a_missing_image_file_is_a_warning() {
        let images = [image(0xaa, true), image(0xbb, false)];
        let check = image_check(&images).unwrap();
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.message.contains("bbbbbb") && !check.message.contains("aaaaaa"));
        assert_eq!(image_check(&images[..1]), None);
    }
}
