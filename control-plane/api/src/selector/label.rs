//! Label selectors in both forms.
//!
//! Query form: `requirement ("," requirement)*`, where a requirement is `[!]KEY`, `KEY (=|==|!=|>|<) VALUE` or
//! `KEY (in|notin) (VALUE,…)`. `!=` and `notin` hold for objects without the key.

use std::fmt;

use serde_json::Value;

use crate::{
    field::{FieldError, quote},
    names,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// What one label must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repetition.
    pub values: Vec<String>,
    /// Written with `=` or `!=`, not as a set.
    exact: bool,
}

impl Requirement {
    /// # Errors
    /// What is wrong with the key, the values or their number.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        let mut errors = Vec::new();
        let key_errors = names::qualified_name(key);
        if !key_errors.is_empty() {
            errors.push(FieldError::invalid("key", key, key_errors.join("; ")));
        }
        let wrong_number = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(why) = wrong_number {
            errors.push(FieldError::invalid("values", values.clone(), why));
        }
        for (i, value) in values.iter().enumerate() {
            let compares = matches!(operator, Operator::GreaterThan | Operator::LessThan);
            if compares && value.parse::<i64>().is_err() {
                let why = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(format!("values[{i}]"), value.as_str(), why));
            }
            let value_errors = names::label_value(value);
            if !value_errors.is_empty() {
                let path = format!("values[{i}][{key}]");
                errors.push(FieldError::invalid(path, value.as_str(), value_errors.join("; ")));
            }
        }
        match errors.as_slice() {
            [] => {
                values.sort();
                values.dedup();
                Ok(Self { key: key.to_owned(), operator, values, exact: false })
            }
            [error] => Err(error.to_string()),
            errors => {
                let texts: Vec<String> = errors.iter().map(FieldError::to_string).collect();
                Err(format!("[{}]", texts.join(", ")))
            }
        }
    }

    /// `label` is the object's value for the key.
    fn holds(&self, label: Option<&str>) -> bool {
        let has = |value: &str| self.values.iter().any(|wanted| wanted == value);
        let compare =
            |value: &str| Some((value.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator {
            Operator::In => label.is_some_and(has),
            Operator::NotIn => !label.is_some_and(has),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => label.and_then(compare).is_some_and(|(has, wanted)| has > wanted),
            Operator::LessThan => label.and_then(compare).is_some_and(|(has, wanted)| has < wanted),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.join(",");
        let key = &self.key;
        match self.operator {
            Operator::In if self.exact => write!(f, "{key}={values}"),
            Operator::NotIn if self.exact => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// Requirements that must all hold. The empty selector matches everything; [`LabelSelector::nothing`] nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> Self {
        Self::default()
    }

    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Reads the query form.
    ///
    /// # Errors
    /// Upstream's text: what was found and what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        Parser { tokens: tokens(text)?, position: 0 }.selector()
    }

    /// Reads `metav1.LabelSelector`. Null selects nothing, `{}` everything.
    ///
    /// # Errors
    /// What is wrong with an expression.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        if value.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in value["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or("").to_owned();
            let mut requirement = Requirement::new(key, Operator::In, vec![value])?;
            requirement.exact = true;
            requirements.push(requirement);
        }
        for expression in value["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or("") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{} is not a valid label selector operator", quote(other))),
            };
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(expression["key"].as_str().unwrap_or(""), operator, values)?);
        }
        Ok(Self::new(requirements))
    }

    /// Reads a plain map of labels (`spec.selector` of a Service): null and `{}` select everything.
    pub fn from_map(value: &Value) -> Self {
        let entries = value.as_object().into_iter().flatten();
        let requirements = entries.map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In,
            values: vec![value.as_str().unwrap_or("").to_owned()],
            exact: true,
        });
        Self::new(requirements.collect())
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// `labels` is the object's labels, or null.
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// As [`LabelSelector::matches`], for labels held in any form.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self.requirements.iter().all(|requirement| requirement.holds(label(&requirement.key)))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'a str),
    End,
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Token::Word(text) | Token::Symbol(text) => text,
            Token::End => "",
        }
    }
}

const BINARY_OPERATORS: &str = "=, !=, ==, >, <, in, notin";

