//! Asking before something is done that can't be undone.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Lets the person type the name of what is to be destroyed. Without a terminal, `--yes` is needed.
pub fn confirm(what: &str, name: &str) -> Result<(), Failure> {
    ask(
        &format!("destroying {what} {name}"),
        &format!("This destroys {what} {name}."),
        name,
    )
}

/// Lets the person type `name` before something is done that can't be undone: `act` ("destroying …") in an error,
/// `warning` as a sentence before the question.
pub fn ask(act: &str, warning: &str, name: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::input("not-confirmed", format!("{act} needs a confirmation"))
                .hint("the same command with --yes does it without asking"),
        );
    }
    let mut stderr = std::io::stderr();
    let _stderr_gone = write!(stderr, "{warning} Type {name} to go on: ");
    let _stderr_gone = stderr.flush();
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| Failure::input("not-confirmed", "no answer could be read").cause(&e))?;
    if line.trim() == name {
        Ok(())
    } else {
        Err(Failure::input(
            "not-confirmed",
            format!("nothing was done: {name} was not typed"),
        ))
    }
}
