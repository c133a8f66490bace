//! `waifuctl show`

use std::fmt::Write;

use jiff::Timestamp;
use waifud_api::Instance;

use crate::cli_spec::{ShowArgs, ShowFormat};
use crate::context::Context;
use crate::description;
use crate::failure::Failure;
use crate::printer::{Printer, print_text};
use crate::text::{age, escape};

/// Prints one instance in full.
pub async fn run(context: &Context, args: &ShowArgs) -> Result<(), Failure> {
    let printer = match args.output {
        Some(ShowFormat::Yaml) => {
            let (request, _) = context.client.description(&args.name).await?;
            return print_text(&description::yaml(&description::from_request(request))?);
        }
        Some(ShowFormat::Json) => Printer::new(true),
        Some(ShowFormat::Text) | None => context.printer,
    };
    let instance = context.client.instance(&args.name).await?;
    printer.print(&instance, || for_people(&instance, Timestamp::now()))
}

fn for_people(instance: &Instance, now: Timestamp) -> String {
    let Instance { spec, status, .. } = instance;
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _infallible = writeln!(out, "{label:<12} {value}");
    };
    line("name", instance.name.as_str());
    line("id", &instance.id.to_string());
    let reason = status
        .reason
        .as_ref()
        .map_or_else(String::new, |r| format!(" ({})", escape(r)));
    line("state", &format!("{}{reason}", status.state));
    if let Some(step) = &status.step {
        let percent = step.percent.map_or_else(String::new, |p| format!(" {p}%"));
        let waiting = step
            .waiting_for
            .as_ref()
            .map_or_else(String::new, |w| format!(", waiting for {}", escape(w)));
        line(
            "step",
            &format!("{}{percent}, {}{waiting}", step.name, age(step.since, now)),
        );
    }
    let by = status.ready_by.map_or("", |by| match by {
        waifud_types::status::ReadyBy::GuestAgent => " (by the guest agent)",
        waifud_types::status::ReadyBy::PhoneHome => " (cloud-init phoned home)",
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
    let datasource = cloud_init
        .datasource
        .as_ref()
        .map_or_else(String::new, |d| format!(", {}", escape(d)));
    line(
        "cloud-init",
        &format!("{}{datasource}", state_word(cloud_init.state)),
    );
    for error in &cloud_init.errors {
        line("", &escape(error));
    }
    line("node", status.node.as_ref().map_or("-", |n| n.as_str()));
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
            &format!("{} {} on {}", nic.name, nic.mac, nic.network),
        );
    }
    for published in &spec.publish {
        line("published", &published.to_string());
    }
    line(
        "template",
        &format!("{}@{}", spec.template, spec.image.short()),
    );
    if let Some(rescue) = &spec.rescue {
        line(
            "rescue",
            &format!("{}@{} in its place", rescue.template, rescue.image.short()),
        );
    }
    if let Some(user_data) = &spec.user_data {
        line(
            "user-data",
            &format!("{} bytes, {}", user_data.size_bytes, user_data.sha256),
        );
    }
    if !status.restart_needed.is_empty() {
        // Fields as the API calls them; people know them by the options that set them.
        let fields = status.restart_needed.iter();
        let fields: Vec<_> = fields
            .map(|field| field.trim_end_matches("_bytes").replace('_', "-"))
            .collect();
        line(
            "pending",
            &format!("{} at its next start", escape(&fields.join(", "))),
        );
    }
    if spec.protected {
        line("protected", "yes");
    }
    for (key, value) in &instance.labels {
        line("label", &format!("{}={}", escape(key), escape(value)));
    }
    for condition in status.conditions.iter().filter(|c| !c.ok) {
        line(
            "condition",
            &format!(
                "{}: {}",
                escape(&condition.kind),
                escape(&condition.message)
            ),
        );
    }
    line("generation", &instance.generation.to_string());
    line("age", &age(instance.created_at, now));
    out
}

/// The word that the wire uses.
fn state_word(state: waifud_types::status::CloudInitState) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}
