//! `waifuctl firewall …`

use std::cell::Cell;
use std::fmt::Write;

use waifud_api::{
    FirewallDefault, FirewallRuleState, Instance, InstanceFirewall, SetFirewall, UpdateInstance,
};
use waifud_types::firewall::{
    FirewallAction, FirewallDirection, FirewallPeer, FirewallProtocol, FirewallRule, PortRange,
};
use waifud_types::{FirewallSpec, InstanceState};

use crate::cli::{FirewallCommand, FirewallRemoveArgs, FirewallRuleArgs};
use crate::concurrent_change::{change_present, until_observed};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::escape;

/// How many addresses of a peer are shown; `--json` has all.
const ADDRESSES_SHOWN: usize = 3;

/// Changes or shows the firewall of an instance.
pub async fn run(context: &Context, command: FirewallCommand) -> Result<(), Failure> {
    match command {
        FirewallCommand::Allow(args) => add(context, &args, FirewallAction::Allow).await,
        FirewallCommand::Deny(args) => add(context, &args, FirewallAction::Deny).await,
        FirewallCommand::Remove(args) => remove(context, &args).await,
        FirewallCommand::List(args) => {
            let firewall = context.client.firewall(&args.name).await?;
            context.printer.print(&firewall, || to_text(&firewall))
        }
    }
}

async fn add(
    context: &Context,
    args: &FirewallRuleArgs,
    action: FirewallAction,
) -> Result<(), Failure> {
    let rule = rule(args, action)?;
    let replaced = Cell::new(None);
    let instance = change(context, &args.name, |firewall| {
        replaced.set(put(firewall, &rule, args.first)?);
        Ok(())
    })
    .await?;
    let spec = &instance.spec.firewall;
    if is_default(&rule) {
        let text = format!(
            "connections {} the instance that no rule matches: {action}",
            word(&rule)
        );
        return print(context, &instance, &text);
    }
    if let Some(note) = effect(spec, &rule) {
        context.printer.note(&note);
    }
    let instead = replaced.get().filter(|before| *before != action);
    let instead = instead.map_or_else(String::new, |before| {
        format!(", instead of {before} for the same packets")
    });
    let text = format!("rule {}: {rule}{instead}", rule.id());
    print(context, &instance, &text)
}

async fn remove(context: &Context, args: &FirewallRemoveArgs) -> Result<(), Failure> {
    let instance = change(context, &args.name, |firewall| {
        for id in &args.rules {
            take(firewall, &args.name, id)?;
        }
        Ok(())
    })
    .await?;
    let rules = match args.rules.len() {
        1 => "rule removed".to_owned(),
        count => format!("{count} rules removed"),
    };
    print(context, &instance, &rules)
}

fn print(context: &Context, instance: &Instance, text: &str) -> Result<(), Failure> {
    context.printer.print(instance, || {
        let later = match &instance.status.node {
            Some(_) if is_applied(instance) => String::new(),
            Some(node) => format!(" (when {node} has applied the change)"),
            None => " (when the instance is placed)".to_owned(),
        };
        format!("{}: {text}{later}", instance.name)
    })
}

/// Edits the firewall, and waits for the node.
async fn change(
    context: &Context,
    name: &str,
    edit: impl Fn(&mut FirewallSpec) -> Result<(), Failure>,
) -> Result<Instance, Failure> {
    let instance = change_present(context, name, async |instance| {
        let mut firewall = instance.spec.firewall.clone();
        edit(&mut firewall)?;
        if firewall == instance.spec.firewall {
            return Ok(instance);
        }
        let change = UpdateInstance {
            firewall: Some(SetFirewall::from(&firewall)),
            ..UpdateInstance::default()
        };
        let generation = Some(instance.generation);
        let changed = context.client.update_instance(name, &change, generation);
        Ok(changed.await?)
    })
    .await?;
    // For a guest that is off, the rules are in force before it starts.
    match instance.status.state {
        InstanceState::Running | InstanceState::Paused => {
            until_observed(context, instance, is_applied).await
        }
        _ => Ok(instance),
    }
}

/// Whether the node has applied the last change.
fn is_applied(instance: &Instance) -> bool {
    let status = &instance.status;
    // The step "ready" only observes the guest.
    let is_idle = status.step.as_ref().is_none_or(|step| step.name == "ready");
    status.observed_generation >= Some(instance.generation) && is_idle
}

/// The rule of the arguments. Errors name the argument.
fn rule(args: &FirewallRuleArgs, action: FirewallAction) -> Result<FirewallRule, Failure> {
    let direction = if args.outgoing || args.to.is_some() {
        FirewallDirection::Out
    } else {
        FirewallDirection::In
    };
    let ports = args.ports.iter().map(|text| {
        text.parse().map_err(|error| {
            let what = format!("{text:?} is not a port or a range of ports");
            Failure::input("invalid-port", escape(&what))
                .field("--port")
                .hint(format!("{error}"))
        })
    });
    let ports: Vec<PortRange> = ports.collect::<Result<_, Failure>>()?;
    let protocol = args.protocol.map(FirewallProtocol::from);
    if protocol == Some(FirewallProtocol::Icmp) && !ports.is_empty() {
        return Err(
            Failure::input("ports-without-protocol", "icmp has no ports")
                .field("--port")
                .hint("omit --port, or use --protocol tcp or udp"),
        );
    }
    let peer = args.from.as_deref().map(|peer| ("--from", peer));
    let peer = peer.or_else(|| args.to.as_deref().map(|peer| ("--to", peer)));
    let peer = peer.map(|(field, text)| {
        text.parse::<FirewallPeer>().map_err(|error| {
            let what = format!("{text:?} is not a peer of a firewall rule");
            Failure::input("invalid-peer", escape(&what))
                .field(field)
                .hint(error.to_string())
        })
    });
    Ok(FirewallRule {
        direction,
        action,
        protocol: protocol.or_else(|| (!ports.is_empty()).then_some(FirewallProtocol::Tcp)),
        ports: PortRange::merged(ports),
        peer: peer.transpose()?,
    })
}

