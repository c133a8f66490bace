//! Converts between descriptions and requests.

use std::path::{Path, PathBuf};

use waifud_api::{CreateInstance, Publish, SetFirewall};
use waifud_types::Secret;
use waifud_types::firewall::{FirewallPeer, PortRange};
use waifud_types::spec::{PlacementSpec, SpreadSpec};

use super::{Description, DiskDescription, PlacementDescription, Size, SpreadDescription, nics};
use crate::failure::Failure;
use crate::{keys, network_args, user_data};

/// The origin of a description.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The text.
    pub text: &'a str,
    /// The directory that relative paths start at.
    pub base: &'a Path,
}

/// Converts a description into a request. Every field of a request has a field in the description.
pub fn request(wanted: Description, source: Source<'_>) -> Result<CreateInstance, Failure> {
    let user_data = user_data_of(&wanted, source)?;
    let Some(template) = wanted.template else {
        return Err(
            Failure::input("no-template", "the description does not name a template")
                .field("template")
                .hint("set the template, for example template: debian-12; waifuctl template list shows the existing templates"),
        );
    };
    let disk = only(wanted.disks, "disks")?;
    if disk
        .name
        .as_ref()
        .is_some_and(|name| name.as_str() != "root")
    {
        return Err(
            Failure::input("invalid-disk", "the first disk must be named root")
                .field("disks[0].name")
                .hint("omit the name"),
        );
    }
    let (mac, nics) = nics::to_request(wanted.nics);
    let ssh_keys = match wanted.ssh_keys {
        None => keys::own(),
        Some(named) => keys::named_from(source.base, "ssh_keys", &named)?,
    };
    let placement = wanted.placement.unwrap_or_default();
    Ok(CreateInstance {
        name: wanted.name,
        labels: wanted.labels,
        template,
        cpus: wanted.cpus,
        memory_bytes: wanted.memory.map(|size| size.0),
        disk_bytes: disk.size.map(|size| size.0),
        pool: disk.pool,
        user_data,
        ssh_keys,
        run: wanted.run,
        restart: wanted.restart.unwrap_or_default(),
        priority: wanted.priority.unwrap_or_default(),
        protected: wanted.protected.unwrap_or_default(),
        mac,
        nics,
        publish: publish(&wanted.publish)?,
        firewall: firewall(wanted.firewall.unwrap_or_default()),
        placement: PlacementSpec {
            node: placement.node,
            require: placement.require,
            spread: placement.spread.map(|spread| SpreadSpec {
                group: spread.group,
                strict: spread.strict,
            }),
            near: placement.near,
        },
    })
}

/// Parses ports like `create --publish`, sorted like in waifud.
fn publish(wanted: &[String]) -> Result<Vec<Publish>, Failure> {
    let mut ports = Vec::with_capacity(wanted.len());
    for (index, text) in wanted.iter().enumerate() {
        let port = network_args::port(text).map_err(|error| {
            Failure::input("invalid-port", error)
                .field(&format!("publish[{index}]"))
                .hint("write ports in quotes, for example \"8080:80\": YAML parses some unquoted ports as numbers")
        })?;
        ports.push(Publish {
            guest_port: port.guest_port.or(Some(port.port)),
            ..port
        });
    }
    ports.sort_by_key(|port| (port.port, port.guest_port, port.protocol));
    Ok(ports)
}

/// Writes ports and peers as waifud does, so that descriptions can be compared. waifud refuses those that are invalid.
fn firewall(mut wanted: SetFirewall) -> SetFirewall {
    for rule in &mut wanted.rules {
        let ports: Result<Vec<PortRange>, _> = rule.ports.iter().map(|text| text.parse()).collect();
        if let Ok(ports) = ports {
            let ports = PortRange::merged(ports);
            rule.ports = ports.iter().map(ToString::to_string).collect();
        }
        if let Some(Ok(peer)) = rule.peer.as_deref().map(str::parse::<FirewallPeer>) {
            rule.peer = Some(peer.to_string());
        }
    }
    wanted
}

fn only<T: Default>(mut all: Vec<T>, field: &str) -> Result<T, Failure> {
    if all.len() > 1 {
        return Err(Failure::input(
            "too-many",
            format!("currently only one of {field} is supported"),
        )
        .field(&format!("{field}[1]"))
        .hint("omit the others"));
    }
    Ok(all.pop().unwrap_or_default())
}

fn user_data_of(
    wanted: &Description,
    source: Source<'_>,
) -> Result<Option<Secret<String>>, Failure> {
    match (
        &wanted.user_data,
        &wanted.user_data_file,
        &wanted.cloud_config,
    ) {
        (None, None, None) => Ok(None),
        (Some(text), None, None) => Ok(Some(Secret::new(text.clone()))),
        (None, Some(path), None) => {
            user_data::read_as(&source.base.join(path), "user_data_file").map(Some)
        }
        (None, None, Some(config)) if config.value.is_object() => {
            Ok(Some(Secret::new(config.render(source.text))))
        }
        (None, None, Some(_)) => Err(Failure::input(
            "invalid-cloud-config",
            "cloud_config is not a mapping",
        )
        .field("cloud_config")
        .hint("indent its keys below it, or write the complete text as user_data: |")),
        _ => Err(
            Failure::input("user-data-twice", "user-data is given more than once")
                .field("user_data")
                .hint("keep one of user_data, user_data_file and cloud_config"),
        ),
    }
}

/// Converts a request into a description.
pub fn from_request(request: CreateInstance) -> Description {
    let CreateInstance {
        name,
        labels,
        template,
        cpus,
        memory_bytes,
        disk_bytes,
        pool,
        user_data,
        ssh_keys,
        run,
        restart,
        priority,
        protected,
        mac,
        nics,
        publish,
        firewall,
        placement,
    } = request;
    let disk = DiskDescription {
        name: None,
        size: disk_bytes.map(Size),
        pool,
    };
    let placement = PlacementDescription {
        node: placement.node,
        require: placement.require,
        spread: placement.spread.map(|spread| SpreadDescription {
            group: spread.group,
            strict: spread.strict,
        }),
        near: placement.near,
    };
    Description {
        name,
        template: Some(template),
        labels,
        cpus,
        memory: memory_bytes.map(Size),
        disks: some(disk).into_iter().collect(),
        nics: nics::of_request(&nics, mac),
        publish: publish.iter().map(network_args::port_text).collect(),
        firewall: some(firewall),
        ssh_keys: Some(ssh_keys),
        user_data: user_data.map(Secret::into_inner),
        user_data_file: None::<PathBuf>,
        cloud_config: None,
        run,
        restart: Some(restart),
        priority: Some(priority),
        protected: Some(protected),
        placement: some(placement),
    }
}

fn some<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}
