//! The values of `format` that are checked; all others say nothing.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use base64::Engine as _;
use regex::Regex;

use super::Kind;
use crate::names;

/// Whether a format is checked for values of this kind.
pub fn is_known_format(kind: Kind, format: &str) -> bool {
    match kind {
        Kind::Any | Kind::String => matcher(format).is_some(),
        Kind::Integer => matches!(format, "int32" | "int64"),
        Kind::Number => matches!(format, "float" | "double"),
        Kind::Object | Kind::Array | Kind::Boolean | Kind::IntOrString => false,
    }
}

/// Whether a text has the format; every text has an unknown one.
pub(super) fn fits(format: &str, text: &str) -> bool {
    matcher(format).is_none_or(|fits| fits(text))
}

fn matcher(format: &str) -> Option<fn(&str) -> bool> {
    Some(match format.replace('-', "").as_str() {
        "bsonobjectid" => |text| text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "uri" => is_uri,
        "email" => is_email,
        "hostname" => is_hostname,
        "ipv4" => |text| text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => |text| text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr,
        "mac" => is_mac,
        "uuid" => |text| is_uuid(text, None),
        "uuid3" => |text| is_uuid(text, Some('3')),
        "uuid4" => |text| is_uuid(text, Some('4')),
        "uuid5" => |text| is_uuid(text, Some('5')),
        "isbn" => |text| is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10,
        "isbn13" => is_isbn13,
        "creditcard" => is_credit_card,
        "ssn" => |text| pattern(&SSN, text),
        "hexcolor" => |text| pattern(&HEX_COLOR, text),
        "rgbcolor" => |text| pattern(&RGB_COLOR, text),
        "byte" => |text| base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "password" => |_| true,
        "date" => |text| text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => is_duration,
        "datetime" => |text| pattern(&DATE_TIME, text) && crate::time::parse(&text.to_uppercase()).is_ok(),
        "k8sshortname" => |text| names::dns1123_label(text, false).is_empty(),
        "k8slongname" => |text| names::dns1123_subdomain(text, false).is_empty(),
        _ => return None,
    })
}

macro_rules! regexes {
    ($($name:ident = $text:expr;)*) => {
        $(static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).expect("the tests compile it"));)*
        #[cfg(test)]
        pub(super) fn all_patterns() -> Vec<&'static Regex> {
            vec![$(&*$name),*]
        }
    };
}

regexes! {
    SSN = r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$";
    HEX_COLOR = r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR = r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$";
    HOSTNAME = r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$";
    CREDIT_CARD = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|(222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11}|6[27][0-9]{14})$";
    DATE_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$";
    GO_DURATION = r"^[-+]?(0|(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";
    WORDY_DURATION = r"(?i)[0-9]+\s*(ns|nano[a-z]*|us|µs|micro[a-z]*|ms|milli[a-z]*|s|sec[a-z]*|m|min[a-z]*|h|hr|hour[a-z]*|d|day[a-z]*|w|wk|week[a-z]*)($|[^A-Za-zµ])";
}

fn pattern(regex: &Regex, text: &str) -> bool {
    regex.is_match(text)
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 255 && text.split('.').all(|label| label.len() <= 63) && pattern(&HOSTNAME, text)
}

fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.chars().any(|c| c.is_ascii_control()) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let mut bytes = scheme.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && !rest.split('/').nth(2).unwrap_or_default().contains(' ')
}

/// `local@domain`, or `Name <local@domain>`.
fn is_email(text: &str) -> bool {
    let text = text.trim();
    let address = match (text.rfind('<'), text.strip_suffix('>')) {
        (Some(open), Some(_)) => &text[open + 1..text.len() - 1],
        _ => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let is_atom = |c: char| c.is_alphanumeric() || !c.is_ascii() || "!#$%&'*+-/=?^_`{|}~".contains(c);
    let dotted = |text: &str| text.split('.').all(|part| !part.is_empty() && part.chars().all(is_atom));
    let is_quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (is_quoted || dotted(local)) && dotted(domain)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(length) = length.parse::<u8>() else { return false };
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => length <= 32,
        Ok(IpAddr::V6(_)) => length <= 128,
        Err(_) => false,
    }
}

