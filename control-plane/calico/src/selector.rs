//! Calico's selectors: boolean expressions over labels.
//!
//! ```text
//! all()   has(key)   key == 'a'   key != 'a'   key in {'a', 'b'}   key not in {'a'}
//! key contains 'a'   key starts with 'a'   key ends with 'a'   !(...)   && binds closer than ||
//! ```
//!
//! `!=`, `not in` and `!has` hold where the label is absent. An empty selector is what its field says it is; here it matches
//! nothing by itself. `global()`, which selects what has no namespace, is refused: nothing here is selected so.

use std::{collections::BTreeMap, str::FromStr};

use thiserror::Error;

/// A parsed selector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selector(Node);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Node {
    All,
    Has(String),
    Equals(String, String),
    Differs(String, String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
}

/// Why a text is no selector.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("selector {text:?}: {problem} at character {position}")]
pub struct SelectorError {
    text: String,
    /// Counted from 1.
    position: usize,
    problem: &'static str,
}

/// How deep parentheses and `!` may be nested.
const DEPTH_MAX: usize = 32;

impl Selector {
    /// Whether something with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.matches(labels)
    }
}

impl Node {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::All => true,
            Self::Has(key) => labels.contains_key(key),
            Self::Equals(key, value) => labels.get(key) == Some(value),
            Self::Differs(key, value) => labels.get(key) != Some(value),
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Contains(key, part) => labels.get(key).is_some_and(|value| value.contains(part)),
            Self::StartsWith(key, part) => labels.get(key).is_some_and(|value| value.starts_with(part)),
            Self::EndsWith(key, part) => labels.get(key).is_some_and(|value| value.ends_with(part)),
            Self::Not(node) => !node.matches(labels),
            Self::And(nodes) => nodes.iter().all(|node| node.matches(labels)),
            Self::Or(nodes) => nodes.iter().any(|node| node.matches(labels)),
        }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { text, rest: text };
        let node = parser.any(0).map_err(|problem| parser.error(problem))?;
        parser.skip();
        if parser.rest.is_empty() { Ok(Self(node)) } else { Err(parser.error("expected && or ||")) }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

type Parsed<T> = Result<T, &'static str>;

impl<'a> Parser<'a> {
    fn error(&self, problem: &'static str) -> SelectorError {
        let read = &self.text[..self.text.len() - self.rest.len()];
        SelectorError { text: self.text.to_owned(), position: read.chars().count() + 1, problem }
    }

