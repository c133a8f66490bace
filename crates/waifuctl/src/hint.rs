//! Words hints as command lines of waifuctl.

use std::borrow::Cow;

use waifud_api::Hint;
use waifud_api::hint::{HintAction as A, HintKind as K};

use waifud_types::Name;
use waifud_types::status::Condition;

/// All hints in one line.
pub fn line(hints: &[Hint]) -> Option<String> {
    let words: Vec<_> = hints.iter().map(words).collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// A hint as text and command line: `start instance web: waifuctl start web`. Text of the server for an action that this
/// version does not know.
fn words(hint: &Hint) -> String {
    let text = match options(hint) {
        Some(text) => return text,
        None => hint.english(),
    };
    match command(hint) {
        Some(command) => format!("{text}: {command}"),
        None => text,
    }
}

/// A hint about an option of the command that failed.
fn options(hint: &Hint) -> Option<String> {
    let named = |field: &str| option_of(field).map_or_else(|| field.to_owned(), str::to_owned);
    Some(match hint.known_action()? {
        A::SetMinimum { field, bytes } => format!("use {} {} or more", named(&field), bytes.exact()),
        A::Omit { field } => format!("omit {}", named(&field)),
        A::AllowAddresses => "use --allow-address for further addresses on default".to_owned(),
        A::GiveChecksum => "use --checksum sha256:…, or --checksums-url URL of the publisher's list; \
                            --insecure-no-checksum skips the check"
            .to_owned(),
        A::NameInChecksums => "set the image's name in the list of checksums with --checksums-file NAME".to_owned(),
        A::FreeSpace => "free some space: waifuctl df shows the size of images, waifuctl template delete and waifuctl image \
                         delete remove them; nothing was changed, guests keep running, and waifud continues automatically \
                         when there is space"
            .to_owned(),
        _ => return None,
    })
}

/// A value as one word of a shell. Names can come from a node, for example that of a bridge. `placeholder` stands for an
/// unknown value, and for one that would be read as an option or cannot be shown.
fn word<'a>(value: Option<&'a str>, placeholder: &'a str) -> Cow<'a, str> {
    let usable = |value: &&str| !value.starts_with('-') && !value.chars().any(char::is_control);
    value
        .filter(usable)
        .and_then(|value| shlex::try_quote(value).ok())
        .unwrap_or(Cow::Borrowed(placeholder))
}

/// The command line of an action; `None` if the user does it elsewhere, for example switches a node on.
fn command(hint: &Hint) -> Option<String> {
    let name = word(hint.name(), "NAME");
    let kind = hint.kind();
    let arguments = match (hint.known_action()?, kind) {
        (A::List, Some(K::Instance)) => "list".to_owned(),
        (A::List, Some(K::Template | K::Download)) => "template list".to_owned(),
        (A::List, Some(K::Catalog)) => "template catalog".to_owned(),
        (A::List | A::Show, Some(K::Image)) => "image list".to_owned(),
        (A::List, Some(K::Network)) => "network list".to_owned(),
        (A::List, Some(K::Node)) => "node list".to_owned(),
        (A::List | A::Show, Some(K::Token)) => "token list".to_owned(),
        (A::Show, Some(K::Instance)) => format!("show {name}"),
        (A::Show, Some(K::Template | K::Download)) => format!("template show {name}"),
        (A::Show, Some(K::Network)) => format!("network show {name}"),
        (A::Show, Some(K::Node)) => format!("node show {name}"),
        (A::Explain, _) => format!("why {name}"),
        (A::Start, _) => format!("start {name}"),
        (A::Delete { unmanaged: true }, _) => format!("delete {name} --unmanaged"),
        (A::Delete { unmanaged: false }, Some(K::Instance)) => format!("delete {name}"),
        (A::Delete { unmanaged: false }, Some(K::Network)) => format!("network delete {name}"),
        (A::Delete { unmanaged: false }, Some(K::Template)) | (A::Cancel, _) => {
            format!("template delete {name}")
        }
        (A::Delete { unmanaged: false }, Some(K::Image)) => format!("image delete {name}"),
        (A::Adopt { rename: false }, _) => format!("adopt {name}"),
        (A::Adopt { rename: true }, _) => format!("adopt {name} --name NEWNAME"),
        (A::Resize { memory_bytes }, _) => {
            format!("resize {name} --memory {}", memory_bytes.exact())
        }
        (A::Unprotect, _) => format!("protect {name} --off"),
        (A::Unpublish { port, protocol }, _) => {
            let port = format!("{port}/{protocol}");
            let port = word(Some(&port), "PORT/PROTOCOL");
            format!("unpublish {name} {port}")
        }
        (A::CreateToken { role }, _) => {
            let role = role.map_or("ROLE", waifud_types::Role::as_str);
            format!("token create NAME --role {role}")
        }
        (A::Revoke, _) => format!("token revoke {name}"),
        (A::CreateJoinToken, _) => match hint.name() {
            Some(_) => format!("node token create --name {name}"),
            None => "node token create".to_owned(),
        },
        (A::Rename, _) => format!("node rename {name} NEWNAME"),
        (A::Uncordon, _) => format!("node uncordon {name}"),
        (A::Recreate, _) => format!("recreate {name}"),
        (A::CancelMove, _) => format!("move {name} --cancel"),
        (A::AllowNewAddress { to }, _) => format!("move {name} --to {to} --new-address"),
        (A::Drain { new_address: true }, _) => format!("node drain {name} --new-address"),
        (A::Drain { new_address: false }, _) => format!("node drain {name}"),
        (A::RemoveForced, _) => format!("node remove {name} --force --confirm-off"),
        (A::AddNode, _) => "node add".to_owned(),
        (A::Confirm, _) => format!("node confirm {name}"),
        (A::AddNetwork { bridge }, _) => {
            let bridge = word(bridge.as_deref(), "BRIDGE");
            format!("network add {name} --bridge {bridge}")
        }
        (A::Download, _) => format!("template add {name}"),
        (A::Refresh, _) => format!("template refresh {name}"),
        (A::Upload, _) => format!("template add {name} --file FILE"),
        (A::OpenConsole, _) => format!("console {name}"),
        (A::Rescue, _) => format!("rescue {name}"),
        (A::EndRescue, _) => format!("rescue {name} --end"),
        (A::ReadCloudInitLog, _) => format!("logs {name} --cloud-init"),
        (A::ReRunCloudInit, _) => format!("edit {name} --re-run"),
        (A::WaitUntilReady, _) => format!("wait {name} --for ready"),
        (A::ShowAddresses, _) => format!("ip {name}"),
        (
            A::List
            | A::Show
            | A::Delete { .. }
            | A::SwitchOn
            | A::CreateBridge { .. }
            | A::InstallGuestAgent
            | A::FreeSpace
            | A::GiveChecksum
            | A::NameInChecksums
            | A::SetMinimum { .. }
            | A::Omit { .. }
            | A::AllowAddresses,
            _,
        ) => return None,
    };
    Some(format!("waifuctl {arguments}"))
}

/// The next step for a condition of an instance that is not met, if it is a command of waifuctl.
pub fn of_instance_condition(condition: &Condition, instance: &Name) -> Option<String> {
    let action = match (condition.kind.as_str(), condition.reason.as_str()) {
        ("rescue", "begun") => A::EndRescue,
        _ => return None,
    };
    unmet(
        condition,
        &Hint::on(&action, K::Instance, instance.as_str()),
    )
}

/// The next step for a condition of a node that is not met, if it is a command of waifuctl.
pub fn of_node_condition(condition: &Condition, node: &Name) -> Option<String> {
    let action = match (condition.kind.as_str(), condition.reason.as_str()) {
        ("destruction-held", "incarnation-changed") => A::Confirm,
        ("certificate", "expired" | "expires-soon") => A::CreateJoinToken,
        _ => return None,
    };
    unmet(condition, &Hint::on(&action, K::Node, node.as_str()))
}

fn unmet(condition: &Condition, hint: &Hint) -> Option<String> {
    (!condition.ok).then(|| words(hint))
}

/// The command-line option that sets a field of the API.
pub fn option_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "name" => "NAME",
        "template" | "spec.template" => "--template",
        "cpus" | "spec.cpus" => "--cpus",
        "memory_bytes" | "spec.memory_bytes" => "--memory",
        "disk_bytes" | "spec.disks[0].size_bytes" => "--disk",
        "survive" => "--survive",
        "pool" | "spec.disks[0].pool" => "--pool",
        "user_data" | "spec.user_data" => "--user-data",
        "ssh_keys" | "spec.ssh_keys" => "--ssh-key",
        "mac" | "spec.nics[0].mac" => "--mac",
        "publish" | "spec.publish" => "--publish",
        "spec.protected" | "protected" => "protect --off",
        "placement.node" | "spec.placement.node" => "--node",
        "placement.require" | "spec.placement.require" => "--require",
        "placement.spread" | "spec.placement.spread" => "--spread",
        "placement.near" | "spec.placement.near" => "--near",
        "labels" => "--label",
        "timeout_s" => "--timeout",
        "url" => "--url",
        "checksum" => "--checksum",
        "checksums_url" => "--checksums-url",
        "to" => "--to",
        "bridge" => "--bridge",
        "public_key" => "--public-key",
        "force" => "--force",
        "confirm_off" => "--confirm-off",
        _ if field.starts_with("labels.") => "--label",
        _ if field.starts_with("spec.firewall.rules[") && field.ends_with("].peer") => {
            "--from or --to"
        }
        _ => return option_of_nic(field),
    })
}

