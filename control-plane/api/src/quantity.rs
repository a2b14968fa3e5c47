//! Amounts of resources: `100m`, `1.5Gi`, `12e6`. Exact to one billionth; what is finer is rounded away from zero.
//!
//! The canonical text keeps the family of the suffix (binary, decimal, exponent), has no fraction and the largest
//! suffix that allows that.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde_json::Value;

const NANO: i128 = 1_000_000_000;
/// Amounts are capped here when parsed, in whole units.
const VALUE_MAX: i128 = i64::MAX as i128;
const DECIMAL_SUFFIXES: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// How the amount is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `1Ki` is 1024.
    BinarySi,
    /// `1k` is 1000.
    DecimalSi,
    /// `1e3`.
    DecimalExponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An amount. Compares by amount alone; prints canonically.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A number of whole units.
    pub fn from_value(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format }
    }

    /// A number of thousandths.
    pub fn from_milli(milli: i64, format: Format) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format }
    }

    /// Reads the JSON forms: a string, or a number.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }

    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        text.parse()
    }

    /// In whole units, rounded up.
    pub fn value(&self) -> i128 {
        ceil(self.nanos, NANO)
    }

    /// In thousandths, rounded up.
    pub fn milli(&self) -> i128 {
        ceil(self.nanos, NANO / 1000)
    }

    /// In whole units, `None` where a fraction would be lost.
    pub fn whole(&self) -> Option<i128> {
        (self.nanos % NANO == 0).then_some(self.nanos / NANO)
    }

    /// In whole units, as near as a double comes.
    pub fn to_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i8 {
        self.nanos.signum() as i8
    }

    /// The sum, written like `self` (like `other` where `self` is zero).
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }

    /// The difference, written like `self` (like `other` where `self` is zero).
    pub fn sub(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_sub(other.nanos), format }
    }

    fn decimal(&self, exponent_form: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut mantissa, mut exponent) = (self.nanos, -9);
        while mantissa % 1000 == 0 && (exponent < 18 || exponent_form) {
            mantissa /= 1000;
            exponent += 3;
        }
        if exponent_form {
            return if exponent == 0 { write!(f, "{mantissa}") } else { write!(f, "{mantissa}e{exponent}") };
        }
        let (suffix, _) = DECIMAL_SUFFIXES
            .iter()
            .find(|(_, power)| *power == exponent)
            .expect("exponents go from -9 to 18 in steps of 3, as the suffixes do");
        write!(f, "{mantissa}{suffix}")
    }
}

fn ceil(nanos: i128, unit: i128) -> i128 {
    nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        match self.format {
            Format::BinarySi if self.nanos.abs() >= 1024 * NANO => {
                let (mut mantissa, mut power) = (self.value(), 0);
                while mantissa % 1024 == 0 && power < BINARY_SUFFIXES.len() - 1 {
                    mantissa /= 1024;
                    power += 1;
                }
                write!(f, "{mantissa}{}", BINARY_SUFFIXES[power])
            }
            Format::BinarySi | Format::DecimalSi => self.decimal(false, f),
            Format::DecimalExponent => self.decimal(true, f),
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes() {
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            [] => return Err(QuantityError::Format),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Format);
        }
        if fraction.contains('.') {
            return Err(QuantityError::Numeric);
        }
        let (format, base, power) = parse_suffix(suffix)?;
        let magnitude = scale(whole, fraction, base, power).min(VALUE_MAX * NANO);
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, format })
    }
}

/// The family of a suffix, and the number it stands for as base and power.
fn parse_suffix(suffix: &str) -> Result<(Format, i128, i32), QuantityError> {
    if let Some((_, power)) = DECIMAL_SUFFIXES.iter().find(|(text, _)| *text == suffix) {
        return Ok((Format::DecimalSi, 10, *power));
    }
    if let Some(power) = BINARY_SUFFIXES.iter().position(|text| *text == suffix) {
        return Ok((Format::BinarySi, 1024, power as i32));
    }
    let Some(exponent) = suffix.strip_prefix(['e', 'E']) else {
        let known = suffix.bytes().all(|b| b"eEinumkKMGTP+-0123456789".contains(&b));
        return Err(if known { QuantityError::Suffix } else { QuantityError::Format });
    };
    let power: i32 = exponent.parse().map_err(|_not_a_number| QuantityError::Suffix)?;
    Ok((Format::DecimalExponent, 10, power))
}

