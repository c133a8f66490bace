//! Edits text in the user's editor: `$VISUAL` or `$EDITOR`, on a private temporary file.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::Command;

use similar::TextDiff;
use tempfile::NamedTempFile;

use crate::failure::Failure;

/// A text being edited, in a file that only the user can read. The file is deleted on drop unless it is kept.
pub struct Draft {
    file: NamedTempFile,
    /// The original text.
    before: String,
}

impl Draft {
    /// Writes `text` to a temporary file.
    pub fn new(text: &str) -> Result<Self, Failure> {
        let failed = |e: std::io::Error| {
            Failure::input("draft", "cannot write a temporary file for the editor").cause(&e)
        };
        let mut file = tempfile::Builder::new()
            .prefix("waifuctl-")
            .suffix(".yaml")
            .tempfile()
            .map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.flush().map_err(failed)?;
        Ok(Self {
            file,
            before: text.to_owned(),
        })
    }

    /// Runs the editor and returns the edited text.
    pub fn edit(&self) -> Result<String, Failure> {
        let typed = configured();
        let failed = |title: String| {
            Failure::input("editor", title).hint(
                "set VISUAL or EDITOR to an editor that exits when you close the file; quote paths with spaces",
            )
        };
        let words = words(&typed).map_err(failed)?;
        let Some((program, words)) = words.split_first() else {
            return Err(failed("VISUAL and EDITOR are empty".to_owned()));
        };
        let status = Command::new(program)
            .args(words)
            .arg(self.file.path())
            .status()
            .map_err(|e| failed(format!("cannot run the editor {program:?}")).cause(&e))?;
        if !status.success() {
            return Err(failed(format!("the editor {program:?} failed: {status}")));
        }
        // Editors may replace the file, so it is opened again.
        std::fs::read_to_string(self.file.path())
            .map_err(|e| failed("cannot read the edited text".to_owned()).cause(&e))
    }

    /// Keeps the file if it was changed, and adds its path to the failure.
    pub fn keep(self, failure: Failure) -> Failure {
        // User-data can contain secrets, so unchanged text is not kept.
        let now = std::fs::read_to_string(self.file.path());
        if now.is_ok_and(|now| now == self.before) {
            return failure;
        }
        match self.file.into_temp_path().keep() {
            Ok(path) => failure.detail(kept(&path)),
            Err(_) => failure,
        }
    }
}

fn configured() -> String {
    ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.trim().is_empty()))
        .unwrap_or_else(|| "vi".to_owned())
}

/// Fails if the editor needs a terminal and there is none. Other editors, for example a script, do not need one.
pub fn require_terminal() -> Result<(), Failure> {
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        return Ok(());
    }
    match terminal_editor(&configured()) {
        Some(editor) => Err(Failure::input(
            "no-terminal",
            format!("cannot start the editor {editor} without a terminal"),
        )),
        None => Ok(()),
    }
}

/// The name of an editor that works only in a terminal.
fn terminal_editor(typed: &str) -> Option<String> {
    let words = words(typed).ok()?;
    let (program, arguments) = words.split_first()?;
    let name = Path::new(program).file_name()?.to_str()?;
    let needs_no_terminal = match name {
        // As a filter: ex mode, or a script that is given as an argument.
        "vi" | "vim" | "nvim" | "vim.basic" | "vim.tiny" | "emacs" => {
            arguments.iter().any(|word| {
                ["-es", "-Es", "-s", "--headless", "--batch", "-batch"].contains(&word.as_str())
            })
        }
        "nano" | "pico" | "editor" | "sensible-editor" | "helix" | "hx" | "micro" | "mcedit"
        | "joe" | "jed" | "ne" | "mg" => false,
        _ => true,
    };
    (!needs_no_terminal).then(|| name.to_owned())
}

/// Splits a command like a shell, without running one.
fn words(typed: &str) -> Result<Vec<String>, String> {
    shlex::split(typed).ok_or_else(|| format!("the editor {typed:?} has an unclosed quote"))
}

fn kept(path: &Path) -> String {
    format!("your text was saved in {}", path.display())
}

/// The changed lines with two lines of context.
pub fn difference(before: &str, after: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(2)
        .header("before", "after")
        .to_string()
}

/// Whether there is a terminal for questions.
pub fn is_attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a question; an empty answer means yes.
pub fn ask(question: &str) -> bool {
    let mut stderr = std::io::stderr();
    let _stderr_gone = write!(stderr, "{question} [Y/n] ");
    let _stderr_gone = stderr.flush();
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line) {
        Ok(0) | Err(_) => false,
        Ok(_) => matches!(line.trim().to_lowercase().as_str(), "" | "y" | "yes"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_draft_is_private_and_saved_only_on_failure() {
        let draft = Draft::new("hunter2").unwrap();
        let path = draft.file.path().to_owned();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(draft);
        assert!(!path.exists());

        let draft = Draft::new("secret").unwrap();
        let path = draft.file.path().to_owned();
        let failure = draft.keep(Failure::input("x", "y"));
        assert!(!format!("{failure:?}").contains("saved"), "{failure:?}");
        assert!(!path.exists(), "unchanged text stays nowhere");

        let draft = Draft::new("before").unwrap();
        let path = draft.file.path().to_owned();
        std::fs::write(&path, "mine").unwrap();
        let failure = draft.keep(Failure::input("x", "y"));
        assert!(format!("{failure:?}").contains(&path.display().to_string()));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_editor_command_is_split_like_shell_words() {
        let words = |text: &str| words(text);
        assert_eq!(words("code --wait").unwrap(), ["code", "--wait"]);
        assert_eq!(
            words("'/opt/my editor/ed' -n").unwrap(),
            ["/opt/my editor/ed", "-n"]
        );
        assert_eq!(words("/opt/my\\ editor").unwrap(), ["/opt/my editor"]);
        assert_eq!(
            words("ed \"a b\" $HOME;id").unwrap(),
            ["ed", "a b", "$HOME;id"]
        );
        assert!(words("'ed").is_err());
    }

    #[test]
    fn editors_that_need_a_terminal_are_recognized() {
        for (typed, needs) in [
            ("vi", true),
            ("/usr/bin/vim -u NONE", true),
            ("'/opt/my editors/nano'", true),
            ("vim -es -S script.vim", false),
            ("sed -i s/a/b/", false),
            ("code --wait", false),
            ("./script.sh", false),
        ] {
            assert_eq!(terminal_editor(typed).is_some(), needs, "{typed}");
        }
    }

    #[test]
    fn a_difference_shows_removed_and_added_lines() {
        let shown = difference("a\nb\nc\n", "a\nx\nc\n");
        assert!(shown.contains("-b\n+x\n"), "{shown}");
        assert_eq!(difference("a\n", "a\n"), "");
    }
}
