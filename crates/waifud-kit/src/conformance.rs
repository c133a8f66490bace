//! The result of checking an implementation against the rules of its interface.

use std::fmt::Debug;

/// A violated rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Fails with the rule and the observed value unless the rule holds.
///
/// # Errors
/// The rule is violated.
pub fn expect(holds: bool, rule: &str, observed: &dyn Debug) -> Result<(), Violation> {
    if holds {
        Ok(())
    } else {
        Err(Violation(format!("{rule}: {observed:?}")))
    }
}

/// Makes the error of an operation that must succeed a violation.
pub fn failed<E: Debug>(operation: &str) -> impl FnOnce(E) -> Violation {
    move |error| Violation(format!("{operation} failed: {error:?}"))
}
