//! Checks of waifud itself.

use jiff::Timestamp;
use waifud_api::{BackupState, Certificate, Database, DirectorySpace, RedisState, Server};
use waifud_types::DiskSpaceState;

use super::{Check, Verdict, ok};
use crate::text::escape;

/// Clock skew in seconds that causes a warning.
const SKEW_S: i64 = 30;
/// Days before the expiry of a certificate that cause a warning.
const SOON_DAYS: i64 = 60;

/// All checks of waifud itself.
pub fn checks(server: &Server) -> Vec<Check> {
    let mut checks = vec![
        database(&server.database),
        check_space(&server.state_dir),
        clock(server.now, Timestamp::now()),
    ];
    let of = |one| certificate(one, server.now);
    checks.extend(server.certificates.iter().map(of));
    checks.extend(server.redis.iter().flat_map(redis));
    let of = |state| backup(state, server.now, &server.state_dir.path);
    checks.extend(server.backup.iter().map(of));
    checks
}

/// Whether the last regular backup was made, and not too long ago.
fn backup(state: &BackupState, now: Timestamp, state_dir: &str) -> Check {
    let target = escape(&state.target);
    let last = state.last_at.map_or_else(
        || "there is none yet".to_owned(),
        |at| format!("the last one is from {}", at.strftime("%Y-%m-%d %H:%M UTC")),
    );
    if let Some(error) = &state.error {
        let check = ok("backups", format!("{}; {last}", escape(error)));
        let hint = "correct the cause; the command says more: journalctl -u waifud-backup";
        return check.with_hint(Verdict::Warn, hint);
    }
    let check = ok("backups", format!("in {target}: {last}"));
    let age = state.last_at.map(|at| now.duration_since(at).as_secs());
    let pause = state.every_s.and_then(|every| i64::try_from(every).ok());
    // One may be missing while the machine was off or busy.
    let is_late = pause
        .zip(age)
        .is_some_and(|(pause, age)| age > pause.saturating_mul(3));
    if !is_late {
        return check;
    }
    check.with_hint(
        Verdict::Warn,
        format!(
            "start the command again: systemctl start waifud-backup; if you do not want backups any more, remove {}/{}",
            escape(state_dir),
            BackupState::FILE
        ),
    )
}

/// Redis is only a cache: what is wrong with it is a warning.
fn redis(state: &RedisState) -> Vec<Check> {
    let bad = state.conditions.iter().filter(|condition| !condition.ok);
    let mut checks: Vec<Check> = bad
        .map(|condition| {
            let check = ok(escape(&condition.kind), escape(&condition.message));
            check.with_hint(
                Verdict::Warn,
                redis_hint(&condition.kind, &condition.reason),
            )
        })
        .collect();
    if checks.is_empty() {
        checks.push(if state.compared_at.is_some() {
            let message = format!("{} bundles at {}", state.bundles, escape(&state.url));
            ok("redis", message)
        } else {
            let message = format!("waifud has not compared {} yet", escape(&state.url));
            ok("redis", message)
        });
    }
    checks
}

/// What to do about a condition of Redis.
pub(super) fn redis_hint(kind: &str, reason: &str) -> &'static str {
    match (kind, reason) {
        (_, "unreachable") => {
            "start Redis, or correct url in the section [redis] of waifud.toml and restart waifud"
        }
        (_, "slow") => "check the load of Redis and the network to it; guests do not wait for it",
        (_, "tls-failed") => {
            "ca_file in the section [redis] of waifud.toml must have the CA of Redis' certificate, and the certificate the host \
             name in url"
        }
        ("redis-nodes", "wrong-credentials") => {
            "correct node_username or node_password_file in the section [redis] of waifud.toml and restart waifud"
        }
        (_, "wrong-credentials") => {
            "correct username or password_file in the section [redis] of waifud.toml and restart waifud"
        }
        ("redis-nodes", "writable") => {
            "give the nodes' user only +ping and +getrange: see the guide on Redis"
        }
        (_, "denied") => "give the user the permissions that the guide on Redis lists",
        (_, "full") => {
            "raise maxmemory of Redis, or remove other data from it; waifud then writes what is missing"
        }
        (_, "no-tls") => "use rediss:// with ca_file, or a Redis on waifud's own machine",
        (_, "shared-prefix") => {
            "set another prefix in the section [redis] of one waifud.toml, then restart both waifuds"
        }
        (_, "wrong-contents") => {
            "nothing a guest reads was changed; find who else can write to Redis: redis-cli ACL LIST"
        }
        _ => "see waifud's log and the guide on Redis",
    }
}

