//! Completes names by asking waifud.
//!
//! Shells run this program with `COMPLETE` set. It must be fast and must not fail: without a response within a second
//! there are no candidates.

use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use waifud_api::Page;
use waifud_api::client::{Client, ClientError, ListQuery};
use waifud_types::Name;

use crate::cli::GlobalArgs;
use crate::context::Context;
use crate::pagination;

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Names of instances.
pub fn instances() -> Vec<CompletionCandidate> {
    names(&Client::instances, |instance| &instance.name)
}

/// Names of nodes.
pub fn nodes() -> Vec<CompletionCandidate> {
    names(&Client::nodes, |node| &node.name)
}

/// Names of templates.
pub fn templates() -> Vec<CompletionCandidate> {
    names(&Client::templates, |template| &template.name)
}

/// Names of networks.
pub fn networks() -> Vec<CompletionCandidate> {
    names(&Client::networks, |network| &network.name)
}

/// The names of all objects in a list.
fn names<T>(
    list: &impl AsyncFn(&Client, &ListQuery) -> Result<Page<T>, ClientError>,
    name: impl Fn(&T) -> &Name,
) -> Vec<CompletionCandidate> {
    let answer = async {
        let context = Context::new(&typed(std::env::args())).ok()?;
        let all = pagination::list(async |query: &ListQuery| list(&context.client, query).await);
        tokio::time::timeout(TIMEOUT, all).await.ok()?.ok()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let all = runtime.ok().and_then(|runtime| runtime.block_on(answer));
    all.iter()
        .flat_map(|all| &all.items)
        .map(|item| CompletionCandidate::new(name(item).as_str()))
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
