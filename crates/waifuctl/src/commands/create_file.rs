//! `waifuctl create -f`: all descriptions are validated before the first instance is created. Existing instances that
//! match their description are not changed.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use waifud_api::{CreateInstance, CreateNic, DryRun, Instance, SetFirewallRule};
use waifud_types::{InstanceId, Name};

use super::create::{placement, placement_trace, summary, warn_if_unreported};
use crate::cli::CreateArgs;
use crate::context::Context;
use crate::description::{self, Description, Document, Source};
use crate::failure::Failure;
use crate::text::escape;
use crate::{keys, labels, network_args, user_data, wait};

/// Maximum size of a file; user-data can have 1 MiB per instance.
const FILE_MAX: u64 = 16 << 20;

/// The output with `--json`.
#[derive(Serialize)]
struct Created {
    items: Vec<Instance>,
}

/// A validated description.
struct Checked {
    /// The instance's name or the description's number, for messages.
    label: String,
    request: CreateInstance,
    /// The existing instance, if it matches the description.
    existing: Option<Instance>,
    /// Where the instance would be placed now, without the others of the file.
    placement: Option<DryRun>,
}

/// Creates the instances in a file.
pub async fn run(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let Some(path) = args.file.clone() else {
        return Ok(());
    };
    let text = read(&path)?;
    let shown = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let (wait, timeout) = (args.wait, args.timeout);
    let documents = overridden(description::parse(&shown, &text)?, &args)?;
    let source = Source {
        text: &text,
        base: &base,
    };
    let described: BTreeSet<_> = documents
        .iter()
        .filter_map(|document| document.description.name.clone())
        .collect();
    let mut checked = Vec::new();
    for document in documents {
        checked.push(check(context, document, source, &described).await?);
    }
    names_are_unique(&checked)?;
    let checked = in_order(checked)?;
    if args.dry_run {
        return print_checked(context, &checked);
    }
    let mut created = Vec::new();
    let names: Vec<_> = checked.iter().map(Checked::name).collect();
    for (index, one) in checked.into_iter().enumerate() {
        let name = one.name();
        match create(context, one).await {
            Ok(instance) => created.push(instance),
            Err(failure) => {
                print(context, &created)?;
                let not_created = names.get(index..).unwrap_or_default();
                return Err(with_created(failure.about(&name), &created, not_created));
            }
        }
    }
    if wait {
        created = wait_for_all(context, created, timeout).await?;
    }
    print(context, &created)
}

