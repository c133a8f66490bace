//! `waifuctl image …`

use waifud_api::Image;
use waifud_types::Digest;

use crate::cli::ImageCommand;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;
use crate::printer::table;

/// Runs one of the image commands.
pub async fn run(context: &Context, command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::List => {
            let images = images(context).await?;
            let items = serde_json::json!({"items": images, "next": null});
            context.printer.print(&items, || image_table(&images))
        }
        ImageCommand::Delete { digest } => {
            let wanted = find(context, &digest).await?;
            context.client.delete_image(wanted).await?;
            let result = serde_json::json!({"digest": wanted, "state": "deleted"});
            context
                .printer
                .print(&result, || format!("{}: deleted", wanted.short()))
        }
    }
}

pub(super) async fn images(context: &Context) -> Result<Vec<Image>, Failure> {
    let whole = pagination::list(async |query| context.client.images(query).await).await?;
    Ok(whole.items)
}

/// Finds an image by the first digits of its digest.
async fn find(context: &Context, text: &str) -> Result<Digest, Failure> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let found: Vec<_> = images(context)
        .await?
        .into_iter()
        .filter(|image| image.digest.hex().starts_with(digits))
        .collect();
    match found.as_slice() {
        [one] => Ok(one.digest),
        [] => Err(
            Failure::input("not-found", format!("image {text:?} does not exist"))
                .field("digest")
                .hint("waifuctl image list lists all images"),
        ),
        _ => Err(
            Failure::input("ambiguous", format!("several digests begin with {text:?}"))
                .field("digest")
                .hint("use more digits"),
        ),
    }
}

fn image_table(images: &[Image]) -> String {
    let rows = images.iter().map(|image| {
        vec![
            image.digest.short(),
            image.size_bytes.to_string(),
            image.virtual_size_bytes.to_string(),
            crate::text::age(image.created_at, jiff::Timestamp::now()),
            if image.available { "yes" } else { "missing" }.to_owned(),
        ]
    });
    table(
        &["IMAGE", "SIZE", "MIN DISK", "AGE", "FILE"],
        rows.collect(),
    )
}

#[cfg(test)]
pub mod tests {
    use waifud_types::ByteSize;

    use super::*;

    pub fn image(byte: u8, available: bool) -> Image {
        Image {
            digest: Digest::from_bytes([byte; 32]),
            size_bytes: ByteSize::mib(1),
            virtual_size_bytes: ByteSize::mib(2),
            available,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_missing_image_file_is_shown() {
        let images = [image(0xaa, true), image(0xbb, false)];
        let text = image_table(&images);
        let line = |digits| text.lines().find(|line| line.contains(digits)).unwrap();
        assert!(line("aaaaaa").ends_with("yes") && line("bbbbbb").ends_with("missing"));
    }
}
