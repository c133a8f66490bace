//! Text from a domain, made safe for a terminal.

/// The maximum number of characters of a name or a path.
pub(super) const VALUE_MAX: usize = 80;

/// Text from a domain, made safe for a terminal: truncated, and without unprintable characters.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars().take(VALUE_MAX) {
        match character {
            '\'' | '"' => escaped.push(character),
            _ => escaped.extend(character.escape_debug()),
        }
    }
    if text.chars().nth(VALUE_MAX).is_some() {
        escaped.push('…');
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_characters_are_escaped() {
        assert_eq!(escaped("a\u{1b}[31m'\u{202e}"), "a\\u{1b}[31m'\\u{202e}");
        assert_eq!(escaped(&"x".repeat(90)), format!("{}…", "x".repeat(80)));
    }
}