/// `--dry-run`: prints what would be created.
fn print_checked(context: &Context, checked: &[Checked]) -> Result<(), Failure> {
    let items: Vec<_> = checked
        .iter()
        .map(|one| {
            let action = if one.existing.is_some() {
                "none"
            } else {
                "create"
            };
            serde_json::json!({
                "name": one.request.name, "template": one.request.template, "action": action,
                "placement": one.placement})
        })
        .collect();
    let shown = serde_json::json!({"dry_run": true, "download_first": null, "items": items});
    context.printer.print(&shown, || {
        let line = |one: &Checked| match &one.existing {
            Some(_) => format!(
                "{}: exists and matches the description (dry run)",
                one.name()
            ),
            None => format!(
                "{}: would be created from {} (dry run){}",
                one.name(),
                escape(&one.request.template),
                placement_trace(one.placement.as_ref())
            ),
        };
        checked.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

impl Checked {
    fn is_named(&self, name: &str) -> bool {
        self.request.name.as_deref() == Some(name)
    }

    fn name(&self) -> String {
        match &self.request.name {
            Some(name) => name.clone(),
            None => self.label.clone(),
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let unreadable = |e: std::io::Error| {
        Failure::input("file-unreadable", format!("cannot read {}", path.display()))
            .field("--file")
            .cause(&e)
            .hint("check the path; - reads standard input")
    };
    let mut text = String::new();
    let stream: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(unreadable)?)
    };
    stream
        .take(FILE_MAX + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > FILE_MAX {
        return Err(
            Failure::input("file-too-long", "the file exceeds the limit of 16 MiB")
                .field("--file")
                .hint("use user_data_file for large user-data"),
        );
    }
    Ok(text)
}

/// Options override a file with one description and are refused with several.
fn overridden(mut documents: Vec<Document>, args: &CreateArgs) -> Result<Vec<Document>, Failure> {
    let several = documents.len() > 1;
    for document in &mut documents {
        let before = document.description.clone();
        apply(&mut document.description, args)?;
        if several && document.description != before {
            return Err(Failure::input(
                "options-with-several-descriptions",
                "options can override only a file with one description; this file has several",
            )
            .field("--file")
            .hint("edit the file instead"));
        }
    }
    Ok(documents)
}

fn apply(to: &mut Description, args: &CreateArgs) -> Result<(), Failure> {
    fn set<T>(field: &mut Option<T>, value: Option<T>) {
        if value.is_some() {
            *field = value;
        }
    }
    let options = &args.options;
    set(&mut to.name, args.name.clone());
    set(&mut to.template, args.template.clone());
    set(&mut to.cpus, args.cpus);
    set(&mut to.memory, args.memory.map(description::Size));
    set(&mut to.run, options.no_start.then_some(false));
    set(&mut to.restart, options.restart);
    set(&mut to.priority, options.priority);
    set(&mut to.protected, options.protect.then_some(true));
    to.labels.extend(labels::pairs("--label", &args.label)?);
    if args.disk.is_some() || args.pool.is_some() {
        to.disks
            .resize_with(to.disks.len().max(1), Default::default);
        if let Some(disk) = to.disks.first_mut() {
            set(&mut disk.size, args.disk.map(description::Size));
            set(&mut disk.pool, args.pool.clone());
        }
    }
    if !args.network.is_empty() {
        to.nics = args.network.iter().map(description::nic).collect();
    }
    allow(to, &options.allow_address)?;
    if !args.publish.is_empty() {
        to.publish = args.publish.iter().map(network_args::port_text).collect();
    }
    if options.mac.is_some() {
        to.nics.resize_with(to.nics.len().max(1), Default::default);
        if let Some(nic) = to.nics.first_mut() {
            set(&mut nic.mac, options.mac);
        }
    }
    if let Some(path) = &args.user_data {
        to.user_data = Some(user_data::read(path)?.into_inner());
        to.user_data_file = None;
        to.cloud_config = None;
    }
    if args.no_ssh_key {
        to.ssh_keys = Some(Vec::new());
    } else if !args.ssh_key.is_empty() {
        to.ssh_keys = Some(keys::named(&args.ssh_key)?);
    }
    let requested = placement(options)?;
    if requested != waifud_types::spec::PlacementSpec::default() {
        let have = to.placement.get_or_insert_default();
        set(&mut have.node, requested.node);
        have.require.extend(requested.require);
        let spread = requested
            .spread
            .map(|spread| description::SpreadDescription {
                group: spread.group,
                strict: spread.strict,
            });
        set(&mut have.spread, spread);
        set(&mut have.near, requested.near);
    }
    Ok(())
}

/// Adds the addresses of `--allow-address` to those in the description.
fn allow(to: &mut Description, addresses: &[String]) -> Result<(), Failure> {
    if addresses.is_empty() {
        return Ok(());
    }
    let described = to.nics.iter().map(|nic| CreateNic {
        network: nic.network.clone(),
        ..CreateNic::default()
    });
    let allowed = network_args::allow(described.collect(), addresses)?;
    to.nics.resize_with(allowed.len(), Default::default);
    for (nic, more) in to.nics.iter_mut().zip(allowed) {
        nic.allow_addresses.extend(more.allow_addresses);
    }
    Ok(())
}

async fn check(
    context: &Context,
    document: Document,
    source: Source<'_>,
    described: &BTreeSet<String>,
) -> Result<Checked, Failure> {
    let Document { description, label } = document;
    let written = description.clone();
    let request =
        description::request(description, source).map_err(|failure| failure.about(&label))?;
    let mut alone = request.clone();
    // An instance of this file is created before those that should be near it, or whose rules name it.
    let is_described =
        |name: &str| described.contains(name) && request.name.as_deref() != Some(name);
    alone.placement.near = alone
        .placement
        .near
        .filter(|near| !is_described(near.as_str()));
    let rules = &mut alone.firewall.rules;
    rules.retain(|rule| !instance_of(rule).is_some_and(is_described));
    let (existing, placement) = match context.client.check_instance(&alone).await {
        Ok(placement) => (None, placement),
        Err(error) => {
            let taken = error.problem().is_some_and(|p| p.code == "name-taken");
            match request.name.as_deref().filter(|_| taken) {
                Some(name) => {
                    let existing =
                        existing_if_unchanged(context, name, &written, &request, &label).await?;
                    (Some(existing), None)
                }
                None => return Err(Failure::from(error).about(&label)),
            }
        }
    };
    Ok(Checked {
        label,
        request,
        existing,
        placement,
    })
}

/// The instance that a firewall rule names.
fn instance_of(rule: &SetFirewallRule) -> Option<&str> {
    rule.peer.as_deref()?.strip_prefix("instance:")
}

/// The instances that have to exist before this one is created.
fn needed(request: &CreateInstance) -> impl Iterator<Item = &str> {
    let near = request.placement.near.as_ref().map(Name::as_str);
    near.into_iter()
        .chain(request.firewall.rules.iter().filter_map(instance_of))
}

/// The descriptions in their order, except that an instance comes before those that should be near it, or whose rules name it.
fn in_order(mut waiting: Vec<Checked>) -> Result<Vec<Checked>, Failure> {
    let mut ordered = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let is_waiting = |name: &str| {
            let mut others = waiting.iter();
            others.any(|other| other.existing.is_none() && other.is_named(name))
        };
        let next = waiting
            .iter()
            .position(|one| one.existing.is_some() || !needed(&one.request).any(is_waiting));
        let Some(next) = next else {
            let names: Vec<_> = waiting.iter().map(Checked::name).collect();
            return Err(Failure::input(
                "near-each-other",
                format!(
                    "each of {} names another one that does not exist yet, in near or in firewall rules",
                    names.join(", ")
                ),
            )
            .field("placement.near")
            .hint("remove that from one of them; waifuctl edit --spec can add it when all exist"));
        };
        ordered.push(waiting.remove(next));
    }
    Ok(ordered)
}

/// Returns the existing instance of that name if it matches the description.
async fn existing_if_unchanged(
    context: &Context,
    name: &str,
    written: &Description,
    wanted: &CreateInstance,
    label: &str,
) -> Result<Instance, Failure> {
    let (have, _) = context.client.description(name).await?;
    let differs = description::differs(written, wanted, &have);
    if differs.is_empty() {
        return Ok(context.client.instance(name).await?);
    }
    Err(Failure::input(
        "exists-with-differences",
        format!(
            "{label}: {name} exists and differs in {}",
            differs.join(", ")
        ),
    )
    .field(differs.first().copied().unwrap_or("name"))
    .hint(format!(
        "change it with waifuctl edit {name} --spec, or first run waifuctl delete {name}"
    )))
}

fn names_are_unique(checked: &[Checked]) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for one in checked {
        if let Some(name) = &one.request.name
            && !seen.insert(name)
        {
            return Err(Failure::input(
                "duplicate-name",
                format!("two descriptions have the name {name}"),
            )
            .field("name")
            .hint("give each instance its own name"));
        }
    }
    Ok(())
}

async fn create(context: &Context, one: Checked) -> Result<Instance, Failure> {
    if let Some(instance) = one.existing {
        context.printer.note(&format!(
            "{}: exists and matches the description",
            instance.name
        ));
        return Ok(instance);
    }
    let key = InstanceId::generate().to_string();
    let instance = context.client.create_instance(&one.request, &key).await?;
    warn_if_unreported(context, &instance);
    Ok(instance)
}

/// Adds to a failure which instances were created and which were not.
fn with_created(failure: Failure, created: &[Instance], not_created: &[String]) -> Failure {
    let created: Vec<_> = created.iter().map(|i| i.name.to_string()).collect();
    let created = if created.is_empty() {
        "none".to_owned()
    } else {
        created.join(", ")
    };
    failure.detail(format!(
        "created: {created}; not created: {}",
        not_created.join(", ")
    ))
}

/// Waits for each instance in turn, with one deadline.
async fn wait_for_all(
    context: &Context,
    created: Vec<Instance>,
    timeout: std::time::Duration,
) -> Result<Vec<Instance>, Failure> {
    let deadline = Instant::now() + timeout;
    let names: Vec<_> = created.iter().map(|i| i.name.to_string()).collect();
    let several = created.len() > 1;
    let waiting = async {
        let mut ready = Vec::new();
        for instance in created {
            if several {
                context.printer.note(&format!("{}:", instance.name));
            }
            if !instance.spec.run {
                ready.push(instance);
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ready.push(wait::until_ready(context, instance, left).await?);
        }
        Ok(ready)
    };
    Box::pin(wait::or_detach(waiting, &names.join(", "))).await
}

fn print(context: &Context, created: &[Instance]) -> Result<(), Failure> {
    if created.is_empty() && !context.printer.is_json() {
        return Ok(());
    }
    let created = Created {
        items: created.to_vec(),
    };
    context.printer.print(&created, || {
        let lines: Vec<_> = created.items.iter().map(summary).collect();
        lines.join("\n")
    })
}
