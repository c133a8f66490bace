//! `waifuctl show`

use jiff::Timestamp;
use serde::Serialize;
use waifud_api::Instance;
use waifud_types::status::NicState;

use crate::cli::{SelectArgs, ShowArgs, ShowFormat};
use crate::context::Context;
use crate::failure::Failure;
use crate::hint;
use crate::network_args::network_text;
use crate::printer::print_text;
use crate::text::{age, escape, failing_conditions, field_list};
use crate::{description, select};

/// The output with `--json` for several instances.
#[derive(Serialize)]
struct Several<'a> {
    items: &'a [Instance],
}

/// Prints instances in full. All are looked up before the first one is printed.
pub async fn run(context: &Context, args: &ShowArgs) -> Result<(), Failure> {
    let printer = match args.output {
        Some(ShowFormat::Yaml) => {
            let mut documents = Vec::new();
            for name in &args.names {
                let (request, _) = context.client.description(name).await?;
                documents.push(description::yaml(&description::from_request(request))?);
            }
            return print_text(&documents.join("---\n"));
        }
        Some(ShowFormat::Json) => context.printer.as_json(),
        Some(ShowFormat::Text) | None => context.printer,
    };
    let instances = select::instances(context, &SelectArgs::of(args.names.clone()), false).await?;
    let now = Timestamp::now();
    if let [one] = instances.as_slice() {
        return printer.print(one, || to_text(one, now));
    }
    printer.print(&Several { items: &instances }, || {
        let texts: Vec<_> = instances.iter().map(|one| to_text(one, now)).collect();
        texts.join("\n")
    })
}

fn to_text(instance: &Instance, now: Timestamp) -> String {
    let Instance { spec, status, .. } = instance;
    field_list(|line| {
        line("name", instance.name.as_str());
        line("id", &instance.id.to_string());
        let reason = status
            .reason_in_english()
            .map_or_else(String::new, |r| format!(" ({})", escape(&r)));
        line("state", &format!("{}{reason}", status.state));
        if let Some(step) = &status.step {
            let percent = step.percent.map_or_else(String::new, |p| format!(" {p}%"));
            let waiting = after(", waiting for ", step.waiting_for.as_deref());
            line(
                "step",
                &format!("{}{percent}, {}{waiting}", step.name, age(step.since, now)),
            );
        }
        let by = status.ready_by.map_or("", |by| match by {
            waifud_types::status::ReadyBy::GuestAgent => " (by the guest agent)",
            waifud_types::status::ReadyBy::Reporter => " (cloud-init reported it)",
            waifud_types::status::ReadyBy::Console => " (cloud-init's message on the console)",
            waifud_types::status::ReadyBy::PhoneHome => " (cloud-init phoned home)",
            // From a newer version.
            waifud_types::status::ReadyBy::Other => "",
        });
        line(
            "ready",
            &match (status.state, status.ready) {
                (waifud_types::InstanceState::Unknown, _) => "-".to_owned(),
                (_, true) => format!("yes{by}"),
                (_, false) => "no".to_owned(),
            },
        );
        let cloud_init = &status.cloud_init;
        let datasource = after(", ", cloud_init.datasource.as_deref());
        line(
            "cloud-init",
            &format!("{}{datasource}", state_word(cloud_init.state)),
        );
        if let Some(because) = &cloud_init.unknown_because {
            line("", &escape(because));
        }
        for error in &cloud_init.errors {
            line("", &escape(error));
        }
        line("node", status.node.as_ref().map_or("-", |n| n.as_str()));
        if let Some(moving) = &instance.moving {
            let copied = match (moving.done_bytes, moving.total_bytes) {
                (Some(done), Some(total)) => format!(", {done} of {total}"),
                _ => String::new(),
            };
            let path = match moving.path {
                Some(waifud_types::CopyPath::Direct) => ", copied directly",
                Some(waifud_types::CopyPath::Waifud) => ", copied through waifud",
                Some(waifud_types::CopyPath::Other) | None => "",
            };
            let reason = after(": ", moving.reason.as_deref());
            line(
                "move",
                &format!("to {}, {}{copied}{path}{reason}", moving.to, moving.state),
            );
        }
        line("hypervisor", status.hypervisor.map_or("-", |h| h.as_str()));
        if let Some(at) = status.started_at {
            line("started", &format!("{} ago", age(at, now)));
        }
        for address in &status.addresses {
            let source = match address.source {
                waifud_types::status::AddressSource::Assigned => "assigned",
                waifud_types::status::AddressSource::Observed => "observed",
            };
            line(
                "address",
                &format!("{} on {} ({source})", address.address, address.network),
            );
        }
        line("cpus", &spec.cpus.to_string());
        line("memory", &spec.memory_bytes.to_string());
        for disk in &spec.disks {
            line(
                "disk",
                &format!("{} {} on {}", disk.name, disk.size_bytes, disk.pool),
            );
        }
        for nic in &spec.nics {
            line(
                "nic",
                &format!(
                    "{} {} on {}",
                    nic.name,
                    nic.mac,
                    network_text(&nic.network, nic.vlan)
                ),
            );
        }
        for nic in status
            .nics
            .iter()
            .filter(|nic| nic.state == NicState::Removing)
        {
            line(
                "nic",
                &format!("{} {} on {}, being removed", nic.name, nic.mac, nic.network),
            );
        }
        for published in &spec.publish {
            line("published", &published.to_string());
        }
        if !spec.firewall.is_open() {
            let waifud_types::FirewallSpec {
                incoming,
                outgoing,
                rules,
            } = &spec.firewall;
            for rule in rules {
                line("firewall", &escape(&rule.to_string()));
            }
            line(
                "firewall",
                &format!("otherwise {incoming} in, {outgoing} out"),
            );
        }
        line(
            "template",
            &format!("{}@{}", spec.template, spec.image.short()),
        );
        if let Some(rescue) = &spec.rescue {
            line(
                "rescue",
                &format!("booting {}@{}", rescue.template, rescue.image.short()),
            );
        }
        if let Some(user_data) = &spec.user_data {
            line(
                "user-data",
                &format!("{} bytes, {}", user_data.size_bytes, user_data.sha256),
            );
        }
        if status.node.is_some() && status.observed_generation < Some(instance.generation) {
            line(
                "pending",
                "the last change, which the node has not applied yet",
            );
        }
        if !status.restart_needed.is_empty() {
            let fields: Vec<_> = crate::text::fields(&status.restart_needed);
            line(
                "pending",
                &format!("{} (at the next start)", escape(&fields.join(", "))),
            );
        }
        if spec.protected {
            line("protected", "yes");
        }
        for (key, value) in &instance.labels {
            line("label", &format!("{}={}", escape(key), escape(value)));
        }
        failing_conditions(line, &status.conditions, |condition| {
            let since = age(condition.since, now);
            let title = format!("{} for {since}", escape(&condition.kind));
            let remedy = hint::of_instance_condition(condition, &instance.name);
            (title, remedy)
        });
        line("generation", &instance.generation.to_string());
        line("age", &age(instance.created_at, now));
    })
}

/// The separator and the text; empty without a text.
fn after(separator: &str, text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!("{separator}{}", escape(text)))
}

/// The name in the API.
fn state_word(state: waifud_types::status::CloudInitState) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}
