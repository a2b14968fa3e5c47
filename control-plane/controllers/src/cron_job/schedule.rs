//! Cron schedules: five fields, names, ranges, steps, and the `@` forms. No IO, no clock.

use std::time::Duration;

use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Timestamp, ToSpan, Zoned};

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// At the minutes that all fields admit.
    Fields(Fields),
    /// At fixed distances.
    Every(Duration),
}

/// One bit per admitted value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// A star in either day field means that both must hold; else one is enough.
    any_day: bool,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule; the error says which field is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => match text.strip_prefix("@every ") {
                Some(every) => return parse_duration(every).map(Self::Every),
                None => text,
            },
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {text:?}", fields.len()));
        };
        let star = |field: &str| field.starts_with('*') || field.starts_with('?');
        let mut weekday_bits = parse_field(weekdays, 0, 7, &WEEKDAYS, "day of week")?;
        if weekday_bits & (1 << 7) != 0 {
            weekday_bits |= 1;
        }
        Ok(Self::Fields(Fields {
            minutes: parse_field(minutes, 0, 59, &[], "minute")?,
            hours: parse_field(hours, 0, 23, &[], "hour")?,
            days: parse_field(days, 1, 31, &[], "day of month")?,
            months: parse_field(months, 1, 12, &MONTHS, "month")?,
            weekdays: weekday_bits,
            any_day: !star(days) && !star(weekdays),
        }))
    }

    /// The first time after `after`; `None` if there is none within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(every) => Some(Timestamp::from_second(after.as_second()).ok()? + *every),
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = after.as_second().div_euclid(60) + 1;
        let mut at = Timestamp::from_second(minute * 60).ok()?.to_zoned(zone.clone());
        let last_year = at.year() + 5;
        while at.year() <= last_year {
            if !has(self.months, at.month()) || !self.has_day(&at) {
                at = at.start_of_day().ok()?.checked_add(1.day()).ok()?.start_of_day().ok()?;
            } else if !has(self.hours, at.hour()) {
                // Steps in absolute time, so that an hour skipped or repeated by the clock change is handled.
                let past = i64::from(at.minute()) * 60 + i64::from(at.second());
                at = at.checked_add((3600 - past).seconds()).ok()?;
            } else if !has(self.minutes, at.minute()) {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    fn has_day(&self, at: &Zoned) -> bool {
        let day = has(self.days, at.day());
        let weekday = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        if self.any_day { day || weekday } else { day && weekday }
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & (1 << value) != 0)
}

fn parse_field(text: &str, min: u32, max: u32, names: &[&str], what: &str) -> Result<u64, String> {
    let error = |part: &str| format!("{part:?} is no {what}");
    let value = |part: &str| {
        let name = names.iter().position(|name| part.eq_ignore_ascii_case(name));
        let first = if names.len() == 12 { 1 } else { 0 };
        let named = name.and_then(|at| u32::try_from(at + first).ok());
        named
            .or_else(|| part.parse().ok())
            .filter(|value| (min..=max).contains(value))
            .ok_or_else(|| error(part))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (first, last) = match range {
            "*" | "?" => (min, max.min(if what == "day of week" { 6 } else { max })),
            _ => match range.split_once('-') {
                Some((first, last)) => (value(first)?, value(last)?),
                None => (value(range)?, if step.is_some() { max } else { value(range)? }),
            },
        };
        let step: usize = step.map_or(Ok(1), |step| step.parse().map_err(|_| error(part)))?;
        if step == 0 || first > last {
            return Err(error(part));
        }
        for value in (first..=last).step_by(step) {
            bits |= 1 << value;
        }
    }
    Ok(bits)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is no duration");
    let (mut seconds, mut digits) = (0, String::new());
    for letter in text.trim().chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let number: u64 = digits.parse().map_err(|_| error())?;
        digits.clear();
        seconds += number
            * match letter {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                _ => return Err(error()),
            };
    }
    if seconds == 0 || !digits.is_empty() { Err(error()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule).expect("a valid schedule");
        let after: Timestamp = after.parse().expect("a valid time");
        schedule.next(after, &TimeZone::UTC).map_or_else(|| "never".to_owned(), |at| at.to_string())
    }

    #[test]
    fn the_next_time_follows_every_field() {
        let cases = [
            ("* * * * *", "2026-01-31T23:59:30Z", "2026-02-01T00:00:00Z"),
            ("*/15 * * * *", "2026-01-01T00:01:00Z", "2026-01-01T00:15:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("30 9-17/4 * * mon-fri", "2026-01-03T00:00:00Z", "2026-01-05T09:30:00Z"),
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:00Z", "2026-01-01T01:30:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", "never"),
        ];
        for (schedule, after, expected) in cases {
            assert_eq!(next(schedule, after), expected, "{schedule}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(Schedule::parse("* * * *"), Err("expected exactly 5 fields, found 4: \"* * * *\"".into()));
        assert_eq!(Schedule::parse("61 * * * *"), Err("\"61\" is no minute".into()));
        assert_eq!(Schedule::parse("* * * foo *"), Err("\"foo\" is no month".into()));
        assert!(Schedule::parse("*/0 * * * *").is_err());
        assert!(Schedule::parse("@every x").is_err());
    }
}
