//! Refuses what PyYAML's scanner refuses and libyaml's accepts: tabs between tokens and in plain scalars, and comments
//! without a space before them after `|` and `>`.

use libyaml_safer::{ScalarStyle, Scanner, Token, TokenData};

use super::YamlError;

/// Checks the text between and within tokens. Errors of libyaml itself are left to the parser.
pub(super) fn check(text: &str) -> Result<(), YamlError> {
    let mut bytes = text.as_bytes();
    let mut scanner = Scanner::new();
    scanner.set_input_string(&mut bytes);
    let mut end = 0;
    let mut brackets = 0_usize;
    while let Ok(token) = Scanner::scan(&mut scanner) {
        let start = offset(token.start_mark.index);
        if let Some(between) = text.get(end..start) {
            no_tab(text, end, between)?;
        }
        let after = offset(token.end_mark.index);
        if let Some(within) = text.get(start..after) {
            token_itself(text, start, within, &token)?;
            if matches!(token.data, TokenData::VersionDirective { .. })
                && text.get(after..).is_some_and(|rest| rest.starts_with('#'))
            {
                return Err(refused(text, after, "a comment needs a space before it"));
            }
            if brackets > 0 {
                in_brackets(text, start, within, &token)?;
            }
        }
        match token.data {
            TokenData::FlowSequenceStart | TokenData::FlowMappingStart => brackets += 1,
            TokenData::FlowSequenceEnd | TokenData::FlowMappingEnd => {
                brackets = brackets.saturating_sub(1);
            }
            _ => {}
        }
        if matches!(token.data, TokenData::StreamEnd) {
            break;
        }
        end = end.max(after);
    }
    Ok(())
}

fn offset(index: u64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// Checks white space and comments: tabs are allowed only in comments.
fn no_tab(text: &str, start: usize, between: &str) -> Result<(), YamlError> {
    let mut comment = false;
    for (at, c) in between.char_indices() {
        match c {
            '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => comment = false,
            '#' => comment = true,
            '\t' if !comment => {
                return Err(refused(
                    text,
                    start + at,
                    "a tab cannot separate values; use spaces",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn token_itself(text: &str, start: usize, within: &str, token: &Token) -> Result<(), YamlError> {
    match &token.data {
        TokenData::Scalar {
            style: ScalarStyle::Plain,
            ..
        }
        | TokenData::VersionDirective { .. }
        | TokenData::TagDirective { .. } => match within.find('\t') {
            Some(at) => Err(refused(
                text,
                start + at,
                "an unquoted value cannot contain a tab; use spaces or quotes",
            )),
            None => Ok(()),
        },
        TokenData::Scalar {
            style: ScalarStyle::Literal | ScalarStyle::Folded,
            ..
        } => {
            // The indicator and its two modifiers, followed by spaces, a comment or the end of the line.
            let line = within.lines().next().unwrap_or("");
            let rest = line.trim_start_matches(|c: char| "|>+-".contains(c) || c.is_ascii_digit());
            let blank = rest.trim_start_matches(' ');
            if rest.starts_with('#') || blank.starts_with('\t') {
                let at = start + line.len() - blank.len();
                return Err(refused(
                    text,
                    at,
                    "only spaces and then a comment may follow | or > on its line",
                ));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Inside `[]` and `{}`, a question mark ends an unquoted value in PyYAML but not in libyaml. As the indicator of a key,
/// both read it differently before a comma; it is so rare there that it is refused.
fn in_brackets(text: &str, start: usize, within: &str, token: &Token) -> Result<(), YamlError> {
    let at = match &token.data {
        TokenData::Scalar {
            style: ScalarStyle::Plain,
            ..
        }
        | TokenData::Key => within.find('?'),
        _ => None,
    };
    match at {
        Some(at) => Err(refused(
            text,
            start + at,
            "a question mark inside brackets needs quotes",
        )),
        None => Ok(()),
    }
}

fn refused(text: &str, at: usize, reason: &'static str) -> YamlError {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or("");
    YamlError {
        line: 1 + before.bytes().filter(|b| *b == b'\n').count() as u64,
        column: 1 + line.chars().count() as u64,
        reason,
    }
}
