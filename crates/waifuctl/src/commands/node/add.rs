//! `waifuctl node add`

use std::time::Duration;

use tokio::time::Instant;
use waifud_api::join::{CreateJoinToken, CreatedJoinToken, JoinToken, JoinTokenState};
use waifud_api::{Node, ServerUrl};
use waifud_types::node::NodeState;

use crate::cli::NodeAddArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;
use crate::wait::or_detach;

/// How often waifud is asked whether the machine has joined. A join takes minutes.
const PERIOD: Duration = Duration::from_secs(2);
/// How long a node that has joined may take to become ready.
const READY_LIMIT: Duration = Duration::from_mins(5);

/// Prints the command for the new machine, and waits for the node if asked to.
pub async fn run(context: &Context, args: NodeAddArgs) -> Result<(), Failure> {
    let request = CreateJoinToken {
        name: args.name,
        expires_in_s: Some(args.expires.as_secs()),
        install: true,
    };
    let created = context.client.create_join_token(&request).await?;
    let Some(commands) = &created.install else {
        return Err(Failure::input(
            "not-supported",
            "this waifud is older than waifuctl and cannot install itself on other machines",
        )
        .hint("install waifud on the new machine by hand, and let it join with a token of waifuctl node token create"));
    };
    let lines: Vec<String> = if args.read_first {
        let lines = commands.read_first.iter();
        lines.map(|line| line.expose().clone()).collect()
    } else {
        vec![commands.run.expose().clone()]
    };
    // Only the commands are printed to stdout, so that they can be piped; remarks go to stderr.
    context.printer.note(&format!(
        "run this on the new machine before {}:",
        created.info.expires_at
    ));
    let printer = context.printer;
    if args.wait {
        printer.print_line(&created, || lines.join("\n"))?;
    } else {
        printer.print(&created, || lines.join("\n"))?;
    }
    if let Some(note) = other_addresses(&created) {
        context.printer.note(&note);
    }
    if args.wait {
        let node = or_detach(until_ready(context, &created), "the new node").await?;
        printer.print_line(&node, || format!("{}: ready", node.name))?;
    }
    Ok(())
}

/// Other addresses of waifud, which may be the right ones for the new machine.
fn other_addresses(created: &CreatedJoinToken) -> Option<String> {
    let token = JoinToken::parse(created.token.expose()).ok()?;
    let reachable = |url: &&String| {
        let url = url.parse::<ServerUrl>();
        url.is_ok_and(|url| !url.is_loopback())
    };
    let mut addresses = token.addresses.iter().filter(reachable);
    let first = addresses.next()?;
    let others: Vec<String> = addresses.map(|url| escape(url)).collect();
    (!others.is_empty()).then(|| {
        format!(
            "if the new machine cannot reach {}, replace it with {}",
            escape(first),
            others.join(" or ")
        )
    })
}

/// Waits until a machine has joined with the token, and until that node is ready.
async fn until_ready(context: &Context, created: &CreatedJoinToken) -> Result<Node, Failure> {
    let spinner = progress::spinner(!context.printer.shows_progress());
    spinner.set_message("waiting for the machine to join");
    let name = loop {
        let tokens = context.client.join_tokens().await?.items;
        let token = tokens.into_iter().find(|it| it.id == created.info.id);
        match token {
            None => {
                return Err(Failure::input(
                    "token-revoked",
                    "the join token was revoked",
                ));
            }
            Some(token) => match (token.node, token.state) {
                (Some(node), _) => break node,
                (None, JoinTokenState::Expired) => {
                    return Err(
                        Failure::deadline("no machine joined before the token expired")
                            .hint("waifuctl node add"),
                    );
                }
                (None, _) => tokio::time::sleep(PERIOD).await,
            },
        }
    };
    spinner.set_message(format!(
        "{} has joined; waiting until it is ready",
        escape(&name)
    ));
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        match context.client.node(&name).await {
            Ok(node) if node.state == NodeState::Ready => return Ok(node),
            // Until the first contact of its agent, waifud does not list it.
            Ok(_) => {}
            Err(error) if error.problem().is_some_and(|problem| problem.status == 404) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            let title = format!("{} has joined, but is not ready yet", escape(&name));
            return Err(
                Failure::deadline(title).hint("on that machine, run: journalctl -u waifud-agentd")
            );
        }
        tokio::time::sleep(PERIOD).await;
    }
}
