//! `move --wait`: shows the progress of a move until the instance is on the new node.

use std::time::Duration;

use waifud_api::{Instance, InstanceMove};
use waifud_types::{ByteSize, CopyPath, MoveState};

use super::deadline::Deadline;
use super::watch::InstanceWatch;
use crate::context::Context;
use crate::failure::Failure;
use crate::progress;
use crate::text::escape;

/// The longest pause between two reads. Progress is not an event.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Waits until the new node has the instance. Fails if the move is canceled meanwhile.
pub async fn until_moved(
    context: &Context,
    instance: Instance,
    deadline: Deadline,
) -> Result<Instance, Failure> {
    let name = instance.name.to_string();
    let to = instance.moving.as_ref().map(|moving| moving.to.clone());
    let bar = progress::bytes(0, &name, !context.printer.shows_progress());
    let mut watch = InstanceWatch::new(context, &instance);
    let mut now = instance;
    loop {
        match &now.moving {
            Some(moving) if moving.state == MoveState::Canceling => {
                return Err(was_canceled(&name));
            }
            Some(moving) if moving.state != MoveState::Removing => show(&bar, &name, moving),
            _ => {
                bar.finish_and_clear();
                return if to.is_none() || now.status.node == to {
                    Ok(now)
                } else {
                    Err(was_canceled(&name))
                };
            }
        }
        let left = deadline.left(&now.status);
        if left.is_zero() {
            bar.finish_and_clear();
            let state = now.moving.as_ref().map(describe).unwrap_or_default();
            return Err(Failure::deadline(format!(
                "{name} is not moved yet ({}); waifud continues in the background",
                escape(&state)
            ))
            .hint(format!(
                "waifuctl why {name}, or waifuctl move {name} --cancel"
            )));
        }
        now = watch.next_existing(now, left.min(POLL_INTERVAL)).await?;
    }
}

fn show(bar: &indicatif::ProgressBar, name: &str, moving: &InstanceMove) {
    let text = escape(&describe(moving));
    match (moving.done_bytes, moving.total_bytes) {
        (Some(done), Some(total)) => {
            let waits = moving.reason.as_ref().map(|_| text.as_str());
            let name = format!("{name}{}", path(moving));
            progress::show_download(bar, &name, done.bytes(), Some(total.bytes()), waits);
        }
        _ => progress::show_download(bar, name, 0, None, Some(&text)),
    }
}

/// The path of the disks, if it is known.
fn path(moving: &InstanceMove) -> &'static str {
    match moving.path {
        Some(CopyPath::Direct) => " directly",
        Some(CopyPath::Waifud) => " through waifud",
        Some(CopyPath::Other) | None => "",
    }
}

/// The state of a move, in a few words.
fn describe(moving: &InstanceMove) -> String {
    let InstanceMove { from, to, .. } = moving;
    let path = path(moving);
    let doing = match moving.state {
        MoveState::Preparing => format!("{to} prepares for it"),
        MoveState::Stopping => format!("{from} shuts it down"),
        MoveState::Copying => match (moving.done_bytes, moving.total_bytes) {
            (Some(done), Some(total)) => {
                format!(
                    "copying its disks{path}, {done} of {}",
                    ByteSize(total.bytes())
                )
            }
            _ => "copying its disks".to_owned(),
        },
        MoveState::Starting => format!("{to} starts it"),
        MoveState::Removing => format!("{from} deletes its copy"),
        MoveState::Canceling | MoveState::Other => moving.state.to_string(),
    };
    match &moving.reason {
        Some(reason) => format!("{doing}: {reason}"),
        None => doing,
    }
}

fn was_canceled(name: &str) -> Failure {
    Failure::input(
        "move-canceled",
        format!("the move of {name} was canceled; it stays on its node"),
    )
    .hint(format!("waifuctl events {name} shows who canceled it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_described_by_what_is_being_done_and_what_hinders_it() {
        let moving = |state, bytes: Option<(u64, u64)>, reason: Option<&str>| InstanceMove {
            from: "alder".parse().unwrap(),
            to: "birch".parse().unwrap(),
            state,
            began_at: waifud_types::Timestamp::UNIX_EPOCH,
            done_bytes: bytes.map(|(done, _)| ByteSize::mib(done)),
            total_bytes: bytes.map(|(_, total)| ByteSize::mib(total)),
            reason: reason.map(str::to_owned),
            path: None,
        };
        let with = |state, bytes, reason| describe(&moving(state, bytes, reason));
        assert_eq!(
            with(MoveState::Preparing, None, None),
            "birch prepares for it"
        );
        assert_eq!(with(MoveState::Stopping, None, None), "alder shuts it down");
        assert_eq!(
            with(
                MoveState::Copying,
                Some((20, 300)),
                Some("pool main is full")
            ),
            "copying its disks, 20M of 300M: pool main is full"
        );
        assert_eq!(with(MoveState::Copying, None, None), "copying its disks");
        assert_eq!(with(MoveState::Starting, None, None), "birch starts it");
        for (path, text) in [
            (CopyPath::Direct, "copying its disks directly, 20M of 300M"),
            (
                CopyPath::Waifud,
                "copying its disks through waifud, 20M of 300M",
            ),
        ] {
            let mut now = moving(MoveState::Copying, Some((20, 300)), None);
            now.path = Some(path);
            assert_eq!(describe(&now), text);
        }
    }
}
