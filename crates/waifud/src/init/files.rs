//! The configuration files: `waifud init` writes those that do not exist, and keeps the others.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The directory of the configuration files.
const DIR: &str = "/etc/waifud";

/// The action for each file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    files: Vec<(PathBuf, Fate)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Fate {
    Kept,
    Written(String),
}

/// Decides which files to write. Fails if flags were given that would require a change to an existing file.
pub fn plan(
    listen: &[SocketAddr],
    advertise: &[String],
    pool: Option<&Path>,
) -> anyhow::Result<Plan> {
    plan_in(Path::new(DIR), listen, advertise, pool)
}

fn plan_in(
    dir: &Path,
    listen: &[SocketAddr],
    advertise: &[String],
    pool: Option<&Path>,
) -> anyhow::Result<Plan> {
    let server = server(listen, advertise);
    let agent = agent(pool)?;
    let wished = !listen.is_empty() || !advertise.is_empty();
    Ok(Plan {
        files: vec![
            (
                dir.join("waifud.toml"),
                fate(
                    &dir.join("waifud.toml"),
                    server,
                    wished,
                    "--listen and --advertise",
                )?,
            ),
            (
                dir.join("agentd.toml"),
                fate(&dir.join("agentd.toml"), agent, pool.is_some(), "--pool")?,
            ),
        ],
    })
}

fn fate(file: &Path, text: String, wished: bool, flags: &str) -> anyhow::Result<Fate> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Fate::Written(text)),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        Ok(there) if there == text || !wished => Ok(Fate::Kept),
        Ok(_) => bail!(
            "{} exists and is not overwritten; change the settings in this file instead of using {flags}",
            file.display()
        ),
    }
}

fn server(listen: &[SocketAddr], advertise: &[String]) -> String {
    let mut text = String::from(
        "# Configuration of waifud, the control server. All keys and their defaults: /usr/share/doc/waifud/docs/reference/config.md\n",
    );
    let quoted = |words: Vec<String>| words.join(", ");
    if !listen.is_empty() {
        let list = quoted(listen.iter().map(|a| format!("\"{a}\"")).collect());
        let _a_string_takes_all = writeln!(text, "listen = [{list}]");
    }
    if !advertise.is_empty() {
        let list = quoted(advertise.iter().map(|url| format!("{url:?}")).collect());
        let _a_string_takes_all = writeln!(text, "advertise = [{list}]");
    }
    text
}

fn agent(pool: Option<&Path>) -> anyhow::Result<String> {
    let mut text = String::from(
        "# Configuration of waifud-agentd, the agent of this node. All keys and their defaults: /usr/share/doc/waifud/docs/reference/config.md\n",
    );
    if let Some(pool) = pool {
        let path = pool
            .to_str()
            .filter(|path| !path.contains(['"', '\\', '\n']))
            .with_context(|| {
                format!(
                    "--pool {}: the path must be UTF-8 without quotes, backslashes and newlines",
                    pool.display()
                )
            })?;
        let _a_string_takes_all = write!(
            text,
            "\n[[pools]]\nname = \"main\"\nkind = \"qcow2\"\npath = \"{path}\"\n"
        );
    }
    Ok(text)
}

impl Plan {
    /// One line per file.
    pub fn in_words(&self) -> Vec<String> {
        let word = |fate: &Fate| match fate {
            Fate::Kept => "keep",
            Fate::Written(_) => "write",
        };
        self.files
            .iter()
            .map(|(file, fate)| format!("{} {}", word(fate), file.display()))
            .collect()
    }

    /// Writes the files; each one is created completely or not at all.
    pub fn write(&self) -> anyhow::Result<()> {
        for (file, fate) in &self.files {
            let Fate::Written(text) = fate else { continue };
            if let Some(dir) = file.parent() {
                fs::create_dir_all(dir)
                    .with_context(|| format!("cannot create {}", dir.display()))?;
            }
            waifud_kit::durable::replace(file, text.as_bytes(), 0o644)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use waifud_kit::testing::temp_path;

    #[test]
    fn written_files_are_valid_and_kept_by_a_second_run() {
        let dir = tempfile::tempdir().unwrap();
        let listen = ["0.0.0.0:7373".parse().unwrap()];
        let advertise = ["https://alder.lan:7373".to_owned()];
        let pool = Path::new("/srv/guests");
        let plan = plan_in(dir.path(), &listen, &advertise, Some(pool)).unwrap();
        assert!(
            plan.in_words()
                .iter()
                .all(|line| line.starts_with("write "))
        );
        plan.write().unwrap();
        let config = Config::load(Some(&dir.path().join("waifud.toml"))).unwrap();
        assert_eq!(config.listen, listen);
        assert_eq!(config.advertise, advertise);
        let text = fs::read_to_string(dir.path().join("agentd.toml")).unwrap();
        assert!(text.contains("path = \"/srv/guests\""), "{text}");
        // The same flags again keep everything, and so does a run without flags.
        for again in [
            plan_in(dir.path(), &listen, &advertise, Some(pool)).unwrap(),
            plan_in(dir.path(), &[], &[], None).unwrap(),
        ] {
            assert!(
                again
                    .in_words()
                    .iter()
                    .all(|line| line.starts_with("keep "))
            );
        }
    }

    #[test]
    fn existing_files_are_not_overwritten_and_conflicting_flags_are_refused() {
        let (dir, file) = temp_path("waifud.toml");
        fs::write(&file, "log = 'debug'\n").unwrap();
        let listen = ["0.0.0.0:7373".parse().unwrap()];
        let error = plan_in(dir.path(), &listen, &[], None).unwrap_err();
        assert!(error.to_string().contains("not overwritten"), "{error}");
        plan_in(dir.path(), &[], &[], None)
            .unwrap()
            .write()
            .unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "log = 'debug'\n");
    }

    #[test]
    fn a_pool_path_with_quotes_or_newlines_is_refused() {
        for path in ["/a\"b", "/a\nb", "/a\\b"] {
            assert!(agent(Some(Path::new(path))).is_err(), "{path}");
        }
    }
}
