//! `waifuctl list`

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use waifud_api::client::{EventQuery, ListQuery};
use waifud_api::{Instance, Page};
use waifud_types::spec::RestartPolicy;
use waifud_types::status::{AddressSource, InstanceAddress};
use waifud_types::{InstanceState, Name};

use crate::address::another_address;
use crate::cli::{ListArgs, ListFormat, SelectArgs};
use crate::columns::{self, Column, HEADINGS, Path};
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::{Printer, print_text, table};
use crate::text::{age, escape, fields, since};
use crate::{description, pagination, select};

/// Between two looks of `--watch`: events come in bursts.
const GAP: Duration = Duration::from_millis(300);
/// `--watch` looks at least this often: an event can be lost with a connection.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How the rows are written.
struct Shape {
    columns: Vec<Column>,
    headers: bool,
}

/// What the rows are sorted by.
enum Key {
    Path(Path),
    Age,
}

/// Prints every instance that the arguments leave, and with `--watch` those that change.
pub async fn run(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let sort = args.sort.as_deref().map(key).transpose()?;
    let shown = page(context, &args, sort.as_ref()).await?;
    let format = args.output.clone().unwrap_or(ListFormat::Table);
    if format == ListFormat::Yaml {
        return descriptions(context, &shown).await;
    }
    let printer = if format == ListFormat::Json {
        context.printer.as_json()
    } else {
        context.printer
    };
    let shape = Shape {
        columns: columns(format),
        headers: !args.no_headers,
    };
    printer.print(&shown, || text(&shown, &shape))?;
    if args.watch {
        return watch(context, &args, printer, shape, shown).await;
    }
    if !printer.is_json() {
        for note in notes(&shown, Timestamp::now()) {
            context.printer.note(&note);
        }
    }
    Ok(())
}

fn columns(format: ListFormat) -> Vec<Column> {
    let first = |count| (0..count).map(Column::Known).collect();
    match format {
        ListFormat::Wide => first(HEADINGS.len()),
        ListFormat::Name => first(1),
        ListFormat::Columns(columns) => columns.0,
        ListFormat::Table | ListFormat::Json | ListFormat::Yaml => first(NARROW),
    }
}

/// What was asked for, whole and in order.
async fn page(
    context: &Context,
    args: &ListArgs,
    sort: Option<&(Key, bool)>,
) -> Result<Page<Instance>, Failure> {
    let mut all = if args.names.is_empty() {
        pagination::list(async |query| {
            let query = ListQuery {
                state: args.state.clone(),
                node: args.node.clone(),
                template: args.template.clone(),
                ..query.clone()
            };
            context.client.instances(&query).await
        })
        .await?
    } else {
        let wanted = SelectArgs::of(args.names.clone());
        let items = select::instances(context, &wanted, false).await?;
        // The page says at which revision the list is; of single ones that is not known.
        let query = ListQuery {
            limit: Some(1),
            ..ListQuery::default()
        };
        Page {
            items,
            next: None,
            revision: context.client.instances(&query).await?.revision,
        }
    };
    all.items
        .retain(|instance| args.label.iter().all(|s| s.fits(&instance.labels)));
    if let Some((key, reversed)) = sort {
        all.items.sort_by(|a, b| {
            let order = match key {
                // The youngest first, as the column reads.
                Key::Age => b.created_at.cmp(&a.created_at),
                Key::Path(path) => {
                    let value = |of| serde_json::to_value(of).unwrap_or_default();
                    columns::compare(path.of(&value(a)), path.of(&value(b)))
                }
            };
            if *reversed { order.reverse() } else { order }
        });
    }
    Ok(all)
}

