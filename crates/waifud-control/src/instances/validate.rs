//! Validation of a create request, as far as possible without the database.

use std::collections::{BTreeMap, BTreeSet};

use waifud_api::{CreateInstance, Problem, Publish, SetFirewall};
use waifud_cloudinit::{ReportSettings, SshKey, report_settings};
use waifud_types::spec::{InstanceSpec, PublishSpec, UserDataFacts, limits};
use waifud_types::{ByteSize, FirewallSpec, Name, Secret};

use super::defaults;
use crate::instances::problems as instance_problems;
use crate::network;
use crate::network::nics::{self, WantedNic};
use crate::problems;

/// The maximum number of SSH keys of one instance.
pub const SSH_KEYS_MAX: usize = 256;
/// The maximum number of labels of one instance.
pub const LABELS_MAX: usize = 64;

/// A validated request.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The request, for the parts that are used as they are. Its user-data has been moved out.
    pub request: CreateInstance,
    /// The name; `None` to generate one.
    pub name: Option<Name>,
    /// The template's name.
    pub template: Name,
    /// The number of CPUs.
    pub cpus: u32,
    /// The memory.
    pub memory: ByteSize,
    /// The pool of the root disk.
    pub pool: Name,
    /// The user-data.
    pub user_data: Option<CheckedUserData>,
    /// The SSH public keys.
    pub ssh_keys: Vec<String>,
    /// The nics, at least one.
    pub nics: Vec<WantedNic>,
    /// The ports of its node to publish.
    pub publish: Vec<PublishSpec>,
    /// The firewall.
    pub firewall: FirewallSpec,
}

/// Checks a request.
pub fn create(mut request: CreateInstance) -> Result<Checked, Problem> {
    let name = request.name.as_deref().map(instance_name).transpose()?;
    let template = request
        .template
        .parse()
        .map_err(|_| instance_problems::unknown_template(&request.template))?;
    let pool = name_or(
        "spec.disks[0].pool",
        request.pool.as_deref(),
        defaults::POOL,
    )?;
    let cpus = request.cpus.unwrap_or(defaults::SIZE.cpus);
    if !(1..=limits::CPUS_MAX).contains(&cpus) {
        return Err(problems::out_of_range(
            "spec.cpus",
            "the number of CPUs",
            1,
            limits::CPUS_MAX,
        ));
    }
    let memory = request.memory_bytes.unwrap_or(defaults::SIZE.memory_bytes);
    if !(limits::MEMORY_MIN..=limits::MEMORY_MAX).contains(&memory) {
        return Err(problems::out_of_range(
            "spec.memory_bytes",
            "the memory",
            limits::MEMORY_MIN,
            limits::MEMORY_MAX,
        ));
    }
    if let Some(disk) = request.disk_bytes
        && !(limits::DISK_MIN..=limits::DISK_MAX).contains(&disk)
    {
        return Err(problems::out_of_range(
            "spec.disks[0].size_bytes",
            "the disk's size",
            limits::DISK_MIN,
            limits::DISK_MAX,
        ));
    }
    labels("labels", &request.labels)?;
    labels("spec.placement.require", &request.placement.require)?;
    Ok(Checked {
        name,
        template,
        cpus,
        memory,
        pool,
        user_data: request.user_data.take().map(user_data).transpose()?,
        ssh_keys: ssh_keys(&request.ssh_keys)?,
        nics: nics::check(&request.nics, request.mac)?,
        publish: network::publish(&request.publish)?,
        firewall: network::firewall::rules(&request.firewall)?,
        request,
    })
}

/// A valid name for an instance, which must not have the form of an id.
pub fn instance_name(text: &str) -> Result<Name, Problem> {
    let name = name("name", text)?;
    if name.as_str().parse::<waifud_types::InstanceId>().is_ok() {
        return Err(instance_problems::name_like_id());
    }
    Ok(name)
}

fn name(field: &str, text: &str) -> Result<Name, Problem> {
    text.parse().map_err(|e| problems::bad_name(field, &e))
}

fn name_or(field: &str, text: Option<&str>, default: &str) -> Result<Name, Problem> {
    name(field, text.unwrap_or(default))
}