fn database(database: &Database) -> Check {
    match &database.trouble {
        None => ok("waifud database", "readable and writable"),
        Some(trouble) => ok("waifud database", escape(trouble)).with_hint(
            Verdict::Fail,
            "check waifud's log and the permissions in its state_dir; if the database is lost, stop waifud and restore a \
             backup: waifud restore FILE",
        ),
    }
}

/// Compares this machine's clock with waifud's.
fn clock(waifud: Timestamp, own: Timestamp) -> Check {
    let skew = own.duration_since(waifud).as_secs();
    if skew.abs() < SKEW_S {
        return ok("clock", "in sync with waifud's clock");
    }
    let check = ok("clock", format!("{skew:+} s relative to waifud's clock"));
    check.with_hint(
        Verdict::Warn,
        "enable NTP on both machines: timedatectl set-ntp true",
    )
}

fn certificate(certificate: &Certificate, now: Timestamp) -> Check {
    let until = certificate.not_after.strftime("%Y-%m-%d");
    let check = ok(
        format!("certificate {}", escape(&certificate.name)),
        format!("valid until {until}"),
    );
    let days = certificate.not_after.duration_since(now).as_hours() / 24;
    let remedy = match certificate.name.as_str() {
        "server" => "restart waifud: it issues a new certificate when it starts",
        _ => {
            "move the directory pki out of waifud's state_dir and restart waifud, which then creates a new CA; every node must join again"
        }
    };
    if days < 0 {
        check.with_hint(Verdict::Fail, remedy)
    } else if days < SOON_DAYS {
        check.with_hint(Verdict::Warn, remedy)
    } else {
        check
    }
}

fn check_space(dir: &DirectorySpace) -> Check {
    let check = ok("waifud state_dir", free(dir));
    let make_room = "free space on that filesystem: waifuctl df shows the size of images, waifuctl template delete and \
                     image delete remove them";
    match dir.state {
        DiskSpaceState::Ok => check,
        DiskSpaceState::Low => check.with_hint(
            Verdict::Warn,
            format!("{make_room}; when it is full, new data is refused"),
        ),
        DiskSpaceState::Full => check.with_hint(
            Verdict::Fail,
            format!("{make_room}; guests keep running, and waifud continues automatically"),
        ),
    }
}

