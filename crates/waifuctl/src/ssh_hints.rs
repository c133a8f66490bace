//! Hints for a failed ssh (exit code 255), based on how the instance was created.

use std::collections::BTreeSet;

/// A failed login.
pub struct Login<'a> {
    /// Name of the instance.
    pub name: &'a str,
    /// Whether the guest may still be booting. Until the boot has ended, sshd may use host keys that are not on the console
    /// yet.
    pub is_booting: bool,
    /// The user passed to ssh.
    pub user: Option<&'a str>,
    /// Whether that is the template's default user, not chosen on the command line.
    pub is_default: bool,
    /// The public keys of the instance.
    pub given: &'a [String],
    /// The public keys in `~/.ssh`.
    pub own: &'a [String],
    /// User-data, if the caller is allowed to read it.
    pub user_data: Option<&'a str>,
    /// The additional public keys of the rescue system, if the instance is in rescue mode. The rescue system also has the
    /// keys of the instance, and does not apply its user-data.
    pub rescue: Option<&'a [String]>,
}

/// One sentence each, most likely first.
pub fn hints(login: &Login<'_>) -> Vec<String> {
    let name = login.name;
    let user_data = login.user_data.filter(|_| login.rescue.is_none());
    let mut hints = Vec::new();
    if login.is_booting {
        hints.push(format!(
            "{name} is not ready yet: it may still be booting, and its console may not show its new host keys yet; wait with \
             waifuctl wait {name} --for ready, and try again"
        ));
    }
    if let (Some(user), true) = (login.user, login.is_default)
        && let Some(users) = user_data.and_then(users)
        && !users.contains("default")
        && !users.contains(user)
    {
        let others: Vec<_> = users.iter().cloned().collect();
        let other = others.first().map_or("USER", String::as_str);
        hints.push(format!(
            "user-data has `users:` without `default`, so the guest does not have a user {user}; log in as another user: waifuctl ssh {other}@{name}"
        ));
    }
    let bare = |key: &String| {
        let mut words = key.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    let added = login.rescue.unwrap_or_default();
    let given: BTreeSet<_> = login.given.iter().chain(added).filter_map(bare).collect();
    let has_one = login
        .own
        .iter()
        .filter_map(bare)
        .any(|key| given.contains(&key));
    let in_user_data = user_data
        .is_some_and(|text| text.contains("ssh_authorized_keys") || text.contains("ssh_import_id"));
    if !has_one && login.rescue.is_some() {
        hints.push(format!(
            "none of the keys in ~/.ssh was added to the rescue system of {name}: use another key with --identity FILE, or end the \
             rescue (waifuctl rescue {name} --end) and begin it again with --ssh-key FILE"
        ));
    } else if !has_one && !in_user_data {
        hints.push(format!(
            "none of the keys in ~/.ssh was added to {name} when it was created: use another key with --identity FILE, or set a \
             password with waifuctl passwd {name} and log in with waifuctl console {name}"
        ));
    }
    if hints.is_empty() {
        let user = login.user.unwrap_or("the user");
        hints.push(format!(
            "if ssh printed \"Permission denied\": check that {user} is a user of the guest (waifuctl ssh USER@{name}) and that \
             your key was added when it was created. If the connection was closed or timed out: waifuctl why {name}"
        ));
    }
    hints
}

/// Names in the top-level `users` of cloud-config; `None` where it is absent.
fn users(user_data: &str) -> Option<BTreeSet<String>> {
    if !user_data.starts_with("#cloud-config") {
        return None;
    }
    let value: serde_json::Value = serde_saphyr::from_str(user_data).ok()?;
    let list = value.get("users")?.as_array()?;
    let name = |entry: &serde_json::Value| {
        let named = entry.get("name").unwrap_or(entry);
        named.as_str().map(str::to_owned)
    };
    Some(list.iter().filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(user_data: Option<&str>, own: &[&str]) -> String {
        let own: Vec<_> = own.iter().map(|key| (*key).to_owned()).collect();
        hints(&Login {
            name: "web",
            is_booting: false,
            user: Some("debian"),
            is_default: true,
            given: &["ssh-ed25519 AAAA ana@laptop".to_owned()],
            own: &own,
            user_data,
            rescue: None,
        })
        .join("\n")
    }

    #[test]
    fn hints_during_a_rescue_are_about_the_rescue_system() {
        let own = ["ssh-ed25519 BBBB bob@desk".to_owned()];
        let user_data = Some("#cloud-config\nusers: [ana]\nssh_authorized_keys: [x]\n");
        let of = |rescue: &[&str]| {
            let rescue: Vec<_> = rescue.iter().map(|key| (*key).to_owned()).collect();
            let login = Login {
                name: "web",
                is_booting: false,
                user: Some("alpine"),
                is_default: true,
                given: &["ssh-ed25519 AAAA ana@laptop".to_owned()],
                own: &own,
                user_data,
                rescue: Some(&rescue),
            };
            hints(&login).join("\n")
        };
        let with_key = of(&["ssh-ed25519 BBBB"]);
        assert!(
            !with_key.contains("user-data") && !with_key.contains("none of the keys"),
            "{with_key}"
        );
        // A key in the user-data is not in the rescue system.
        let without = of(&[]);
        assert!(without.contains("waifuctl rescue web --end"), "{without}");
        assert!(!without.contains("user-data"), "{without}");
    }

    #[test]
    fn a_guest_that_may_still_be_booting_causes_a_hint_to_wait() {
        let key = ["ssh-ed25519 AAAA ana".to_owned()];
        let of = |is_booting| {
            let login = Login {
                name: "web",
                is_booting,
                user: Some("debian"),
                is_default: true,
                given: &key,
                own: &key,
                user_data: None,
                rescue: None,
            };
            hints(&login).join("\n")
        };
        assert!(of(true).contains("waifuctl wait web --for ready"));
        assert!(!of(false).contains("--for ready"));
    }

    #[test]
    fn user_data_that_does_not_create_the_default_user_causes_a_hint() {
        let key = ["ssh-ed25519 AAAA other-comment"];
        let said = of(Some("#cloud-config\nusers:\n  - name: ana\n"), &key);
        assert!(
            said.contains("not have a user debian") && said.contains("ssh ana@web"),
            "{said}"
        );
        for fine in [
            "#cloud-config\nusers: [default, ana]\n",
            "#cloud-config\nusers:\n  - name: debian\n",
            "#cloud-config\npackages: []\n",
            "#!/bin/sh\n",
        ] {
            assert!(!of(Some(fine), &key).contains("not have a user"), "{fine}");
        }
    }

    #[test]
    fn a_local_key_that_the_guest_does_not_have_causes_a_hint() {
        assert!(of(None, &["ssh-ed25519 BBBB ana"]).contains("none of the keys"));
        assert!(of(None, &[]).contains("none of the keys"));
        assert!(!of(None, &["ssh-ed25519 AAAA ana"]).contains("none of the keys"));
        let own_keys = "#cloud-config\nssh_authorized_keys: [x]\n";
        assert!(!of(Some(own_keys), &[]).contains("none of the keys"));
    }
}
