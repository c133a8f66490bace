//! Derives apt sources for any Debian release from the machine's sources: the same mirrors with another suite. This
//! program contains no name of a mirror.
//!
//! Formats: sources.list(5), one-line and deb822. Debian's cloud images list their mirrors in a file
//! (`mirror+file:`). Its contents replace the reference, because a guest does not have the file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// The keys of all releases in the host's `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's name of the file in `sources.list.d` for its archive.
pub const FILE: &str = "debian.sources";

/// Names under which a Debian archive serves a release.
const RELEASES: [&str; 9] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The properties of usable sources.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
    trusted: bool,
}

/// A deb822 sources text for `suite` (`bookworm`, `trixie`), from `/etc/apt/sources.list` and `sources.list.d`.
pub fn apt_sources(suite: &str) -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in &files {
        let Ok(text) = fs::read_to_string(file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_one_line(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    derive(sources, suite, &|list| fs::read_to_string(list).ok())
}

/// Fails if the host's keyring is older than `suite`. The error contains the remedy.
pub fn check_keyring(suite: &str) -> Result<()> {
    let known = ["gpg", "pgp"].iter().any(|extension| {
        Path::new("/usr/share/keyrings")
            .join(format!("debian-archive-{suite}-automatic.{extension}"))
            .exists()
    });
    ensure!(
        known,
        "this machine does not have the archive keys of Debian {suite}; run: apt-get install debian-archive-keyring"
    );
    Ok(())
}

fn derive(
    sources: Vec<Source>,
    suite: &str,
    read_list: &dyn Fn(&Path) -> Option<String>,
) -> Result<String> {
    let mut stanzas: Vec<String> = Vec::new();
    for source in sources {
        if !is_debian(&source) {
            continue;
        }
        let mut suites: Vec<String> = source
            .suites
            .iter()
            .filter_map(|old| Some(format!("{suite}{}", pocket(old)?)))
            .collect();
        suites.dedup();
        let uris: Vec<String> = source
            .uris
            .iter()
            .flat_map(|uri| expand(uri, read_list))
            .collect();
        if suites.is_empty() || uris.is_empty() {
            continue;
        }
        let mut stanza = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {KEYRING}\n",
            uris.join(" "),
            suites.join(" ")
        );
        if source.trusted {
            stanza.push_str("Trusted: yes\n");
        }
        if !stanzas.contains(&stanza) {
            stanzas.push(stanza);
        }
    }
    ensure!(
        !stanzas.is_empty(),
        "no source in /etc/apt/sources.list(.d) is a Debian archive (for example suite {suite}, component main); add one to build images"
    );
    Ok(stanzas.join("\n"))
}

/// Archives of other vendors may use Debian's suite names, but have their own keys.
fn is_debian(source: &Source) -> bool {
    let key = source.signed_by.as_deref().map(|path| {
        Path::new(path)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    });
    key.is_none_or(|name| name.starts_with("debian-archive"))
        && source.components.iter().any(|name| name == "main")
}

/// The part of a suite's name after the release; `None` for suites that a guest should not have (backports, proposed
/// updates) and for names that are not Debian releases.
fn pocket(suite: &str) -> Option<&str> {
    let release = RELEASES
        .iter()
        .find(|release| suite.strip_prefix(**release).is_some_and(is_pocket))?;
    suite.strip_prefix(release)
}

fn is_pocket(rest: &str) -> bool {
    matches!(rest, "" | "-updates" | "-security")
}

fn expand(uri: &str, read_list: &dyn Fn(&Path) -> Option<String>) -> Vec<String> {
    let Some(list) = uri.strip_prefix("mirror+file:") else {
        return vec![uri.to_owned()];
    };
    let list = format!("/{}", list.trim_start_matches('/'));
    let text = read_list(Path::new(&list)).unwrap_or_default();
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}

fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(one_line).collect()
}

fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")
        .filter(|rest| rest.starts_with(char::is_whitespace) || rest.starts_with('['))?;
    let mut source = Source::default();
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix('[') {
        None => rest,
        Some(inner) => {
            let (options, rest) = inner.split_once(']')?;
            for option in options.split_whitespace() {
                match option.split_once('=') {
                    Some(("signed-by", path)) => source.signed_by = Some(path.to_owned()),
                    Some(("trusted", "yes")) => source.trusted = true,
                    _ => {}
                }
            }
            rest
        }
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    source.uris.push(words.next()?);
    source.suites.push(words.next()?);
    source.components.extend(words);
    Some(source)
}

fn parse_deb822(text: &str) -> Vec<Source> {
    // Comments are removed first: a comment inside a stanza does not end it.
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter_map(stanza)
        .collect()
}

fn stanza(lines: &[&str]) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with(char::is_whitespace) {
            let (_, value) = fields.last_mut()?;
            value.push(' ');
            value.push_str(line.trim());
        } else {
            let (name, value) = line.split_once(':')?;
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let words = |wanted: &str| -> Vec<String> {
        fields
            .iter()
            .filter(|(name, _)| name == wanted)
            .flat_map(|(_, value)| value.split_whitespace().map(str::to_owned))
            .collect()
    };
    if !words("types").iter().any(|kind| kind == "deb") || words("enabled") == ["no"] {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: Some(words("signed-by").join(" ")).filter(|keys| !keys.is_empty()),
        trusted: words("trusted") == ["yes"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn no_lists(_: &Path) -> Option<String> {
        None
    }

    const DEB822: &str = "\
Types: deb deb-src
# a remark inside of the stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
 bookworm-backports
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
";

    #[test]
    fn deb822_sources_keep_their_mirrors_and_get_the_new_suite() {
        let text = derive(parse_deb822(DEB822), "trixie", &no_lists).unwrap();
        assert_eq!(
            text,
            format!(
                "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\n\
                 Components: main\nSigned-By: {KEYRING}\n\n\
                 Types: deb\nURIs: http://mirror.example/debian-security\nSuites: trixie-security\n\
                 Components: main\nSigned-By: {KEYRING}\n"
            )
        );
    }

    #[test]
    fn one_line_sources_give_the_same_as_deb822() {
        let list = "\
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # why
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm-updates main
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian-security stable-security main
";
        let text = derive(parse_one_line(list), "bookworm", &no_lists).unwrap();
        let suites: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("Suites: "))
            .collect();
        assert_eq!(
            suites,
            ["bookworm", "bookworm-updates", "bookworm-security"]
        );
        assert!(!text.contains("commented"));
    }

    #[test]
    fn archives_of_other_vendors_are_left_out() {
        let list = "\
deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example/ bookworm main
deb http://vendor.example/linux/debian bookworm stable
deb http://vendor.example/apt sdk-bookworm main
";
        let error = derive(parse_one_line(list), "bookworm", &no_lists).unwrap_err();
        assert!(
            error.to_string().contains("add one to build images"),
            "{error}"
        );
    }

    #[test]
    fn a_mirror_list_is_replaced_by_the_mirrors_in_it() {
        let list = "deb mirror+file:///etc/apt/mirrors/debian.list bookworm main\n";
        let text = derive(parse_one_line(list), "bookworm", &|path| {
            assert_eq!(path, Path::new("/etc/apt/mirrors/debian.list"));
            Some("# ours\nhttps://one.example/debian\tpriority:1\n".to_owned())
        })
        .unwrap();
        assert!(
            text.contains("URIs: https://one.example/debian\n"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_cause_a_panic(text in "([ -~]|\n){0,400}") {
            let mut sources = parse_one_line(&text);
            sources.extend(parse_deb822(&text));
            let _ = derive(sources, "trixie", &no_lists);
        }
    }
}
