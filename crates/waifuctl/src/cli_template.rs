//! Arguments of `template refresh`.

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

/// `template refresh`.
#[derive(Debug, Args)]
pub struct TemplateRefreshArgs {
    /// Names of templates
    #[arg(required_unless_present = "all", value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    /// Every template that came from a URL or from the catalog
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Do not wait for the downloads
    #[arg(long)]
    pub no_wait: bool,
}
