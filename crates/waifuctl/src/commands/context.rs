//! `waifuctl context …`

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::ContextCommand;
use crate::contexts::{self, Contexts, LOCAL};
use crate::failure::Failure;
use crate::printer::{Printer, table};

/// Runs one of the context commands, which do not contact waifud.
pub fn run(printer: Printer, command: ContextCommand) -> Result<(), Failure> {
    let path = file()?;
    let mut contexts = Contexts::load(&path)?;
    match command {
        ContextCommand::List => return list(printer, &contexts),
        ContextCommand::Use(args) if args.name.as_str() == LOCAL => contexts.current = None,
        ContextCommand::Use(args) => {
            contexts.get(&args.name)?;
            contexts.current = Some(args.name);
        }
        ContextCommand::Remove(args) => {
            contexts.get(&args.name)?;
            contexts.contexts.remove(&args.name);
            if contexts.current.as_ref() == Some(&args.name) {
                contexts.current = None;
            }
        }
    }
    contexts.save(&path)?;
    let current = contexts
        .current
        .as_ref()
        .map_or(LOCAL, |name| name.as_str());
    printer.print(&json!({"current": current}), || {
        format!("current context: {current}")
    })
}

/// The path of the contexts file.
pub fn file() -> Result<PathBuf, Failure> {
    contexts::path().ok_or_else(|| {
        Failure::input("no-home", "cannot find a directory for contexts")
            .hint("set HOME, or XDG_CONFIG_HOME; or use WAIFUD_URL, WAIFUD_CA and WAIFUD_TOKEN")
    })
}

fn list(printer: Printer, contexts: &Contexts) -> Result<(), Failure> {
    let mark = |current| if current { "*" } else { "" }.to_owned();
    let mut rows = vec![vec![
        mark(contexts.current.is_none()),
        LOCAL.to_owned(),
        "the socket of this machine".to_owned(),
    ]];
    let mut items =
        vec![json!({"name": LOCAL, "url": null, "current": contexts.current.is_none()})];
    for (name, entry) in &contexts.contexts {
        let current = contexts.current.as_ref() == Some(name);
        rows.push(vec![mark(current), name.to_string(), entry.url.to_string()]);
        items.push(json!({"name": name, "url": entry.url, "current": current}));
    }
    let all = json!({"items": items, "next": Value::Null, "revision": Value::Null});
    printer.print(&all, || table(&["", "NAME", "SERVER"], rows))
}