/// Prints the rows that are new or differ, one JSON object a line with `--json`.
async fn watch(
    context: &Context,
    args: &ListArgs,
    printer: Printer,
    mut shape: Shape,
    shown: Page<Instance>,
) -> Result<(), Failure> {
    shape.headers = false;
    // Without what only time changes.
    let timeless = |instance: &Instance| {
        let mut instance = instance.clone();
        instance.status.last_seen = None;
        serde_json::to_value(instance).unwrap_or_default()
    };
    let looks = |page: &Page<Instance>| -> BTreeMap<_, _> {
        page.items.iter().map(|i| (i.id, timeless(i))).collect()
    };
    let mut known = looks(&shown);
    let query = EventQuery {
        since: Some(shown.revision),
        ..EventQuery::default()
    };
    let mut events = None;
    loop {
        if events.is_none() {
            let asked = tokio::time::timeout(LOOK_AGAIN, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        }
        if let Some(stream) = &mut events
            && let Ok(Some(Err(_)) | None) = tokio::time::timeout(LOOK_AGAIN, stream.next()).await
        {
            events = None;
        }
        tokio::time::sleep(GAP).await;
        let mut now = match page(context, args, None).await {
            Ok(page) => page,
            // waifud restarts within a second; anything else is for the caller to see.
            Err(failure) if failure.exit_code() == 2 => continue,
            Err(failure) => return Err(failure),
        };
        let seen = looks(&now);
        now.items
            .retain(|instance| known.get(&instance.id) != seen.get(&instance.id));
        known = seen;
        for instance in &now.items {
            let row = Page {
                items: vec![instance.clone()],
                next: None,
                revision: now.revision,
            };
            printer.print_line(instance, || text(&row, &shape))?;
        }
    }
}

/// `--sort`: a heading or a path, and whether it is reversed.
fn key(text: &str) -> Result<(Key, bool), Failure> {
    let (word, reversed) = match text.strip_prefix('-') {
        Some(word) => (word, true),
        None => (text, false),
    };
    let bad = |error: String| Failure::input("invalid-sort", error).field("--sort");
    if word.starts_with(['.', '{']) {
        return Ok((Key::Path(word.parse().map_err(bad)?), reversed));
    }
    let path = match HEADINGS.get(columns::known(word).map_err(bad)?).copied() {
        Some("AGE") => return Ok((Key::Age, reversed)),
        Some("STATE") => ".status.state",
        Some("READY") => ".status.ready",
        Some("NODE") => ".status.node",
        Some("ADDRESS") => ".status.addresses[0].address",
        Some("CPU") => ".spec.cpus",
        Some("MEM") => ".spec.memory_bytes",
        Some("TEMPLATE") => ".spec.template",
        Some("DISK") => ".spec.disks[0].size_bytes",
        Some("HYPERVISOR") => ".status.hypervisor",
        Some("RESTART") => ".spec.restart",
        Some("LABELS") => ".labels",
        _ => ".name",
    };
    Ok((Key::Path(path.parse().map_err(bad)?), reversed))
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

/// Columns of the table that is not wide.
const NARROW: usize = 9;

fn text(page: &Page<Instance>, shape: &Shape) -> String {
    let now = Timestamp::now();
    let headers: Vec<_> = shape.columns.iter().map(Column::heading).collect();
    let rows = page.items.iter().map(|instance| {
        let mut known = row(instance, now);
        known.extend(wider(instance));
        let value = serde_json::to_value(instance).unwrap_or_default();
        let cell = |column: &Column| match column {
            Column::Known(place) => known.get(*place).cloned().unwrap_or_default(),
            Column::Path(_, path) => escape(&columns::cell(path.of(&value))),
        };
        shape.columns.iter().map(cell).collect()
    });
    // `-o name` is for scripts.
    let headers = match headers.as_slice() {
        ["NAME"] => &[],
        headers if shape.headers => headers,
        _ => &[],
    };
    table(headers, rows.collect())
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
        if let Some(message) = another_address(&instance.status) {
            notes.push(format!("note: {}: {}", instance.name, escape(message)));
        }
        let pending = &instance.status.restart_needed;
        if !pending.is_empty() {
            notes.push(format!(
                "note: changes of {} take effect at its next start: {}",
                instance.name,
                fields(pending).join(", ")
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
