//! What the system's ssh is told about a guest: as arguments, and as a file for `ssh -F`. Pure.

use std::path::Path;

use serde::Serialize;

use crate::failure::Failure;
use crate::known_hosts::KnownHosts;

/// One guest, as ssh knows it.
#[derive(Debug, Serialize)]
pub struct SshHost {
    /// The name to type.
    pub host: String,
    /// Keywords of `ssh_config`(5) and their values, in its syntax.
    pub options: Vec<(&'static str, String)>,
}

/// Everything that decides them.
pub struct Parts<'a> {
    /// The instance's name.
    pub name: &'a str,
    /// Its id, which the proxy asks for.
    pub id: &'a str,
    /// Without, ssh's own default.
    pub user: Option<&'a str>,
    /// Where the host keys are.
    pub known: &'a KnownHosts,
    /// This program, and the options that lead to the same waifud.
    pub program: &'a [String],
}

impl SshHost {
    /// Puts it together; fails when a path can't be written in ssh's syntax.
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
            // Never what a name server says about the name, nor a shared connection to a host of that name.
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

    /// The user that ssh is told; `None` is ssh's own default.
    pub fn user(&self) -> Option<&str> {
        let user = self.options.iter().find(|(keyword, _)| *keyword == "User");
        user.map(|(_, user)| user.as_str())
    }

    /// For ssh's command line. They come first: ssh takes the first value that it is given, and no option of the caller
    /// changes whose keys are trusted.
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

    /// For `ssh -F`.
    pub fn section(&self) -> String {
        let lines = self.options.iter();
        let lines = lines.map(|(keyword, value)| format!("  {keyword} {value}\n"));
        std::iter::once(format!("Host {}\n", self.host))
            .chain(lines)
            .collect()
    }
}

/// One word of a `ProxyCommand`, which ssh expands (`%`) and gives to the user's shell.
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

/// A path as a value of ssh's configuration, which expands `%` and `${…}` in it.
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
        format!("{text:?} can't be written into ssh's configuration"),
    )
    .hint("a path without quotes, backslashes, dollars and control characters")
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
    fn nobody_is_believed_but_the_keys_in_the_file() {
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
    fn a_first_key_is_taken_only_when_that_was_asked_for() {
        let host = host(false, "/known", &["waifuctl"]).unwrap();
        assert!(
            host.section()
                .contains("StrictHostKeyChecking accept-new\n")
        );
    }

    #[test]
    fn a_shell_and_ssh_get_words_back_as_they_were() {
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
