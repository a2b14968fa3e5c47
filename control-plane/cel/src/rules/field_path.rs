//! `fieldPath` of rules: `.spec.replicas` or `['name with spaces']`, below the rule's own node.

use api::field;

use crate::structural::{Kind, Node};

/// The path as errors print it.
///
/// # Errors
/// What is wrong with the path.
pub(super) fn resolve(path: &str, node: &Node) -> Result<String, String> {
    let mut node = node;
    let mut resolved = String::new();
    let mut rest = path;
    while !rest.is_empty() {
        let (name, after) = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            if end == 0 {
                return Err("unexpected end of JSON path".to_owned());
            }
            (after[..end].to_owned(), &after[end..])
        } else if let Some(after) = rest.strip_prefix('[') {
            quoted(after)?
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
            return Err(format!("expected [ or . but got: {}", &rest[..end]));
        };
        match &node.kind {
            Kind::Object { properties, .. } => {
                node = properties.get(&name).ok_or("does not refer to a valid field")?;
                resolved = field::child(&resolved, &name);
            }
            Kind::Map(values) => {
                node = values;
                resolved = field::key(&resolved, &name);
            }
            _ => return Err("does not refer to a valid field".to_owned()),
        }
        rest = after;
    }
    Ok(resolved)
}

/// Reads `'name']` and gives what follows.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let Some(inner) = text.strip_prefix('\'') else {
        let end = text.find(['.', '[', ']']).unwrap_or(text.len());
        return Err(format!("expected single quoted string but got {}", &text[..end]));
    };
    let mut name = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, letter)) = chars.next() {
        match letter {
            '\'' => {
                let after = &inner[at + 1..];
                let after = after.strip_prefix(']').ok_or_else(|| format!("expected ] but got {after}"))?;
                return Ok((name, after));
            }
            '\\' => match chars.next() {
                Some((_, 'n')) => name.push('\n'),
                Some((_, 't')) => name.push('\t'),
                Some((_, 'r')) => name.push('\r'),
                Some((_, escaped @ ('\'' | '\\'))) => name.push(escaped),
                Some((_, other)) => {
                    return Err(format!("invalid string literal: invalid escape char \\{other}"));
                }
                None => break,
            },
            other => name.push(other),
        }
    }
    Err("unexpected end of JSON path".to_owned())
}
