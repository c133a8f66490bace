//! `waifuctl completions`

use clap::CommandFactory;

use crate::cli::Cli;
use crate::cli_spec::CompletionsArgs;
use crate::failure::Failure;
use crate::printer::print_text;

/// Prints a shell's completions.
pub fn run(args: CompletionsArgs) -> Result<(), Failure> {
    print_text(&text(args.shell))
}

fn text(shell: clap_complete::Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "waifuctl", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_verb_is_completed_in_each_shell() {
        for shell in [
            clap_complete::Shell::Bash,
            clap_complete::Shell::Zsh,
            clap_complete::Shell::Fish,
        ] {
            let text = text(shell);
            for verb in Cli::command()
                .get_subcommands()
                .filter(|v| !v.is_hide_set())
            {
                assert!(
                    text.contains(verb.get_name()),
                    "{shell}: {}",
                    verb.get_name()
                );
            }
        }
    }
}
