//! `waifuctl ssh-config`

use waifud_api::Instance;
use waifud_api::client::ListQuery;

use crate::cli::SshConfigArgs;
use crate::context::{Context, Endpoint};
use crate::failure::Failure;
use crate::pagination;
use crate::ssh_host::host;
use crate::ssh_options::SshHost;

/// Prints a file for `ssh -F`, `Include`, scp, rsync and editors.
pub async fn run(context: &Context, args: SshConfigArgs) -> Result<(), Failure> {
    let accept = args.keys.accept_new_key;
    let mut hosts = Vec::new();
    for name in &args.names {
        let instance = context.client.instance(name).await?;
        hosts.push(host(context, &instance, None, accept).await?);
    }
    if args.names.is_empty() {
        for instance in running(context).await? {
            match host(context, &instance, None, accept).await {
                Ok(host) => hosts.push(host),
                Err(failure) => failure
                    .about(&format!("{} was skipped", instance.name))
                    .print(context.printer.is_json()),
            }
        }
    }
    if matches!(context.endpoint, Endpoint::Environment) {
        context
            .printer
            .note("note: this works only if WAIFUD_URL, WAIFUD_CA and WAIFUD_TOKEN are set; `waifuctl login` creates a context");
    }
    context.printer.print(&hosts, || {
        let sections: Vec<String> = hosts.iter().map(SshHost::section).collect();
        sections.join("\n")
    })
}

async fn running(context: &Context) -> Result<Vec<Instance>, Failure> {
    let page = pagination::list(async |query| {
        let query = ListQuery {
            state: Some("running".to_owned()),
            ..query.clone()
        };
        context.client.instances(&query).await
    });
    Ok(page.await?.items)
}
