//! `waifuctl wait`

use serde::Serialize;
use waifud_api::Instance;

use crate::cli::WaitArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::wait::{Deadline, or_detach, until_condition, word};

/// What is printed with `--json`: the instances as they were when the wait ended, without those that are gone.
#[derive(Serialize)]
struct Seen {
    items: Vec<Instance>,
}

/// Waits for each in its turn, all until the same deadline.
pub async fn run(context: &Context, args: WaitArgs) -> Result<(), Failure> {
    let deadline = Deadline::begin(args.timeout);
    let all = async {
        let mut items = Vec::new();
        let mut lines = Vec::new();
        for name in &args.names {
            let seen = until_condition(context, name, args.condition, deadline).await?;
            lines.push(format!("{name}: {}", word(args.condition)));
            items.extend(seen);
        }
        Ok((Seen { items }, lines))
    };
    let (seen, lines) = or_detach(all, &args.names.join(", ")).await?;
    context.printer.print(&seen, || lines.join("\n"))
}
