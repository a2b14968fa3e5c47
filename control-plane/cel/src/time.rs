//! Timestamps and durations: their texts, their arithmetic, their parts.

use std::fmt;

use jiff::{civil::Weekday, tz::TimeZone};

use crate::error::EvalError;

const NANOS: i64 = 1_000_000_000;
/// 0001-01-01T00:00:00Z.
const SECONDS_MIN: i64 = -62_135_596_800;
/// 9999-12-31T23:59:59Z.
const SECONDS_MAX: i64 = 253_402_300_799;

/// A point in time between the years 1 and 9999, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Since 1970.
    seconds: i64,
    /// Always after `seconds`.
    nanos: u32,
}

impl Timestamp {
    /// # Errors
    /// `timestamp overflow` outside the years 1 to 9999.
    pub fn new(seconds: i64, nanos: u32) -> Result<Self, EvalError> {
        if !(SECONDS_MIN..=SECONDS_MAX).contains(&seconds) {
            return Err(EvalError::new("timestamp overflow"));
        }
        Ok(Self { seconds, nanos })
    }

    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// # Errors
    /// Overflow.
    pub fn plus(self, duration: i64) -> Result<Self, EvalError> {
        let nanos = self.total() + i128::from(duration);
        let seconds = i64::try_from(nanos.div_euclid(i128::from(NANOS))).map_err(|_| overflow())?;
        Self::new(seconds, nanos.rem_euclid(i128::from(NANOS)) as u32)
    }

    /// # Errors
    /// `duration overflow` where the difference is longer than 292 years.
    pub fn minus(self, other: Self) -> Result<i64, EvalError> {
        i64::try_from(self.total() - other.total()).map_err(|_| overflow())
    }

    fn total(self) -> i128 {
        i128::from(self.seconds) * i128::from(NANOS) + i128::from(self.nanos)
    }

    /// The parts of the clock in a time zone, UTC where it is empty.
    fn zoned(self, zone: &str) -> Result<jiff::Zoned, EvalError> {
        let instant = jiff::Timestamp::new(self.seconds, self.nanos as i32)
            .map_err(|_| EvalError::new("timestamp overflow"))?;
        Ok(instant.to_zoned(time_zone(zone)?))
    }

    /// The value of an accessor such as `getHours`; `None` where there is no such accessor.
    ///
    /// # Errors
    /// An unknown time zone.
    pub(crate) fn part(self, accessor: &str, zone: &str) -> Result<Option<i64>, EvalError> {
        let at = self.zoned(zone)?;
        Ok(Some(match accessor {
            "getFullYear" => i64::from(at.year()),
            "getMonth" => i64::from(at.month()) - 1,
            "getDayOfYear" => i64::from(at.day_of_year()) - 1,
            "getDayOfMonth" => i64::from(at.day()) - 1,
            "getDate" => i64::from(at.day()),
            "getDayOfWeek" => i64::from(Weekday::to_sunday_zero_offset(at.weekday())),
            "getHours" => i64::from(at.hour()),
            "getMinutes" => i64::from(at.minute()),
            "getSeconds" => i64::from(at.second()),
            "getMilliseconds" => i64::from(at.millisecond()),
            _ => return Ok(None),
        }))
    }
}

fn overflow() -> EvalError {
    EvalError::new("duration overflow")
}

fn time_zone(zone: &str) -> Result<TimeZone, EvalError> {
    if zone.is_empty() || zone == "UTC" || zone == "Z" {
        return Ok(TimeZone::UTC);
    }
    let unknown = || EvalError::new(format!("unknown time zone {zone}"));
    let Some((hours, minutes)) = zone.split_once(':') else {
        return TimeZone::get(zone).map_err(|_| unknown());
    };
    let number = |text: &str| text.trim_start_matches(['+', '-']).parse::<i32>().ok();
    let (hours_count, minutes) = (number(hours).ok_or_else(unknown)?, number(minutes).ok_or_else(unknown)?);
    let seconds = (hours_count.min(1000) * 60 + minutes.min(1000)) * 60;
    let seconds = if hours.starts_with('-') { -seconds } else { seconds };
    jiff::tz::Offset::from_seconds(seconds).map(TimeZone::fixed).map_err(|_| unknown())
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::new(self.seconds, self.nanos as i32) {
            Ok(instant) => write!(f, "{instant}"),
            Err(_) => f.write_str("timestamp overflow"),
        }
    }
}

