//! Commands that need a terminal and have none.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn edit_without_a_terminal_starts_no_terminal_editor_and_names_the_alternative() {
    let fake = Fake::start([instance("web", ID, json!({}))], &[]);
    let bin = fake.dir.path().join("bin");
    let (vi, started) = (bin.join("vi"), fake.dir.path().join("started"));
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(&vi, format!("#!/bin/sh\necho > {}\n", started.display())).unwrap();
    std::fs::set_permissions(&vi, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (line, editor, hint) in [
        ("edit web", None, "--user-data FILE"),
        ("edit web", Some("vi -n"), "--user-data FILE"),
        ("edit web --spec", None, "waifuctl resize"),
    ] {
        let mut command = fake.command(line);
        command
            .env_remove("VISUAL")
            .env_remove("EDITOR")
            .env("PATH", &bin);
        if let Some(editor) = editor {
            command.env("EDITOR", editor);
        }
        let output = command.output().await.unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {err}");
        assert!(err.contains("editor vi without a terminal"), "{err}");
        assert!(err.contains(hint), "{err}");
        assert!(!started.exists(), "{line} with {editor:?}");
    }
}