/// Checks a spec from a node's record, which may contain anything. The error names the invalid part.
pub fn given_spec(spec: &InstanceSpec) -> Result<(), &'static str> {
    let sizes = limits::DISK_MIN..=limits::DISK_MAX;
    let mut disks = spec.disks.iter();
    let publish = spec.publish.iter().map(|to| Publish {
        port: to.port,
        guest_port: Some(to.guest_port),
        protocol: to.protocol,
    });
    let publish: Vec<_> = publish.collect();
    let (disk_names, nic_names): (BTreeSet<_>, BTreeSet<_>) = (
        spec.disks.iter().map(|disk| &disk.name).collect(),
        spec.nics.iter().map(|nic| &nic.name).collect(),
    );
    let nic_numbers = spec.numbered_nics().map(|(number, _)| number);
    let nic_numbers: BTreeSet<_> = nic_numbers.collect();
    let checks = [
        (
            (1..=limits::CPUS_MAX).contains(&spec.cpus),
            "number of CPUs",
        ),
        (
            (limits::MEMORY_MIN..=limits::MEMORY_MAX).contains(&spec.memory_bytes),
            "amount of memory",
        ),
        (
            !spec.disks.is_empty()
                && disk_names.len() == spec.disks.len()
                && disks.all(|disk| sizes.contains(&disk.size_bytes)),
            "disks",
        ),
        (
            (1..=nics::NICS_MAX).contains(&spec.nics.len())
                && nic_names.len() == spec.nics.len()
                && nic_numbers.len() == spec.nics.len(),
            "nics",
        ),
        (network::publish(&publish).is_ok(), "published ports"),
        (
            network::firewall::rules(&SetFirewall::from(&spec.firewall)).is_ok()
                && network::firewall::check_nics(spec).is_ok(),
            "firewall",
        ),
        (
            labels("require", &spec.placement.require).is_ok(),
            "required labels",
        ),
    ];
    match checks.into_iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(what),
        None => Ok(()),
    }
}

/// User-data that a guest can use.
#[derive(Clone, Debug)]
pub struct CheckedUserData {
    /// The text.
    pub text: Secret<String>,
    /// The facts about it that may be shown; `None` if it is empty.
    pub facts: Option<UserDataFacts>,
}

/// Checks user-data. This parses it, which takes time in proportion to its size: not in a write transaction, which all
/// others wait for.
pub fn user_data(text: Secret<String>) -> Result<CheckedUserData, Problem> {
    let settings =
        report_settings(text.expose()).map_err(|e| instance_problems::bad_user_data(&e))?;
    let facts = user_data_facts(text.expose(), settings);
    Ok(CheckedUserData { text, facts })
}

/// The facts about user-data from a node's record, which waifud checked when it sent it.
pub fn recorded_user_data_facts(text: &Secret<String>) -> Option<UserDataFacts> {
    let settings = report_settings(text.expose()).unwrap_or_default();
    user_data_facts(text.expose(), settings)
}

fn user_data_facts(text: &str, settings: ReportSettings) -> Option<UserDataFacts> {
    (!text.is_empty()).then(|| UserDataFacts {
        size_bytes: text.len() as u64,
        sha256: waifud_types::Digest::of(text.as_bytes()),
        unreported: settings.unreported,
        replaces_final_message: settings.replaces_final_message,
    })
}

/// Checks public keys.
pub fn ssh_keys(lines: &[String]) -> Result<Vec<String>, Problem> {
    if lines.len() > SSH_KEYS_MAX {
        return Err(problems::too_many("ssh_keys", SSH_KEYS_MAX));
    }
    lines
        .iter()
        .enumerate()
        .map(|(index, line)| {
            line.parse::<SshKey>()
                .map(|key| key.as_str().to_owned())
                .map_err(|e| instance_problems::bad_ssh_key(index, e))
        })
        .collect()
}

/// Checks the labels that a change sets; those that it removes may be anything.
pub fn changed_labels(changes: &BTreeMap<String, Option<String>>) -> Result<(), Problem> {
    let set = changes
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
    labels("labels", &set.collect())
}

/// Checks labels.
pub fn labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    if labels.len() > LABELS_MAX {
        return Err(problems::too_many(field, LABELS_MAX));
    }
    let key_char = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    for (key, value) in labels {
        let good_key = (1..=63).contains(&key.len()) && key.chars().all(key_char);
        let good_value = value.chars().count() <= 255 && !value.chars().any(char::is_control);
        if !good_key || !good_value {
            return Err(problems::bad_label(key).field(format!(
                "{field}.{}",
                key.chars().take(80).collect::<String>()
            )));
        }
    }
    Ok(())
}
