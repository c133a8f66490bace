//! Arguments of commands that open streams to a guest: `console`, `logs`, `forward`, `screen` and `ssh`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use clap_complete::engine::ArgValueCandidates;

use crate::complete;

#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Pass all bytes of the guest to the terminal unfiltered
    #[arg(long)]
    pub raw: bool,
    /// Number of past lines to show first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub lines: u32,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// Keep printing new lines
    #[arg(short, long, conflicts_with = "cloud_init")]
    pub follow: bool,
    /// Print the output of cloud-init, read through the guest agent
    #[arg(long)]
    pub cloud_init: bool,
    /// Print all bytes of the guest unfiltered; not with --json
    #[arg(long)]
    pub raw: bool,
    /// Number of past lines
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub lines: u32,
}

#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The guest's port, preceded by the local port if it differs; local port 0 picks a free one
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = pair)]
    pub ports: Vec<PortPair>,
}

/// A local port and a guest port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortPair {
    /// On 127.0.0.1; 0 picks a free port.
    pub local: u16,
    pub remote: u16,
}

#[derive(Debug, Args)]
pub struct ScreenArgs {
    /// Name or id of the instance
    #[arg(add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub name: String,
    /// The local port; 0 picks a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,
    /// Start a viewer (remote-viewer or vncviewer) and exit when it exits
    #[arg(long)]
    pub viewer: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "waifuctl ssh [OPTIONS] [SSH_OPTIONS] [USER@]NAME [-- COMMAND...]")]
pub struct SshArgs {
    /// Name or id of the instance, preceded by a user [default: the template's user]
    #[arg(value_name = "[USER@]NAME", value_parser = login, add = ArgValueCandidates::new(complete::instances))]
    pub login: Login,
    /// The user to log in as
    #[arg(short = 'l', long = "login", value_name = "USER")]
    pub user: Option<String>,
    #[command(flatten)]
    pub keys: KeyArgs,
    /// A file with the private key
    #[arg(short, long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// One argument for ssh, as marked by `ssh_arguments`
    #[arg(long, hide = true, allow_hyphen_values = true, value_name = "WORD")]
    pub ssh_option: Vec<OsString>,
    /// Run this program instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct SshConfigArgs {
    /// Names or ids of instances [default: all running instances]
    #[arg(value_name = "NAME", add = ArgValueCandidates::new(complete::instances), value_parser = NonEmptyStringValueParser::new())]
    pub names: Vec<String>,
    #[command(flatten)]
    pub keys: KeyArgs,
}

/// Host key verification.
#[derive(Clone, Copy, Debug, Args)]
pub struct KeyArgs {
    /// If the console does not show a host key, accept and store the first key that the guest presents
    #[arg(long)]
    pub accept_new_key: bool,
}

/// A user and an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Login {
    /// `None` means the template's default user.
    pub user: Option<String>,
    /// Name or id of the instance.
    pub name: String,
}

/// Reads `[LOCAL:]REMOTE`.
fn pair(text: &str) -> Result<PortPair, String> {
    let error = || {
        format!(
            "{text:?} is not a port: write REMOTE or LOCAL:REMOTE, for example 80, 8080:80 or 0:80"
        )
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let remote = number(remote).filter(|port| *port > 0).ok_or_else(error)?;
    let local = number(local).ok_or_else(error)?;
    Ok(PortPair { local, remote })
}

/// Reads `[USER@]NAME`.
fn login(text: &str) -> Result<Login, String> {
    let (user, name) = match text.rsplit_once('@') {
        Some((user, name)) => (Some(user.to_owned()), name),
        None => (None, text),
    };
    if name.is_empty() || user.as_ref().is_some_and(String::is_empty) {
        return Err(format!(
            "{text:?} is not NAME or USER@NAME, for example web or debian@web"
        ));
    }
    Ok(Login {
        user,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh_arguments;

    #[test]
    fn a_forward_is_one_port_or_a_pair() {
        let read = |text| pair(text).map(|pair| (pair.local, pair.remote));
        assert_eq!(read("80"), Ok((80, 80)));
        assert_eq!(read("8080:80"), Ok((8080, 80)));
        assert_eq!(read("0:22"), Ok((0, 22)));
        for bad in [
            "",
            "0",
            ":80",
            "80:",
            "80:0",
            "65536",
            "+80",
            "1:2:3",
            "a:80",
            "127.0.0.1:80",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_login_may_include_the_user() {
        let read = |text| login(text).map(|login| (login.user, login.name));
        assert_eq!(read("web"), Ok((None, "web".into())));
        assert_eq!(read("a@b@web"), Ok((Some("a@b".into()), "web".into())));
        for bad in ["", "@web", "debian@"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ssh_options_are_passed_on_and_our_options_are_parsed() {
        use crate::cli::{Cli, Command};
        use clap::Parser;
        for line in [
            "ssh -t -A -L 8080:localhost:80 web --accept-new-key -- ls -la --json",
            "ssh --accept-new-key web -t -A -L 8080:localhost:80 -- ls -la --json",
            "ssh web -tA -L8080:localhost:80 --accept-new-key -- ls -la --json",
        ] {
            let words = ["waifuctl"].into_iter().chain(line.split(' '));
            let words = ssh_arguments::mark(words.map(OsString::from));
            let cli = Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
            assert!(!cli.global.json, "{line}");
            let Command::Ssh(args) = cli.command else {
                panic!("{line}");
            };
            assert!(args.keys.accept_new_key, "{line}");
            assert_eq!(args.command, ["ls", "-la", "--json"], "{line}");
            assert_eq!(args.login.name, "web", "{line}");
            assert!(args.ssh_option.len() >= 2, "{line}");
        }
        assert!(Cli::try_parse_from(["waifuctl", "ssh", "web", "uptime"]).is_err());
    }
}
