//! An error together with its causes.

use std::error::Error;
use std::io;
use std::iter::successors;

/// The error and its causes, from the outermost to the innermost.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

/// The error and its causes on one line, separated by colons. A cause whose text already occurs is left out.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in successors(error.source(), |&error| error.source()) {
        let message = cause.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
    }
    text
}

/// Prints the error with its causes on standard error, as a program does before it exits.
pub fn print(error: &dyn Error) {
    use std::io::Write as _;
    let _nowhere_to_say_it = writeln!(io::stderr(), "error: {}", with_causes(error));
}

/// The text of the innermost cause, or of the error itself if it has no cause.
pub fn root_cause(error: &dyn Error) -> String {
    successors(error.source(), |&error| error.source())
        .last()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// The first error of type `E` among the error and its causes.
pub fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] Middle);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read a: it is locked")]
    struct Middle(#[source] io::Error);

    fn error() -> Outer {
        Outer(Middle(io::Error::other("it is locked")))
    }

    #[test]
    fn causes_are_appended_once() {
        let shown = with_causes(&error());
        assert_eq!(shown, "cannot start: cannot read a: it is locked");
        assert_eq!(with_causes(&io::Error::other("alone")), "alone");
    }

    #[test]
    fn an_error_whose_text_is_that_of_its_cause_is_shown_once() {
        #[derive(Debug, thiserror::Error)]
        #[error(transparent)]
        struct Transparent(#[from] Quoting);
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Quoting(#[source] Middle);
        let error = Transparent(Quoting(Middle(io::Error::other("it is locked"))));
        assert_eq!(with_causes(&error), "cannot read a: it is locked");
        // What is left out does not hide the causes below it.
        let error = Quoting(Middle(io::Error::other("other")));
        assert_eq!(with_causes(&error), "cannot read a: it is locked: other");
    }

    #[test]
    fn the_root_cause_is_the_innermost() {
        assert_eq!(root_cause(&error()), "it is locked");
        assert_eq!(root_cause(&io::Error::other("alone")), "alone");
    }

    #[test]
    fn an_error_is_found_by_its_type() {
        let error = error();
        assert_eq!(chain(&error).count(), 3);
        assert_eq!(
            find::<io::Error>(&error).unwrap().kind(),
            io::ErrorKind::Other
        );
        assert!(find::<Outer>(&error).is_some());
        assert!(find::<std::fmt::Error>(&error).is_none());
    }
}