/// The option of a field of any nic.
fn option_of_nic(field: &str) -> Option<&'static str> {
    let (_, field) = field.strip_prefix("spec.nics[")?.split_once("].")?;
    match field.split_once('[').map_or(field, |(list, _)| list) {
        "network" | "address" | "gateway" | "vlan" => Some("--network"),
        "allow_addresses" => Some("--allow-address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use waifud_api::hint::HintWhen;
    use waifud_types::{ByteSize, Role};

    use super::*;

    /// Each action with the command, or the words of its text that name the remedy.
    fn all() -> Vec<(Hint, &'static str)> {
        let web = |action: &A| Hint::on(action, K::Instance, "web");
        let node = |action: &A| Hint::on(action, K::Node, "alder");
        let debian = |action: &A| Hint::on(action, K::Template, "debian-12");
        let gib = ByteSize::gib(3);
        let field = |field: &str| field.to_owned();
        vec![
            (Hint::on_kind(&A::List, K::Instance), "waifuctl list"),
            (
                Hint::on_kind(&A::List, K::Template),
                "waifuctl template list",
            ),
            (Hint::on_kind(&A::List, K::Image), "waifuctl image list"),
            (
                Hint::on_kind(&A::List, K::Catalog),
                "waifuctl template catalog",
            ),
            (
                Hint::on_kind(&A::List, K::Download),
                "waifuctl template list",
            ),
            (Hint::on_kind(&A::List, K::Network), "waifuctl network list"),
            (Hint::on_kind(&A::List, K::Node), "waifuctl node list"),
            (Hint::on_kind(&A::List, K::Token), "waifuctl token list"),
            (web(&A::Show), "waifuctl show web"),
            (node(&A::Show), "waifuctl node show alder"),
            (debian(&A::Show), "waifuctl template show debian-12"),
            (
                Hint::on(&A::Show, K::Network, "lan"),
                "waifuctl network show lan",
            ),
            (web(&A::Explain), "waifuctl why web"),
            (web(&A::Start), "waifuctl start web"),
            (web(&A::Delete { unmanaged: false }), "waifuctl delete web"),
            (
                web(&A::Delete { unmanaged: true }),
                "waifuctl delete web --unmanaged",
            ),
            (
                Hint::on(&A::Delete { unmanaged: false }, K::Network, "lan"),
                "waifuctl network delete lan",
            ),
            (
                debian(&A::Delete { unmanaged: false }),
                "waifuctl template delete debian-12",
            ),
            (
                Hint::on(&A::Delete { unmanaged: false }, K::Image, "3f9c21"),
                "waifuctl image delete 3f9c21",
            ),
            (
                Hint::on(&A::Cancel, K::Download, "debian-12"),
                "waifuctl template delete debian-12",
            ),
            (web(&A::Adopt { rename: false }), "waifuctl adopt web"),
            (
                web(&A::Adopt { rename: true }),
                "waifuctl adopt web --name NEWNAME",
            ),
            (
                web(&A::Resize { memory_bytes: gib }),
                "waifuctl resize web --memory 3G",
            ),
            (web(&A::Unprotect), "waifuctl protect web --off"),
            (
                web(&A::Unpublish {
                    port: 53,
                    protocol: field("udp"),
                }),
                "waifuctl unpublish web 53/udp",
            ),
            (
                Hint::on_kind(
                    &A::CreateToken {
                        role: Some(Role::Admin),
                    },
                    K::Token,
                ),
                "waifuctl token create NAME --role admin",
            ),
            (
                Hint::on_kind(&A::CreateToken { role: None }, K::Token),
                "waifuctl token create NAME --role ROLE",
            ),
            (
                Hint::on(&A::Revoke, K::Token, "ci"),
                "waifuctl token revoke ci",
            ),
            (
                node(&A::CreateJoinToken),
                "waifuctl node token create --name alder",
            ),
            (
                Hint::on_kind(&A::CreateJoinToken, K::Node),
                "waifuctl node token create",
            ),
            (node(&A::Rename), "waifuctl node rename alder NEWNAME"),
            (node(&A::Confirm), "waifuctl node confirm alder"),
            (node(&A::SwitchOn), "switch node alder on"),
            (node(&A::Uncordon), "waifuctl node uncordon alder"),
            (
                node(&A::RemoveForced),
                "waifuctl node remove alder --force --confirm-off",
            ),
            (web(&A::Recreate), "waifuctl recreate web"),
            (web(&A::CancelMove), "waifuctl move web --cancel"),
            (
                web(&A::AllowNewAddress { to: field("birch") }),
                "waifuctl move web --to birch --new-address",
            ),
            (
                node(&A::Drain { new_address: true }),
                "waifuctl node drain alder --new-address",
            ),
            (
                node(&A::Drain { new_address: false }),
                "waifuctl node drain alder",
            ),
            (Hint::action(&A::AddNode), "waifuctl node add"),
            (
                node(&A::CreateBridge {
                    bridge: field("br0"),
                }),
                "create bridge br0 on node alder",
            ),
            (
                Hint::on(
                    &A::AddNetwork {
                        bridge: Some(field("br0")),
                    },
                    K::Network,
                    "lan",
                ),
                "waifuctl network add lan --bridge br0",
            ),
            (
                Hint::on_kind(&A::AddNetwork { bridge: None }, K::Network),
                "waifuctl network add NAME --bridge BRIDGE",
            ),
            (Hint::action(&A::FreeSpace), "waifuctl df"),
            (debian(&A::Download), "waifuctl template add debian-12"),
            (debian(&A::Refresh), "waifuctl template refresh debian-12"),
            (
                debian(&A::Upload),
                "waifuctl template add debian-12 --file FILE",
            ),
            (Hint::action(&A::GiveChecksum), "--checksums-url"),
            (Hint::action(&A::NameInChecksums), "--checksums-file"),
            (web(&A::OpenConsole), "waifuctl console web"),
            (web(&A::Rescue), "waifuctl rescue web"),
            (web(&A::EndRescue), "waifuctl rescue web --end"),
            (web(&A::ReadCloudInitLog), "waifuctl logs web --cloud-init"),
            (web(&A::ReRunCloudInit), "waifuctl edit web --re-run"),
            (web(&A::InstallGuestAgent), "install qemu-guest-agent"),
            (web(&A::WaitUntilReady), "waifuctl wait web --for ready"),
            (web(&A::ShowAddresses), "waifuctl ip web"),
            (
                Hint::action(&A::SetMinimum {
                    field: field("spec.disks[0].size_bytes"),
                    bytes: gib,
                }),
                "use --disk 3G or more",
            ),
            (
                Hint::action(&A::Omit {
                    field: field("spec.placement.node"),
                }),
                "omit --node",
            ),
            (Hint::action(&A::AllowAddresses), "--allow-address"),
        ]
    }

    #[test]
    fn each_action_names_the_remedy_and_each_command_is_one_of_waifuctl() {
        for (hint, remedy) in all() {
            let words = words(&hint);
            assert!(words.contains(remedy), "{words:?} instead of {remedy:?}");
            if let Some(command) = command(&hint) {
                assert_eq!(command, remedy);
                let command = command.replace("ROLE", "viewer").replace("NEWNAME", "new");
                let parsed = crate::cli::Cli::try_parse_from(command.split(' '));
                assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
            }
            let json = serde_json::to_string(&hint).unwrap();
            assert_eq!(serde_json::from_str::<Hint>(&json).unwrap(), hint, "{json}");
        }
    }

    #[test]
    fn conditions_with_a_remedy_get_its_command_by_their_codes() {
        let condition = |kind: &str, reason: &str| Condition {
            kind: kind.to_owned(),
            ok: false,
            reason: reason.to_owned(),
            message: "in any words".to_owned(),
            since: waifud_types::Timestamp::UNIX_EPOCH,
        };
        let (web, alder) = ("web".parse().unwrap(), "alder".parse().unwrap());
        let rescue = condition("rescue", "begun");
        assert_eq!(
            of_instance_condition(&rescue, &web).unwrap(),
            "end the rescue of instance web: waifuctl rescue web --end"
        );
        for (kind, reason, command) in [
            (
                "destruction-held",
                "incarnation-changed",
                "waifuctl node confirm alder",
            ),
            (
                "certificate",
                "expired",
                "waifuctl node token create --name alder",
            ),
            (
                "certificate",
                "expires-soon",
                "waifuctl node token create --name alder",
            ),
        ] {
            let words = of_node_condition(&condition(kind, reason), &alder).unwrap();
            assert!(words.ends_with(command), "{words}");
        }
        assert_eq!(
            of_node_condition(&condition("state-dir", "full"), &alder),
            None
        );
        let met = Condition {
            ok: true,
            ..condition("certificate", "expired")
        };
        assert_eq!(of_node_condition(&met, &alder), None);
    }

    #[test]
    fn values_are_quoted_as_words_of_a_shell() {
        let command_on = |name: &str| command(&Hint::on(&A::Start, K::Instance, name)).unwrap();
        for name in ["a b", "$(reboot)", "it's; reboot", "`x`", "*", "#x", ""] {
            let words = shlex::split(&command_on(name)).unwrap();
            assert_eq!(words, ["waifuctl", "start", name]);
        }
        for name in ["--all", "a\nb", "\u{1b}[2J", "a\0b"] {
            assert_eq!(command_on(name), "waifuctl start NAME", "{name:?}");
        }
        let bridge = Some("br0;reboot".to_owned());
        let add = Hint::on(&A::AddNetwork { bridge }, K::Network, "lan");
        assert_eq!(
            shlex::split(&command(&add).unwrap()).unwrap(),
            [
                "waifuctl",
                "network",
                "add",
                "lan",
                "--bridge",
                "br0;reboot"
            ]
        );
        let protocol = "tcp|sh".to_owned();
        let unpublish = Hint::on(&A::Unpublish { port: 1, protocol }, K::Instance, "web");
        assert_eq!(
            shlex::split(&command(&unpublish).unwrap()).unwrap(),
            ["waifuctl", "unpublish", "web", "1/tcp|sh"]
        );
        let join = Hint::on(&A::CreateJoinToken, K::Node, "$(id)");
        assert_eq!(
            shlex::split(&command(&join).unwrap()).unwrap(),
            ["waifuctl", "node", "token", "create", "--name", "$(id)"]
        );
    }

    #[test]
    fn a_circumstance_precedes_the_action() {
        let hint = Hint::on(&A::Rescue, K::Instance, "web").when(HintWhen::CannotLogIn);
        assert_eq!(
            words(&hint),
            "if you cannot log in, repair instance web with a rescue system: waifuctl rescue web"
        );
    }

    #[test]
    fn unknown_actions_and_circumstances_fall_back_to_the_text_of_the_server() {
        let unknown: Hint = serde_json::from_value(serde_json::json!({
            "action": "defragment", "object": { "type": "instance", "name": "web" }, "text": "defragment web",
        }))
        .unwrap();
        assert_eq!(words(&unknown), "defragment web");
        let mut hint = Hint::on(&A::Start, K::Instance, "web");
        hint.when = Some("full-moon".to_owned());
        hint.text = "at full moon, start instance web".to_owned();
        assert_eq!(
            words(&hint),
            "at full moon, start instance web: waifuctl start web"
        );
        assert_eq!(line(&["read this".into()]).unwrap(), "read this");
        assert_eq!(line(&[]), None);
    }

    #[test]
    fn fields_of_labels_and_of_every_nic_have_an_option() {
        for (field, option) in [
            ("labels.a b", Some("--label")),
            ("spec.nics[0].network", Some("--network")),
            ("spec.nics[12].address", Some("--network")),
            ("spec.nics[1].allow_addresses[0]", Some("--allow-address")),
            ("spec.firewall.rules[3].peer", Some("--from or --to")),
            ("spec.firewall.rules[3].ports", None),
            ("to", Some("--to")),
            ("spec.nics[0].name", None),
            ("spec.other", None),
        ] {
            assert_eq!(option_of(field), option, "{field}");
        }
    }
}
