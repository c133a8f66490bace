//! Progress bars and spinners, on a terminal only.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar for bytes. Hidden if stderr is not a terminal or `quiet` is set.
pub fn bytes(total: u64, what: &str, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if quiet || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// Updates the bar of a download with its progress or with what it waits for.
pub fn show_download(
    bar: &ProgressBar,
    name: &str,
    done: u64,
    total: Option<u64>,
    waiting: Option<&str>,
) {
    let template = match (waiting, total) {
        (Some(_), _) => "{spinner} {wide_msg}",
        (None, Some(_)) => "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        (None, None) => "{spinner} {msg} {bytes} {bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    match total {
        Some(total) => bar.set_length(total),
        None => bar.unset_length(),
    }
    bar.set_position(done);
    bar.set_message(waiting.map_or_else(|| name.to_owned(), |why| format!("{name}: {why}")));
}

/// A spinner with a message and the elapsed time, which disappears when it is dropped.
pub fn spinner(quiet: bool) -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        spinner.set_style(style);
    }
    if quiet || !std::io::stderr().is_terminal() {
        spinner.set_draw_target(ProgressDrawTarget::hidden());
    } else {
        spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    }
    spinner
}
