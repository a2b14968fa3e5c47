//! Regular expressions with the syntax and the meaning of RE2: `\d`, `\w`, `\s` and `\b` know ASCII only.

use regex::{Regex, RegexBuilder};

use super::{Entry, no_overload};
use crate::{error::EvalError, value::Val};

/// Bytes of one compiled pattern.
const COMPILED_MAX: usize = 4 << 20;

pub(super) const TABLE: &[Entry] = &[
    (
        "matches",
        run_uncompiled,
        &[("matches", "(string, string) -> bool"), ("matches_string", "string.(string) -> bool")],
    ),
    ("find", run_uncompiled, &[("string_find_string", "string.(string) -> string")]),
    (
        "findAll",
        run_uncompiled,
        &[
            ("string_find_all_string", "string.(string) -> list(string)"),
            ("string_find_all_string_int", "string.(string, int) -> list(string)"),
        ],
    ),
];

/// Compiles a pattern of RE2's syntax.
///
/// # Errors
/// What is wrong with the pattern, or that it is too large.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let translated = translate(pattern);
    RegexBuilder::new(&translated).size_limit(COMPILED_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "error parsing regexp: expression too large".to_owned(),
        other => format!("error parsing regexp: {}", last_line(&other.to_string())),
    })
}

fn last_line(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.trim().trim_start_matches("error: ").to_owned()
}

/// Writes a pattern so that Rust's engine gives it the meaning that RE2 has.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    let mut class_start = false;
    while let Some(letter) = chars.next() {
        let first = std::mem::take(&mut class_start);
        match letter {
            '\\' => match chars.next() {
                None => out.push('\\'),
                Some('Q') if !in_class => quote(&mut chars, &mut out),
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str(r"[\t\n\f\r ]"),
                Some('S') => out.push_str(r"[^\t\n\f\r ]"),
                Some('b') if !in_class => out.push_str(r"(?-u:\b)"),
                Some('B') if !in_class => out.push_str(r"(?-u:\B)"),
                Some(other) => out.extend(['\\', other]),
            },
            '[' if !in_class => {
                in_class = true;
                class_start = true;
                out.push('[');
            }
            '^' if first && in_class => {
                class_start = true;
                out.push('^');
            }
            ']' if in_class && first => out.push_str(r"\]"),
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                for inner in chars.by_ref() {
                    out.push(inner);
                    if inner == ']' {
                        break;
                    }
                }
            }
            '[' => out.push_str(r"\["),
            '&' | '~' if in_class => out.extend(['\\', letter]),
            '-' if in_class && chars.peek() == Some(&'-') => {
                chars.next();
                out.push_str(r"-\-");
            }
            other => out.push(other),
        }
    }
    out
}

/// Copies what stands up to `\E`, literally.
fn quote(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    let mut literal = String::new();
    while let Some(letter) = chars.next() {
        if letter == '\\' && chars.peek() == Some(&'E') {
            chars.next();
            break;
        }
        literal.push(letter);
    }
    out.push_str(&regex::escape(&literal));
}

/// Whether a function's second argument is a pattern.
pub(crate) fn takes_pattern(function: &str) -> bool {
    matches!(function, "matches" | "find" | "findAll")
}

/// Applies a compiled pattern.
pub(crate) fn run<'a>(name: &'static str, pattern: &Regex, args: &[Val<'a>]) -> Result<Val<'a>, EvalError> {
    let Some(Val::String(text)) = args.first() else { return no_overload() };
    match (name, args.get(2)) {
        ("matches", None) => Ok(Val::Bool(pattern.is_match(text))),
        ("find", None) => Ok(Val::text(pattern.find(text).map_or("", |found| found.as_str()))),
        ("findAll", limit) => {
            let limit = match limit {
                None => usize::MAX,
                Some(Val::Int(limit)) => usize::try_from(*limit).unwrap_or(usize::MAX),
                Some(_) => return no_overload(),
            };
            let found = pattern.find_iter(text).take(limit);
            Ok(Val::list(found.map(|found| Val::text(found.as_str())).collect()))
        }
        _ => no_overload(),
    }
}

fn run_uncompiled<'a>(name: &'static str, args: &[Val<'a>]) -> Result<Val<'a>, EvalError> {
    let Some(Val::String(pattern)) = args.get(1) else { return no_overload() };
    let compiled = compile(pattern).map_err(|error| {
        EvalError::new(if name == "matches" { error } else { format!("Illegal regex: {error}") })
    })?;
    run(name, &compiled, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_re2() {
        let cases = [
            (r"^\d+$", "12", true),
            (r"^\d+$", "١٢", false),
            (r"^[\w.]+$", "a_1.b", true),
            (r"^[^\s]+$", "a b", false),
            (r"^[[]$", "[", true),
            (r"^[]a]+$", "]a", true),
            (r"^[^]]$", "]", false),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"^[a&&b]+$", "&", true),
            (r"^[+--]$", ",", true),
            (r"\Qa.b\E", "a.b", true),
            (r"\Qa.b\E", "axb", false),
            (r"\bfoo\b", "a foo b", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(compile(pattern).expect(pattern).is_match(text), expected, "{pattern} on {text}");
        }
        assert!(compile("(").is_err());
        assert!(compile("(a{1000}){1000}").is_err());
    }
}
