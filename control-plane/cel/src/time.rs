//! Timestamps and durations: their texts, their arithmetic, their parts.

use std::fmt;

use jiff::tz::TimeZone;

use crate::error::EvalError;

const NANOS: i64 = 1_000_000_000;
/// Seconds of a day.
const DAY: i64 = 86_400;
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

    /// Date and time of day in a time zone, UTC where it is empty: days since 1970, seconds of the day.
    fn local(self, zone: &str) -> Result<(i64, i64), EvalError> {
        let zone = time_zone(zone)?;
        // The library's range ends some hours before the year does.
        let (min, max) = (jiff::Timestamp::MIN.as_second(), jiff::Timestamp::MAX.as_second());
        let instant = jiff::Timestamp::from_second(self.seconds.clamp(min, max));
        let offset = instant.map_or(0, |instant| i64::from(zone.to_offset(instant).seconds()));
        let seconds = self.seconds + offset;
        Ok((seconds.div_euclid(DAY), seconds.rem_euclid(DAY)))
    }

    /// The value of an accessor such as `getHours`; `None` where there is no such accessor.
    ///
    /// # Errors
    /// An unknown time zone.
    pub(crate) fn part(self, accessor: &str, zone: &str) -> Result<Option<i64>, EvalError> {
        let (days, seconds) = self.local(zone)?;
        let (year, month, day) = date_of(days);
        Ok(Some(match accessor {
            "getFullYear" => year,
            "getMonth" => month - 1,
            "getDayOfYear" => days - days_until(year, 1, 1),
            "getDayOfMonth" => day - 1,
            "getDate" => day,
            "getDayOfWeek" => (days + 4).rem_euclid(7),
            "getHours" => seconds / 3600,
            "getMinutes" => seconds / 60 % 60,
            "getSeconds" => seconds % 60,
            "getMilliseconds" => i64::from(self.nanos / 1_000_000),
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

/// Days from 1970 to a date of the Gregorian calendar, by eras of 400 years that begin in March.
fn days_until(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date that many days after 1970.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.seconds.div_euclid(DAY));
        let seconds = self.seconds.rem_euclid(DAY);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanos != 0 {
            write!(f, ".{}", format!("{:09}", self.nanos).trim_end_matches('0'))?;
        }
        f.write_str("Z")
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
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if bytes.len() < 20 || !text.is_ascii() || separators.iter().any(|(at, byte)| bytes[*at] != *byte) {
        return Err(wrong());
    }
    let number = |from: usize, to: usize, max: i64| {
        let digits = &text[from..to];
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|value| plain && *value <= max).ok_or_else(wrong)
    };
    let (year, month, day) = (number(0, 4, 9999)?, number(5, 7, 12)?, number(8, 10, 31)?);
    let (hour, minute, second) = (number(11, 13, 23)?, number(14, 16, 59)?, number(17, 19, 59)?);
    let days = days_until(year, month, day);
    if month == 0 || date_of(days) != (year, month, day) {
        return Err(wrong());
    }
    let (nanos, zone) = match text[19..].strip_prefix('.') {
        None => (0, &text[19..]),
        Some(rest) => {
            let count = rest.bytes().take_while(u8::is_ascii_digit).count();
            let digits = &rest[..count.min(9)];
            if count == 0 {
                return Err(wrong());
            }
            (format!("{digits:0<9}").parse().map_err(|_| wrong())?, &rest[count..])
        }
    };
    let start = text.len() - zone.len();
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let seconds = (number(start + 1, start + 3, 23)? * 60 + number(start + 4, start + 6, 59)?) * 60;
            if *sign == b'-' { -seconds } else { seconds }
        }
        _ => return Err(wrong()),
    };
    Timestamp::new(days * DAY + hour * 3600 + minute * 60 + second - offset, nanos)
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
