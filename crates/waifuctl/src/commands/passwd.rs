//! `waifuctl passwd`

use std::io::Read;
use std::path::Path;

use waifud_api::guest_command::{PASSWORD_MAX, SetPassword};
use waifud_types::Secret;

use crate::cli::PasswdArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::password_prompt;
use crate::text::escape;

/// Sets the password of a user in a guest.
pub async fn run(context: &Context, args: PasswdArgs) -> Result<(), Failure> {
    let password = match &args.password_file {
        Some(path) => from_file(path)?,
        None => from_terminal(&args.user).await?,
    };
    let request = SetPassword {
        user: args.user,
        password,
    };
    context.client.set_password(&args.name, &request).await?;
    context
        .printer
        .note(&format!("{}: password of {} set", args.name, request.user));
    Ok(())
}

fn from_file(path: &Path) -> Result<Secret<String>, Failure> {
    let unreadable = |e: std::io::Error| {
        Failure::input(
            "password-unreadable",
            format!("cannot read {}", path.display()),
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
        Failure::input("password-binary", "the password is not valid UTF-8")
            .field("--password-file")
    })?;
    Ok(line(text))
}

/// Removes the trailing newline that editors add.
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
    let typed = password_prompt::ask(&format!("New password of {}: ", escape(user))).await?;
    typed.ok_or_else(|| {
        Failure::input(
            "no-password",
            "no password given, and there is no terminal to prompt for it",
        )
        .field("--password-file")
        .hint("pass --password-file FILE, or --password-file - to read standard input")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_newline_is_not_part_of_the_password() {
        for (text, password) in [("a\n", "a"), ("a\r\n", "a"), ("a \n\n", "a \n"), ("a", "a")] {
            assert_eq!(line(text.to_owned()).expose(), password);
        }
    }
}
