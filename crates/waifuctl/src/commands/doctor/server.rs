//! Checks of waifud itself.

use jiff::Timestamp;
use waifud_api::{Certificate, Database, DirectorySpace, Server};
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
    checks
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