    fn skip(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A word that ends where no label's name could go on.
    fn take_word(&mut self, word: &str) -> bool {
        self.skip();
        let Some(rest) = self.rest.strip_prefix(word) else { return false };
        if rest.starts_with(is_of_name) {
            return false;
        }
        self.rest = rest;
        true
    }

    fn any(&mut self, depth: usize) -> Parsed<Node> {
        self.joined(depth, "||", Self::every, Node::Or)
    }

    fn every(&mut self, depth: usize) -> Parsed<Node> {
        self.joined(depth, "&&", Self::term, Node::And)
    }

    fn joined(
        &mut self,
        depth: usize,
        operator: &str,
        operand: fn(&mut Self, usize) -> Parsed<Node>,
        join: fn(Vec<Node>) -> Node,
    ) -> Parsed<Node> {
        let first = operand(self, depth)?;
        let mut nodes = vec![first];
        while self.take(operator) {
            nodes.push(operand(self, depth)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { join(nodes) })
    }

    fn term(&mut self, depth: usize) -> Parsed<Node> {
        if depth > DEPTH_MAX {
            return Err("nested too deeply");
        }
        if self.take("!") {
            return Ok(Node::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.take("(") {
            let node = self.any(depth + 1)?;
            return if self.take(")") { Ok(node) } else { Err("expected )") };
        }
        self.skip();
        let start = self.rest;
        let key = self.name()?;
        if self.rest.starts_with('(') {
            return self.call(start, key);
        }
        self.comparison(key.to_owned())
    }

    fn call(&mut self, start: &'a str, name: &str) -> Parsed<Node> {
        self.rest = &self.rest[1..];
        let node = match name {
            "all" => Node::All,
            "has" => {
                self.skip();
                Node::Has(self.name()?.to_owned())
            }
            "global" => {
                self.rest = start;
                return Err("global() selects nothing here");
            }
            _ => {
                self.rest = start;
                return Err("expected all(), has(KEY) or a label");
            }
        };
        if self.take(")") { Ok(node) } else { Err("expected )") }
    }

    fn comparison(&mut self, key: String) -> Parsed<Node> {
        if self.take("==") {
            Ok(Node::Equals(key, self.literal()?))
        } else if self.take("!=") {
            Ok(Node::Differs(key, self.literal()?))
        } else if self.take_word("in") {
            Ok(Node::In(key, self.set()?))
        } else if self.take_word("not") {
            if self.take_word("in") { Ok(Node::NotIn(key, self.set()?)) } else { Err("expected in") }
        } else if self.take_word("contains") {
            Ok(Node::Contains(key, self.literal()?))
        } else if self.take_word("starts") {
            if self.take_word("with") {
                Ok(Node::StartsWith(key, self.literal()?))
            } else {
                Err("expected with")
            }
        } else if self.take_word("ends") {
            if self.take_word("with") {
                Ok(Node::EndsWith(key, self.literal()?))
            } else {
                Err("expected with")
            }
        } else {
            Err("expected ==, !=, in, not in, contains, starts with or ends with")
        }
    }

    fn name(&mut self) -> Parsed<&'a str> {
        let end = self.rest.find(|c| !is_of_name(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err("expected a label");
        }
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(name)
    }

    fn literal(&mut self) -> Parsed<String> {
        self.skip();
        let quote = self
            .rest
            .chars()
            .next()
            .filter(|c| matches!(c, '\'' | '"'))
            .ok_or("expected a text in quotes")?;
        let (literal, rest) = self.rest[1..].split_once(quote).ok_or("the text has no closing quote")?;
        self.rest = rest;
        Ok(literal.to_owned())
    }

    fn set(&mut self) -> Parsed<Vec<String>> {
        if !self.take("{") {
            return Err("expected {");
        }
        let mut values = Vec::new();
        if self.take("}") {
            return Ok(values);
        }
        loop {
            values.push(self.literal()?);
            if self.take("}") {
                return Ok(values);
            }
            if !self.take(",") {
                return Err("expected , or }");
            }
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        selector.parse::<Selector>().unwrap_or_else(|error| panic!("{error}")).matches(&labels)
    }

    #[test]
    fn every_operator_selects_what_it_says() {
        let labels = [("rack", "r1"), ("example.com/role", "edge-router")];
        for selector in [
            "all()",
            "has(rack)",
            "!has(zone)",
            "rack == 'r1'",
            "rack == \"r1\"",
            "rack != 'r2'",
            "zone != 'a'",
            "rack in {'r1', 'r2'}",
            "rack not in {'r2'}",
            "zone not in {'a'}",
            "example.com/role contains 'ge-ro'",
            "example.com/role starts with 'edge'",
            "example.com/role ends with 'router'",
            "has(zone) || rack == 'r1' && has(example.com/role)",
            "!(has(zone) && all()) && has( rack )",
            "(rack=='r1')",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
        for selector in [
            "has(zone)",
            "!all()",
            "rack == 'R1'",
            "rack in {}",
            "zone in {'a'}",
            "zone contains ''",
            "rack starts with '1'",
            "(has(zone) || rack == 'r1') && has(zone)",
        ] {
            assert!(!matches(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn a_label_may_be_named_as_an_operator_is() {
        assert!(matches("in == 'a' && has(all) && not in {'a'}", &[("in", "a"), ("all", ""), ("not", "a")]));
        assert!(matches("inner in {'a'}", &[("inner", "a")]));
    }

    #[test]
    fn what_is_no_selector_is_refused_with_its_place() {
        for (text, position) in [
            ("", 1),
            ("rack", 5),
            ("rack = 'a'", 6),
            ("rack == a", 9),
            ("rack == 'a", 9),
            ("has(rack", 9),
            ("(all()", 7),
            ("all() all()", 7),
            ("rack in 'a'", 9),
            ("rack in {'a' 'b'}", 14),
            ("global()", 1),
            ("some()", 1),
            ("rack not 'a'", 10),
        ] {
            let error = text.parse::<Selector>().expect_err(text);
            assert_eq!(error.position, position, "{error}");
        }
        let deep = format!("{}all(){}", "(".repeat(100), ")".repeat(100));
        assert!(deep.parse::<Selector>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-z(){}!=&|'\", ]{0,40}") {
            let _ = text.parse::<Selector>();
        }
    }
}