fn is_symbol(b: u8) -> bool {
    matches!(b, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<')
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        if is_space(bytes[i]) {
            i += 1;
        } else if is_symbol(bytes[i]) {
            i += if matches!(&bytes[i..], [b'=' | b'!', b'=', ..]) { 2 } else { 1 };
            tokens.push(Token::Symbol(&text[start..i]));
        } else {
            while i < bytes.len() && !is_symbol(bytes[i]) && !is_space(bytes[i]) {
                i += 1;
            }
            tokens.push(Token::Word(&text[start..i]));
        }
    }
    tokens.push(Token::End);
    Ok(tokens)
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    position: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &Token<'a> {
        self.tokens.get(self.position).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek().clone();
        self.position += 1;
        token
    }

    fn selector(mut self) -> Result<LabelSelector, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => break,
                Token::Word(_) | Token::Symbol("!") => {}
                other => {
                    return Err(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    ));
                }
            }
            let requirement =
                self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?;
            requirements.push(requirement);
            match self.next() {
                Token::End => break,
                Token::Symbol(",") => {}
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
            if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                return Err(format!("found '{}', expected: identifier after ','", self.peek().text()));
            }
        }
        Ok(LabelSelector::new(requirements))
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = *self.peek() == Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let key_errors = names::qualified_name(key);
        if !key_errors.is_empty() {
            return Err(FieldError::invalid("", key, key_errors.join("; "))
                .to_string()
                .replacen(": ", "<nil>: ", 1));
        }
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let (operator, exact) = match self.next() {
            Token::Symbol("=" | "==") => (Operator::In, true),
            Token::Symbol("!=") => (Operator::NotIn, true),
            Token::Symbol(">") => (Operator::GreaterThan, true),
            Token::Symbol("<") => (Operator::LessThan, true),
            Token::Word("in") => (Operator::In, false),
            Token::Word("notin") => (Operator::NotIn, false),
            other => return Err(format!("found '{}', expected: {BINARY_OPERATORS}", other.text())),
        };
        let values = if exact { vec![self.exact_value()?] } else { self.values()? };
        let mut requirement = Requirement::new(key, operator, values)?;
        requirement.exact = exact;
        Ok(requirement)
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(value) => {
                let value = (*value).to_owned();
                self.next();
                Ok(value)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// `(a,,b)`: between commas and parentheses a value may be empty.
    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        let mut values = Vec::new();
        loop {
            let mut value = String::new();
            if let Token::Word(word) = self.peek() {
                value = (*word).to_owned();
                self.next();
            }
            values.push(value);
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(&labels)
    }

    #[test]
    fn every_operator_matches_as_upstream() {
        assert!(matches("", Value::Null));
        assert!(matches("a=b", json!({"a": "b"})));
        assert!(matches("a==b,c", json!({"a": "b", "c": ""})));
        assert!(!matches("a=b", json!({"a": "c"})));
        assert!(matches("a!=b", json!({})));
        assert!(matches("a in (x, y)", json!({"a": "y"})));
        assert!(!matches("a in (x, y)", json!({})));
        assert!(matches("a notin (x)", Value::Null));
        assert!(matches("!a", json!({"b": "c"})));
        assert!(!matches("a", json!({"b": "c"})));
        assert!(matches("n>5", json!({"n": "6"})));
        assert!(!matches("n<5", json!({"n": "x"})));
        assert!(matches("a=", json!({"a": ""})));
        assert!(matches("in in (in)", json!({"in": "in"})));
        assert!(matches("a in (,x)", json!({"a": ""})));
    }

    #[test]
    fn mistakes_say_what_was_found_and_expected() {
        let cases = [
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a,", "found '', expected: identifier after ','"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: =, !=, ==, >, <, in, notin"),
            ("a in (x", "unable to parse requirement: found '', expected: ',' or ')'"),
        ];
        for (text, error) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap_err(), error, "of {text:?}");
        }
        assert!(LabelSelector::parse("a_/b=c").unwrap_err().contains("prefix part"));
        assert!(LabelSelector::parse("a=-b").unwrap_err().contains("values[0][a]: Invalid value: \"-b\""));
    }

    #[test]
    fn the_object_form_knows_nothing_and_everything() {
        assert!(!LabelSelector::from_value(&Value::Null).unwrap().matches(&json!({})));
        assert!(LabelSelector::from_value(&json!({})).unwrap().matches(&Value::Null));
        let selector = LabelSelector::from_value(&json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["old"]}],
        }))
        .unwrap();
        assert_eq!(selector.to_string(), "app=web,tier notin (old)");
        assert!(selector.matches(&json!({"app": "web"})));
        let error = LabelSelector::from_value(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]}));
        assert_eq!(error.unwrap_err(), "\"Is\" is not a valid label selector operator");
    }

    proptest! {
        #[test]
        fn printing_reads_back(
            keys in prop::collection::vec(("[a-z]{1,5}", 0..6u8, prop::collection::vec("[a-z0-9]{1,4}", 1..4)), 0..5)
        ) {
            let requirements = keys.into_iter().map(|(key, operator, values)| match operator {
                0 => Requirement::new(&key, Operator::In, values),
                1 => Requirement::new(&key, Operator::NotIn, values),
                2 => Requirement::new(&key, Operator::Exists, Vec::new()),
                3 => Requirement::new(&key, Operator::DoesNotExist, Vec::new()),
                4 => Requirement::new(&key, Operator::GreaterThan, vec!["5".into()]),
                _ => Requirement::new(&key, Operator::LessThan, vec!["7".into()]),
            });
            let selector = LabelSelector::new(requirements.collect::<Result<_, _>>().unwrap());
            let again = LabelSelector::parse(&selector.to_string()).unwrap();
            prop_assert_eq!(again.to_string(), selector.to_string());
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _outcome = LabelSelector::parse(&text);
        }
    }
}
