//! `waifuctl create`

use tokio::time::Instant;
use waifud_api::{CreateInstance, DryRun, Instance, SetFirewall};
use waifud_types::name::NameError;
use waifud_types::spec::{PlacementSpec, SpreadSpec};

use super::why::verdict_line;
use crate::address::primary_address;
use crate::cli::CreateArgs;
use crate::cli::SpecArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::text::escape;
use crate::{download, keys, labels, network_args, user_data, wait};

/// Creates an instance; with `--wait`, shows its steps until cloud-init has finished.
pub async fn run(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let (wait, timeout) = (args.wait, args.timeout);
    let deadline = Instant::now() + timeout;
    let key = args
        .idempotency_key
        .clone()
        .unwrap_or_else(|| waifud_types::InstanceId::generate().to_string());
    let dry_run = args.dry_run;
    let mut request = request(args)?;
    if dry_run {
        return check(context, &request).await;
    }
    let mut instance = match context.client.create_instance(&request, &key).await {
        Err(error)
            if error
                .problem()
                .is_some_and(|p| p.code == "unknown-template") =>
        {
            let undone = "the instance was not created; run the same command again to continue";
            let name = download::missing(
                context,
                &request.template,
                error,
                undone,
                wait.then_some(deadline),
            )
            .await?;
            request.template = name;
            context.client.create_instance(&request, &key).await?
        }
        other => other?,
    };
    if request.ssh_keys.is_empty() && request.user_data.is_none() {
        context.printer.warning(
            "neither an SSH key (~/.ssh/*.pub) nor user-data was given: you may be unable to log in; see --ssh-key",
        );
    }
    warn_if_unreported(context, &instance);
    if wait {
        let name = instance.name.to_string();
        let left = deadline.saturating_duration_since(Instant::now());
        instance = Box::pin(wait::or_detach(
            wait::until_ready(context, instance, left),
            &name,
        ))
        .await?;
    }
    context.printer.print(&instance, || summary(&instance))
}

/// `--dry-run` for one instance.
async fn check(context: &Context, request: &CreateInstance) -> Result<(), Failure> {
    let mut checked = request.clone();
    let mut first = None;
    let placement = match context.client.check_instance(&checked).await {
        Ok(placement) => placement,
        Err(error) => {
            let unknown = error
                .problem()
                .is_some_and(|p| p.code == "unknown-template");
            // A template of the catalog would be downloaded; the rest of the request cannot be validated before that.
            let name = checked.template.replace('.', "-");
            if !(unknown && download::is_in_catalog(context, &name).await?) {
                return Err(error.into());
            }
            checked.template.clone_from(&name);
            first = Some(name);
            None
        }
    };
    let shown = serde_json::json!({"dry_run": true, "download_first": first, "items": [{
        "name": checked.name, "template": checked.template, "action": "create", "placement": placement}]});
    context.printer.print(&shown, || {
        let name = checked.name.as_deref().unwrap_or("an instance");
        let template = escape(&checked.template);
        match first {
            Some(_) => format!("{name}: would be created after {template} is downloaded (dry run)"),
            None => format!(
                "{name}: would be created from {template} (dry run){}",
                placement_trace(placement.as_ref())
            ),
        }
    })
}

/// Where an instance would be placed, with the verdict on each node, as further lines.
pub(super) fn placement_trace(placement: Option<&DryRun>) -> String {
    let Some(placement) = placement else {
        return String::new();
    };
    let outcome = match (&placement.node, placement.reason_in_english()) {
        (Some(node), _) => format!("would be placed on {node}"),
        (None, Some(reason)) => format!("would stay pending, {}", escape(&reason)),
        (None, None) => "would stay pending".to_owned(),
    };
    let mut lines = format!("\n  {outcome}");
    for verdict in &placement.placement {
        lines.push('\n');
        lines.push_str(&verdict_line(verdict));
    }
    lines
}

/// Warns if the user-data prevents cloud-init from reporting to waifud.
pub(super) fn warn_if_unreported(context: &Context, instance: &Instance) {
    let user_data = instance.spec.user_data.as_ref();
    if let Some(unreported) = user_data.and_then(|facts| facts.unreported) {
        context.printer.warning(&format!(
            "{}: {}; without a guest agent, waifud can only see on the console that cloud-init has finished, not with which result",
            instance.name,
            unreported.cause()
        ));
    }
}

fn request(args: CreateArgs) -> Result<CreateInstance, Failure> {
    let ssh_keys = match (args.no_ssh_key, args.ssh_key.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => keys::own(),
        (false, false) => keys::named(&args.ssh_key)?,
    };
    let options = args.options;
    let Some(template) = args.template else {
        return Err(Failure::input("usage", "a template is required").field("--template"));
    };
    Ok(CreateInstance {
        name: args.name,
        labels: labels::pairs("--label", &args.label)?,
        template,
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        pool: args.pool,
        user_data: args.user_data.as_deref().map(user_data::read).transpose()?,
        ssh_keys,
        run: options.no_start.then_some(false),
        restart: options.restart.unwrap_or_default(),
        priority: options.priority.unwrap_or_default(),
        protected: options.protect,
        mac: options.mac,
        placement: placement(&options)?,
        nics: network_args::allow(args.network, &options.allow_address)?,
        publish: args.publish,
        firewall: SetFirewall::default(),
    })
}

/// Placement options.
pub(super) fn placement(options: &SpecArgs) -> Result<PlacementSpec, Failure> {
    let bad = |field: &str, e: NameError, hint: &str| {
        Failure::input("invalid-name", e.to_string())
            .field(field)
            .hint(hint)
    };
    let node = options.node.as_deref().map(str::parse).transpose();
    let spread = options.spread.as_deref().map(|text| {
        let (group, strict) = match text.split_once(',') {
            Some((group, "strict")) => (group, true),
            _ => (text, false),
        };
        Ok(SpreadSpec {
            group: group.parse()?,
            strict,
        })
    });
    let hint = "write GROUP or GROUP,strict (a-z, 0-9 and -), for example db or db,strict; with strict, the instance stays pending rather than sharing a node";
    let near = options.near.as_deref().map(str::parse).transpose();
    Ok(PlacementSpec {
        near: near.map_err(|e| bad("--near", e, "waifuctl list"))?,
        node: node.map_err(|e| bad("--node", e, "waifuctl node list"))?,
        require: labels::pairs("--require", &options.require)?,
        spread: spread.transpose().map_err(|e| bad("--spread", e, hint))?,
    })
}

/// One line with name, node and address.
pub(super) fn summary(instance: &Instance) -> String {
    let status = &instance.status;
    let node = status
        .node
        .as_ref()
        .map_or_else(String::new, |n| format!(" on {n}"));
    let address = primary_address(status).map_or_else(String::new, |a| format!(", {a}"));
    let reason = status
        .reason_in_english()
        .map_or_else(String::new, |r| format!(" ({})", escape(&r)));
    format!("{}: {}{node}{address}{reason}", instance.name, status.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_parsed_as_a_group_with_optional_strict() {
        let of = |text: &str| {
            placement(&SpecArgs {
                spread: Some(text.to_owned()),
                ..SpecArgs::default()
            })
        };
        assert!(!of("db").unwrap().spread.unwrap().strict);
        assert!(of("db,strict").unwrap().spread.unwrap().strict);
        for bad in ["", ",strict", "db,lax", "D B"] {
            assert_eq!(of(bad).unwrap_err().exit_code(), 1, "{bad:?}");
        }
    }
}
