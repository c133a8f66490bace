//! The shape of a slow link: its rate, delay and loss, and their text.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The longest delay of a link.
const DELAY_MAX: Duration = Duration::from_mins(1);
const MILLION: f64 = 1_000_000.0;

/// How a link treats what is sent in each of its two directions.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Shape {
    /// Bits per second; unlimited if absent.
    pub rate: Option<u64>,
    /// Time that each frame takes.
    pub delay: Duration,
    /// Frames lost, of a million.
    pub loss: u32,
}

impl Shape {
    /// Whether it is that of a plain link.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// Bits per second: `800k`, `10M`, `1G`, or a number.
///
/// # Errors
/// It is something else, or 0.
pub fn parse_rate(text: &str) -> Result<u64> {
    let units = [('k', 1_000), ('M', 1_000_000), ('G', 1_000_000_000)];
    let mut units = units.into_iter();
    let found = units.find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)));
    let (number, unit) = found.unwrap_or((text, 1));
    let parsed = number.parse::<u64>().ok();
    let rate = parsed.and_then(|number| number.checked_mul(unit));
    rate.filter(|rate| *rate > 0).with_context(|| {
        format!("invalid rate {text:?}: bits per second, for example 800k, 10M or 1G")
    })
}

/// `50ms` or `2s`, at most a minute.
///
/// # Errors
/// It is something else.
pub fn parse_delay(text: &str) -> Result<Duration> {
    let millis = |text: &str| text.strip_suffix("ms")?.parse().ok();
    let seconds = |text: &str| text.strip_suffix('s')?.parse().ok();
    let delay = millis(text)
        .map(Duration::from_millis)
        .or_else(|| seconds(text).map(Duration::from_secs));
    delay
        .filter(|delay| *delay <= DELAY_MAX)
        .with_context(|| format!("invalid delay {text:?}: for example 50ms or 2s, at most 60s"))
}

/// A percentage, `2%` or `0.1%`, as frames of a million.
///
/// # Errors
/// It is something else, or not from 0 to 100.
pub fn parse_loss(text: &str) -> Result<u32> {
    let number = text.strip_suffix('%').and_then(|it| it.parse::<f64>().ok());
    let number = number.with_context(|| {
        format!("invalid loss {text:?}: a percentage of all frames, for example 2% or 0.1%")
    })?;
    ensure!(
        (0.0..=100.0).contains(&number),
        "invalid loss {text:?}: from 0% to 100%"
    );
    // From 0 to a million, so that nothing is cut off.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let of_a_million = (number / 100.0 * MILLION).round() as u32;
    Ok(of_a_million)
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.rate.map(|rate| format!("{} kbit/s", rate / 1000));
        let delay = (!self.delay.is_zero()).then(|| format!("{} ms", self.delay.as_millis()));
        let loss = f64::from(self.loss) / MILLION * 100.0;
        let loss = (self.loss > 0).then(|| format!("{loss} % loss"));
        let parts: Vec<_> = [rate, delay, loss].into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_delays_and_losses_have_units() {
        assert_eq!(parse_rate("800k").unwrap(), 800_000);
        assert_eq!(parse_rate("1G").unwrap(), 1_000_000_000);
        assert_eq!(parse_rate("9600").unwrap(), 9600);
        assert_eq!(parse_delay("50ms").unwrap(), Duration::from_millis(50));
        assert_eq!(parse_delay("2s").unwrap(), Duration::from_secs(2));
        assert_eq!(parse_loss("0.1%").unwrap(), 1000);
        assert_eq!(parse_loss("100%").unwrap(), 1_000_000);
        for bad in ["", "0", "k", "-1M", "10mbit", "99999999999G"] {
            assert!(parse_rate(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "50", "1h", "61s", "-1ms"] {
            assert!(parse_delay(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "5", "-1%", "101%", "NaN%", "%"] {
            assert!(parse_loss(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_shape_is_shown_without_the_parts_of_a_plain_link() {
        let shape = Shape {
            rate: Some(10_000_000),
            delay: Duration::from_millis(50),
            loss: 1000,
        };
        assert_eq!(shape.to_string(), "10000 kbit/s, 50 ms, 0.1 % loss");
        let slow = Shape {
            rate: None,
            loss: 0,
            ..shape
        };
        assert_eq!(slow.to_string(), "50 ms");
        assert!(Shape::default().is_plain() && !slow.is_plain());
    }
}
