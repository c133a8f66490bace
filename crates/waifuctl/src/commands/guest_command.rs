//! `waifuctl exec` and `waifuctl passwd`: what the guest agent does for whoever runs the guest.

use std::io::{Read, Write};
use std::path::Path;

use base64::Engine;
use waifud_api::guest_command::{ExecRequest, PASSWORD_MAX, SetPassword};
use waifud_types::Secret;

use crate::cli_guest::{ExecArgs, PasswdArgs};
use crate::context::Context;
use crate::failure::Failure;
use crate::silent;
use crate::text::escape;

/// Runs a program in a guest; its exit code becomes ours.
pub async fn exec(context: &Context, args: ExecArgs) -> Result<(), Failure> {
    let request = ExecRequest {
        command: args.command,
        timeout_s: args.timeout,
    };
    let result = context.client.exec(&args.name, &request).await?;
    if context.printer.is_json() {
        context.printer.print(&result, String::new)?;
    } else {
        let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text);
        let decoded =
            decode(&result.stdout_base64).and_then(|out| Ok((out, decode(&result.stderr_base64)?)));
        let (out, err) = decoded.map_err(|e| {
            Failure::ours("malformed", "waifud's answer can't be understood").cause(&e)
        })?;
        put(&mut std::io::stdout().lock(), &out)?;
        put(&mut std::io::stderr().lock(), &err)?;
    }
    if result.truncated {
        context
            .printer
            .note("the guest agent kept only the beginning of the output; write it to a file in the guest");
    }
    match result.exit_code {
        0 => Ok(()),
        code => Err(Failure::of_the_guest(code)),
    }
}

/// Bytes as the program wrote them: that is what exec is for, also to a terminal.
fn put(to: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    let written = to.write_all(bytes).and_then(|()| to.flush());
    match written {
        // Nobody reads any more.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => {
            other.map_err(|e| Failure::ours("output", "the output can't be written").cause(&e))
        }
    }
}

/// Sets the password of one of a guest's users.
pub async fn passwd(context: &Context, args: PasswdArgs) -> Result<(), Failure> {
    let password = match &args.password_file {
        Some(path) => from_file(path)?,
        None => from_terminal(&args.user).await?,
    };
    let request = SetPassword {
        user: args.user,
        password,
    };
    context.client.set_password(&args.name, &request).await?;
    context.printer.note(&format!(
        "{}: the password of {} is set",
        args.name, request.user
    ));
    Ok(())
}

fn from_file(path: &Path) -> Result<Secret<String>, Failure> {
    let unreadable = |e: std::io::Error| {
        Failure::input(
            "password-unreadable",
            format!("{} can't be read", path.display()),
        )
        .field("--password-file")
        .hint("check the path; - reads standard input")
        .cause(&e)
    };
    let most = u64::try_from(PASSWORD_MAX + 2).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    }
    .map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| {
        Failure::input("password-binary", "the password is not text").field("--password-file")
    })?;
    Ok(line(text))
}

/// Without the line's end, which no editor leaves out.
fn line(mut text: String) -> Secret<String> {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Secret::new(text)
}

async fn from_terminal(user: &str) -> Result<Secret<String>, Failure> {
    let typed = silent::ask(&format!("New password of {}: ", escape(user))).await?;
    typed.ok_or_else(|| {
        Failure::input(
            "no-password",
            "there is no terminal to type the password at",
        )
        .field("--password-file")
        .hint("--password-file FILE, or - for standard input")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_not_part_of_the_password() {
        for (text, password) in [("a\n", "a"), ("a\r\n", "a"), ("a \n\n", "a \n"), ("a", "a")] {
            assert_eq!(line(text.to_owned()).expose(), password);
        }
    }
}