/// Describes the free space of a directory.
pub fn free(dir: &DirectorySpace) -> String {
    let state = match dir.state {
        DiskSpaceState::Ok => "",
        DiskSpaceState::Low => " (low)",
        DiskSpaceState::Full => " (full: new data is refused)",
    };
    format!(
        "{} of {} free in {}{state}",
        dir.free_bytes,
        dir.size_bytes,
        escape(&dir.path)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiring_certificates_and_clock_skew_are_reported_with_a_hint() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let verdict = |until: &str| {
            let one = Certificate {
                name: "server".to_owned(),
                not_after: until.parse().unwrap(),
            };
            let check = certificate(&one, now);
            assert_eq!(check.hint.is_some(), check.verdict != Verdict::Ok);
            check.verdict
        };
        assert_eq!(verdict("2047-01-01T00:00:00Z"), Verdict::Ok);
        assert_eq!(verdict("2026-07-01T00:00:00Z"), Verdict::Warn);
        assert_eq!(verdict("2026-05-01T00:00:00Z"), Verdict::Fail);
        let later = |seconds| now + jiff::SignedDuration::from_secs(seconds);
        assert_eq!(clock(now, later(5)).verdict, Verdict::Ok);
        assert_eq!(clock(now, later(-90)).verdict, Verdict::Warn);
    }

    #[test]
    fn failed_and_late_backups_are_warnings() {
        let now: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
        let check = |last_at: Option<&str>, every_s, error: Option<&str>| {
            let state = BackupState {
                target: "birch:/srv/backup".to_owned(),
                last_at: last_at.map(|at| at.parse().unwrap()),
                every_s,
                error: error.map(str::to_owned),
            };
            let check = backup(&state, now, "/var/lib/waifud");
            assert_eq!(check.hint.is_some(), check.verdict != Verdict::Ok);
            check
        };
        let well = check(Some("2026-06-01T11:30:00Z"), Some(900), None);
        assert_eq!(well.verdict, Verdict::Ok);
        assert!(
            well.message.contains("2026-06-01 11:30 UTC"),
            "{}",
            well.message
        );
        let late = check(Some("2026-06-01T11:10:00Z"), Some(900), None);
        assert_eq!(late.verdict, Verdict::Warn);
        assert!(
            late.hint
                .unwrap()
                .contains("/var/lib/waifud/regular-backup.json")
        );
        // One that is made by hand is never late.
        let by_hand = check(Some("2020-06-01T11:10:00Z"), None, None);
        assert_eq!(by_hand.verdict, Verdict::Ok);
        let failed = check(Some("2026-06-01T11:59:00Z"), Some(900), Some("no space"));
        assert_eq!(failed.verdict, Verdict::Warn);
        assert!(failed.message.contains("no space"));
        assert!(
            check(None, None, Some("no space"))
                .message
                .contains("none yet")
        );
    }

    #[test]
    fn each_condition_of_redis_is_a_warning_with_a_hint() {
        let condition = |kind: &str, reason: &str| {
            let condition = serde_json::json!({"type": kind, "ok": false, "reason": reason, "message": "what is wrong",
                "since": "2026-11-22T00:00:00Z"});
            serde_json::from_value(condition).unwrap()
        };
        let mut state = RedisState {
            url: "rediss://cache.lan".to_owned(),
            compared_at: Some(Timestamp::UNIX_EPOCH),
            bundles: 7,
            conditions: Vec::new(),
        };
        let well = redis(&state);
        assert_eq!((well.len(), well[0].verdict), (1, Verdict::Ok));
        assert!(well[0].message.contains("7 bundles at rediss://cache.lan"));
        for (kind, reason, hint) in [
            ("redis", "wrong-credentials", "username or password_file"),
            ("redis-nodes", "wrong-credentials", "node_password_file"),
            ("redis-nodes", "writable", "+getrange"),
            ("redis-tls", "no-tls", "rediss://"),
            ("redis", "full", "maxmemory"),
            ("redis", "slow", "guests do not wait"),
            ("redis-contents", "shared-prefix", "prefix"),
            ("redis-contents", "wrong-contents", "ACL LIST"),
            ("redis", "of-a-later-version", "log"),
        ] {
            state.conditions = vec![condition(kind, reason)];
            let checks = redis(&state);
            assert_eq!((checks.len(), checks[0].verdict), (1, Verdict::Warn));
            let said = checks[0].hint.as_deref().unwrap();
            assert!(said.contains(hint), "{kind} {reason}: {said}");
        }
    }

    #[test]
    fn low_space_is_a_warning_full_space_a_failure_and_both_have_a_hint() {
        for (state, verdict) in [
            (DiskSpaceState::Ok, Verdict::Ok),
            (DiskSpaceState::Low, Verdict::Warn),
            (DiskSpaceState::Full, Verdict::Fail),
        ] {
            let dir = DirectorySpace {
                path: "/var/lib/waifud".to_owned(),
                size_bytes: waifud_types::ByteSize::gib(40),
                free_bytes: waifud_types::ByteSize::mib(3),
                state,
                since: jiff::Timestamp::UNIX_EPOCH,
            };
            let check = check_space(&dir);
            assert_eq!(check.verdict, verdict);
            assert_eq!(check.hint.is_some(), verdict != Verdict::Ok);
            assert!(check.message.contains("3M of 40G free in /var/lib/waifud"));
        }
    }
}
