//! Makes guest output safe for the user's terminal.
//!
//! A console needs colors and cursor movement, or no editor would work on it. It must not set the title or the clipboard,
//! print, resize, or make the terminal answer: an answer looks like typed input, and after the console is closed it would
//! reach the user's shell. So only listed sequences pass. Everything else is dropped: strings (OSC, DCS, APC, PM, SOS),
//! queries (DA, DSR, ENQ), mouse reports and 8-bit control characters. The sequences are parsed by `vte`.

use vte::{Params, Parser, Perform};

/// Maximum length of a control string in bytes. After that, a new parser reads on, so that a string without an end does
/// not suppress all output.
const STRING_MAX: usize = 64 << 10;
/// Maximum length of a control sequence in bytes; ECMA-48 sets no limit, and sequences in use are short.
const SEQUENCE_MAX: usize = 64;

/// Modes of `CSI ? N h` and `l` that only affect the screen and key codes.
const PRIVATE_MODES: [&str; 9] = ["1", "5", "7", "12", "25", "47", "1047", "1049", "2004"];
/// Final bytes of sequences for cursor movement, erasing, scrolling, colors, tabs, margins, save and restore.
const FINALS: &[u8] = b"@ABCDEFGHIJKLMPSTXZ`abdefgmrsu";

/// A filter for one stream of bytes; sequences may be split between calls.
#[derive(Default)]
pub struct Filter {
    parser: Parser,
    screen: Screen,
    /// Bytes since the parser last produced something.
    swallowed: usize,
}

impl Filter {
    /// Returns the bytes that may reach a terminal.
    pub fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            self.screen.hold(*byte);
            self.parser.advance(&mut self.screen, &[*byte]);
            self.swallowed += 1;
            if std::mem::take(&mut self.screen.produced) {
                self.swallowed = 0;
            } else if self.swallowed > STRING_MAX {
                self.parser = Parser::new();
                self.swallowed = 0;
            }
        }
        std::mem::take(&mut self.screen.out)
    }
}

/// Decides what passes. A sequence that passes is written exactly as it was read.
#[derive(Default)]
struct Screen {
    out: Vec<u8>,
    /// The bytes of the current sequence, from its ESC. Control characters within it are executed on their own.
    held: Vec<u8>,
    produced: bool,
}

impl Screen {
    fn hold(&mut self, byte: u8) {
        match byte {
            b'\x1b' => self.held = vec![byte],
            b' '..=b'~' if self.held.len() <= SEQUENCE_MAX => self.held.push(byte),
            _ => {}
        }
    }

    fn end(&mut self, passes: bool) {
        self.produced = true;
        if passes && self.held.len() <= SEQUENCE_MAX {
            self.out.append(&mut self.held);
        }
        self.held.clear();
    }

    fn put(&mut self, c: char) {
        let mut buffer = [0; 4];
        self.out
            .extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
    }
}

impl Perform for Screen {
    fn print(&mut self, c: char) {
        self.end(false);
        if !c.is_control() {
            self.put(c);
        }
    }

    fn execute(&mut self, byte: u8) {
        self.produced = true;
        match byte {
            // Bell, backspace, tab, line feed, vertical tab, form feed, return, shifts of character sets.
            b'\x07'..=b'\x0f' => self.out.push(byte),
            // An 8-bit control character, which some terminals would execute.
            b'\x80'.. => self.put(char::REPLACEMENT_CHARACTER),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, _: &Params, _: &[u8], ignore: bool, _: char) {
        let passes = match self.held.as_slice() {
            [b'\x1b', b'[', parameters @ .., last] => !ignore && may_pass(parameters, *last),
            _ => false,
        };
        self.end(passes);
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], ignore: bool, byte: u8) {
        // Save and restore the cursor, index, next line, tab stop, reverse index, reset, keypad modes.
        let is_cursor = intermediates.is_empty()
            && matches!(
                byte,
                b'7' | b'8' | b'D' | b'E' | b'H' | b'M' | b'c' | b'=' | b'>'
            );
        // Character sets: ASCII, British, and line drawing.
        let is_charset = matches!(intermediates, b"(" | b")") && matches!(byte, b'0' | b'A' | b'B');
        self.end((is_cursor || is_charset) && !ignore);
    }
}

fn may_pass(parameters: &[u8], last: u8) -> bool {
    let plain = |text: &[u8]| text.iter().all(|b| matches!(b, b'0'..=b'9' | b';' | b':'));
    match (parameters, last) {
        ([b'?', modes @ ..], b'h' | b'l') => modes
            .split(|b| *b == b';')
            .all(|mode| PRIVATE_MODES.iter().any(|known| known.as_bytes() == mode)),
        // Insert mode, line feed as new line, soft reset.
        (b"4" | b"20", b'h' | b'l') | (b"!", b'p') => true,
        // Cursor shape.
        ([shape @ .., b' '], b'q') => plain(shape),
        ([b'?', which @ ..], b'J' | b'K') => plain(which),
        (parameters, last) => plain(parameters) && FINALS.contains(&last),
    }
}