/// `whole.fraction * base^power` in billionths, rounded up, saturating.
fn scale(whole: &str, fraction: &str, base: i128, power: i32) -> i128 {
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let mut shift = 9 - fraction.len() as i64;
    let mut multiplier: i128 = 1;
    if base == 10 {
        shift += i64::from(power);
    } else {
        multiplier = base.pow(power.unsigned_abs());
    }
    // Digits beyond any amount that fits: too large, or too fine to matter but for the rounding.
    const DIGITS_MAX: usize = 20;
    let kept = digits.len().min(DIGITS_MAX);
    let mut round_up = digits[kept..].bytes().any(|b| b != b'0');
    shift += (digits.len() - kept) as i64;
    let mantissa: i128 = digits[..kept].parse().unwrap_or(i128::MAX);
    let mut amount = match mantissa.checked_mul(multiplier) {
        Some(amount) => amount,
        None => return i128::MAX,
    };
    if shift >= 0 {
        let factor = u32::try_from(shift).ok().and_then(|shift| 10i128.checked_pow(shift));
        amount = factor.and_then(|factor| amount.checked_mul(factor)).unwrap_or(i128::MAX);
    } else {
        let divisor = u32::try_from(-shift).ok().and_then(|shift| 10i128.checked_pow(shift));
        let divisor = divisor.unwrap_or(i128::MAX);
        round_up |= amount % divisor != 0;
        amount /= divisor;
    }
    amount.saturating_add(i128::from(round_up))
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).unwrap().to_string()
    }

    #[test]
    fn canonical_texts_are_upstreams() {
        let cases = [
            ("0", "0"),
            ("0m", "0"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("100Ki", "100Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1000000", "1M"),
            ("0.0001", "100u"),
            ("1E", "1E"),
            ("-1.5", "-1500m"),
            ("+3", "3"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("1E6", "1e6"),
            ("100e-3", "100e-3"),
            ("10Ei", "9223372036854775807"),
        ];
        for (text, expected) in cases {
            assert_eq!(canonical(text), expected, "of {text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_upstreams_words() {
        for text in ["", "abc", "1 Gi", "-", "."] {
            assert_eq!(Quantity::parse(text), Err(QuantityError::Format), "{text:?}");
        }
        assert_eq!(Quantity::parse("1GiB"), Err(QuantityError::Format));
        assert_eq!(Quantity::parse("1KiMi"), Err(QuantityError::Suffix));
        assert_eq!(Quantity::parse("1.2.3"), Err(QuantityError::Numeric));
        assert_eq!(Quantity::parse("1e"), Err(QuantityError::Suffix));
    }

    #[test]
    fn amounts_round_up() {
        let quantity = Quantity::parse("1.0001").unwrap();
        assert_eq!(quantity.value(), 2);
        assert_eq!(quantity.milli(), 1001);
        assert_eq!(Quantity::parse("-1.5").unwrap().value(), -1);
        assert_eq!(Quantity::parse("1Gi").unwrap().value(), 1 << 30);
    }

    #[test]
    fn sums_keep_the_format_of_the_first() {
        let (a, b) = (Quantity::parse("1Gi").unwrap(), Quantity::parse("1G").unwrap());
        assert_eq!(a.add(&a).to_string(), "2Gi");
        assert!(a > b);
        assert_eq!(a.sub(&b).value(), (1 << 30) - 1_000_000_000);
        assert_eq!(Quantity::ZERO.add(&a).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn canonical_text_reads_back_as_the_same_amount(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,6})?(n|u|m|k|M|G|Ki|Mi|Gi|e3|E-2)?") {
            let quantity = Quantity::parse(&text).unwrap();
            let again = Quantity::parse(&quantity.to_string()).unwrap();
            // A binary amount is whole when it is written with a binary suffix.
            if quantity.format() == Format::BinarySi {
                prop_assert_eq!(again.value(), quantity.value());
            } else {
                prop_assert_eq!(again, quantity);
            }
            prop_assert_eq!(again.to_string(), quantity.to_string());
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _outcome = Quantity::parse(&text);
        }
    }
}
