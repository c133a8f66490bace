//! Pages of lists: a cursor is the name of the last item, written so that nobody builds on its inside.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};

use crate::problems;
use waifud_api::Problem;

/// Items of a page unless asked otherwise.
pub const LIMIT_DEFAULT: u32 = 100;
/// Items of a page at most.
pub const LIMIT_MAX: u32 = 1000;

/// Cursors from clients. Surplus bits of the last digit are ignored, so that each text of such digits is one.
const CURSORS: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Which page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// Items at most.
    pub limit: u32,
    after: Cursor,
}

/// The last item of the page before; empty at the beginning.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursor(String);

impl PageRequest {
    /// From the query.
    pub fn new(limit: Option<u32>, cursor: Option<&str>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(problems::bad_query(
                "limit",
                "limit is out of range",
                format!("from 1 to {LIMIT_MAX}"),
            ));
        }
        let after = cursor.map(Cursor::parse).transpose()?.unwrap_or_default();
        Ok(Self { limit, after })
    }

    /// What the page comes after.
    pub fn after(&self) -> &str {
        &self.after.0
    }
}

impl Cursor {
    fn parse(text: &str) -> Result<Self, Problem> {
        // A made-up cursor is a place in the list like any other.
        CURSORS
            .decode(text)
            .ok()
            .map(|bytes| Self(String::from_utf8_lossy(&bytes).into_owned()))
            .ok_or_else(|| {
                problems::bad_query(
                    "cursor",
                    "cursor is not one that was given out",
                    "pass `next` of the page before",
                )
            })
    }

    /// Cuts one item too many off, and says where the next page begins.
    pub fn cut<T>(
        mut rows: Vec<T>,
        limit: u32,
        key: impl Fn(&T) -> &str,
    ) -> (Vec<T>, Option<String>) {
        let limit = limit as usize;
        if rows.len() <= limit {
            return (rows, None);
        }
        rows.truncate(limit);
        let next = rows.last().map(|row| URL_SAFE_NO_PAD.encode(key(row)));
        (rows, next)
    }
}