/// Formats a line of a log: colors are removed, other control characters are shown as text.
pub fn line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches(['\r', '\n']);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        let (before, sequence) = rest.split_at(at);
        let body = sequence.get(2..).unwrap_or_default();
        let end = body.find(|c: char| !(c.is_ascii_digit() || c == ';'));
        match end.and_then(|end| body.get(end..)) {
            Some(after) if after.starts_with(['m', 'K']) => {
                out.push_str(&crate::text::escape(before));
                rest = after.get(1..).unwrap_or_default();
            }
            _ => {
                let (head, tail) = rest.split_at(at + 2);
                out.push_str(&crate::text::escape(head));
                rest = tail;
            }
        }
    }
    out.push_str(&crate::text::escape(rest));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(text: &[u8]) -> String {
        let whole = Filter::default().pass(text);
        let mut filter = Filter::default();
        let split: Vec<u8> = text.iter().flat_map(|byte| filter.pass(&[*byte])).collect();
        assert_eq!(
            whole, split,
            "the result depends on where the bytes are split"
        );
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn colors_and_cursor_movement_pass() {
        for text in [
            "plain — ü 日本\r\n\t\x08\x07",
            "\x1b[1;31mred\x1b[0m\x1b[38:5:9m\x1b[2J\x1b[10;20H\x1b[?25l\x1b[?1049h\x1b[?1;7h\x1b[K\x1b[?2K",
            "\x1b7\x1b8\x1bM\x1b(0lqk\x1b(B\x0e\x0f\x1b=\x1b>\x1b[1;24r\x1b[4h\x1b[2 q\x1b[!p",
        ] {
            assert_eq!(passed(text.as_bytes()), text);
        }
    }

    #[test]
    fn sequences_with_effects_beyond_the_screen_are_dropped() {
        for bad in [
            "\x1b]0;title\x07",
            "\x1b]52;c;cm0gLXJm\x1b\\",
            "\x1bP$qm\x1b\\",
            "\x1b_apc\x1b\\",
            "\x1b^pm\x1b\\",
            "\x1bXsos\x1b\\",
            "\x1b[6n",
            "\x1b[c",
            "\x1b[>c",
            "\x1b[21t",
            "\x1b[4i",
            "\x1b[?1000h",
            "\x1b[?25;1000h",
            "\x1b[?1$p",
            "\x1b[>4;1m",
            "\x1bZ",
            "\x05",
            "\u{9b}",
            "\u{9d}",
            "\x7f",
            "\x1b[\x076n",
        ] {
            let text = format!("a{bad}b");
            let out = passed(text.as_bytes());
            assert!(
                !out.contains('\x1b') && !out.chars().any(|c| ('\u{80}'..='\u{9f}').contains(&c)),
                "{bad:?} gave {out:?}"
            );
            assert!(
                out.starts_with('a') && out.ends_with('b'),
                "{bad:?} gave {out:?}"
            );
        }
        // Controls and 8-bit bytes within a sequence do not change how a terminal reads it.
        assert_eq!(passed(b"\x1b[3\x071m"), "\x07\x1b[31m");
        assert_eq!(passed(b"\x1b[3\x9b1m\x1b[1\x7f;2H"), "\x1b[31m\x1b[1;2H");
        let long = format!("a\x1b[{}mb", "1;".repeat(SEQUENCE_MAX));
        assert_eq!(passed(long.as_bytes()), "ab");
        assert_eq!(passed(b"a\x9b6nb"), "a\u{fffd}6nb");
        assert_eq!(passed(b"a\xe2\x82b"), "a\u{fffd}b");
    }

    #[test]
    fn a_string_without_an_end_does_not_suppress_all_output() {
        let mut text = b"\x1b]".to_vec();
        text.extend(std::iter::repeat_n(b'x', STRING_MAX + 1));
        text.extend_from_slice(b"seen");
        assert!(passed(&text).ends_with("seen"));
    }

    #[test]
    fn log_lines_lose_colors_and_show_other_control_characters() {
        assert_eq!(line(b"[ \x1b[0;32mOK\x1b[0m ] up\r\n"), "[ OK ] up");
        assert_eq!(line(b"\x1b]0;t\x07x"), "\\u{1b}]0;t\\u{7}x");
        assert_eq!(line(b"\x1b[6n"), "\\u{1b}[6n");
        assert_eq!(line(b"\x1b["), "\\u{1b}[");
    }
}
