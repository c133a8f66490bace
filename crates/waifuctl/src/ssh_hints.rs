//! Why ssh may have ended with 255, and what to do: from what the instance was created with. Pure.

use std::collections::BTreeSet;

/// What is known of a login that failed.
pub struct Login<'a> {
    /// The instance's name.
    pub name: &'a str,
    /// The user that ssh was told.
    pub user: Option<&'a str>,
    /// Whether that is the template's default user and was not typed.
    pub is_default: bool,
    /// The public keys that the guest was given.
    pub given: &'a [String],
    /// The public keys in `~/.ssh`.
    pub own: &'a [String],
    /// User-data, where the caller may read it.
    pub user_data: Option<&'a str>,
}

/// One sentence each, the likeliest first.
pub fn hints(login: &Login<'_>) -> Vec<String> {
    let name = login.name;
    let mut hints = Vec::new();
    if let (Some(user), true) = (login.user, login.is_default)
        && let Some(users) = login.user_data.and_then(users)
        && !users.contains("default")
        && !users.contains(user)
    {
        let others: Vec<_> = users.iter().cloned().collect();
        let other = others.first().map_or("USER", String::as_str);
        hints.push(format!(
            "user-data has `users:` without `default`, so the guest has no user {user}: waifuctl ssh {other}@{name}"
        ));
    }
    let bare = |key: &String| {
        let mut words = key.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    let given: BTreeSet<_> = login.given.iter().filter_map(bare).collect();
    let has_one = login
        .own
        .iter()
        .filter_map(bare)
        .any(|key| given.contains(&key));
    let in_user_data = login
        .user_data
        .is_some_and(|text| text.contains("ssh_authorized_keys") || text.contains("ssh_import_id"));
    if !has_one && !in_user_data {
        hints.push(format!(
            "none of the keys in ~/.ssh was given to {name} when it was created: --identity FILE names another, or set a \
             password with waifuctl passwd {name} and use waifuctl console {name}"
        ));
    }
    if hints.is_empty() {
        let user = login.user.unwrap_or("its user");
        hints.push(format!(
            "if ssh said \"Permission denied\": is {user} a user of the guest (waifuctl ssh USER@{name}), and was your key \
             given when it was created? If it said that the connection was closed or timed out: waifuctl why {name}"
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
            user: Some("debian"),
            is_default: true,
            given: &["ssh-ed25519 AAAA ana@laptop".to_owned()],
            own: &own,
            user_data,
        })
        .join("\n")
    }

    #[test]
    fn a_default_user_that_user_data_does_not_create_is_named() {
        let key = ["ssh-ed25519 AAAA other-comment"];
        let said = of(Some("#cloud-config\nusers:\n  - name: ana\n"), &key);
        assert!(
            said.contains("no user debian") && said.contains("ssh ana@web"),
            "{said}"
        );
        for fine in [
            "#cloud-config\nusers: [default, ana]\n",
            "#cloud-config\nusers:\n  - name: debian\n",
            "#cloud-config\npackages: []\n",
            "#!/bin/sh\n",
        ] {
            assert!(!of(Some(fine), &key).contains("no user"), "{fine}");
        }
    }

    #[test]
    fn a_key_that_the_guest_was_not_given_is_named() {
        assert!(of(None, &["ssh-ed25519 BBBB ana"]).contains("none of the keys"));
        assert!(of(None, &[]).contains("none of the keys"));
        assert!(!of(None, &["ssh-ed25519 AAAA ana"]).contains("none of the keys"));
        let own_keys = "#cloud-config\nssh_authorized_keys: [x]\n";
        assert!(!of(Some(own_keys), &[]).contains("none of the keys"));
    }
}
