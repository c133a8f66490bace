//! The tag of a plain scalar, by the rules of YAML 1.1 as in PyYAML (`yaml/resolver.py`): `yes` is a boolean, `0777` an
//! octal number, `1:30` a number to base 60, `2024-01-31` a date.

use super::scalars::{Scan, timestamp};

/// The last part of the tag of an unquoted value.
pub(super) fn resolve(value: &str) -> &'static str {
    match value {
        "yes" | "Yes" | "YES" | "no" | "No" | "NO" | "true" | "True" | "TRUE" | "false"
        | "False" | "FALSE" | "on" | "On" | "ON" | "off" | "Off" | "OFF" => "bool",
        "~" | "null" | "Null" | "NULL" | "" => "null",
        "<<" => "merge",
        "=" => "value",
        _ if is_float(value) => "float",
        _ if is_int(value) => "int",
        _ if is_date(value) || timestamp(value).is_some_and(|stamp| stamp.has_time) => "timestamp",
        _ => "str",
    }
}

fn is_int(value: &str) -> bool {
    let mut scan = Scan::new(value);
    scan.one_of(b"+-");
    let rest = scan.rest();
    let all = |digits: &[u8], allowed: fn(u8) -> bool| {
        !digits.is_empty() && digits.iter().all(|b| allowed(*b) || *b == b'_')
    };
    match rest {
        [b'0'] => true,
        [b'0', b'b', digits @ ..] => all(digits, |b| matches!(b, b'0' | b'1')),
        [b'0', b'x', digits @ ..] => all(digits, |b| b.is_ascii_hexdigit()),
        [b'0', digits @ ..] => all(digits, |b| matches!(b, b'0'..=b'7')),
        [b'1'..=b'9', ..] => {
            scan.while_in(|b| b.is_ascii_digit() || b == b'_');
            scan.is_at_end() || scan.base_60() && scan.is_at_end()
        }
        _ => false,
    }
}

fn is_float(value: &str) -> bool {
    let mut scan = Scan::new(value);
    let signed = scan.one_of(b"+-").is_some();
    match scan.rest() {
        b".inf" | b".Inf" | b".INF" => return true,
        b".nan" | b".NaN" | b".NAN" => return !signed,
        _ => {}
    }
    let more = |b: u8| b.is_ascii_digit() || b == b'_';
    if scan.eat(b'.') {
        return !signed && scan.digit() && {
            scan.while_in(more);
            scan.exponent();
            scan.is_at_end()
        };
    }
    if !scan.digit() {
        return false;
    }
    scan.while_in(more);
    let base_60 = scan.base_60();
    if !scan.eat(b'.') {
        return false;
    }
    scan.while_in(more);
    if !base_60 {
        scan.exponent();
    }
    scan.is_at_end()
}

/// Without a time, month and day have two digits.
fn is_date(value: &str) -> bool {
    value.len() == 10 && timestamp(value).is_some_and(|stamp| !stamp.has_time)
}
