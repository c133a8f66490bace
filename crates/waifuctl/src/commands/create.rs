//! `waifuctl create`

use std::collections::BTreeMap;

use waifud_api::{CreateInstance, Instance};
use waifud_types::spec::{PlacementSpec, RestartPolicy};

use crate::cli::CreateArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::{keys, user_data, wait};

/// Creates an instance; with `--wait`, shows its steps until cloud-init has finished.
pub async fn run(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let (wait, timeout) = (args.wait, args.timeout);
    let key = args
        .idempotency_key
        .clone()
        .unwrap_or_else(|| waifud_types::InstanceId::generate().to_string());
    let request = request(args)?;
    let mut instance = context.client.create_instance(&request, &key).await?;
    if request.ssh_keys.is_empty() && request.user_data.is_none() {
        context.printer.warning(
            "no SSH key found (~/.ssh/*.pub) and no user-data: there may be no way to log in; see --ssh-key",
        );
    }
    if wait {
        let name = instance.name.to_string();
        instance = wait::or_detach(wait::until_ready(context, instance, timeout), &name).await?;
    }
    context.printer.print(&instance, || summary(&instance))
}

fn request(args: CreateArgs) -> Result<CreateInstance, Failure> {
    let ssh_keys = match (args.no_ssh_key, args.ssh_key.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => keys::own(),
        (false, false) => keys::named(&args.ssh_key)?,
    };
    let node =
        args.node
            .map(|n| n.parse())
            .transpose()
            .map_err(|e: waifud_types::name::NameError| {
                Failure::input("bad-name", e.to_string())
                    .field("--node")
                    .hint("waifuctl node list")
            })?;
    Ok(CreateInstance {
        name: args.name,
        labels: labels(&args.label)?,
        template: args.template,
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        pool: args.pool,
        user_data: args.user_data.as_deref().map(user_data::read).transpose()?,
        ssh_keys,
        run: None,
        restart: RestartPolicy::default(),
        priority: 0,
        protected: args.protect,
        mac: None,
        placement: PlacementSpec {
            node,
            ..PlacementSpec::default()
        },
    })
}

fn labels(arguments: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    arguments
        .iter()
        .map(|argument| match argument.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(
                Failure::input("bad-label", format!("{argument:?} is not a label"))
                    .field("--label")
                    .hint("write KEY=VALUE, such as tier=web"),
            ),
        })
        .collect()
}

/// One line: what it is called, where it is, and its address.
fn summary(instance: &Instance) -> String {
    let status = &instance.status;
    let node = status
        .node
        .as_ref()
        .map_or_else(String::new, |n| format!(" on {n}"));
    let address = wait::primary_address(status).map_or_else(String::new, |a| format!(", {a}"));
    let reason = status
        .reason
        .as_ref()
        .map_or_else(String::new, |r| format!(" ({})", escape(r)));
    format!("{}: {}{node}{address}{reason}", instance.name, status.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_need_a_key() {
        assert_eq!(
            labels(&["a=b=c".into()])
                .unwrap()
                .get("a")
                .map(String::as_str),
            Some("b=c")
        );
        assert!(labels(&["=x".into()]).is_err());
        assert!(labels(&["x".into()]).is_err());
    }
}
