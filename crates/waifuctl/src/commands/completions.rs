//! `waifuctl completions`: prints a script that calls waifuctl, so that names of objects are completed as well.

use clap_complete::env::Shells;

use crate::cli::CompletionsArgs;
use crate::failure::Failure;
use crate::printer::print_text;

/// Prints a shell's completions.
pub fn run(args: CompletionsArgs) -> Result<(), Failure> {
    print_text(&text(args.shell)?)
}

fn text(shell: clap_complete::Shell) -> Result<String, Failure> {
    let shells = Shells::builtins();
    let mut script = Vec::new();
    shells
        .completer(&shell.to_string())
        .ok_or_else(|| Failure::input("usage", format!("no completions for {shell}")))?
        .write_registration("COMPLETE", "waifuctl", "waifuctl", "waifuctl", &mut script)
        .map_err(|e| Failure::internal("output", "cannot write the completions").cause(&e))?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_script_for_each_shell_calls_waifuctl() {
        for shell in clap_complete::Shell::value_variants() {
            let text = text(*shell).unwrap();
            assert!(
                text.contains("COMPLETE") && text.contains("waifuctl"),
                "{shell}"
            );
        }
        assert!(
            text(clap_complete::Shell::Zsh)
                .unwrap()
                .starts_with("#compdef waifuctl")
        );
    }
}
