//! The script that makes a machine a node, and the commands that download and run it.

use std::fmt::Write as _;

use waifud_api::Problem;
use waifud_api::join::{INSTALL_PATH, InstallCommands, JOIN_TOKEN_HEADER, PACKAGES_PATH};
use waifud_types::{Name, Secret};

use super::packages::Description;

const TEMPLATE: &str = include_str!("install.sh");
/// The file in which the variant that is read first saves the script.
const FILE: &str = "join-waifud.sh";

/// What a script or a command needs to reach waifud.
#[derive(Clone, Debug)]
pub struct Source {
    /// Addresses of waifud that other machines can reach, `https://HOST:PORT`; at least one.
    pub addresses: Vec<String>,
    /// The pin of waifud's public key, see `waifud_pki::public_key_pin`.
    pub pin: String,
    /// The secret of the join token, as the header has it.
    pub secret: Secret<String>,
}

/// A word that a POSIX shell reads as this text.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The script. `name` is the name that the token is limited to.
pub fn script(
    source: &Source,
    token: &Secret<String>,
    name: Option<&Name>,
    package: &Description,
) -> String {
    let values = [
        ("@ADDRESSES@", quoted(&source.addresses.join(" "))),
        ("@PIN@", quoted(&source.pin)),
        ("@TOKEN@", quoted(token.expose())),
        ("@SECRET@", quoted(source.secret.expose())),
        ("@NAME@", quoted(name.map_or("", Name::as_str))),
        ("@VERSION@", quoted(&package.version)),
        ("@ARCHITECTURE@", quoted(&package.architecture)),
        ("@HEADER@", JOIN_TOKEN_HEADER.to_owned()),
        ("@PACKAGES_PATH@", PACKAGES_PATH.to_owned()),
    ];
    let mut text = TEMPLATE.to_owned();
    for (place, value) in values {
        text = text.replace(place, &value);
    }
    text
}

/// A script that only prints an error, because the output of the command is run by a shell whatever waifud answers.
pub fn error_script(problem: &Problem) -> String {
    let detail = problem.detail.iter().map(|detail| format!(": {detail}"));
    let error = format!("error: {}{}", problem.title, detail.collect::<String>());
    let hints = problem
        .hints
        .iter()
        .map(|hint| format!("hint: {}", hint.text));
    let mut text = String::new();
    for line in std::iter::once(error).chain(hints) {
        let _a_string_takes_all = writeln!(text, "printf '%s\\n' {} >&2", quoted(&line));
    }
    text.push_str("exit 1\n");
    text
}

/// The commands that download the script from the first address and run it.
pub fn commands(source: &Source) -> Option<InstallCommands> {
    let address = source.addresses.first()?;
    // The pin replaces the check of the certificate, whose CA the new machine does not know.
    let download = format!(
        "curl -sS --insecure --pinnedpubkey {} -H {} {address}{INSTALL_PATH}",
        quoted(&source.pin),
        quoted(&format!("{JOIN_TOKEN_HEADER}: {}", source.secret.expose()))
    );
    Some(InstallCommands {
        run: Secret::new(format!("{download} | sudo sh")),
        read_first: vec![
            Secret::new(format!("(umask 077; {download} -o {FILE})")),
            Secret::new(format!("less {FILE}")),
            Secret::new(format!("sudo sh {FILE}; rm {FILE}")),
        ],
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn source() -> Source {
        Source {
            addresses: vec![
                "https://192.0.2.1:7373".to_owned(),
                "https://waifud.lan".to_owned(),
            ],
            pin: "sha256//AAAA=".to_owned(),
            secret: Secret::new("c2VjcmV0".to_owned()),
        }
    }

    fn example(name: Option<&str>) -> String {
        let package = Description::example("1.2.3", "amd64");
        let name = name.map(|name| name.parse().unwrap());
        script(
            &source(),
            &Secret::new("wfj_x".to_owned()),
            name.as_ref(),
            &package,
        )
    }

    #[test]
    fn the_script_is_valid_and_has_every_value() {
        for name in [None, Some("birch")] {
            let text = example(name);
            // The shell reads the whole script without running it.
            let status = Command::new("sh")
                .args(["-n", "-c", &text])
                .status()
                .unwrap();
            assert!(status.success());
            for line in [
                "addresses='https://192.0.2.1:7373 https://waifud.lan'\n",
                "pin='sha256//AAAA='\n",
                "token='wfj_x'\n",
                "secret='c2VjcmV0'\n",
                "version='1.2.3'\n",
                "architecture='amd64'\n",
                "waifud-join-token: %s",
            ] {
                assert!(text.contains(line), "{line}");
            }
            let name = format!("\nname='{}'\n", name.unwrap_or(""));
            assert!(text.contains(&name));
            let place = text
                .split('@')
                .skip(1)
                .find(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_uppercase()));
            assert_eq!(place, None, "every placeholder has a value");
        }
    }

    #[test]
    fn an_error_is_printed_by_the_shell_and_ends_it_with_1() {
        let problem = Problem::new(409, "code", "it's `id` and $HOME").hint("run 'this'");
        let script = error_script(&problem);
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "error: it's `id` and $HOME\nhint: run 'this'\n"
        );
        assert!(output.stdout.is_empty());
    }

    #[test]
    fn the_command_pins_the_key_and_uses_the_first_address() {
        let commands = commands(&source()).unwrap();
        assert_eq!(
            commands.run.expose(),
            "curl -sS --insecure --pinnedpubkey 'sha256//AAAA=' -H 'waifud-join-token: c2VjcmV0' \
             https://192.0.2.1:7373/v1/agent/install | sudo sh"
        );
        let first = commands.read_first.first().unwrap().expose();
        assert!(first.starts_with("(umask 077; curl ") && first.ends_with(" -o join-waifud.sh)"));
    }
}
