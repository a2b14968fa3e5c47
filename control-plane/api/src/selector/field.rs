//! `fieldSelector=metadata.name=x,status.phase!=Running`: equality only, `\` escapes a comma, an equals sign and itself.

use std::fmt;

/// Terms that must all hold; none hold for every object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// # Errors
    /// Upstream's text, naming the term that has no operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for term in split_terms(text) {
            if term.is_empty() {
                continue;
            }
            let Some((name, equal, value)) = split_term(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            requirements.push((name.to_owned(), equal, unescape(value)?));
        }
        Ok(Self { requirements })
    }

    /// Field name, whether the value must be equal (else it must differ), value.
    pub fn requirements(&self) -> &[(String, bool, String)] {
        &self.requirements
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// `value_of` says the value of a field; an unknown field has the empty value.
    pub fn matches(&self, value_of: impl Fn(&str) -> Option<String>) -> bool {
        self.requirements
            .iter()
            .all(|(name, equal, value)| (value_of(name).unwrap_or_default() == *value) == *equal)
    }

    /// The value that `field` must equal, where the selector demands one: lets a list of one name be a get.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        let mut terms = self.requirements.iter();
        terms.find(|(name, equal, _)| *equal && name == field).map(|(_, _, value)| value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, equal, value)) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if *equal { "=" } else { "!=" };
            write!(f, "{comma}{name}{operator}{}", escape(value))?;
        }
        Ok(())
    }
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            '=' => return Err(format!("invalid field selector: unescaped character in value: {value}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Splits at commas that are not escaped.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Splits at the first operator: `!=`, `==` or `=`.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in term.char_indices() {
        let rest = &term[i..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..i], equal, value));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terms_are_read_with_their_operators() {
        let selector =
            FieldSelector::parse("metadata.name=web,status.phase!=Running,spec.nodeName==").unwrap();
        assert_eq!(
            selector.requirements(),
            [
                ("metadata.name".into(), true, "web".into()),
                ("status.phase".into(), false, "Running".into()),
                ("spec.nodeName".into(), true, String::new()),
            ]
        );
        assert_eq!(selector.required_value("metadata.name"), Some("web"));
        assert_eq!(selector.required_value("status.phase"), None);
    }

    #[test]
    fn an_unknown_field_has_the_empty_value() {
        let selector = FieldSelector::parse("spec.nodeName=").unwrap();
        assert!(selector.matches(|_| None));
        assert!(!selector.matches(|_| Some("n1".into())));
    }

    #[test]
    fn a_term_without_operator_is_named() {
        assert_eq!(
            FieldSelector::parse("a=b,oops").unwrap_err(),
            "invalid selector: 'a=b,oops'; can't understand 'oops'"
        );
    }

    #[test]
    fn escapes_are_undone() {
        let selector = FieldSelector::parse(r"a=x\,y\=z\\").unwrap();
        assert_eq!(selector.requirements()[0].2, r"x,y=z\");
        assert!(FieldSelector::parse(r"a=x\y").is_err());
        assert!(FieldSelector::parse("a=x=y").is_err());
    }

    proptest! {
        #[test]
        fn printing_reads_back(value in "\\PC{0,20}", equal in any::<bool>()) {
            let selector = FieldSelector { requirements: vec![("metadata.name".into(), equal, value)] };
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _outcome = FieldSelector::parse(&text);
        }
    }
}
