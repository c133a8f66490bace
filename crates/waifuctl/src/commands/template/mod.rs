//! `waifuctl template …`

mod add;
mod catalog;
mod delete;
mod image_file;
mod list;
mod refresh;
mod show;

use waifud_types::Digest;
use waifud_types::template::Template;

use crate::cli::TemplateCommand;
use crate::context::Context;
use crate::failure::Failure;

/// Runs one of the template commands.
pub async fn run(context: &Context, command: TemplateCommand) -> Result<(), Failure> {
    match command {
        TemplateCommand::Add(args) => add::run(context, args).await,
        TemplateCommand::Refresh(args) => refresh::run(context, args).await,
        TemplateCommand::List => list::run(context).await,
        TemplateCommand::Catalog => catalog::run(context).await,
        TemplateCommand::Show(args) => show::run(context, &args.name).await,
        TemplateCommand::Delete(args) => delete::run(context, args).await,
    }
}

/// Describes the change of a template.
fn summary(template: &Template, before: Option<Digest>) -> String {
    let (name, image) = (&template.name, template.current.short());
    let disks = format!("disks need at least {}", template.min_disk_bytes);
    match before {
        None => format!("{name}: created with image {image}; {disks}"),
        Some(before) if before == template.current => format!("{name}: unchanged, image {image}"),
        Some(before) => format!(
            "{name}: new revision, image {image} instead of {}; {disks}",
            before.short()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn template(current: u8) -> Template {
        let digest = Digest::from_bytes([current; 32]);
        serde_json::from_value(serde_json::json!({
            "name": "v", "datasource": "openstack", "firmware": "bios", "default_user": null,
            "min_disk_bytes": 128 << 20, "current": digest, "used_by": 0, "revisions": [],
            "source": {
                "url": "https://example.org/v.qcow2", "catalog": null, "checksum": null,
                "checksums_url": "https://example.org/SHA256SUMS", "checksums_file": null,
                "insecure_no_checksum": false,
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_summary_says_whether_the_image_has_changed() {
        let digest = |byte| Digest::from_bytes([byte; 32]);
        assert_eq!(
            summary(&template(0xcd), None),
            "v: created with image cdcdcd; disks need at least 128M"
        );
        assert_eq!(
            summary(&template(0xcd), Some(digest(0xcd))),
            "v: unchanged, image cdcdcd"
        );
        assert_eq!(
            summary(&template(0xcd), Some(digest(0xab))),
            "v: new revision, image cdcdcd instead of ababab; disks need at least 128M"
        );
    }
}
