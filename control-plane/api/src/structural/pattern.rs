//! Regular expressions as Go reads them (RE2), on the `regex` crate: the same language but for a few spellings, which are
//! rewritten here. Both run in linear time; the compiled size is bounded.

use regex::{Regex, RegexBuilder};

/// Bytes of one compiled expression.
const COMPILED_BYTES_MAX: usize = 4 << 20;

/// Compiles an expression of Go's syntax.
///
/// # Errors
/// What is wrong with it, or that it is too large.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern)).size_limit(COMPILED_BYTES_MAX).build().map_err(|error| {
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// Perl classes are of ASCII in Go; `[`, `&&`, `--` and `~~` mean nothing inside a class; a `{` that is no repetition is
/// itself; `\Q...\E` quotes.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let mut in_class = false;
    let mut class_starts = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let starts = std::mem::take(&mut class_starts);
        match c {
            '\\' => {
                rest = escape(after, in_class, &mut out);
                continue;
            }
            '[' if in_class => match after.strip_prefix(':').and_then(|name| name.find(":]")) {
                Some(end) => {
                    let length = 1 + 1 + end + 2;
                    out.push_str(&rest[..length]);
                    rest = &rest[length..];
                    continue;
                }
                None => out.push_str("\\["),
            },
            '[' => {
                in_class = true;
                class_starts = true;
                out.push('[');
                if let Some(negated) = after.strip_prefix('^') {
                    out.push('^');
                    rest = negated;
                    continue;
                }
            }
            // The first one in a class is itself.
            ']' if in_class && starts => out.push_str("\\]"),
            ']' => {
                in_class = false;
                out.push(']');
            }
            '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && (after.starts_with('-') || starts) => out.push_str("\\-"),
            '{' if !in_class && !is_repetition(after) => out.push_str("\\{"),
            '}' if !in_class && !out_ends_repetition(&out) => out.push_str("\\}"),
            c => out.push(c),
        }
        rest = after;
    }
    out
}

/// Whether what follows `{` is `N}`, `N,}` or `N,M}`.
fn is_repetition(after: &str) -> bool {
    let Some((inner, _)) = after.split_once('}') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match inner.split_once(',') {
        None => digits(inner),
        Some((min, max)) => digits(min) && (max.is_empty() || digits(max)),
    }
}

/// Whether a `}` that follows closes a repetition or a class name such as `\p{L}`.
fn out_ends_repetition(out: &str) -> bool {
    out.rfind('{').is_some_and(|at| !out[..at].ends_with('\\') && !out[at..].contains('}'))
}

/// Writes an escape sequence (without its backslash, which the caller has read); returns what follows it.
fn escape<'a>(after: &'a str, in_class: bool, out: &mut String) -> &'a str {
    let Some(c) = after.chars().next() else {
        out.push('\\');
        return after;
    };
    let rest = &after[c.len_utf8()..];
    let class = match c {
        'd' | 'D' => Some("0-9"),
        'w' | 'W' => Some("0-9A-Za-z_"),
        's' | 'S' => Some("\\t\\n\\x0C\\r "),
        _ => None,
    };
    match (c, class) {
        (_, Some(class)) => match (c.is_ascii_uppercase(), in_class) {
            (false, true) => out.push_str(class),
            (false, false) => out.extend(["[", class, "]"]),
            (true, _) => out.extend(["[^", class, "]"]),
        },
        ('b' | 'B', None) if !in_class => {
            out.extend(["(?-u:\\", if c == 'b' { "b" } else { "B" }, ")"]);
        }
        ('p' | 'P' | 'x', None) if rest.starts_with('{') => {
            let end = rest.find('}').map_or(rest.len(), |end| end + 1);
            out.extend(['\\', c]);
            out.push_str(&rest[..end]);
            return &rest[end..];
        }
        ('Q', None) if !in_class => {
            let (quoted, rest) = rest.split_once("\\E").unwrap_or((rest, ""));
            out.push_str(&regex::escape(quoted));
            return rest;
        }
        _ => out.extend(['\\', c]),
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().is_match(text)
    }

    #[test]
    fn the_spellings_of_go_are_understood() {
        assert!(matches(r"^[a-z]+\d{2}$", "ab12"));
        assert!(!matches(r"^\d$", "٣"), "digits are those of ASCII");
        assert!(matches(r"^[[:alpha:]_]+$", "a_b"));
        assert!(matches("^[[]$", "["));
        assert!(matches("^a{$", "a{"));
        assert!(matches("^{{x}}$", "{{x}}"));
        assert!(matches("^[a&&b]+$", "a&b"));
        assert!(matches("^[]a]+$", "a]"));
        assert!(matches(r"^\Qa.b\E$", "a.b") && !matches(r"^\Qa.b\E$", "axb"));
        assert!(matches(r"^[\w.-]+\pL$", "a.b-cé"));
        assert!(matches(r"^\p{Lu}x{2,3}$", "Äxx"));
        assert!(matches(r"^[^\s]+$", "ab") && !matches(r"^[^\s]+$", "a b"));
    }

    #[test]
    fn what_is_wrong_or_too_large_is_an_error() {
        assert!(compile("(").is_err());
        assert!(compile("((((a{1000}){1000}){1000}){1000})").is_err());
    }
}