/// Whether nothing limits the rule, so that it is the default of its direction.
fn is_default(rule: &FirewallRule) -> bool {
    rule.protocol.is_none() && rule.ports.is_empty() && rule.peer.is_none()
}

/// Adds a rule. One that matches the same packets is replaced in its place; returns the action of that one.
fn put(
    firewall: &mut FirewallSpec,
    rule: &FirewallRule,
    first: bool,
) -> Result<Option<FirewallAction>, Failure> {
    if is_default(rule) {
        if first {
            return Err(Failure::input(
                "first-without-rule",
                "--first is for rules; this command sets what happens if no rule matches",
            )
            .field("--first")
            .hint("omit --first, or limit the rule with --protocol, --port, --from or --to"));
        }
        *firewall.default_of_mut(rule.direction) = rule.action;
        return Ok(None);
    }
    let rules = &mut firewall.rules;
    let place = rules.iter().position(|other| other.matches_the_same(rule));
    let replaced = place.and_then(|index| Some(rules.get(index)?.action));
    match place {
        Some(index) if !first => {
            if let Some(same) = rules.get_mut(index) {
                same.action = rule.action;
            }
        }
        _ => {
            rules.retain(|other| !other.matches_the_same(rule));
            let index = if first { 0 } else { rules.len() };
            rules.insert(index, rule.clone());
        }
    }
    Ok(replaced)
}

/// Removes the rule whose id is, or begins with, the text.
fn take(firewall: &mut FirewallSpec, name: &str, text: &str) -> Result<(), Failure> {
    let matching = |rule: &&FirewallRule| rule.id().to_string().starts_with(text);
    let found: Vec<_> = firewall.rules.iter().filter(matching).collect();
    let hint = format!("waifuctl firewall list {name}");
    match found[..] {
        [only] => {
            let id = only.id();
            firewall.rules.retain(|rule| rule.id() != id);
            Ok(())
        }
        [] => Err(Failure::input(
            "unknown-rule",
            escape(&format!("{name} has no firewall rule {text}")),
        )
        .field("RULES")
        .hint(hint)),
        _ => Err(Failure::input(
            "ambiguous-rule",
            escape(&format!("several rules of {name} begin with {text}")),
        )
        .field("RULES")
        .hint(hint)),
    }
}

/// A note for a rule that changes nothing, because everything else of its direction has the same result.
fn effect(firewall: &FirewallSpec, rule: &FirewallRule) -> Option<String> {
    let default = firewall.default_of(rule.direction);
    let mut rules = firewall.rules.iter();
    let differs = rules.any(|other| other.direction == rule.direction && other.action != default);
    if rule.action != default || differs {
        return None;
    }
    let (other, verb) = match default {
        FirewallAction::Allow => ("allowed", "deny"),
        FirewallAction::Deny => ("denied", "allow"),
    };
    let direction = rule.direction;
    Some(format!(
        "note: all other connections {} the instance are {other}, too; waifuctl firewall {verb} NAME --{direction} changes that",
        word(rule)
    ))
}

fn word(rule: &FirewallRule) -> &'static str {
    match rule.direction {
        FirewallDirection::In => "to",
        FirewallDirection::Out => "from",
    }
}

fn to_text(firewall: &InstanceFirewall) -> String {
    let mut rows: Vec<_> = firewall.rules.iter().map(row).collect();
    rows.push(default_row("in", firewall.incoming));
    rows.push(default_row("out", firewall.outgoing));
    let headings = [
        "RULE",
        "DIRECTION",
        "ACTION",
        "PROTOCOL",
        "PORTS",
        "PEER",
        "PACKETS",
        "ADDRESSES",
    ];
    table(&headings, rows)
}

fn row(state: &FirewallRuleState) -> Vec<String> {
    let rule = &state.rule;
    let dash = || "-".to_owned();
    let ports: Vec<_> = rule.ports.iter().map(ToString::to_string).collect();
    vec![
        escape(&state.id),
        rule.direction.to_string(),
        rule.action.to_string(),
        rule.protocol
            .map_or_else(|| "all".to_owned(), |it| it.to_string()),
        if ports.is_empty() {
            "all".to_owned()
        } else {
            ports.join(",")
        },
        rule.peer
            .as_ref()
            .map_or_else(|| "all".to_owned(), |peer| escape(&peer.to_string())),
        state
            .packets
            .map_or_else(dash, |packets| packets.to_string()),
        addresses(state),
    ]
}

fn addresses(state: &FirewallRuleState) -> String {
    let Some(all) = &state.addresses else {
        return "-".to_owned();
    };
    if all.is_empty() {
        return "none".to_owned();
    }
    let shown = all.iter().take(ADDRESSES_SHOWN).map(|net| {
        if net.prefix_len() == 32 {
            net.addr().to_string()
        } else {
            net.to_string()
        }
    });
    let mut text = shown.collect::<Vec<_>>().join(",");
    if all.len() > ADDRESSES_SHOWN {
        let _infallible = write!(text, " and {} more", all.len() - ADDRESSES_SHOWN);
    }
    text
}

fn default_row(direction: &str, default: FirewallDefault) -> Vec<String> {
    let packets = default
        .packets
        .map_or_else(|| "-".to_owned(), |packets| packets.to_string());
    let texts = [
        "default",
        direction,
        default.action.as_str(),
        "all",
        "all",
        "all",
        packets.as_str(),
        "-",
    ];
    texts.map(str::to_owned).into()
}

#[cfg(test)]
mod tests;
