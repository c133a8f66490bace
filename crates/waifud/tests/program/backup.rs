//! `waifud backup` and `waifud restore` as programs: modes, existing files, confirmation, and images.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use waifud_api::client::ListQuery;

use crate::kit::{self, is_refused};
use crate::process::Home;

impl Home {
    /// Runs a command of waifud without a terminal and with a umask that removes no permission.
    fn run(&self, arguments: &[&str]) -> Output {
        let waifud = kit::command(&self.path("waifud.toml"));
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "umask 0; exec \"$@\"", "sh"]);
        command.arg(waifud.get_program()).args(waifud.get_args());
        command.args(arguments).stdin(Stdio::null());
        command.output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs a command that must be refused with an error that contains all of this.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], parts: &[&str]) {
        is_refused(&self.run(arguments), parts);
    }

    /// The path of the backup, as an argument.
    fn backup_file(&self) -> String {
        self.path("b.tar").display().to_string()
    }

    fn database(&self) -> Vec<u8> {
        std::fs::read(self.path("state/waifud.db")).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_backup_is_only_for_its_owner_and_an_existing_file_is_never_overwritten() {
    let home = Home::used().await;
    let file = home.backup_file();
    home.succeeds(&["backup", &file]);
    assert_eq!(mode(Path::new(&file)), 0o600);
    let before = std::fs::read(&file).unwrap();
    home.refuses(&["backup", &file], &["exists; choose another file"]);
    assert!(std::fs::read(&file).unwrap() == before);
}

#[tokio::test]
async fn a_restore_without_a_terminal_needs_yes_and_one_over_a_database_needs_replace() {
    let home = Home::used().await;
    let file = home.backup_file();
    home.succeeds(&["backup", &file]);
    let before = home.database();
    for (arguments, option) in [
        (&["restore", "--replace", &file][..], "--yes"),
        (&["restore", "--yes", &file], "--replace"),
    ] {
        home.refuses(arguments, &[option]);
        assert!(home.database() == before, "{option}");
    }
    home.succeeds(&["restore", "--replace", "--yes", &file]);
    assert!(home.database() != before, "it has a new incarnation");
    home.start().await;
}

#[tokio::test]
async fn a_restore_is_refused_while_waifud_runs() {
    let home = Home::new();
    let running = home.start().await;
    let file = home.backup_file();
    home.succeeds(&["backup", &file]);
    home.refuses(
        &["restore", "--replace", "--yes", &file],
        &["another waifud uses", "stop it first"],
    );
    running.client.nodes(&ListQuery::default()).await.unwrap();
}

#[tokio::test]
async fn images_are_restored_on_a_new_machine_only_if_they_are_in_the_backup() {
    let home = Home::with_template().await;
    for with_images in [false, true] {
        let file = home.path(&format!("with-{with_images}.tar"));
        let file = file.display().to_string();
        let options: &[&str] = if with_images { &["--with-images"] } else { &[] };
        home.succeeds(&[&["backup", &file][..], options].concat());
        let new = Home::new();
        new.succeeds(&["restore", "--yes", &file]);
        let restored = new.start().await;
        let images = restored.client.images(&ListQuery::default()).await.unwrap();
        let available: Vec<_> = images.items.iter().map(|image| image.available).collect();
        assert_eq!(available, [with_images]);
    }
}

#[tokio::test]
async fn a_backup_with_a_damaged_image_is_refused() {
    let home = Home::with_template().await;
    let file = home.backup_file();
    home.succeeds(&["backup", "--with-images", &file]);
    let mut bytes = std::fs::read(&file).unwrap();
    let mut windows = bytes.windows(4);
    let image = windows.position(|four| four == b"QFI\xfb").unwrap();
    bytes[image + 100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let new = Home::new();
    new.refuses(&["restore", "--yes", &file], &["images/", "is damaged"]);
    assert!(!new.path("state/waifud.db").exists());
}
