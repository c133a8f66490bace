//! waifud itself, as `doctor` and `df` show it.

use waifud_api::{DirectoryRoom, Server};
use waifud_types::RoomState;

use super::doctor::{Check, Verdict, ok};
use crate::text::escape;

/// What there is to say of waifud itself.
pub fn checks(server: &Server) -> Vec<Check> {
    vec![room(&server.state_dir)]
}

fn room(dir: &DirectoryRoom) -> Check {
    let check = ok("waifud state_dir", free(dir));
    let make_room = "make room on that filesystem: waifuctl df shows what images take, waifuctl template delete and \
                     image delete remove them";
    match dir.state {
        RoomState::Ok => check,
        RoomState::Low => check.but(
            Verdict::Warn,
            format!("{make_room}; when it is full, nothing new is taken"),
        ),
        RoomState::Full => check.but(
            Verdict::Fail,
            format!("{make_room}; guests run on, and waifud goes on by itself"),
        ),
    }
}

/// A directory's room in words.
pub fn free(dir: &DirectoryRoom) -> String {
    let state = match dir.state {
        RoomState::Ok => "",
        RoomState::Low => ", which is little",
        RoomState::Full => ", which is too little: nothing new is taken",
    };
    format!(
        "{} of {} is free in {}{state}",
        dir.free_bytes,
        dir.size_bytes,
        escape(&dir.path)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_is_a_warning_full_a_failure_and_both_have_a_next_step() {
        for (state, verdict) in [
            (RoomState::Ok, Verdict::Ok),
            (RoomState::Low, Verdict::Warn),
            (RoomState::Full, Verdict::Fail),
        ] {
            let dir = DirectoryRoom {
                path: "/var/lib/waifud".to_owned(),
                size_bytes: waifud_types::ByteSize::gib(40),
                free_bytes: waifud_types::ByteSize::mib(3),
                state,
                since: jiff::Timestamp::UNIX_EPOCH,
            };
            let check = room(&dir);
            assert_eq!(check.verdict, verdict);
            assert_eq!(check.hint.is_some(), verdict != Verdict::Ok);
            assert!(
                check
                    .message
                    .contains("3M of 40G is free in /var/lib/waifud")
            );
        }
    }
}
