//! Completion of names: what waifud has, asked for while a word is typed.
//!
//! A shell that wants completions runs this program with `COMPLETE` set. It must be quick and never fail: without an answer
//! within a second there are no candidates.

use std::time::Duration;

use clap::Parser;
use clap_complete::engine::CompletionCandidate;

use crate::cli::{Cli, Command};
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;

/// The longest wait for a name.
const PATIENCE: Duration = Duration::from_secs(1);

/// Names of instances.
pub fn instances() -> Vec<CompletionCandidate> {
    names(async |context| {
        let all = pagination::list(async |query| context.client.instances(query).await).await?;
        Ok(all.items.iter().map(|one| one.name.to_string()).collect())
    })
}

/// Names of nodes.
pub fn nodes() -> Vec<CompletionCandidate> {
    names(async |context| {
        let all = pagination::all_nodes(context).await?;
        Ok(all.iter().map(|one| one.name.to_string()).collect())
    })
}

/// Names of templates.
pub fn templates() -> Vec<CompletionCandidate> {
    names(async |context| {
        let all = pagination::list(async |query| context.client.templates(query).await).await?;
        Ok(all.items.iter().map(|one| one.name.to_string()).collect())
    })
}

/// Names of networks.
pub fn networks() -> Vec<CompletionCandidate> {
    names(async |context| {
        let all = pagination::list(async |query| context.client.networks(query).await).await?;
        Ok(all.items.iter().map(|one| one.name.to_string()).collect())
    })
}

fn names(
    ask: impl AsyncFnOnce(&Context) -> Result<Vec<String>, Failure>,
) -> Vec<CompletionCandidate> {
    let answer = async {
        let context = Context::new(&typed(std::env::args())).ok()?;
        tokio::time::timeout(PATIENCE, ask(&context))
            .await
            .ok()?
            .ok()
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()
        .and_then(|runtime| runtime.block_on(answer))
        .unwrap_or_default()
        .into_iter()
        .map(CompletionCandidate::new)
        .collect()
}

/// Which waifud the unfinished command line is for: `--context` and `--socket` count there too.
fn typed(arguments: impl Iterator<Item = String>) -> Cli {
    let mut line = vec!["waifuctl".to_owned()];
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        for option in ["--context", "--socket"] {
            if argument == option {
                line.extend([argument.clone()].into_iter().chain(arguments.next()));
                break;
            }
            if argument.starts_with(&format!("{option}=")) {
                line.push(argument.clone());
            }
        }
    }
    line.push("df".to_owned());
    Cli::try_parse_from(line).unwrap_or(Cli {
        socket: None,
        context: None,
        json: false,
        quiet: true,
        command: Command::Df,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_waifud_that_the_command_line_is_for() {
        let of = |line: &str| typed(line.split(' ').map(str::to_owned));
        let cli = of("waifuctl -- waifuctl --context home show w");
        assert_eq!(cli.context.unwrap().as_str(), "home");
        let cli = of("waifuctl -- waifuctl show --socket=/run/x w");
        assert_eq!(cli.socket.unwrap(), std::path::Path::new("/run/x"));
        assert!(of("waifuctl -- waifuctl show --context").context.is_none());
    }
}
