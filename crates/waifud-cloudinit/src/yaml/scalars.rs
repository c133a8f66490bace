//! Checks that Python can convert a scalar's text: `int()`, `float()`, `base64` and `datetime` as PyYAML calls them.

/// Reads ASCII from the left.
pub(super) struct Scan<'t>(&'t [u8]);

impl<'t> Scan<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self(text.as_bytes())
    }

    pub(super) fn rest(&self) -> &'t [u8] {
        self.0
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn eat(&mut self, byte: u8) -> bool {
        self.one_of(&[byte]).is_some()
    }

    pub(super) fn one_of(&mut self, bytes: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        bytes.contains(first).then(|| {
            self.0 = rest;
            *first
        })
    }

    pub(super) fn digit(&mut self) -> bool {
        self.one_of(b"0123456789").is_some()
    }

    /// The number of bytes read.
    pub(super) fn while_in(&mut self, allowed: impl Fn(u8) -> bool) -> usize {
        let passed = self.0.iter().take_while(|b| allowed(**b)).count();
        self.0 = self.0.get(passed..).unwrap_or_default();
        passed
    }

    /// Between `least` and `most` digits, as a number.
    fn number(&mut self, least: usize, most: usize) -> Option<u32> {
        let found = self.0.iter().take(most).take_while(|b| b.is_ascii_digit());
        let digits = found.count();
        let (number, rest) = self.0.split_at_checked(digits)?;
        self.0 = rest;
        (digits >= least).then_some(())?;
        std::str::from_utf8(number).ok()?.parse().ok()
    }

    /// Reads `(:[0-5]?[0-9])+`, if it follows.
    pub(super) fn base_60(&mut self) -> bool {
        let mut any = false;
        loop {
            let before = self.0;
            if !self.eat(b':') {
                return any;
            }
            let first = self.one_of(b"0123456789");
            match first {
                Some(b'0'..=b'5') => {
                    self.digit();
                }
                Some(_) => {}
                None => {
                    self.0 = before;
                    return any;
                }
            }
            any = true;
        }
    }

    /// Reads `[eE][-+][0-9]+`, if it follows.
    pub(super) fn exponent(&mut self) {
        let before = self.0;
        let complete = self.one_of(b"eE").is_some()
            && self.one_of(b"+-").is_some()
            && self.while_in(|b| b.is_ascii_digit()) > 0;
        if !complete {
            self.0 = before;
        }
    }
}

/// The maximum number of decimal digits for `int()` (`sys.int_info.default_max_str_digits`).
const MAX_DECIMAL_DIGITS: usize = 4300;

/// `construct_yaml_int`.
pub(super) fn is_int(text: &str) -> bool {
    let text = text.replace('_', "");
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(&text);
    if unsigned.is_empty() {
        false
    } else if let Some(digits) = unsigned.strip_prefix("0b") {
        python_int(digits, 2)
    } else if let Some(digits) = unsigned.strip_prefix("0x") {
        python_int(digits, 16)
    } else if unsigned == "0" {
        true
    } else if unsigned.starts_with('0') {
        python_int(unsigned, 8)
    } else {
        unsigned.split(':').all(|part| python_int(part, 10))
    }
}

/// Whether `int(text, base)` succeeds.
fn python_int(text: &str, base: u32) -> bool {
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefixes: &[&str] = match base {
        2 => &["0b", "0B"],
        8 => &["0o", "0O"],
        16 => &["0x", "0X"],
        _ => &[],
    };
    let digits = prefixes
        .iter()
        .find_map(|prefix| digits.strip_prefix(prefix))
        .unwrap_or(digits);
    !digits.is_empty()
        && digits.chars().all(|c| c.is_digit(base))
        && (base != 10 || digits.len() <= MAX_DECIMAL_DIGITS)
}

