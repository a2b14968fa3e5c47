//! Times on the wire: RFC 3339 in UTC, to the second (`metav1.Time`) or to the microsecond (`metav1.MicroTime`).
//! No clock here: callers pass their `now`.

use jiff::{Timestamp, tz::TimeZone};

/// The text that explains what a time looks like, in Go's words.
const LAYOUT: &str = "2006-01-02T15:04:05Z07:00";
const MICRO_LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";

/// `2026-11-21T10:42:04Z`.
pub fn format_seconds(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-11-21T10:42:04.123456Z`.
pub fn format_micros(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads RFC 3339 with any offset and any fraction; nothing looser.
///
/// # Errors
/// The text that Go's `time.Parse` would give.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    parse_as(text, LAYOUT)
}

/// As [`parse`], with the error text of a `MicroTime`.
///
/// # Errors
/// The text that Go's `time.Parse` would give.
pub fn parse_micro(text: &str) -> Result<Timestamp, String> {
    parse_as(text, MICRO_LAYOUT)
}

fn parse_as(text: &str, layout: &str) -> Result<Timestamp, String> {
    let parsed = if is_rfc3339(text.as_bytes()) { text.parse::<Timestamp>().ok() } else { None };
    parsed.ok_or_else(|| {
        let (rest, expected) = mismatch(text, layout);
        let quote = crate::field::quote;
        format!(
            "parsing time {} as {}: cannot parse {} as {}",
            quote(text),
            quote(layout),
            quote(rest),
            quote(expected)
        )
    })
}

/// The shape `YYYY-MM-DDThh:mm:ss[.f+](Z|±hh:mm)`.
fn is_rfc3339(text: &[u8]) -> bool {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    if text.len() <= SHAPE.len() {
        return false;
    }
    let (head, mut rest) = text.split_at(SHAPE.len());
    if !matches(head, SHAPE) {
        return false;
    }
    if let [b'.', fraction @ ..] = rest {
        let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        rest = &fraction[digits..];
    }
    match rest {
        b"Z" => true,
        [b'+' | b'-', offset @ ..] => matches(offset, b"00:00"),
        _ => false,
    }
}

fn matches(text: &[u8], shape: &[u8]) -> bool {
    text.len() == shape.len()
        && text.iter().zip(shape).all(|(b, s)| if *s == b'0' { b.is_ascii_digit() } else { b == s })
}

/// Where the text stops following the layout: what is left, and what was expected there.
fn mismatch<'a>(text: &'a str, layout: &'a str) -> (&'a str, &'a str) {
    const PARTS: [(usize, usize); 11] =
        [(0, 4), (4, 5), (5, 7), (7, 8), (8, 10), (10, 11), (11, 13), (13, 14), (14, 16), (16, 17), (17, 19)];
    for (start, end) in PARTS {
        let expected = &layout[start..end];
        let fits = text.get(start..end).is_some_and(|part| {
            part.bytes()
                .zip(expected.bytes())
                .all(|(b, e)| if e.is_ascii_digit() { b.is_ascii_digit() } else { b == e })
        });
        if !fits {
            return (text.get(start..).unwrap_or(""), expected);
        }
    }
    (text.get(19..).unwrap_or(""), "Z07:00")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn offsets_become_utc_and_fractions_are_cut() {
        let time = parse("2026-11-21T12:42:04.123456789+02:00").unwrap();
        assert_eq!(format_seconds(time), "2026-11-21T10:42:04Z");
        assert_eq!(format_micros(time), "2026-11-21T10:42:04.123456Z");
    }

    #[test]
    fn looser_forms_are_refused() {
        for text in
            ["", "2026-11-21", "2026-11-21 10:42:04Z", "2026-11-21T10:42Z", "2026-11-21T10:42:04", "now"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(
            parse("now").unwrap_err(),
            r#"parsing time "now" as "2006-01-02T15:04:05Z07:00": cannot parse "now" as "2006""#
        );
        assert_eq!(
            parse("2026-11-21").unwrap_err(),
            r#"parsing time "2026-11-21" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "T""#
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,30}") {
            let _outcome = parse(&text);
        }
    }
}
