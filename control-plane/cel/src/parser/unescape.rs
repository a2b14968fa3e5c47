//! Escape sequences of string and bytes literals.

/// The value of a literal's text, without its quotes.
///
/// # Errors
/// What is wrong with an escape sequence.
pub(super) fn unescape(text: &str, raw: bool, bytes: bool) -> Result<Vec<u8>, &'static str> {
    if raw || !text.contains('\\') {
        return Ok(text.as_bytes().to_vec());
    }
    let mut value = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        value.extend_from_slice(&rest.as_bytes()[..at]);
        rest = escape(&rest[at + 1..], bytes, &mut value)?;
    }
    value.extend_from_slice(rest.as_bytes());
    Ok(value)
}

const WRONG: &str = "unable to unescape string";
const OCTAL: &str = "unable to unescape octal sequence in string";

/// Reads one sequence after its backslash and gives what follows.
fn escape<'t>(text: &'t str, bytes: bool, value: &mut Vec<u8>) -> Result<&'t str, &'static str> {
    let mut chars = text.chars();
    let kind = chars.next().ok_or("unable to unescape string, found '\\' as last character")?;
    let simple = match kind {
        'a' => Some(7),
        'b' => Some(8),
        'f' => Some(12),
        'n' => Some(b'\n'),
        'r' => Some(b'\r'),
        't' => Some(b'\t'),
        'v' => Some(11),
        '\\' | '\'' | '"' | '`' | '?' => Some(kind as u8),
        _ => None,
    };
    if let Some(byte) = simple {
        value.push(byte);
        return Ok(chars.as_str());
    }
    match kind {
        'x' | 'X' => digits(text, 1, 2, 16, bytes, value).ok_or(WRONG)?,
        'u' if !bytes => digits(text, 1, 4, 16, bytes, value).ok_or(WRONG)?,
        'U' if !bytes => digits(text, 1, 8, 16, bytes, value).ok_or(WRONG)?,
        '0'..='3' => digits(text, 0, 3, 8, bytes, value).ok_or(OCTAL)?,
        _ => Err(WRONG),
    }
    .map(|used| &text[used..])
}

/// `None` where digits are missing, an error where they name no character.
fn digits(
    text: &str,
    start: usize,
    count: usize,
    radix: u32,
    bytes: bool,
    value: &mut Vec<u8>,
) -> Option<Result<usize, &'static str>> {
    let digits = text.get(start..start + count)?;
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let code = u32::from_str_radix(digits, radix).ok()?;
    if bytes {
        value.push(u8::try_from(code).ok()?);
        return Some(Ok(start + count));
    }
    let Some(character) = char::from_u32(code) else { return Some(Err("invalid unicode code point")) };
    value.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Some(Ok(start + count))
}
