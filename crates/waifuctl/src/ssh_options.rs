//! ssh options for a guest, as arguments and as a file for `ssh -F`.

use std::path::Path;

use serde::Serialize;

use crate::failure::Failure;
use crate::known_hosts::KnownHosts;

/// A guest as an ssh host.
#[derive(Debug, Serialize)]
pub struct SshHost {
    /// The host name.
    pub host: String,
    /// Keywords of `ssh_config`(5) and their values, in its syntax.
    pub options: Vec<(&'static str, String)>,
}

/// The inputs for the options.
pub struct Parts<'a> {
    /// Name of the instance.
    pub name: &'a str,
    /// Id of the instance, for the proxy command.
    pub id: &'a str,
    /// The user; `None` for ssh's default.
    pub user: Option<&'a str>,
    /// The host keys.
    pub known: &'a KnownHosts,
    /// This program with the options that select the same waifud.
    pub program: &'a [String],
}

impl SshHost {
    /// Builds the options; fails if a path cannot be written in ssh's syntax.
    pub fn new(parts: &Parts) -> Result<Self, Failure> {
        let proxy: Vec<String> = parts
            .program
            .iter()
            .map(String::as_str)
            .chain(["ssh-proxy", parts.id])
            .map(word)
            .collect::<Result<_, _>>()?;
        let checking = if parts.known.pinned {
            "yes"
        } else {
            "accept-new"
        };
        let mut options = vec![
            // Do not use DNS or a shared connection for the name.
            ("HostName", parts.known.alias.clone()),
            ("HostKeyAlias", parts.known.alias.clone()),
            ("ProxyCommand", proxy.join(" ")),
            ("UserKnownHostsFile", quoted(&parts.known.path)?),
            ("GlobalKnownHostsFile", "/dev/null".to_owned()),
            ("StrictHostKeyChecking", checking.to_owned()),
            ("CheckHostIP", "no".to_owned()),
            ("UpdateHostKeys", "no".to_owned()),
        ];
        if let Some(user) = parts.user {
            if user.starts_with('-')
                || !user
                    .chars()
                    .all(|c| c.is_ascii_graphic() && !"\"'#%".contains(c))
            {
                return Err(Failure::input(
                    "invalid-user",
                    format!("invalid user name {user:?}"),
                ));
            }
            options.push(("User", user.to_owned()));
        }
        Ok(Self {
            host: parts.name.to_owned(),
            options,
        })
    }

    /// The user; `None` for ssh's default.
    pub fn user(&self) -> Option<&str> {
        let user = self.options.iter().find(|(keyword, _)| *keyword == "User");
        user.map(|(_, user)| user.as_str())
    }

    /// Arguments for ssh. They come first: ssh uses the first value of an option, so the user's options cannot change
    /// which keys are trusted.
    pub fn options(&self, identity: Option<&Path>) -> Vec<std::ffi::OsString> {
        let mut arguments = Vec::new();
        for (keyword, value) in &self.options {
            arguments.extend(["-o".into(), format!("{keyword}={value}").into()]);
        }
        if let Some(file) = identity {
            arguments.extend(["-i".into(), file.into()]);
        }
        arguments
    }

    /// A section for `ssh -F`.
    pub fn section(&self) -> String {
        let lines = self.options.iter();
        let lines = lines.map(|(keyword, value)| format!("  {keyword} {value}\n"));
        std::iter::once(format!("Host {}\n", self.host))
            .chain(lines)
            .collect()
    }
}

/// Quotes a word of `ProxyCommand`, which ssh expands (`%`) and passes to the user's shell.
fn word(text: &str) -> Result<String, Failure> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(unusable(text));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@+".contains(c);
    Ok(if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%"))
    })
}

/// Quotes a path for ssh's configuration, which expands `%` and `${…}`.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path
        .to_str()
        .ok_or_else(|| unusable(&path.display().to_string()))?;
    if text.contains(['"', '\\', '$']) || text.chars().any(char::is_control) {
        return Err(unusable(text));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

fn unusable(text: &str) -> Failure {
    Failure::input(
        "invalid-path",
        format!("{text:?} cannot be written to an ssh configuration"),
    )
    .hint("use a path without quotes, backslashes, dollar signs and control characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn host(pinned: bool, path: &str, program: &[&str]) -> Result<SshHost, Failure> {
        let known = KnownHosts {
            path: PathBuf::from(path),
            alias: "waifud-0198".to_owned(),
            pinned,
        };
        let program: Vec<String> = program.iter().map(|word| (*word).to_owned()).collect();
        SshHost::new(&Parts {
            name: "web",
            id: "0198",
            user: Some("debian"),
            known: &known,
            program: &program,
        })
    }

    #[test]
    fn only_the_keys_in_the_file_are_trusted() {
        let program = ["/usr/bin/waifuctl", "--context", "home"];
        let host = host(true, "/home/ana/known", &program).unwrap();
        assert_eq!(
            host.section(),
            "Host web\n  HostName waifud-0198\n  HostKeyAlias waifud-0198\n  \
             ProxyCommand /usr/bin/waifuctl --context home ssh-proxy 0198\n  \
             UserKnownHostsFile \"/home/ana/known\"\n  GlobalKnownHostsFile /dev/null\n  \
             StrictHostKeyChecking yes\n  CheckHostIP no\n  UpdateHostKeys no\n  User debian\n"
        );
        let arguments = host.options(Some(Path::new("/k e y")));
        assert!(arguments.contains(&"StrictHostKeyChecking=yes".into()));
        assert!(arguments.ends_with(&["-i".into(), "/k e y".into()]));
    }

    #[test]
    fn a_new_key_is_accepted_only_on_request() {
        let host = host(false, "/known", &["waifuctl"]).unwrap();
        assert!(
            host.section()
                .contains("StrictHostKeyChecking accept-new\n")
        );
    }

    #[test]
    fn quoted_words_reach_the_shell_and_ssh_unchanged() {
        let section = host(true, "/a b/50%", &["/o'neil/100% $HOME/w"])
            .unwrap()
            .section();
        assert!(
            section.contains(r"ProxyCommand '/o'\''neil/100%% $HOME/w' ssh-proxy 0198"),
            "{section}"
        );
        assert!(
            section.contains("UserKnownHostsFile \"/a b/50%%\""),
            "{section}"
        );
        for bad in ["/a\"b", "/a\nb", "/${HOME}", "/a\\b"] {
            assert!(host(true, bad, &["waifuctl"]).is_err(), "{bad:?}");
        }
        assert!(host(true, "/known", &["/w\nProxyCommand x"]).is_err());
    }
}
