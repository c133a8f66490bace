//! User-data as people write it: what cloud-init would make of it, found out before any guest boots.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, from_str_with_options, options};
use waifud_types::spec::limits::USER_DATA_MAX;

/// What cloud-init will take it for, by its first line.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UserDataKind {
    /// Nothing in it.
    Empty,
    /// `#cloud-config`: YAML.
    CloudConfig,
    /// `#cloud-config-archive`: a YAML list of parts.
    CloudConfigArchive,
    /// `#cloud-config-jsonp`: a JSON patch of the configuration.
    CloudConfigPatch,
    /// `#!`: a script.
    Script,
    /// `#include` or `#include-once`: addresses to fetch more from.
    Include,
    /// `#cloud-boothook`: a script that runs early at each boot.
    Boothook,
    /// `#part-handler`: Python that handles parts.
    PartHandler,
    /// `## template: jinja`: any of the above with instance data filled in.
    Jinja,
    /// MIME with several parts.
    Mime,
}

/// First lines, the longer before the shorter that they begin with (`INCLUSION_TYPES_MAP` in cloud-init).
const KINDS: [(&str, UserDataKind); 8] = [
    ("#cloud-config-archive", UserDataKind::CloudConfigArchive),
    ("#cloud-config-jsonp", UserDataKind::CloudConfigPatch),
    ("#cloud-config", UserDataKind::CloudConfig),
    ("#cloud-boothook", UserDataKind::Boothook),
    ("#part-handler", UserDataKind::PartHandler),
    ("#include", UserDataKind::Include),
    ("#!", UserDataKind::Script),
    ("## template: jinja", UserDataKind::Jinja),
];

/// cloud-init looks for `MIME-Version:` in that many bytes, and takes text without it for something else.
const MIME_WINDOW: usize = 4096;

/// Why it is refused. Never shows its text.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserDataError {
    /// Over 1 MiB.
    #[error("the user-data has {found} bytes; at most {USER_DATA_MAX} are taken")]
    TooLong {
        /// Its bytes.
        found: u64,
    },
    /// Not a text.
    #[error("the user-data is binary: line {line} has a control character")]
    Binary {
        /// The line, from 1.
        line: usize,
    },
    /// cloud-init would ignore it.
    #[error("the user-data's first line is not one that cloud-init knows")]
    UnknownKind {
        /// What to do about it.
        hint: &'static str,
    },
    /// YAML that can't be parsed.
    #[error("the user-data is not valid YAML at line {line}, column {column}")]
    NotYaml {
        /// The line, from 1; 0 when unknown.
        line: u64,
        /// The column, from 1; 0 when unknown.
        column: u64,
    },
    /// YAML, but a list or a single value.
    #[error("the user-data is valid YAML, but not {wanted}")]
    WrongShape {
        /// What its kind wants, in words.
        wanted: &'static str,
    },
}

impl UserDataError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => {
                "keep it under 1 MiB: let it fetch what is large, with #include or a script"
            }
            Self::Binary { .. } => "give it as text; compressed user-data is not taken",
            Self::UnknownKind { hint } => hint,
            Self::NotYaml { .. } => {
                "check the indentation there; tabs are not allowed, and a value with ': ' or '#' needs quotes"
            }
            Self::WrongShape { .. } => {
                "#cloud-config is followed by lines such as: packages: [htop]"
            }
        }
    }
}

/// Checks user-data and says what it is.
pub fn validate_user_data(text: &str) -> Result<UserDataKind, UserDataError> {
    let found = text.len() as u64;
    if found > USER_DATA_MAX {
        return Err(UserDataError::TooLong { found });
    }
    let binary = |b: u8| b.is_ascii_control() && !matches!(b, b'\t' | b'\n' | b'\r');
    if let Some(at) = text.bytes().position(binary) {
        let line = 1 + text.bytes().take(at).filter(|b| *b == b'\n').count();
        return Err(UserDataError::Binary { line });
    }
    let kind = kind_of(text)?;
    match kind {
        UserDataKind::CloudConfig => match shape_of(text)? {
            // Comments only: nothing is asked for, and cloud-init takes it.
            Shape::Mapping | Shape::Nothing => Ok(kind),
            Shape::List | Shape::Value => Err(UserDataError::WrongShape {
                wanted: "a mapping of keys to values",
            }),
        },
        UserDataKind::CloudConfigArchive | UserDataKind::CloudConfigPatch => {
            match shape_of(text)? {
                Shape::List | Shape::Nothing => Ok(kind),
                Shape::Mapping | Shape::Value => {
                    Err(UserDataError::WrongShape { wanted: "a list" })
                }
            }
        }
        _ => Ok(kind),
    }
}

fn kind_of(text: &str) -> Result<UserDataKind, UserDataError> {
    let start = text.trim_start();
    if start.is_empty() {
        return Ok(UserDataKind::Empty);
    }
    let lower: String = start
        .chars()
        .take(64)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let mut bytes = text.as_bytes();
    bytes = bytes.get(..MIME_WINDOW).unwrap_or(bytes);
    let mime = bytes
        .to_ascii_lowercase()
        .windows(13)
        .any(|window| window == b"mime-version:");
    let known = KINDS
        .into_iter()
        .find(|(first, _)| lower.starts_with(first));
    match known {
        Some((_, kind)) => Ok(kind),
        None if mime => Ok(UserDataKind::Mime),
        None if lower.starts_with("content-type:") => Err(UserDataError::UnknownKind {
            hint: "MIME needs a line MIME-Version: 1.0 beside its Content-Type, or cloud-init does not see it",
        }),
        None => Err(UserDataError::UnknownKind {
            hint: "begin with #cloud-config (YAML), #! (a script), #include, #cloud-boothook, #part-handler, \
                   ## template: jinja, or MIME headers",
        }),
    }
}

/// What a YAML document is, at its outside.
enum Shape {
    Mapping,
    List,
    Value,
    Nothing,
}

fn shape_of(text: &str) -> Result<Shape, UserDataError> {
    // As cloud-init's parser has it: of a key that is there twice, the last one counts.
    let options = options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        ignore_binary_tag_for_string: true,
        with_snippet: false,
    };
    from_str_with_options::<Shape>(text, options).map_err(|error| {
        let at = error.location();
        UserDataError::NotYaml {
            line: at.map_or(0, |at| at.line()),
            column: at.map_or(0, |at| at.column()),
        }
    })
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

/// Reads everything and keeps nothing.
struct ShapeVisitor;

macro_rules! values {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E>(self, _: $type) -> Result<Shape, E> {
            Ok(Shape::Value)
        })*
    };
}

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Shape::Mapping)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Shape::List)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Nothing)
    }

    fn visit_none<E>(self) -> Result<Shape, E> {
        Ok(Shape::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Shape, D::Error> {
        Shape::deserialize(inner)
    }

    values!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64, visit_str: &str);
}
