//! Runs a program in the foreground of the terminal: signals, suspension, exit code.

use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// Returns the exit code, or 128 plus the number of the signal that ended the program, as a shell does.
pub async fn run(mut command: Command) -> std::io::Result<u8> {
    // The program receives the terminal's signals too and handles them. The handlers here are not inherited.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(std::io::Error::other)?;
    let pid = Pid::from_raw(pid);
    let mut ended = tokio::task::spawn_blocking(move || until_it_ends(pid));
    loop {
        tokio::select! {
            code = &mut ended => return code.map_err(std::io::Error::other)?,
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
            // These signals are sent to this process only.
            _ = terminate.recv() => pass_on(pid, Signal::SIGTERM),
            _ = hang_up.recv() => pass_on(pid, Signal::SIGHUP),
        }
    }
}

fn pass_on(pid: Pid, signal: Signal) {
    // The program may have ended already.
    let _ended = kill(pid, signal);
}

fn until_it_ends(pid: Pid) -> std::io::Result<u8> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX));
            }
            // The program suspended itself (~^Z): the shell gets the terminal, and `fg` continues both processes.
            Ok(WaitStatus::Stopped(..)) => raise(Signal::SIGSTOP)?,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str) -> u8 {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command).await.unwrap()
    }

    #[tokio::test]
    async fn the_exit_code_is_that_of_the_program() {
        assert_eq!(sh("exit 0").await, 0);
        assert_eq!(sh("exit 255").await, 255);
        assert_eq!(sh("kill -TERM $$").await, 128 + 15);
        assert!(run(Command::new("/nonexistent/program")).await.is_err());
    }
}
