//! What guests print, made safe for the terminal of the person who looks.
//!
//! A guest's console must keep its colours and its cursor, or nobody could use an editor on it. It must not set the
//! terminal's title or clipboard, print, resize, or make the terminal answer: an answer looks typed, and what arrives
//! after the console was left is typed into the person's own shell. So what may pass is a list, and all else is
//! dropped: strings (OSC, DCS, APC, PM, SOS), questions (DA, DSR, ENQ), mouse reports, 8-bit control characters.

/// Bytes of a control string that are waited for its end; a longer one is taken for text again.
const STRING_MAX: usize = 64 << 10;
/// Bytes of a control sequence at most; ECMA-48 sets no limit, and real ones are short.
const SEQUENCE_MAX: usize = 64;

/// Modes of `CSI ? N h` and `l` that are only about how the screen looks and keys are sent.
const PRIVATE_MODES: [&str; 9] = ["1", "5", "7", "12", "25", "47", "1047", "1049", "2004"];
/// Final bytes of sequences that move, erase, scroll, colour, set tabs and margins, save and restore.
const FINALS: &[u8] = b"@ABCDEFGHIJKLMPSTXZ`abdefgmrsu";

/// A filter for one stream of bytes; sequences may be split between calls.
#[derive(Debug, Default)]
pub struct Filter {
    state: State,
    held: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Text,
    /// Inside a character of several bytes, so many to come.
    Utf8(u8),
    /// After ESC.
    Escape,
    /// After ESC and an intermediate byte, such as `(`.
    Charset,
    /// After ESC [.
    Sequence,
    /// In a string that is dropped, and whether its last byte was ESC.
    String { escape: bool, bell_ends: bool },
}

impl Filter {
    /// What of these bytes may reach a terminal.
    pub fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.byte(*byte, &mut out);
        }
        out
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        match self.state {
            State::Text => self.text(byte, out),
            State::Utf8(left) => self.continuation(left, byte, out),
            State::Escape => self.escape(byte, out),
            State::Charset => {
                self.held.push(byte);
                // ASCII, British, and line drawing.
                self.end(matches!(byte, b'0' | b'A' | b'B'), out);
            }
            State::Sequence => self.sequence(byte, out),
            State::String { escape, bell_ends } => self.string(escape, bell_ends, byte),
        }
    }

    fn text(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            b'\x1b' => {
                self.held = vec![byte];
                self.state = State::Escape;
            }
            // Bell, backspace, tab, line feed, vertical tab, form feed, return, shifts of character sets.
            b'\x07'..=b'\x0f' | b' '..=b'~' => out.push(byte),
            b'\xc2'..=b'\xf4' => {
                self.held = vec![byte];
                self.state = State::Utf8(match byte {
                    b'\xc2'..=b'\xdf' => 1,
                    b'\xe0'..=b'\xef' => 2,
                    _ => 3,
                });
            }
            // No UTF-8: shown as what can't be shown. A lone 0x80 to 0x9f would be a control character to some.
            b'\x80'.. => out.extend_from_slice("\u{fffd}".as_bytes()),
            _ => {}
        }
    }

    fn continuation(&mut self, left: u8, byte: u8, out: &mut Vec<u8>) {
        if !(0x80..=0xbf).contains(&byte) {
            out.extend_from_slice("\u{fffd}".as_bytes());
            self.state = State::Text;
            return self.text(byte, out);
        }
        self.held.push(byte);
        if left > 1 {
            self.state = State::Utf8(left - 1);
            return;
        }
        self.state = State::Text;
        match std::str::from_utf8(&self.held) {
            // U+0080 to U+009F are control characters too.
            Ok(text) if text.chars().any(char::is_control) => {}
            Ok(text) => out.extend_from_slice(text.as_bytes()),
            Err(_) => out.extend_from_slice("\u{fffd}".as_bytes()),
        }
    }

    fn escape(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.held.push(byte);
        match byte {
            b'[' => self.state = State::Sequence,
            b'(' | b')' => self.state = State::Charset,
            b']' | b'P' | b'X' | b'^' | b'_' => {
                self.held.clear();
                self.state = State::String {
                    escape: false,
                    bell_ends: byte == b']',
                };
            }
            b'\x1b' => self.held = vec![byte],
            // Save and restore the cursor, index, next line, tab stop, reverse index, reset, keypad modes.
            _ => self.end(
                matches!(
                    byte,
                    b'7' | b'8' | b'D' | b'E' | b'H' | b'M' | b'c' | b'=' | b'>'
                ),
                out,
            ),
        }
    }

    fn sequence(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            b'\x1b' => {
                self.held = vec![byte];
                self.state = State::Escape;
            }
            b' '..=b'?' if self.held.len() < SEQUENCE_MAX => self.held.push(byte),
            b'@'..=b'~' => {
                let may = may_pass(self.held.get(2..).unwrap_or_default(), byte);
                self.held.push(byte);
                self.end(may, out);
            }
            // Terminals carry out control characters inside of sequences; these are no sequences then.
            _ => self.end(false, out),
        }
    }

    fn string(&mut self, escape: bool, bell_ends: bool, byte: u8) {
        self.held.push(byte);
        let over = (escape && byte == b'\\')
            || (bell_ends && byte == b'\x07')
            || matches!(byte, b'\x18' | b'\x1a')
            || self.held.len() > STRING_MAX;
        self.state = if over {
            self.held.clear();
            State::Text
        } else {
            State::String {
                escape: byte == b'\x1b',
                bell_ends,
            }
        };
    }

    fn end(&mut self, passes: bool, out: &mut Vec<u8>) {
        if passes {
            out.extend_from_slice(&self.held);
        }
        self.held.clear();
        self.state = State::Text;
    }
}

