//! `waifuctl adopt`

use waifud_api::Instance;

use crate::cli::AdoptArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::unmanaged;

/// Adopts unmanaged instances.
pub async fn run(context: &Context, args: AdoptArgs) -> Result<(), Failure> {
    if args.name.is_some() && args.instances.len() > 1 {
        return Err(
            Failure::input("invalid-arguments", "--name requires a single instance")
                .field("--name")
                .hint("adopt one instance at a time"),
        );
    }
    let mut adopted: Vec<Instance> = Vec::new();
    for wanted in &args.instances {
        let (node, id) = unmanaged::find(context, wanted, args.node.as_deref()).await?;
        let instance = context
            .client
            .adopt(node.id, id, args.name.as_deref())
            .await?;
        adopted.push(instance);
    }
    context.printer.print(&adopted, || {
        let line = |i: &Instance| format!("{}: adopted, with its disks and address", i.name);
        adopted.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}
