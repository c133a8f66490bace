//! `waifuctl delete`

use serde::Serialize;
use waifud_api::client::Progress;

use crate::cli::DeleteArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::names::confirm;

/// What became of one deletion.
#[derive(Serialize)]
struct Deleted<'a> {
    name: &'a str,
    /// `deleted` or `deleting`.
    state: &'static str,
}

/// Deletes instances. All names are checked and confirmed before the first is touched.
pub async fn run(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    for name in &args.names {
        let instance = context.client.instance(name).await?;
        if !args.yes {
            confirm("instance", instance.name.as_str())?;
        }
    }
    let wait = if args.wait {
        args.timeout
    } else {
        std::time::Duration::ZERO
    };
    let mut results = Vec::new();
    for name in &args.names {
        let progress = context.client.delete_instance(name, wait).await?;
        if args.wait && progress == Progress::Accepted {
            return Err(
                Failure::deadline(format!("{name} is not gone yet; the work goes on"))
                    .hint(format!("waifuctl why {name}")),
            );
        }
        results.push(Deleted {
            name,
            state: if progress == Progress::Done {
                "deleted"
            } else {
                "deleting"
            },
        });
    }
    context.printer.print(&results, || {
        results
            .iter()
            .map(|r| format!("{}: {}", r.name, r.state))
            .collect::<Vec<_>>()
            .join("\n")
    })
}
