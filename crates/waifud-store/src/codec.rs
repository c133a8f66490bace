//! Converts values to columns and back.

use jiff::Timestamp;
use rusqlite::Row;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;
use waifud_types::{ByteSize, Digest, InstanceId, Name, NodeId};

use crate::StoreError;

/// The name of a column.
pub(crate) type Column = &'static str;

pub(crate) fn corrupt(
    what: &'static str,
) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> StoreError {
    move |source| StoreError::Corrupt { what, source }
}

pub(crate) fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Encode { what, source })
}

/// A JSON column.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: Column) -> Result<T, StoreError> {
    let text = row.get_ref(column)?;
    let text = text.as_str().map_err(|e| corrupt(column)(e.into()))?;
    serde_json::from_str(text).map_err(|e| corrupt(column)(e.into()))
}

/// A value whose JSON form is a single word, for example `kvm`.
pub(crate) fn word<T: DeserializeOwned>(row: &Row<'_>, column: Column) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    serde_json::from_value(serde_json::Value::String(text)).map_err(|e| corrupt(column)(e.into()))
}

/// The word of such a value.
pub(crate) fn to_word<T: Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    let quoted = to_json(what, value)?;
    Ok(quoted.trim_matches('"').to_owned())
}

pub(crate) fn name(row: &Row<'_>, column: Column) -> Result<Name, StoreError> {
    maybe_name(row, column)?.ok_or_else(|| missing(column))
}

pub(crate) fn maybe_name(row: &Row<'_>, column: Column) -> Result<Option<Name>, StoreError> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| {
        text.parse()
            .map_err(|e: waifud_types::name::NameError| corrupt(column)(e.into()))
    })
    .transpose()
}

fn uuid(row: &Row<'_>, column: Column) -> Result<Option<Uuid>, StoreError> {
    let bytes: Option<[u8; 16]> = row.get(column)?;
    Ok(bytes.map(Uuid::from_bytes))
}

fn missing(column: Column) -> StoreError {
    corrupt(column)("it is null".into())
}

pub(crate) fn instance_id(row: &Row<'_>, column: Column) -> Result<InstanceId, StoreError> {
    Ok(InstanceId::from_uuid(
        uuid(row, column)?.ok_or_else(|| missing(column))?,
    ))
}

pub(crate) fn node_id(row: &Row<'_>, column: Column) -> Result<NodeId, StoreError> {
    maybe_node_id(row, column)?.ok_or_else(|| missing(column))
}

pub(crate) fn maybe_node_id(row: &Row<'_>, column: Column) -> Result<Option<NodeId>, StoreError> {
    Ok(uuid(row, column)?.map(NodeId::from_uuid))
}

pub(crate) fn digest(row: &Row<'_>, column: Column) -> Result<Digest, StoreError> {
    let bytes: [u8; 32] = row.get(column)?;
    Ok(Digest::from_bytes(bytes))
}

/// SQLite's integers are signed. waifud's are unsigned and below 2^63.
pub(crate) fn count(row: &Row<'_>, column: Column) -> Result<u64, StoreError> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|e| corrupt(column)(e.into()))
}

pub(crate) fn size(row: &Row<'_>, column: Column) -> Result<ByteSize, StoreError> {
    count(row, column).map(ByteSize)
}

pub(crate) fn time(row: &Row<'_>, column: Column) -> Result<Timestamp, StoreError> {
    maybe_time(row, column)?.ok_or_else(|| missing(column))
}

pub(crate) fn maybe_time(row: &Row<'_>, column: Column) -> Result<Option<Timestamp>, StoreError> {
    let micros: Option<i64> = row.get(column)?;
    micros
        .map(|micros| Timestamp::from_microsecond(micros).map_err(|e| corrupt(column)(e.into())))
        .transpose()
}

pub(crate) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn id16(id: &InstanceId) -> &[u8; 16] {
    id.as_uuid().as_bytes()
}

pub(crate) fn node16(id: &NodeId) -> &[u8; 16] {
    id.as_uuid().as_bytes()
}

pub(crate) fn maybe_count(row: &Row<'_>, column: Column) -> Result<Option<u64>, StoreError> {
    let value: Option<i64> = row.get(column)?;
    value
        .map(|value| u64::try_from(value).map_err(|e| corrupt(column)(e.into())))
        .transpose()
}
