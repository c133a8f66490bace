//! Completes names by asking waifud.
//!
//! Shells run this program with `COMPLETE` set. It must be fast and must not fail: without a response within a second
//! there are no candidates.

use std::time::Duration;

use clap_complete::engine::CompletionCandidate;

use crate::cli::GlobalArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::pagination;

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(1);

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
        tokio::time::timeout(TIMEOUT, ask(&context))
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

/// The options of the unfinished command line that select a waifud.
fn typed(arguments: impl Iterator<Item = String>) -> GlobalArgs {
    let mut found = GlobalArgs {
        quiet: true,
        ..GlobalArgs::default()
    };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let (option, value) = match argument.split_once('=') {
            Some((option, value)) => (option, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        match option {
            "--context" => {
                let value = value.or_else(|| arguments.next());
                found.context = value.and_then(|name| name.parse().ok());
            }
            "--socket" => found.socket = value.or_else(|| arguments.next()).map(Into::into),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_waifud_that_the_command_line_selects() {
        let of = |line: &str| typed(line.split(' ').map(str::to_owned));
        let global = of("waifuctl -- waifuctl --context home show w");
        assert_eq!(global.context.unwrap().as_str(), "home");
        let global = of("waifuctl -- waifuctl show --socket=/run/x w");
        assert_eq!(global.socket.unwrap(), std::path::Path::new("/run/x"));
        assert!(of("waifuctl -- waifuctl show --context").context.is_none());
    }
}
