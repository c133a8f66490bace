//! What every command needs: the connection and the printer.

use waifud_api::client::Client;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::printer::Printer;

/// The connection and the printer.
pub struct Context {
    /// Talks to waifud.
    pub client: Client,
    /// Talks to the person or script.
    pub printer: Printer,
}

impl Context {
    /// From what was typed.
    pub fn new(cli: &Cli) -> Result<Self, Failure> {
        Ok(Self {
            client: Client::unix(&cli.socket)?,
            printer: Printer::new(cli.json),
        })
    }
}