/// `construct_yaml_float`.
pub(super) fn is_float(text: &str) -> bool {
    let text = text.replace('_', "").to_lowercase();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(&text);
    match unsigned {
        "" => false,
        ".inf" | ".nan" => true,
        _ => unsigned.split(':').all(python_float),
    }
}

/// Whether `float(text)` succeeds; `text` is in lower case and has no underscores.
fn python_float(text: &str) -> bool {
    let text = text.trim();
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(text, "inf" | "infinity" | "nan") {
        return true;
    }
    let mut scan = Scan::new(text);
    let mut digits = scan.while_in(|b| b.is_ascii_digit());
    if scan.eat(b'.') {
        digits += scan.while_in(|b| b.is_ascii_digit());
    }
    if digits == 0 {
        return false;
    }
    if scan.eat(b'e') {
        scan.one_of(b"+-");
        if scan.while_in(|b| b.is_ascii_digit()) == 0 {
            return false;
        }
    }
    scan.is_at_end()
}

/// `base64.decodebytes`: skips characters that are not base64, and requires complete groups of four.
pub(super) fn is_base64(text: &str) -> bool {
    // PyYAML encodes it as ASCII first.
    if !text.is_ascii() {
        return false;
    }
    let (mut in_group, mut pads) = (0, 0);
    for byte in text.bytes() {
        match byte {
            b'=' if in_group >= 2 => {
                pads += 1;
                if in_group + pads >= 4 {
                    return true;
                }
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => {
                in_group = (in_group + 1) % 4;
                pads = 0;
            }
            _ => {}
        }
    }
    in_group == 0
}

/// The fields that `construct_yaml_timestamp` reads from a text.
pub(super) struct Timestamp {
    pub(super) has_time: bool,
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
    /// In minutes, positive or negative.
    offset: u32,
}

/// Reads a text that matches `timestamp_regexp`.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    // `$` in Python's regular expressions also matches before a final newline.
    let mut scan = Scan::new(text.strip_suffix('\n').unwrap_or(text));
    let year = scan.number(4, 4)?;
    scan.eat(b'-').then_some(())?;
    let month = scan.number(1, 2)?;
    scan.eat(b'-').then_some(())?;
    let day = scan.number(1, 2)?;
    let mut stamp = Timestamp {
        has_time: false,
        year,
        month,
        day,
        hour: 0,
        minute: 0,
        second: 0,
        offset: 0,
    };
    if scan.is_at_end() {
        return Some(stamp);
    }
    let blank = |b: u8| matches!(b, b' ' | b'\t');
    if scan.one_of(b"Tt").is_none() && scan.while_in(blank) == 0 {
        return None;
    }
    stamp.has_time = true;
    stamp.hour = scan.number(1, 2)?;
    scan.eat(b':').then_some(())?;
    stamp.minute = scan.number(2, 2)?;
    scan.eat(b':').then_some(())?;
    stamp.second = scan.number(2, 2)?;
    if scan.eat(b'.') {
        scan.while_in(|b| b.is_ascii_digit());
    }
    if scan.is_at_end() {
        return Some(stamp);
    }
    scan.while_in(blank);
    if scan.eat(b'Z') {
        return scan.is_at_end().then_some(stamp);
    }
    scan.one_of(b"+-")?;
    stamp.offset = scan.number(1, 2)? * 60;
    if scan.eat(b':') {
        stamp.offset += scan.number(2, 2)?;
    }
    scan.is_at_end().then_some(stamp)
}

/// Whether Python's `datetime` can represent the time.
pub(super) fn is_timestamp(text: &str) -> bool {
    timestamp(text).is_some_and(|stamp| {
        let leap = stamp.year % 4 == 0 && (stamp.year % 100 != 0 || stamp.year % 400 == 0);
        let days = match stamp.month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => 0,
        };
        stamp.year > 0
            && (1..=days).contains(&stamp.day)
            && stamp.hour < 24
            && stamp.minute < 60
            && stamp.second < 60
            && stamp.offset < 24 * 60
    })
}
