//! `waifuctl schema`

use crate::cli::{SchemaArgs, SchemaOf};
use crate::description;
use crate::failure::Failure;
use crate::printer::Printer;

/// Prints a JSON Schema.
pub fn run(args: SchemaArgs) -> Result<(), Failure> {
    let SchemaOf::Instance = args.of;
    Printer::new(true, false).print(&description::schema(), String::new)
}
