//! Names of properties as identifiers of the language: `my-field` is `my__dash__field`.

use std::borrow::Cow;

use crate::parser::RESERVED;

/// What the grammar reserves beside its words.
const LITERALS: [&str; 4] = ["true", "false", "null", "in"];

fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word) || LITERALS.contains(&word)
}

/// The identifier, `None` where the name cannot be one.
pub fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    if is_reserved(name) {
        return Some(format!("__{name}__"));
    }
    let mut escaped = String::with_capacity(name.len());
    let mut chars = name.chars().peekable();
    while let Some(letter) = chars.next() {
        match letter {
            '_' if chars.peek() == Some(&'_') => {
                chars.next();
                escaped.push_str("__underscores__");
            }
            '.' => escaped.push_str("__dot__"),
            '-' => escaped.push_str("__dash__"),
            '/' => escaped.push_str("__slash__"),
            '_' => escaped.push('_'),
            other if other.is_ascii_alphanumeric() => escaped.push(other),
            _ => return None,
        }
    }
    Some(escaped)
}

/// The name behind an identifier, `None` where it holds no valid escape.
pub fn unescape(identifier: &str) -> Option<Cow<'_, str>> {
    if !identifier.contains("__") {
        return Some(Cow::Borrowed(identifier));
    }
    let mut name = String::with_capacity(identifier.len());
    let mut rest = identifier;
    while let Some(start) = rest.find("__") {
        let after = &rest[start + 2..];
        let length = after.find('_').unwrap_or(after.len());
        let (word, tail) = after.split_at(length);
        let Some(tail) = tail.strip_prefix("__").filter(|_| !word.is_empty()) else {
            name.push_str(&rest[..start + 1]);
            rest = &rest[start + 1..];
            continue;
        };
        name.push_str(&rest[..start]);
        name.push_str(match word {
            "underscores" => "__",
            "dot" => ".",
            "dash" => "-",
            "slash" => "/",
            word if is_reserved(word) && word.len() + 4 == identifier.len() => word,
            _ => return None,
        });
        rest = tail;
    }
    name.push_str(rest);
    Some(Cow::Owned(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let cases = [
            ("plain", "plain"),
            ("my-field", "my__dash__field"),
            ("a.b/c", "a__dot__b__slash__c"),
            ("namespace", "__namespace__"),
            ("self__x", "self__underscores__x"),
            ("a_b", "a_b"),
            ("_", "_"),
            ("___", "__underscores___"),
        ];
        for (name, identifier) in cases {
            assert_eq!(escape(name).as_deref(), Some(identifier));
            assert_eq!(unescape(identifier).as_deref(), Some(name), "{identifier}");
        }
        assert_eq!(escape("1a"), None);
        assert_eq!(escape("a b"), None);
        assert_eq!(unescape("a__nonsense__b"), None);
        assert_eq!(unescape("a__if__"), None);
    }
}
