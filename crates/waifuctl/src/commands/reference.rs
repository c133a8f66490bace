//! `waifuctl reference`: generates the reference and the man pages from the definitions in `cli/`.

use clap::CommandFactory;

use crate::cli::{Cli, ReferenceCommand};
use crate::failure::Failure;

/// Writes the reference.
pub fn run(command: ReferenceCommand) -> Result<(), Failure> {
    match command {
        ReferenceCommand::Markdown => {
            println!("{}", markdown());
            Ok(())
        }
        ReferenceCommand::Man { dir } => {
            clap_mangen::generate_to(Cli::command(), &dir).map_err(|e| {
                Failure::input(
                    "unwritable",
                    format!("cannot write man pages to {}", dir.display()),
                )
                .cause(&e)
            })
        }
    }
}

/// `docs/reference/cli.md`.
fn markdown() -> String {
    let options = clap_markdown::MarkdownOptions::new()
        .title("Commands".to_owned())
        .show_footer(false)
        .show_table_of_contents(true);
    let text = clap_markdown::help_markdown_custom::<Cli>(&options);
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    // clap_markdown writes the path of the command before each usage, also before one that begins with it (`ssh`).
    lines
        .join("\n")
        .trim_end()
        .replace("`waifuctl waifuctl ", "`waifuctl ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli.md");

    #[test]
    fn the_reference_in_the_docs_is_up_to_date() {
        let generated = markdown() + "\n";
        if std::env::var_os("WAIFUD_BLESS").is_some() {
            std::fs::write(FILE, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            committed == generated,
            "docs/reference/cli.md differs: WAIFUD_BLESS=1 cargo test -p waifuctl reference"
        );
    }

    #[test]
    fn every_usage_names_the_program_once() {
        let text = markdown();
        assert!(text.contains("**Usage:** `waifuctl ssh [OPTIONS]"));
        assert!(!text.contains("waifuctl waifuctl"));
    }

    #[test]
    fn a_man_page_is_written_for_each_command() {
        let dir = tempfile::tempdir().unwrap();
        run(ReferenceCommand::Man {
            dir: dir.path().to_owned(),
        })
        .unwrap();
        for page in ["waifuctl.1", "waifuctl-create.1", "waifuctl-template-add.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
    }
}