/// EUI-48, EUI-64 or 20 bytes of InfiniBand, with `:`, `-` or `.`.
fn is_mac(text: &str) -> bool {
    let (separator, width) = match text {
        _ if text.contains(':') => (':', 2),
        _ if text.contains('-') => ('-', 2),
        _ => ('.', 4),
    };
    let groups: Vec<&str> = text.split(separator).collect();
    matches!(groups.len() * width / 2, 6 | 8 | 20)
        && groups
            .iter()
            .all(|group| group.len() == width && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_uuid(text: &str, version: Option<char>) -> bool {
    // Dashes are optional, each by itself, in their places.
    let mut rest = text;
    let mut digits = String::with_capacity(32);
    for (at, width) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if at > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some((group, after)) = rest.split_at_checked(width) else { return false };
        digits.push_str(group);
        rest = after;
    }
    let is_variant = |c: char| matches!(c.to_ascii_lowercase(), '8' | '9' | 'a' | 'b');
    rest.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && version.is_none_or(|version| digits[12..].starts_with(version))
        && (!matches!(version, Some('4' | '5')) || digits[16..].starts_with(is_variant))
}

fn is_isbn10(text: &str) -> bool {
    let digits: Vec<char> = text.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    let value = |(at, c): (usize, &char)| match c {
        'X' | 'x' if at == 9 => Some(10),
        c => c.to_digit(10),
    };
    let Some(values) = digits.iter().enumerate().map(value).collect::<Option<Vec<u32>>>() else {
        return false;
    };
    values.len() == 10
        && values.iter().zip((1..=10).rev()).map(|(v, weight)| v * weight).sum::<u32>() % 11 == 0
}

fn is_isbn13(text: &str) -> bool {
    let digits: Option<Vec<u32>> =
        text.chars().filter(|c| !matches!(c, '-' | ' ')).map(|c| c.to_digit(10)).collect();
    digits.is_some_and(|digits| {
        digits.len() == 13
            && digits
                .iter()
                .zip([1, 3].into_iter().cycle())
                .map(|(digit, weight)| digit * weight)
                .sum::<u32>()
                % 10
                == 0
    })
}

fn is_credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let sum: u32 = digits
        .chars()
        .rev()
        .filter_map(|c| c.to_digit(10))
        .enumerate()
        .map(|(at, digit)| match at % 2 {
            0 => digit,
            _ if digit > 4 => digit * 2 - 9,
            _ => digit * 2,
        })
        .sum();
    pattern(&CREDIT_CARD, &digits) && sum.is_multiple_of(10)
}

fn is_duration(text: &str) -> bool {
    pattern(&GO_DURATION, text) || pattern(&WORDY_DURATION, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_expressions_compile() {
        assert_eq!(all_patterns().len(), 8);
    }

    #[test]
    fn formats_tell_good_texts_from_bad_ones() {
        let cases = [
            ("uri", "https://a.b/c?d", "a b"),
            ("email", "me@example.com", "me.example.com"),
            ("hostname", "a-b.example.com", "-a"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "fd00::1", "fd00:::1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("uuid", "A0EEBC999C0B4EF8BB6D6BB9BD380A11", "a0eebc99"),
            ("uuid4", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-3ef8-bb6d-6bb9bd380a11"),
            ("isbn", "978-0321751041", "978-0321751042"),
            ("isbn10", "0321751043", "0321751044"),
            ("creditcard", "4111 1111 1111 1111", "4111111111111112"),
            ("ssn", "111-22-3333", "111223"),
            ("hexcolor", "#fff", "#ggg"),
            ("rgbcolor", "rgb(255, 255, 255)", "rgb(256,0,0)"),
            ("byte", "aGk=", "%"),
            ("date", "2006-01-02", "2006-13-02"),
            ("duration", "1h30m", "one hour"),
            ("duration", "22 ns", "22 x"),
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15 19:30"),
            ("k8s-short-name", "a-b", "A"),
            ("k8s-long-name", "a.b", "a_b"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
        ];
        for (format, good, bad) in cases {
            assert!(fits(format, good), "{format}: {good}");
            assert!(!fits(format, bad), "{format}: {bad}");
        }
        assert!(fits("unheard-of", "anything"));
        assert!(!is_known_format(Kind::Integer, "uri") && is_known_format(Kind::Integer, "int32"));
    }
}
