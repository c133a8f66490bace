//! `waifuctl list`

use std::collections::BTreeMap;

use jiff::Timestamp;
use waifud_api::client::ListQuery;
use waifud_api::{Instance, Page};
use waifud_types::spec::RestartPolicy;
use waifud_types::status::{AddressSource, InstanceAddress};
use waifud_types::{InstanceState, Name};

use crate::cli::ListArgs;
use crate::cli_spec::ListFormat;
use crate::context::Context;
use crate::description;
use crate::failure::Failure;
use crate::printer::{Printer, print_text, table};
use crate::text::{age, escape, since};

/// Prints every instance that the filters leave.
pub async fn run(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let mut query = ListQuery {
        state: args.state,
        node: args.node,
        template: args.template,
        label: args.label,
        ..ListQuery::whole()
    };
    let mut all = context.client.instances(&query).await?;
    while let Some(cursor) = all.next.take() {
        query.cursor = Some(cursor);
        let page = context.client.instances(&query).await?;
        all.items.extend(page.items);
        all.next = page.next;
    }
    let printer = match args.output {
        Some(ListFormat::Yaml) => return descriptions(context, &all).await,
        Some(ListFormat::Json) => Printer::new(true),
        _ => context.printer,
    };
    let wide = args.output == Some(ListFormat::Wide);
    printer.print(&all, || for_people(&all, wide, Timestamp::now()))?;
    if printer.is_json() {
        return Ok(());
    }
    for note in notes(&all, Timestamp::now()) {
        context.printer.note(&note);
    }
    Ok(())
}

/// One document each, divided by `---`. What was deleted meanwhile is left out.
async fn descriptions(context: &Context, page: &Page<Instance>) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for instance in &page.items {
        match context.client.description(&instance.id.to_string()).await {
            Ok((request, _)) => {
                documents.push(description::yaml(&description::from_request(request))?);
            }
            Err(error) if error.problem().is_some_and(|p| p.status == 404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if documents.is_empty() {
        return Ok(());
    }
    print_text(&documents.join("---\n"))
}

fn for_people(page: &Page<Instance>, wide: bool, now: Timestamp) -> String {
    let mut headers = vec![
        "NAME", "STATE", "READY", "NODE", "ADDRESS", "CPU", "MEM", "TEMPLATE", "AGE",
    ];
    if wide {
        headers.extend(["DISK", "HYPERVISOR", "RESTART", "LABELS"]);
    }
    let rows = page.items.iter().map(|instance| {
        let mut row = row(instance, now);
        if wide {
            row.extend(wider(instance));
        }
        row
    });
    table(&headers, rows.collect())
}

/// The further columns.
fn wider(instance: &Instance) -> [String; 4] {
    let Instance { spec, status, .. } = instance;
    let labels: Vec<_> = instance
        .labels
        .iter()
        .map(|(key, value)| escape(&format!("{key}={value}")))
        .collect();
    let restart = match spec.restart {
        RestartPolicy::Always => "always",
        RestartPolicy::OnCrash => "on-crash",
        RestartPolicy::Never => "never",
    };
    let or_dash = |text: String| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text
        }
    };
    [
        spec.disks
            .first()
            .map_or_else(|| "-".to_owned(), |disk| disk.size_bytes.to_string()),
        status
            .hypervisor
            .map_or("-", |kind| kind.as_str())
            .to_owned(),
        restart.to_owned(),
        or_dash(labels.join(",")),
    ]
}

/// The address in the table: the primary one.
fn shown(instance: &Instance) -> Option<&InstanceAddress> {
    let addresses = &instance.status.addresses;
    addresses
        .iter()
        .find(|address| address.primary)
        .or_else(|| addresses.first())
}

fn row(instance: &Instance, now: Timestamp) -> Vec<String> {
    let Instance {
        name,
        spec,
        status,
        created_at,
        ..
    } = instance;
    let ready = match (status.state, status.ready) {
        (InstanceState::Unknown, _) => "-",
        (_, true) => "yes",
        (_, false) => "no",
    };
    let address = shown(instance);
    vec![
        name.to_string(),
        status.state.to_string(),
        ready.to_owned(),
        status
            .node
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string),
        address.map_or_else(
            || "-".to_owned(),
            |a| {
                format!(
                    "{}{}",
                    a.address,
                    if a.source == AddressSource::Observed {
                        "*"
                    } else {
                        ""
                    }
                )
            },
        ),
        spec.cpus.to_string(),
        spec.memory_bytes.to_string(),
        spec.template.to_string(),
        age(*created_at, now),
    ]
}

/// Guests of a node that is off are named one by one up to so many.
const NAMED: usize = 3;

/// What the table alone does not tell.
fn notes(page: &Page<Instance>, now: Timestamp) -> Vec<String> {
    let mut off: BTreeMap<&Name, Vec<&Instance>> = BTreeMap::new();
    for instance in &page.items {
        if let (InstanceState::Unknown, Some(node)) = (instance.status.state, &instance.status.node)
        {
            off.entry(node).or_default().push(instance);
        }
    }
    let mut notes: Vec<_> = off
        .iter()
        .map(|(node, guests)| is_off(node, guests, now))
        .collect();
    for instance in &page.items {
        let pending = &instance.status.restart_needed;
        if !pending.is_empty() {
            notes.push(format!(
                "note: {} has a new {} at its next start",
                instance.name,
                escape(&pending.join(", "))
            ));
        }
    }
    let starred = |instance: &Instance| {
        shown(instance).is_some_and(|address| address.source == AddressSource::Observed)
    };
    if page.items.iter().any(starred) {
        notes.push("note: * = observed, not assigned".to_owned());
    }
    notes
}

fn is_off(node: &Name, guests: &[&Instance], now: Timestamp) -> String {
    let last = guests
        .iter()
        .filter_map(|guest| guest.status.last_seen)
        .max();
    let last = last.map_or_else(String::new, |at| format!(" since {}", since(at, now)));
    let mut seen: Vec<_> = guests
        .iter()
        .take(NAMED)
        .filter_map(|guest| {
            let state = guest.status.last_state?;
            Some(format!("{} last seen {state}", guest.name))
        })
        .collect();
    if guests.len() > NAMED {
        seen.push(format!("{} more", guests.len() - NAMED));
    }
    format!("note: {node} is off{last} ({})", seen.join(", "))
}
