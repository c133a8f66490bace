//! The layers of our crates: each depends only on crates of lower layers.
//!
//! ```text
//! programs   >   services   >   adapters   >   contracts   >   core
//! ```
//!
//! Services may depend on adapter crates for their traits, but must not enable the features that access the outside.
//! Tests may use anything (`dev-dependencies` are not checked). So may tools, which the product does not use.

use anyhow::Result;

use super::metadata::{Dependency, Package, workspace};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Core,
    Contract,
    Adapter,
    Service,
    Program,
    Tool,
}

/// Every crate of the workspace. The lint reports crates that are missing here.
const LAYERS: &[(&str, Layer)] = &[
    ("waifud", Layer::Program),
    ("waifuctl", Layer::Program),
    ("waifud-agentd", Layer::Program),
    ("waifud-metadatad", Layer::Program),
    ("waifud-control", Layer::Service),
    ("waifud-agent", Layer::Service),
    ("waifud-metadata", Layer::Service),
    ("waifud-sim", Layer::Service),
    ("waifud-hypervisor", Layer::Adapter),
    ("waifud-storage", Layer::Adapter),
    ("waifud-network", Layer::Adapter),
    ("waifud-wireguard", Layer::Adapter),
    ("waifud-redis", Layer::Adapter),
    ("waifud-api", Layer::Contract),
    ("waifud-store", Layer::Contract),
    ("waifud-cloudinit", Layer::Contract),
    ("waifud-pki", Layer::Contract),
    ("waifud-types", Layer::Core),
    ("waifud-kit", Layer::Core),
    ("waifud-images", Layer::Tool),
    ("waifud-lab", Layer::Tool),
    ("waifud-tests", Layer::Tool),
    ("xtask", Layer::Tool),
];

/// Allowed dependencies within one layer, each with its reason.
const SIDEWAYS: &[(&str, &str)] = &[
    // `Digest::of`, and sizes of filesystems as `DiskSpace`.
    ("waifud-types", "waifud-kit"),
    // Rows hold wire types: one shape, not two that must be kept alike.
    ("waifud-store", "waifud-api"),
    // A whole cluster in one process.
    ("waifud-sim", "waifud-control"),
    ("waifud-sim", "waifud-agent"),
    ("waifud-sim", "waifud-metadata"),
];

/// External crates that only one of our crates may use.
const ONLY: &[(&str, &str)] = &[
    ("rusqlite", "waifud-store"),
    ("virt", "waifud-hypervisor"),
    ("virt-sys", "waifud-hypervisor"),
    ("redis", "waifud-redis"),
];

/// Our crates that xtask may use. It must build fast and without libvirt's headers.
const XTASK: &[&str] = &["waifud-images", "waifud-lab"];

/// Features of adapters that do not access the outside. Services may enable them.
const ALLOWED_FEATURES: &[&str] = &["fake", "conformance", "testing"];

pub fn check() -> Result<()> {
    super::none_of(&findings(&workspace()?.packages))
}

fn layer(name: &str) -> Option<Layer> {
    LAYERS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, layer)| *layer)
}

fn findings(packages: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    for package in packages {
        let from = &package.name;
        let Some(layer_of_package) = layer(from) else {
            findings.push(format!(
                "{from} has no layer: add it to xtask/src/lint/arrows.rs"
            ));
            continue;
        };
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
        {
            let to = &dependency.name;
            if let Some((_, only)) = ONLY.iter().find(|(name, _)| name == to)
                && only != from
            {
                findings.push(format!("{from} -> {to}: only {only} may use it"));
            }
            if from == "xtask" && layer(to).is_some() && !XTASK.contains(&to.as_str()) {
                findings.push(format!("{from} -> {to}: xtask may not use this crate"));
            }
            if let Some(below) = layer(to) {
                let sideways = SIDEWAYS.contains(&(from.as_str(), to.as_str()));
                if below >= layer_of_package && layer_of_package != Layer::Tool && !sideways {
                    findings.push(format!("{from} -> {to}: {to} is in layer {below:?}, which is not below {layer_of_package:?}"));
                }
                if layer_of_package == Layer::Service && below == Layer::Adapter {
                    findings.extend(enabled_outside(from, dependency, packages));
                }
            }
        }
    }
    findings
}

/// A finding if a service enables more of an adapter than its traits.
fn enabled_outside(from: &str, dependency: &Dependency, packages: &[Package]) -> Option<String> {
    let adapter = packages
        .iter()
        .find(|package| package.name == dependency.name)?;
    let default = adapter
        .features
        .get("default")
        .filter(|_| dependency.uses_default_features);
    let on: Vec<&str> = dependency
        .features
        .iter()
        .chain(default.into_iter().flatten())
        .map(String::as_str)
        .filter(|feature| !ALLOWED_FEATURES.contains(feature))
        .collect();
    (!on.is_empty()).then(|| {
        format!(
            "{from} -> {} with {}: services use traits only; programs choose adapters",
            adapter.name,
            on.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, &[&str])]) -> Package {
        Package {
            license_file: None,
            manifest_path: "Cargo.toml".into(),
            name: name.into(),
            version: "0.1.0".into(),
            license: None,
            source: None,
            dependencies: dependencies
                .iter()
                .map(|(name, features)| Dependency {
                    name: (*name).into(),
                    kind: None,
                    uses_default_features: true,
                    features: features.iter().map(|&feature| feature.into()).collect(),
                })
                .collect(),
            features: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn dependencies_up_and_sideways_are_found_and_those_down_are_not() {
        let bad = [
            ("waifud-network", "waifud-agent"),
            ("waifud-network", "waifud-storage"),
            ("waifud-types", "waifud-api"),
            ("waifud-kit", "waifud-types"),
            ("waifud-agent", "waifud-metadata"),
            ("waifud", "waifud-agentd"),
            ("waifud", "waifud-lab"),
            ("waifud-agent", "rusqlite"),
            ("waifud-agentd", "virt"),
            ("xtask", "waifud-hypervisor"),
            ("waifud-new", "waifud-types"),
        ];
        for (from, to) in bad {
            assert_eq!(
                findings(&[package(from, &[(to, &[])])]).len(),
                1,
                "{from} -> {to}"
            );
        }
        let good = [
            ("waifud-agentd", "waifud-agent"),
            ("waifud-store", "rusqlite"),
            ("waifud-store", "waifud-api"),
            ("waifud-types", "waifud-kit"),
            ("waifud-tests", "waifud-api"),
            ("xtask", "waifud-lab"),
        ];
        for (from, to) in good {
            assert_eq!(
                findings(&[package(from, &[(to, &[])])]),
                [""; 0],
                "{from} -> {to}"
            );
        }
    }

    #[test]
    fn a_service_must_not_enable_libvirt_directly_or_by_default() {
        let mut hypervisor = package("waifud-hypervisor", &[]);
        let agent = |features| package("waifud-agent", &[("waifud-hypervisor", features)]);
        let count = |agent, hypervisor| findings(&[agent, hypervisor]).len();
        assert_eq!(
            count(agent(&["libvirt"]), package("waifud-hypervisor", &[])),
            1
        );
        assert_eq!(
            count(agent(&["fake"]), package("waifud-hypervisor", &[])),
            0
        );
        hypervisor
            .features
            .insert("default".into(), vec!["libvirt".into()]);
        assert_eq!(count(agent(&[]), hypervisor), 1);
    }
}