/// Reads RFC 3339.
///
/// # Errors
/// What Go says of the text.
pub fn parse_timestamp(text: &str) -> Result<Timestamp, EvalError> {
    let wrong =
        || EvalError::new(format!("parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse"));
    let bytes = text.as_bytes();
    let shaped = bytes.len() >= 20
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && bytes[10] == b'T'
        && bytes[13] == b':'
        && bytes[16] == b':'
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && zone_suffix(&text[19..]);
    if !shaped {
        return Err(wrong());
    }
    let instant: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
    let nanos = instant.as_nanosecond();
    let seconds = i64::try_from(nanos.div_euclid(i128::from(NANOS))).map_err(|_| wrong())?;
    Timestamp::new(seconds, nanos.rem_euclid(i128::from(NANOS)) as u32)
}

/// Whether the rest of a time is a fraction and an offset.
fn zone_suffix(rest: &str) -> bool {
    let rest = match rest.strip_prefix('.') {
        Some(fraction) => {
            let end = fraction.bytes().take_while(u8::is_ascii_digit).count();
            if end == 0 {
                return false;
            }
            &fraction[end..]
        }
        None => rest,
    };
    let bytes = rest.as_bytes();
    rest == "Z" || (bytes.len() == 6 && matches!(bytes[0], b'+' | b'-') && bytes[3] == b':')
}

/// Reads Go's form, such as `1h30m`, to nanoseconds.
///
/// # Errors
/// What Go says of the text.
pub fn parse_duration(text: &str) -> Result<i64, EvalError> {
    let invalid = || EvalError::new(format!("time: invalid duration \"{text}\""));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole = rest.bytes().take_while(u8::is_ascii_digit).count();
        let after = &rest[whole..];
        let fraction = after.strip_prefix('.').map(|fraction| {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            &fraction[..digits]
        });
        let used = whole + fraction.map_or(0, |fraction| fraction.len() + 1);
        if whole == 0 && fraction.is_none_or(str::is_empty) {
            return Err(invalid());
        }
        let unit_length =
            rest[used..].bytes().take_while(|byte| *byte != b'.' && !byte.is_ascii_digit()).count();
        let unit = &rest[used..used + unit_length];
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => i128::from(NANOS),
            "m" => 60 * i128::from(NANOS),
            "h" => 3600 * i128::from(NANOS),
            "" => return Err(EvalError::new(format!("time: missing unit in duration \"{text}\""))),
            other => {
                return Err(EvalError::new(format!("time: unknown unit \"{other}\" in duration \"{text}\"")));
            }
        };
        let amount: i128 = if whole == 0 { 0 } else { rest[..whole].parse().map_err(|_| invalid())? };
        total = amount.checked_mul(scale).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        total += fraction.map_or(0, |fraction| fraction_of(fraction, scale));
        if total > i128::from(i64::MAX) + 1 {
            return Err(invalid());
        }
        rest = &rest[used + unit_length..];
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

fn fraction_of(digits: &str, scale: i128) -> i128 {
    let digits = &digits[..digits.len().min(18)];
    match digits.parse::<i128>() {
        Ok(value) => value * scale / 10_i128.pow(digits.len() as u32),
        Err(_) => 0,
    }
}

/// Seconds with their fraction, as `string(duration)` prints: `90s`, `0.5s`.
pub(crate) fn duration_text(nanos: i64) -> String {
    let seconds = nanos as f64 / NANOS as f64;
    format!("{seconds}s")
}
