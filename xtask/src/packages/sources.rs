//! A source for backports on a machine that has none configured, derived from its own sources. It uses no other host.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A temporary directory for apt with the machine's own sources and one more entry.
pub struct WithBackports {
    dir: tempfile::TempDir,
}

impl WithBackports {
    /// Adds the backports of the release with this code name.
    ///
    /// # Errors
    /// None of the machine's sources has the release's `main` component.
    pub fn new(codename: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("waifud-apt-").tempdir()?;
        // apt reads sources as its own unprivileged user.
        fs::set_permissions(
            dir.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let mut found = None;
        for path in files(Path::new("/etc/apt")) {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_name().context("no name")?;
            fs::write(dir.path().join(name), &text)?;
            found = found.or_else(|| backports_entry(&path, &text, codename));
        }
        let (extension, entry) = found.with_context(|| {
            format!(
                "no apt source of this machine has {codename} main, from which the source of its backports could be derived"
            )
        })?;
        fs::write(
            dir.path().join(format!("waifud-backports.{extension}")),
            entry,
        )?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn files(etc: &Path) -> Vec<PathBuf> {
    let parts = fs::read_dir(etc.join("sources.list.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut files: Vec<_> = parts
        .chain([etc.join("sources.list")])
        .filter(|path| {
            path.is_file()
                && path
                    .extension()
                    .is_some_and(|kind| kind == "list" || kind == "sources")
        })
        .collect();
    files.sort();
    files
}

/// An entry for `CODENAME-backports`, derived from the one for `CODENAME` in this file, and the extension of its file.
fn backports_entry(path: &Path, text: &str, codename: &str) -> Option<(&'static str, String)> {
    if path.extension().is_some_and(|kind| kind == "sources") {
        text.split("\n\n")
            .find_map(|stanza| deb822(stanza, codename))
            .map(|entry| ("sources", entry))
    } else {
        text.lines()
            .find_map(|line| one_line(line, codename))
            .map(|entry| ("list", entry))
    }
}

fn deb822(stanza: &str, codename: &str) -> Option<String> {
    let field = |name: &str| {
        let lines = stanza.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    };
    let has = |name: &str, word: &str| {
        field(name).is_some_and(|value| value.split_whitespace().any(|part| part == word))
    };
    let on = field("Enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
    if !(on && has("Types", "deb") && has("Suites", codename) && has("Components", "main")) {
        return None;
    }
    let uri = field("URIs")?.split_whitespace().next()?;
    let mut entry =
        format!("Types: deb\nURIs: {uri}\nSuites: {codename}-backports\nComponents: main\n");
    // A key that is embedded over several lines is not copied. apt then uses its trusted keys.
    if let Some(key) = field("Signed-By").filter(|key| key.starts_with('/')) {
        entry.push_str("Signed-By: ");
        entry.push_str(key);
        entry.push('\n');
    }
    Some(entry)
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line(line: &str, codename: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest
            .split_once(']')
            .map(|(options, rest)| (format!("[{options}] "), rest))?,
        None => (String::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (suite == codename && words.any(|word| word == "main"))
        .then(|| format!("deb {options}{uri} {codename}-backports main\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deb822_stanza_gives_its_mirror_and_key() {
        let text = "Types: deb\nURIs: http://mirror.invalid/security\nSuites: bookworm-security\nComponents: main\n\n\
                    Types: deb\n# a comment: with a colon\nURIs: http://mirror.invalid/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/k.gpg\n";
        let (extension, entry) =
            backports_entry(Path::new("debian.sources"), text, "bookworm").unwrap();
        assert_eq!(extension, "sources");
        assert_eq!(
            entry,
            "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm-backports\nComponents: main\n\
             Signed-By: /usr/share/keyrings/k.gpg\n"
        );
    }

    #[test]
    fn a_line_keeps_its_options_and_others_are_passed_over() {
        let text = "# deb http://a bookworm main\ndeb-src http://b bookworm main\n\
                    deb [arch=amd64 signed-by=/k] http://c bookworm contrib main\n";
        let (extension, entry) =
            backports_entry(Path::new("sources.list"), text, "bookworm").unwrap();
        assert_eq!(
            (extension, entry.as_str()),
            (
                "list",
                "deb [arch=amd64 signed-by=/k] http://c bookworm-backports main\n"
            )
        );
        assert!(backports_entry(Path::new("sources.list"), text, "trixie").is_none());
    }
}
