//! Arguments of `template`.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use waifud_types::Checksum;
use waifud_types::template::{Datasource, Firmware};

use crate::complete;

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Add a template from the catalog, from a URL, or from an image file on this machine
    #[command(
        after_help = "Examples:\n  waifuctl template add debian-12\n  waifuctl template add mine --url https://example.org/a.qcow2 --checksum sha256:…\n  waifuctl template add mine --url https://example.org/a.qcow2 --checksums-url https://example.org/SHA256SUMS\n  waifuctl template add debian-12 --file debian-12-genericcloud-amd64.qcow2 --user debian\n  waifuctl template add alpine --file nocloud_alpine-uefi.qcow2 --user alpine --datasource cidata --firmware uefi\n\n\
waifud downloads images in the background: Ctrl-C only ends the wait; waifuctl template delete cancels the download. \
waifuctl template refresh NAME fetches the publisher's current image as a new revision."
    )]
    Add(TemplateAddArgs),
    /// Fetch the publisher's current image of templates; a changed image becomes a new revision
    #[command(
        after_help = "Examples:\n  waifuctl template refresh debian-12\n  waifuctl template refresh --all\n\n\
Image files that are missing in waifud's image store, for example after a restore without images, are downloaded again. \
Existing instances keep their image."
    )]
    Refresh(TemplateRefreshArgs),
    /// List templates and running downloads
    #[command(visible_alias = "ls")]
    List,
    /// List the catalog: images that `template add` and `create` can download by name
    #[command(after_help = "Example:\n  waifuctl template catalog")]
    Catalog,
    /// Show one template with all its revisions
    Show(TemplateNameArg),
    /// Delete a template or cancel its download; instances created from it stay
    #[command(visible_alias = "rm")]
    Delete(TemplateDeleteArgs),
}

#[derive(Debug, Args)]
pub struct TemplateAddArgs {
    /// Name of the template, for example debian-12
    pub name: String,
    /// A qcow2 image on this machine
    #[arg(long, value_name = "PATH", conflicts_with_all = ["url", "catalog"])]
    pub file: Option<PathBuf>,
    /// The URL that waifud downloads a qcow2 image from
    #[arg(long, value_name = "URL", conflicts_with = "catalog")]
    pub url: Option<String>,
    /// The catalog entry to use [default: the entry named NAME]
    #[arg(long, value_name = "ENTRY")]
    pub catalog: Option<String>,
    /// The publisher's checksum of the image
    #[arg(long, value_name = "sha256:…|sha512:…", conflicts_with_all = ["file", "checksums_url"])]
    pub checksum: Option<Checksum>,
    /// The URL of the publisher's list of checksums, for example …/SHA256SUMS
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    pub checksums_url: Option<String>,
    /// The file name of the image in that list [default: the last part of the image's URL]
    #[arg(long, value_name = "NAME", requires = "checksums_url")]
    pub checksums_file: Option<String>,
    /// Download over https without verifying a checksum
    #[arg(long, requires = "url", conflicts_with_all = ["checksum", "checksums_url"])]
    pub insecure_no_checksum: bool,
    /// Do not wait for the download
    #[arg(long, conflicts_with = "file")]
    pub no_wait: bool,
    /// The user that cloud-init creates in guests, for example debian
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// `x86_64` or `aarch64` [default: this machine's]
    #[arg(long)]
    pub arch: Option<String>,
    /// How guests find their metadata and user-data; cidata is a small disk, for images that support no other datasource
    /// [default: the catalog's, else openstack]
    #[arg(long, value_name = "KIND", value_parser = parse_datasource())]
    pub datasource: Option<Datasource>,
    /// The firmware that starts the boot loader [default: the catalog's, else bios]
    #[arg(long, value_name = "KIND", value_parser = parse_firmware())]
    pub firmware: Option<Firmware>,
}

#[derive(Debug, Args)]
pub struct TemplateRefreshArgs {
    /// Names of templates
    #[arg(required_unless_present = "all", value_parser = NonEmptyStringValueParser::new(), add = ArgValueCandidates::new(complete::templates))]
    pub names: Vec<String>,
    /// Refresh every template that was added from a URL or from the catalog
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Do not wait for the downloads
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct TemplateNameArg {
    /// Name of the template
    #[arg(add = ArgValueCandidates::new(complete::templates), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct TemplateDeleteArgs {
    /// Name of the template
    #[arg(add = ArgValueCandidates::new(complete::templates), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub yes: bool,
}

fn parse_datasource() -> impl TypedValueParser<Value = Datasource> {
    PossibleValuesParser::new(Datasource::ALL.map(Datasource::as_str)).map(|word| {
        let named = Datasource::ALL.into_iter().find(|one| one.as_str() == word);
        named.unwrap_or_default()
    })
}

fn parse_firmware() -> impl TypedValueParser<Value = Firmware> {
    PossibleValuesParser::new(Firmware::ALL.map(Firmware::as_str)).map(|word| {
        let named = Firmware::ALL.into_iter().find(|one| one.as_str() == word);
        named.unwrap_or_default()
    })
}
