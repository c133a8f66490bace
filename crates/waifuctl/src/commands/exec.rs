//! `waifuctl exec`

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use base64::Engine;
use waifud_api::guest_command::{ExecRequest, STDIN_MAX};
use waifud_types::Secret;

use crate::cli::ExecArgs;
use crate::context::Context;
use crate::failure::Failure;

/// The exit code if the program was not run, as in ssh.
const NOT_RUN: u8 = 255;

/// Runs a program in a guest and exits with its exit code, or with [`NOT_RUN`].
pub async fn run(context: &Context, args: ExecArgs) -> Result<(), Failure> {
    Failure::of_program(exec(context, args).await, NOT_RUN)
}

async fn exec(context: &Context, args: ExecArgs) -> Result<u8, Failure> {
    let stdin = if args.no_stdin {
        None
    } else {
        piped_input().await?
    };
    let request = ExecRequest {
        command: args.command,
        timeout_s: args.timeout,
        stdin_base64: stdin
            .map(|bytes| Secret::new(base64::engine::general_purpose::STANDARD.encode(bytes))),
    };
    let result = context.client.exec(&args.name, &request).await?;
    if context.printer.is_json() {
        context.printer.print(&result, String::new)?;
    } else {
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text);
        let decoded =
            decode(&result.stdout_base64).and_then(|out| Ok((out, decode(&result.stderr_base64)?)));
        let (out, err) = decoded.map_err(|e| {
            Failure::internal("malformed", "cannot decode the response of waifud").cause(&e)
        })?;
        write_unfiltered(&mut std::io::stdout().lock(), &out)?;
        write_unfiltered(&mut std::io::stderr().lock(), &err)?;
    }
    if result.truncated {
        context
            .printer
            .note("note: the output was truncated to 2 MiB of stdout and 512 KiB of stderr; redirect it to a file in the guest instead");
    }
    Ok(result.exit_code)
}

/// Reads standard input if it is a file or a pipe.
async fn piped_input() -> Result<Option<Vec<u8>>, Failure> {
    let read = tokio::task::spawn_blocking(|| {
        // A `File` for the descriptor, to get its type.
        let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        let kind = input.metadata()?.file_type();
        if !(kind.is_file() || kind.is_fifo() || kind.is_socket()) {
            return Ok(None);
        }
        read_at_most(input, STDIN_MAX).map(Some)
    });
    let failed = |e: &dyn std::error::Error| {
        Failure::input("stdin-unreadable", "cannot read standard input")
            .field("stdin")
            .hint("--no-stdin runs the program without input")
            .cause(e)
    };
    match read.await {
        Ok(Ok(Some(Some(bytes)))) => Ok((!bytes.is_empty()).then_some(bytes)),
        Ok(Ok(Some(None))) => Err(Failure::input(
            "stdin-too-large",
            format!(
                "standard input exceeds the limit of {} MiB",
                STDIN_MAX >> 20
            ),
        )
        .field("stdin")
        .hint("copy the file with scp and waifuctl ssh-config, or use --no-stdin")),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

/// Reads everything; `None` if that exceeds `limit` bytes.
fn read_at_most(from: impl Read, limit: usize) -> std::io::Result<Option<Vec<u8>>> {
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    from.take(most).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

/// Writes output unfiltered, also to a terminal, as `exec` documents.
fn write_unfiltered(to: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    let written = to.write_all(bytes).and_then(|()| to.flush());
    match written {
        // The reader has closed the pipe.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => {
            other.map_err(|e| Failure::internal("output", "cannot write the output").cause(&e))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_read_up_to_its_limit() {
        assert_eq!(read_at_most(&b"12345"[..], 5).unwrap().unwrap(), b"12345");
        assert_eq!(read_at_most(&b"123456"[..], 5).unwrap(), None);
        assert_eq!(read_at_most(std::io::repeat(0), 5).unwrap(), None);
    }
}
