//! Output: data to stdout, notes to stderr, color only on a terminal.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use waifud_api::client::ClientError;

use crate::failure::Failure;
use crate::text::{escape_json, escape_lines};

/// The output format.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    json: bool,
    quiet: bool,
    color: bool,
}

impl Printer {
    /// JSON or text; color depends on the terminal and `NO_COLOR`.
    pub fn new(json: bool, quiet: bool) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self {
            json,
            quiet,
            color: wanted && std::io::stderr().is_terminal(),
        }
    }

    /// Whether `--json` was given.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// A printer with JSON output.
    pub fn as_json(self) -> Self {
        Self { json: true, ..self }
    }

    /// Whether progress is shown; this also needs a terminal.
    pub fn shows_progress(self) -> bool {
        !self.json && !self.quiet
    }

    /// Prints a value as JSON, or as the result of `text`.
    pub fn print<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let out = self.format(|| serde_json::to_string_pretty(value), text)?;
        // An empty table prints no line, on which `for i in $(waifuctl list -o name)` and `wc -l` rely.
        if out.is_empty() {
            return Ok(());
        }
        line(&out)
    }

    /// Requests an object and prints it. `text` gets the current time, for ages.
    pub async fn show<T: Serialize>(
        self,
        request: impl Future<Output = Result<T, ClientError>>,
        text: impl FnOnce(&T, Timestamp) -> String,
    ) -> Result<(), Failure> {
        let object = request.await?;
        self.print(&object, || text(&object, Timestamp::now()))
    }

    /// Prints one item of a stream, as JSON on one line.
    pub fn print_line<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        line(&self.format(|| serde_json::to_string(value), text)?)
    }

    /// The JSON or the text, without characters that a terminal may interpret.
    fn format(
        self,
        json: impl FnOnce() -> serde_json::Result<String>,
        text: impl FnOnce() -> String,
    ) -> Result<String, Failure> {
        if !self.json {
            return Ok(escape_lines(&text()));
        }
        let json = json().map_err(|e| Failure::internal("output", e.to_string()))?;
        Ok(escape_json(&json))
    }

    /// A remark on stderr; nothing with `--json` or `--quiet`.
    pub fn note(self, text: &str) {
        if !self.json && !self.quiet {
            let _stderr_gone = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// A remark that matters with `--json` too; nothing with `--quiet`.
    pub fn warning(self, text: &str) {
        if self.quiet {
            return;
        }
        let _stderr_gone = writeln!(
            std::io::stderr(),
            "{} {}",
            self.yellow("warning:"),
            escape_lines(text)
        );
    }

    /// Green on a terminal.
    pub fn green(self, text: &str) -> String {
        self.colored("32", text)
    }

    /// Red on a terminal.
    pub fn red(self, text: &str) -> String {
        self.colored("31", text)
    }

    fn yellow(self, text: &str) -> String {
        self.colored("33", text)
    }

    fn colored(self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Prints a text to stdout as it is, with one line end.
pub fn print_text(text: &str) -> Result<(), Failure> {
    line(text)
}

/// Prints to stdout. A reader that has gone (`| head`) ends the program quietly.
fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Failure::internal("output", "cannot write to stdout").cause(&e)),
    }
}

/// A table without lines: two spaces between columns, headers in capitals; without headers if there are none.
pub fn table(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if !headers.is_empty() {
        table.set_header(headers);
    }
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}
