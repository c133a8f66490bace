//! `waifuctl list`

use jiff::Timestamp;
use waifud_api::client::ListQuery;
use waifud_api::{Instance, Page};
use waifud_types::InstanceState;
use waifud_types::status::AddressSource;

use crate::cli::ListArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::table;
use crate::text::{age, clock};

/// Prints every instance that the filters leave.
pub async fn run(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let mut query = ListQuery {
        state: args.state,
        node: args.node,
        template: args.template,
        label: args.label,
        ..ListQuery::default()
    };
    let mut all = context.client.instances(&query).await?;
    while let Some(cursor) = all.next.take() {
        query.cursor = Some(cursor);
        let page = context.client.instances(&query).await?;
        all.items.extend(page.items);
        all.next = page.next;
    }
    context
        .printer
        .print(&all, || for_people(&all, Timestamp::now()))?;
    for note in notes(&all) {
        context.printer.note(&note);
    }
    Ok(())
}

fn for_people(page: &Page<Instance>, now: Timestamp) -> String {
    let headers = [
        "NAME", "STATE", "READY", "NODE", "ADDRESS", "CPU", "MEM", "TEMPLATE", "AGE",
    ];
    table(
        &headers,
        page.items
            .iter()
            .map(|instance| row(instance, now))
            .collect(),
    )
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
    let address = status
        .addresses
        .iter()
        .find(|a| a.primary)
        .or_else(|| status.addresses.first());
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

/// What the table alone does not tell.
fn notes(page: &Page<Instance>) -> Vec<String> {
    let mut notes = Vec::new();
    for instance in &page.items {
        let status = &instance.status;
        if let (InstanceState::Unknown, Some(node), Some(last)) =
            (status.state, &status.node, status.last_state)
        {
            let since = status
                .last_seen
                .map_or_else(String::new, |at| format!(" since {}", clock(at)));
            notes.push(format!(
                "note: {node} is off{since} ({} last seen {last})",
                instance.name
            ));
        }
    }
    let observed = |i: &Instance| {
        i.status
            .addresses
            .iter()
            .any(|a| a.source == AddressSource::Observed)
    };
    if page.items.iter().any(observed) {
        notes.push("note: * = observed, not assigned".to_owned());
    }
    notes
}
