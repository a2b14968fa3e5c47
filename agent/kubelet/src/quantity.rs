//! Resource quantities as numbers: the few operations the kubelet needs on `1500m`, `2Gi` or `1e3`.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths of the unit, rounded up. What does not parse counts as 0: the apiserver has validated it.
pub fn milli(quantity: &Quantity) -> i128 {
    parse(&quantity.0).unwrap_or(0)
}

/// Whole units, rounded up.
pub fn units(quantity: &Quantity) -> i128 {
    ceil_div(milli(quantity), 1000)
}

/// Division that rounds away from zero for positive numerators.
pub fn ceil_div(value: i128, divisor: i128) -> i128 {
    value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
}

/// Bytes as Kubernetes prints them: `10Mi` where they are whole, else in digits.
pub fn bytes(value: u64) -> String {
    with_suffix(value, 1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

/// A count as Kubernetes prints it: `20k` where it is whole, else in digits.
pub fn count(value: u64) -> String {
    with_suffix(value, 1000, ["", "k", "M", "G", "T", "P", "E"])
}

fn with_suffix(mut value: u64, step: u64, suffixes: [&str; 7]) -> String {
    let mut place = 0;
    while value != 0 && value.is_multiple_of(step) && place + 1 < suffixes.len() {
        value /= step;
        place += 1;
    }
    format!("{value}{}", suffixes[place])
}

/// Whether the suffix is one of powers of two.
pub fn is_binary(quantity: &Quantity) -> bool {
    quantity.0.ends_with('i')
}

/// Whole units of well-formed text.
///
/// # Errors
/// The text is no quantity, is negative or beyond 64 bits.
pub fn parse_units(text: &str) -> Result<u64, String> {
    let milli = parse(text).ok_or_else(|| format!("{text:?} is not a quantity such as 100Mi"))?;
    u64::try_from(ceil_div(milli, 1000)).map_err(|_| format!("{text:?} is out of range"))
}

fn parse(text: &str) -> Option<i128> {
    let text = text.trim();
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(18)];
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (numerator, denominator) = factor(suffix)?;
    let value = digits.checked_mul(1000)?.checked_mul(numerator)?;
    let value = ceil_div(value, scale.checked_mul(denominator)?);
    Some(if negative { -value } else { value })
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1i128 << (10 * power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => Some((1_000, 1)),
        "M" => Some((1_000_000, 1)),
        "G" => Some((1_000_000_000, 1)),
        "T" => Some((1_000_000_000_000, 1)),
        "P" => Some((1_000_000_000_000_000, 1)),
        "E" => Some((1_000_000_000_000_000_000, 1)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs())?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_and_exponents_scale_and_fractions_round_up() {
        for (text, expected) in [
            ("1", 1000),
            ("100m", 100),
            ("1.5", 1500),
            ("0.0001", 1),
            ("1Ki", 1_024_000),
            ("2Gi", 2 * 1024 * 1024 * 1024 * 1000),
            ("1e3", 1_000_000),
            ("1E-3", 1),
            ("5u", 1),
            (".5", 500),
            ("-1", -1000),
            ("junk", 0),
            ("", 0),
        ] {
            assert_eq!(milli(&Quantity(text.to_owned())), expected, "{text}");
        }
        assert_eq!(units(&Quantity("1100m".into())), 2);
    }

    #[test]
    fn amounts_print_as_kubernetes_prints_them() {
        for (value, as_bytes, as_count) in [
            (0, "0", "0"),
            (1000, "1000", "1k"),
            (1024, "1Ki", "1024"),
            (10 << 20, "10Mi", "10485760"),
            (1025, "1025", "1025"),
            (2_000_000, "2000000", "2M"),
        ] {
            assert_eq!((bytes(value).as_str(), count(value).as_str()), (as_bytes, as_count));
        }
    }
}
