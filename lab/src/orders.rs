//! The protocol of the guard: what happens to whole machines and to the links between them.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::control;
use crate::shape::Shape;

/// Longer than a machine takes to end, and than the commands that change the network.
const LIMIT: Duration = Duration::from_mins(2);

/// An order to the guard.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Order {
    /// Return the state of machines and links.
    Status,
    /// End all processes of a machine at once.
    Kill { machine: String },
    /// Start a machine that was killed.
    Boot { machine: String },
    /// Drop all traffic on a link.
    Cut { link: Link },
    /// Limit and delay the traffic on a link, and lose a part of it.
    Slow { link: Link, shape: Shape },
    /// Undo [`Order::Cut`] and [`Order::Slow`].
    Heal { link: Link },
}

/// The guard's answer.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Disturbances(Disturbances),
    Done,
    Refused(String),
}

/// The machines that are off, and the links that differ from a plain network.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Disturbances {
    /// Machines that were killed and not booted since.
    pub off: BTreeSet<String>,
    /// Links on which all traffic is dropped.
    pub cut: BTreeSet<Link>,
    /// Links that are slow.
    pub slow: Vec<(Link, Shape)>,
}

/// Two machines of a lab, in alphabetical order: a link has no direction.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link(String, String);

impl Link {
    /// The link between two different machines.
    ///
    /// # Errors
    /// They are the same.
    pub fn between(one: &str, other: &str) -> Result<Self> {
        match one.cmp(other) {
            std::cmp::Ordering::Equal => bail!("{one} has no link to itself: name two machines"),
            std::cmp::Ordering::Less => Ok(Self(one.to_owned(), other.to_owned())),
            std::cmp::Ordering::Greater => Ok(Self(other.to_owned(), one.to_owned())),
        }
    }

    /// Its two machines.
    pub fn ends(&self) -> [&str; 2] {
        [&self.0, &self.1]
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {}", self.0, self.1)
    }
}

/// The guard's socket in the lab's directory.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("guard.sock")
}

/// Sends an order to the guard of the lab in `dir`.
pub(crate) fn order(dir: &Path, order: &Order) -> Result<Answer> {
    match control::exchange(&socket(dir), "the lab's guard", order, LIMIT)? {
        Answer::Refused(reason) => bail!("{reason}"),
        answer => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_no_direction_and_two_ends() {
        let link = Link::between("birch", "alder").unwrap();
        assert_eq!(link, Link::between("alder", "birch").unwrap());
        assert_eq!(link.to_string(), "alder and birch");
        assert!(Link::between("alder", "alder").is_err());
    }
}
