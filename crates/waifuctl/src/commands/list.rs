//! `waifuctl list`

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use waifud_api::client::{ClientError, EventQuery, ListQuery};
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

/// Pause between two reads of `--watch`, since events come in bursts.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// The longest pause between two reads of `--watch`: an event can be lost with a connection.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The format of rows.
struct Shape {
    columns: Vec<Column>,
    headers: bool,
}

/// The sort key.
enum Key {
    Path(Path),
    Age,
}

/// Prints the selected instances and, with `--watch`, changes.
pub async fn run(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let sort = args.sort.as_deref().map(key).transpose()?;
    let shown = page(context, &args, sort.as_ref()).await?;
    if shown.items.is_empty() {
        check_filters(context, &args).await?;
    }
    let format = args.output.clone().unwrap_or(ListFormat::Table);
    if format == ListFormat::Yaml {
        return descriptions(context, &args, &shown).await;
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
        ListFormat::Table | ListFormat::Json | ListFormat::Yaml => first(NARROW_COLUMNS),
    }
}

/// The selected instances, sorted.
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
        // Gets the revision, which responses for single instances do not contain.
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
        .retain(|instance| args.label.iter().all(|s| s.matches(&instance.labels)));
    if let Some((key, reversed)) = sort {
        all.items.sort_by(|a, b| {
            let order = match key {
                // Newest first, in ascending order of the column.
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

/// Prints new and changed rows; with `--json`, one object per line.
async fn watch(
    context: &Context,
    args: &ListArgs,
    printer: Printer,
    mut shape: Shape,
    shown: Page<Instance>,
) -> Result<(), Failure> {
    shape.headers = false;
    // Without fields that change with time.
    let without_times = |instance: &Instance| {
        let mut instance = instance.clone();
        instance.status.last_seen = None;
        serde_json::to_value(instance).unwrap_or_default()
    };
    let snapshot = |page: &Page<Instance>| -> BTreeMap<_, _> {
        page.items
            .iter()
            .map(|i| (i.id, without_times(i)))
            .collect()
    };
    let mut known = snapshot(&shown);
    let query = EventQuery {
        since: Some(shown.revision),
        ..EventQuery::default()
    };
    let mut events = None;
    loop {
        if events.is_none() {
            let asked =
                tokio::time::timeout(POLL_INTERVAL, context.client.watch_events(&query)).await;
            events = asked.ok().and_then(Result::ok).map(Box::pin);
        }
        if let Some(stream) = &mut events
            && let Ok(Some(Err(_)) | None) =
                tokio::time::timeout(POLL_INTERVAL, stream.next()).await
        {
            events = None;
        }
        tokio::time::sleep(DEBOUNCE).await;
        let mut now = match page(context, args, None).await {
            Ok(page) => page,
            // waifud restarts within a second; other errors are reported.
            Err(failure) if failure.exit_code() == 2 => continue,
            Err(failure) => return Err(failure),
        };
        let seen = snapshot(&now);
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

/// Parses `--sort`: a heading or a path, and whether the order is reversed.
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

/// Prints descriptions as YAML documents. Instances that were deleted in the meantime are left out.
async fn descriptions(
    context: &Context,
    args: &ListArgs,
    page: &Page<Instance>,
) -> Result<(), Failure> {
    let mut by_id = BTreeMap::new();
    if selects_all(args) && !page.items.is_empty() {
        let all = pagination::list(async |query| context.client.descriptions(query).await).await?;
        by_id.extend(all.items.into_iter().map(|one| (one.id, one.description)));
    } else {
        // A selection is usually small, and pages of all descriptions contain the user-data of all instances.
        for instance in &page.items {
            match context.client.description(&instance.id.to_string()).await {
                Ok((request, _)) => {
                    by_id.insert(instance.id, request);
                }
                Err(error) if error.problem().is_some_and(|it| it.code == "not-found") => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let found = page.items.iter().filter_map(|one| by_id.remove(&one.id));
    let documents: Vec<_> = found
        .map(|request| description::yaml(&description::from_request(request)))
        .collect::<Result<_, _>>()?;
    if documents.is_empty() {
        return Ok(());
    }
    print_text(&documents.join("---\n"))
}

fn selects_all(args: &ListArgs) -> bool {
    args.names.is_empty()
        && args.label.is_empty()
        && args.state.is_none()
        && args.node.is_none()
        && args.template.is_none()
}

/// Fails if a filter names a node or a template that does not exist: an empty list would hide the mistake.
async fn check_filters(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    if let Some(node) = &args.node
        && is_missing(context.client.node(node).await)?
    {
        let nodes = pagination::all_nodes(context).await?;
        let names = nodes.iter().map(|node| node.name.as_str());
        return Err(not_found("node", node, names));
    }
    if let Some(template) = &args.template
        && is_missing(context.client.template(template).await)?
    {
        let all = pagination::list(async |query| context.client.templates(query).await).await?;
        let names = all.items.iter().map(|template| template.name.as_str());
        return Err(not_found("template", template, names));
    }
    Ok(())
}

fn is_missing<T>(found: Result<T, ClientError>) -> Result<bool, Failure> {
    match found {
        Ok(_) => Ok(false),
        Err(error) if error.problem().is_some_and(|p| p.status == 404) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn not_found<'a>(kind: &str, name: &str, existing: impl Iterator<Item = &'a str>) -> Failure {
    let existing: Vec<_> = existing.collect();
    let hint = if existing.is_empty() {
        format!("there are no {kind}s; waifuctl {kind} list")
    } else {
        format!("existing {kind}s: {}", existing.join(", "))
    };
    Failure::input("not-found", format!("{kind} {name:?} does not exist"))
        .field(&format!("--{kind}"))
        .hint(hint)
}

/// Number of columns of the narrow table.
const NARROW_COLUMNS: usize = 9;

fn text(page: &Page<Instance>, shape: &Shape) -> String {
    let now = Timestamp::now();
    let headers: Vec<_> = shape.columns.iter().map(Column::heading).collect();
    let rows = page.items.iter().map(|instance| {
        let mut known = row(instance, now);
        known.extend(wide_row(instance));
        // Only custom columns need it, and it takes longer than the rest of the row.
        let value = LazyCell::new(|| serde_json::to_value(instance).unwrap_or_default());
        let cell = |column: &Column| match column {
            Column::Known(place) => known.get(*place).cloned().unwrap_or_default(),
            Column::Path(_, path) => escape(&columns::cell(path.of(&value))),
        };
        shape.columns.iter().map(cell).collect()
    });
    // `-o name` has no heading, for scripts.
    let headers = match headers.as_slice() {
        ["NAME"] => &[],
        headers if shape.headers => headers,
        _ => &[],
    };
    table(headers, rows.collect())
}

/// The columns of the wide table.
fn wide_row(instance: &Instance) -> [String; 4] {
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

/// The primary address.
fn address_to_show(instance: &Instance) -> Option<&InstanceAddress> {
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
    let address = address_to_show(instance);
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

/// Maximum number of named guests in a note about an unreachable node.
const NAMED_MAX: usize = 3;

/// Notes below the table.
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
                "note: {} has changes that take effect at its next start: {}",
                instance.name,
                fields(pending).join(", ")
            ));
        }
    }
    let starred = |instance: &Instance| {
        address_to_show(instance).is_some_and(|address| address.source == AddressSource::Observed)
    };
    if page.items.iter().any(starred) {
        notes.push("note: * marks addresses that were observed, not assigned by waifud".to_owned());
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
        .take(NAMED_MAX)
        .filter_map(|guest| {
            let state = guest.status.last_state?;
            Some(format!("{} last seen {state}", guest.name))
        })
        .collect();
    if guests.len() > NAMED_MAX {
        seen.push(format!("{} more", guests.len() - NAMED_MAX));
    }
    format!("note: {node} is unreachable{last} ({})", seen.join(", "))
}
