//! The program's answers to invalid input.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::process::{Command, Output};

fn run(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waifud-agentd"));
    command.args(["--config", "/nonexistent/agentd.toml"]);
    command.args(words).output().unwrap()
}

#[test]
fn invalid_input_is_one_error_with_exit_code_1() {
    for (words, part) in [
        (&["--colour"][..], "error: unexpected argument '--colour'"),
        (
            &["join", "--token-file", "/nonexistent/token"],
            "error: cannot read the token from /nonexistent/token: ",
        ),
        (&["join", "--token", "x"], "error: invalid join token: "),
        (&["join"], "error: a token is required: "),
    ] {
        let output = run(words);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(text.starts_with(part), "{words:?}: {text}");
        assert!(!text.contains("Caused by"), "{words:?}: {text}");
    }
}

#[test]
fn help_and_version_are_not_errors() {
    for word in ["--help", "--version"] {
        let output = run(&[word]);
        assert_eq!(output.status.code(), Some(0), "{word}");
        assert!(!output.stdout.is_empty(), "{word}");
    }
}
