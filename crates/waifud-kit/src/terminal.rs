//! Text from elsewhere (guests, images, servers) made safe for a terminal.

use std::fmt::Write;

/// Whether the character does something to a terminal or to the text around it instead of being shown: control
/// characters (C0, DEL, C1; escape sequences begin with one), line and paragraph separators, bidirectional controls,
/// and characters that are invisible (zero-width characters, soft hyphens, invisible operators, tags).
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes text for one line: unsafe characters become `\u{…}`, line breaks and tabs become spaces.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(' '),
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Escapes text of several lines: unsafe characters become `\u{…}`, line breaks and tabs stay.
pub fn escape_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !matches!(c, '\n' | '\t') && is_unsafe(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Escapes a JSON document: unsafe characters, which can only occur in strings, become JSON escapes. The result is an
/// equal document.
pub fn escape_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _infallible = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Shortens text to one line of at most `max` characters: control characters become spaces, and spaces at both ends are
/// removed. For text that is stored or sent on; it is escaped where it is shown.
pub fn one_line(text: &str, max: usize) -> String {
    let spaced = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().map(spaced).take(max).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_are_shown_and_not_executed() {
        let shown = escape("a\x1b[31mb\u{202e}c\nd");
        assert_eq!(shown, "a\\u{1b}[31mb\\u{202e}c d");
        assert_eq!(escape("plain — ü"), "plain — ü");
        assert_eq!(escape_lines("a\n\tb\x07"), "a\n\tb\\u{7}");
    }

    #[test]
    fn one_line_has_no_control_characters_and_is_bounded() {
        assert_eq!(one_line("  a\nb\x1b[0m  ", 4), "a b ");
        assert_eq!(one_line("\r\n", 4), "");
    }

    /// Text that a hostile guest may write: any characters, many of them unsafe.
    fn hostile() -> impl Strategy<Value = String> {
        let unsafe_pieces = prop::sample::select(crate::testing::UNSAFE_TEXTS);
        let piece = prop_oneof![unsafe_pieces.prop_map(str::to_owned), any::<String>()];
        prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_unsafe_character_remains(text in hostile()) {
            prop_assert!(!escape(&text).chars().any(is_unsafe));
            let lines = escape_lines(&text);
            prop_assert!(!lines.chars().any(|c| !matches!(c, '\n' | '\t') && is_unsafe(c)));
            let json = escape_json(&serde_json::to_string(&text).unwrap());
            prop_assert!(!json.chars().any(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
