//! Functions of strings, and `lists.join`.

use super::{Entry, no_overload, printf};
use crate::{error::EvalError, value::Val};

type Result<'a> = std::result::Result<Val<'a>, EvalError>;

pub(super) const TABLE: &[Entry] = &[
    ("contains", search, &[("contains_string", "string.(string) -> bool")]),
    ("endsWith", search, &[("ends_with_string", "string.(string) -> bool")]),
    ("startsWith", search, &[("starts_with_string", "string.(string) -> bool")]),
    ("charAt", char_at, &[("string_char_at_int", "string.(int) -> string")]),
    ("lowerAscii", cased, &[("string_lower_ascii", "string.() -> string")]),
    ("upperAscii", cased, &[("string_upper_ascii", "string.() -> string")]),
    ("trim", cased, &[("string_trim", "string.() -> string")]),
    ("strings.quote", quote, &[("strings_quote", "(string) -> string")]),
    (
        "replace",
        replace,
        &[
            ("string_replace_string_string", "string.(string, string) -> string"),
            ("string_replace_string_string_int", "string.(string, string, int) -> string"),
        ],
    ),
    (
        "split",
        split,
        &[
            ("string_split_string", "string.(string) -> list(string)"),
            ("string_split_string_int", "string.(string, int) -> list(string)"),
        ],
    ),
    (
        "substring",
        substring,
        &[
            ("string_substring_int", "string.(int) -> string"),
            ("string_substring_int_int", "string.(int, int) -> string"),
        ],
    ),
    (
        "join",
        join,
        &[
            ("list_join", "list(string).() -> string"),
            ("list_join_string", "list(string).(string) -> string"),
        ],
    ),
    ("format", printf::format, &[("string_format", "string.(list(dyn)) -> string")]),
];

/// Longest text that one call may make, in bytes.
const TEXT_MAX: usize = 32 << 20;

fn too_long<'a>() -> Result<'a> {
    Err(EvalError::new("result string too long"))
}

fn out_of_range<'a>(index: i64) -> Result<'a> {
    Err(EvalError::new(format!("index out of range: {index}")))
}

fn search<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text), Val::String(part)] = args else { return no_overload() };
    Ok(Val::Bool(match name {
        "contains" => text.contains(&**part),
        "endsWith" => text.ends_with(&**part),
        _ => text.starts_with(&**part),
    }))
}

fn char_at<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text), Val::Int(index)] = args else { return no_overload() };
    let Ok(at) = usize::try_from(*index) else { return out_of_range(*index) };
    match text.chars().nth(at) {
        Some(found) => Ok(Val::text(found.to_string())),
        None if at == text.chars().count() => Ok(Val::text("")),
        None => out_of_range(*index),
    }
}

fn cased<'a>(name: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    Ok(match name {
        "lowerAscii" => Val::text(text.to_ascii_lowercase()),
        "upperAscii" => Val::text(text.to_ascii_uppercase()),
        _ => Val::text(text.trim()),
    })
}

fn quote<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let [Val::String(text)] = args else { return no_overload() };
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    Ok(Val::text(quoted))
}

/// The place of a part in a text, counted in characters.
pub(super) fn index_of(
    text: &str,
    part: &str,
    from: Option<i64>,
    last: bool,
) -> std::result::Result<i64, EvalError> {
    let text: Vec<char> = text.chars().collect();
    let part: Vec<char> = part.chars().collect();
    let end = text.len();
    let start = from.unwrap_or(if last { end as i64 - 1 } else { 0 });
    if part.is_empty() {
        return Ok(from.unwrap_or(if last { end as i64 } else { 0 }));
    }
    if from.is_none() && end < part.len() {
        return Ok(-1);
    }
    let Ok(start) = usize::try_from(start) else {
        return Err(EvalError::new(format!("index out of range: {start}")));
    };
    if start >= end || part.len() > end {
        return Ok(-1);
    }
    let found = |at: &usize| text[*at..].starts_with(&part);
    let at =
        if last { (0..=start.min(end - part.len())).rev().find(found) } else { (start..end).find(found) };
    Ok(at.map_or(-1, |at| at as i64))
}

fn replace<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (Val::String(text), Val::String(old), Val::String(new)) = (match args {
        [text, old, new] | [text, old, new, _] => (text, old, new),
        _ => return no_overload(),
    }) else {
        return no_overload();
    };
    let count = match args.get(3) {
        None => usize::MAX,
        Some(Val::Int(count)) => usize::try_from(*count).unwrap_or(usize::MAX),
        Some(_) => return no_overload(),
    };
    let places = if old.is_empty() { text.chars().count() + 1 } else { text.len() / old.len() };
    if places.min(count).saturating_mul(new.len()).saturating_add(text.len()) > TEXT_MAX {
        return too_long();
    }
    Ok(Val::text(text.replacen(&**old, new, count)))
}

fn split<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (Val::String(text), Val::String(separator)) = (match args {
        [text, separator] | [text, separator, _] => (text, separator),
        _ => return no_overload(),
    }) else {
        return no_overload();
    };
    let limit = match args.get(2) {
        None => usize::MAX,
        Some(Val::Int(0)) => return Ok(Val::list(Vec::new())),
        Some(Val::Int(limit)) => usize::try_from(*limit).unwrap_or(usize::MAX),
        Some(_) => return no_overload(),
    };
    let parts: Vec<Val<'a>> = if separator.is_empty() {
        let mut rest = &**text;
        let mut parts = Vec::new();
        while let Some(first) = rest.chars().next() {
            let end = if parts.len() + 1 >= limit { rest.len() } else { first.len_utf8() };
            parts.push(Val::text(&rest[..end]));
            rest = &rest[end..];
        }
        parts
    } else {
        text.splitn(limit, &**separator).map(Val::text).collect()
    };
    Ok(Val::list(parts))
}

fn substring<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (Some(Val::String(text)), Some(Val::Int(start))) = (args.first(), args.get(1)) else {
        return no_overload();
    };
    let length = text.chars().count() as i64;
    let end = match args.get(2) {
        None => length,
        Some(Val::Int(end)) if start > end => {
            return Err(EvalError::new(format!("invalid substring range. start: {start}, end: {end}")));
        }
        Some(Val::Int(end)) => *end,
        Some(_) => return no_overload(),
    };
    for index in [*start, end] {
        if !(0..=length).contains(&index) {
            return out_of_range(index);
        }
    }
    let part: String = text.chars().skip(*start as usize).take((end - start) as usize).collect();
    Ok(Val::text(part))
}

fn join<'a>(_: &'static str, args: &[Val<'a>]) -> Result<'a> {
    let (Some(Val::List(list)), separator) = (args.first(), args.get(1)) else { return no_overload() };
    let separator = match separator {
        None => "",
        Some(Val::String(separator)) => separator,
        Some(_) => return no_overload(),
    };
    let mut joined = String::new();
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            joined.push_str(separator);
        }
        match item? {
            Val::String(text) => joined.push_str(&text),
            other => return Err(EvalError::new(format!("join: invalid input: {}", other.plain_text()))),
        }
        if joined.len() > TEXT_MAX {
            return too_long();
        }
    }
    Ok(Val::text(joined))
}