fn may_pass(parameters: &[u8], last: u8) -> bool {
    let plain = |text: &[u8]| text.iter().all(|b| matches!(b, b'0'..=b'9' | b';' | b':'));
    match (parameters, last) {
        ([b'?', modes @ ..], b'h' | b'l') => modes
            .split(|b| *b == b';')
            .all(|mode| PRIVATE_MODES.iter().any(|known| known.as_bytes() == mode)),
        // Insert mode, line feed as new line, and a soft reset.
        (b"4" | b"20", b'h' | b'l') | (b"!", b'p') => true,
        // The cursor's shape.
        ([shape @ .., b' '], b'q') => plain(shape),
        ([b'?', which @ ..], b'J' | b'K') => plain(which),
        (parameters, last) => plain(parameters) && FINALS.contains(&last),
    }
}

/// A line of a log for a terminal: colours are left out, everything else that acts is shown.
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
        assert_eq!(whole, split, "it matters where the bytes are split");
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn what_a_console_needs_passes() {
        for text in [
            "plain — ü 日本\r\n\t\x08\x07",
            "\x1b[1;31mred\x1b[0m\x1b[38:5:9m\x1b[2J\x1b[10;20H\x1b[?25l\x1b[?1049h\x1b[?1;7h\x1b[K\x1b[?2K",
            "\x1b7\x1b8\x1bM\x1b(0lqk\x1b(B\x0e\x0f\x1b=\x1b>\x1b[1;24r\x1b[4h\x1b[2 q\x1b[!p",
        ] {
            assert_eq!(passed(text.as_bytes()), text);
        }
    }

    #[test]
    fn what_reaches_beyond_the_screen_is_dropped() {
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
        assert_eq!(passed(b"a\x9b6nb"), "a\u{fffd}6nb");
        assert_eq!(passed(b"a\xe2\x82b"), "a\u{fffd}b");
    }

    #[test]
    fn a_string_that_never_ends_does_not_swallow_everything() {
        let mut text = b"\x1b]".to_vec();
        text.extend(std::iter::repeat_n(b'x', STRING_MAX + 1));
        text.extend_from_slice(b"seen");
        assert!(passed(&text).ends_with("seen"));
    }

    #[test]
    fn log_lines_lose_their_colours_and_show_what_acts() {
        assert_eq!(line(b"[ \x1b[0;32mOK\x1b[0m ] up\r\n"), "[ OK ] up");
        assert_eq!(line(b"\x1b]0;t\x07x"), "\\u{1b}]0;t\\u{7}x");
        assert_eq!(line(b"\x1b[6n"), "\\u{1b}[6n");
        assert_eq!(line(b"\x1b["), "\\u{1b}[");
    }
}
