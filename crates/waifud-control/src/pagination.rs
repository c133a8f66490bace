//! Pages of lists. A cursor is the encoded name of the last item, opaque to clients.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use utoipa::IntoParams;
use waifud_api::{Page, Problem};
use waifud_store::{ReadTx, Store, StoreError};

use crate::{ControlError, problems};

/// The default number of items per page.
const LIMIT_DEFAULT: u32 = 100;
/// The maximum number of items per page.
pub const LIMIT_MAX: u32 = 1000;

/// The decoder of cursors from clients. It ignores surplus bits of the last digit, so every text in the alphabet decodes.
const CURSORS: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// A request for a page; also the description of its parameters in the OpenAPI document.
#[derive(Clone, PartialEq, Eq, Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageRequest {
    /// Items per page, 1 to 1000; 100 by default.
    #[param(value_type = Option<u32>)]
    pub limit: u32,
    /// `next` of the previous page.
    #[param(rename = "cursor", value_type = Option<String>)]
    after: Cursor,
}

/// The last item of the previous page; empty for the first page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cursor(String);

/// The number of items per page, if it is in range.
pub fn checked_limit(limit: Option<u32>) -> Result<u32, Problem> {
    match limit.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        _ => Err(problems::bad_query(
            "limit",
            "the parameter `limit` is out of range",
            format!("use a value from 1 to {LIMIT_MAX}"),
        )),
    }
}

impl PageRequest {
    /// Parses the query parameters.
    pub fn new(limit: Option<u32>, cursor: Option<&str>) -> Result<Self, Problem> {
        let limit = checked_limit(limit)?;
        let after = cursor.map(Cursor::parse).transpose()?.unwrap_or_default();
        Ok(Self { limit, after })
    }

    /// The name after which the page starts.
    pub fn after(&self) -> &str {
        &self.after.0
    }
}

/// Reads a page of rows in one transaction. `rows` gets the name after which the page starts, and how many rows to read.
pub async fn read<R: Send + 'static>(
    store: &Store,
    page: PageRequest,
    rows: impl FnOnce(&ReadTx<'_>, &str, u32) -> Result<Vec<R>, StoreError> + Send + 'static,
    key: impl Fn(&R) -> &str,
) -> Result<Page<R>, ControlError> {
    let limit = page.limit;
    let (rows, revision) = store
        .read(move |tx| {
            let rows = rows(&tx, page.after(), limit + 1)?;
            Ok::<_, StoreError>((rows, tx.at(tx.newest_event()?)))
        })
        .await?;
    let (items, next) = Cursor::cut(rows, limit, key);
    Ok(Page {
        items,
        next,
        revision,
    })
}

impl Cursor {
    fn parse(text: &str) -> Result<Self, Problem> {
        // Any decodable cursor is a valid position in the list.
        CURSORS
            .decode(text)
            .ok()
            .map(|bytes| Self(String::from_utf8_lossy(&bytes).into_owned()))
            .ok_or_else(|| {
                problems::bad_query(
                    "cursor",
                    "the parameter `cursor` is not valid",
                    "use `next` of the previous page",
                )
            })
    }

    /// Removes the surplus item, and returns the cursor of the next page if there is one.
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
