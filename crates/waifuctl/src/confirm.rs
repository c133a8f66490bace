//! Confirmation of actions that cannot be undone.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Asks the user to type the name of the object to destroy. Without a terminal, `--yes` is required.
pub fn confirm(what: &str, name: &str) -> Result<(), Failure> {
    ask(
        &format!("destroying {what} {name}"),
        &format!("This destroys {what} {name}."),
        name,
    )
}

/// Asks the user to type `name`. `act` ("destroying …") is used in errors, `warning` is printed before the question.
pub fn ask(act: &str, warning: &str, name: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::input("not-confirmed", format!("{act} requires confirmation"))
                .hint("run this in a terminal or pass --yes"),
        );
    }
    let mut stderr = std::io::stderr();
    let _stderr_gone = write!(stderr, "{warning} Type {name} to continue: ");
    let _stderr_gone = stderr.flush();
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| Failure::input("not-confirmed", "cannot read the answer").cause(&e))?;
    if line.trim() == name {
        Ok(())
    } else {
        Err(Failure::input(
            "not-confirmed",
            format!("canceled: {name} was not confirmed"),
        ))
    }
}
