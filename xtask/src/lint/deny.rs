//! Licenses, banned crates and sources, according to `deny.toml`.
//!
//! Our own check reads the part of cargo-deny's format that we use. It needs no network and no installation, so it runs
//! everywhere. If cargo-deny is installed, it runs too.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::license::satisfied;
use super::metadata::{Package, everything};
use crate::cargo;

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    #[serde(default)]
    deny: Vec<Banned>,
}

#[derive(Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
    /// External crates that may depend on it. Our own crates may not.
    #[serde(default)]
    wrappers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

pub fn check() -> Result<()> {
    let path = cargo::repository().join("deny.toml");
    let text = std::fs::read_to_string(&path).context("cannot read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("cannot parse deny.toml")?;
    super::none_of(&findings(&deny, &everything()?.packages))?;
    if cargo::has_subcommand("deny") {
        cargo::run(cargo::cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    }
    Ok(())
}

fn findings(deny: &Deny, packages: &[Package]) -> Vec<String> {
    let mut findings = Vec::new();
    // Packages of this repository have the repository's license.
    let foreign = packages
        .iter()
        .filter_map(|package| package.source.as_deref().map(|source| (package, source)));
    for (package, source) in foreign {
        let name = format!("{} {}", package.name, package.version);
        let registry = source
            .strip_prefix("registry+")
            .or_else(|| source.strip_prefix("sparse+"));
        if !registry.is_some_and(|url| {
            deny.sources
                .allow_registry
                .iter()
                .any(|allowed| allowed == url)
        }) {
            findings.push(format!(
                "{name} comes from {source}, which deny.toml does not allow"
            ));
        }
        if let Some(banned) = deny
            .bans
            .deny
            .iter()
            .find(|banned| banned.name == package.name)
            .filter(|banned| banned.wrappers.is_empty() || ours_use(packages, &banned.name))
        {
            findings.push(format!("{name} is banned: {}", banned.reason));
        }
        let allowed = |license: &str| {
            let exceptions = deny
                .licenses
                .exceptions
                .iter()
                .filter(|exception| exception.name == package.name);
            deny.licenses
                .allow
                .iter()
                .chain(exceptions.flat_map(|exception| &exception.allow))
                .any(|name| name == license)
        };
        let license = package.license.clone().or_else(|| from_file(package));
        match license
            .as_deref()
            .map(|expression| satisfied(expression, &allowed))
        {
            Some(Ok(true)) => {}
            Some(Ok(false)) => {
                let license = license.unwrap_or_default();
                findings.push(format!(
                    "{name} has license {license}, which deny.toml does not allow"
                ));
            }
            Some(Err(error)) => findings.push(format!("{name}: {error:#}")),
            None => findings.push(format!("{name} has no license")),
        }
    }
    findings
}

/// The license of a package that has a file instead of an expression. Only the text of MIT is recognized, as by
/// cargo-deny.
fn from_file(package: &Package) -> Option<String> {
    let file = package
        .manifest_path
        .parent()?
        .join(package.license_file.as_ref()?);
    let text = std::fs::read_to_string(file).ok()?;
    is_mit(&text).then(|| "MIT".to_owned())
}

/// The MIT license up to its disclaimer.
const GRANT: &str = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software \
    and associated documentation files (the \"Software\"), to deal in the Software without restriction, including \
    without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of \
    the Software, and to permit persons to whom the Software is furnished to do so, subject to the following \
    conditions: The above copyright notice and this permission notice shall be included in all copies or substantial \
    portions of the Software. THE SOFTWARE IS PROVIDED \"AS IS\"";

/// Whether a text has the MIT license's grant and no other conditions before its disclaimer.
fn is_mit(text: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    words(text).contains(&words(GRANT))
}

/// Whether a crate of this repository depends on it directly.
fn ours_use(packages: &[Package], name: &str) -> bool {
    packages
        .iter()
        .filter(|package| package.source.is_none())
        .any(|package| package.dependencies.iter().any(|d| d.name == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_license_file_counts_by_its_text() {
        assert!(is_mit(&format!(
            "Copyright us\n\n{}.\n",
            GRANT.replace(' ', "\n")
        )));
        assert!(!is_mit(&GRANT.replace("free of charge", "for a fee")));
        let without = package(
            "x",
            None,
            "registry+https://github.com/rust-lang/crates.io-index",
        );
        assert_eq!(from_file(&without), None);
    }

    const DENY: &str = r#"
        [licenses]
        allow = ["MIT"]
        exceptions = [{ crate = "virt", allow = ["LGPL-2.1"] }]
        [bans]
        deny = [{ crate = "openssl", reason = "we use rustls" }]
        [sources]
        allow-registry = ["https://registry.invalid/index"]
    "#;

    fn package(name: &str, license: Option<&str>, source: &str) -> Package {
        Package {
            license_file: None,
            manifest_path: "Cargo.toml".into(),
            name: name.into(),
            version: "1.0.0".into(),
            license: license.map(str::to_owned),
            source: Some(source.into()),
            dependencies: Vec::new(),
            features: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn each_kind_of_disallowed_dependency_is_found() {
        let deny: Deny = toml::from_str(DENY).unwrap();
        let good = "registry+https://registry.invalid/index";
        for fine in [
            package("serde", Some("MIT OR Apache-2.0"), good),
            package("virt", Some("LGPL-2.1"), good),
        ] {
            assert_eq!(findings(&deny, &[fine]), [""; 0]);
        }
        for bad in [
            package("a", Some("GPL-3.0"), good),
            package("a", Some("LGPL-2.1"), good),
            package("a", None, good),
            package("a", Some("nonsense AND"), good),
            package("openssl", Some("MIT"), good),
            package("a", Some("MIT"), "git+https://elsewhere.invalid/a"),
            package("a", Some("MIT"), "registry+https://elsewhere.invalid/index"),
        ] {
            assert_eq!(findings(&deny, &[bad]).len(), 1);
        }
    }

    #[test]
    fn our_own_deny_toml_is_understood() {
        let text = std::fs::read_to_string(cargo::repository().join("deny.toml")).unwrap();
        let deny: Deny = toml::from_str(&text).unwrap();
        assert!(deny.licenses.allow.iter().any(|name| name == "MIT"));
    }
}
