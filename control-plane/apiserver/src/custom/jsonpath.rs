//! The part of JSONPath that printer columns, scale paths and selectable fields are written in, as kubectl reads it:
//! `.a.b`, `['a.b']`, `.a\.b`, `[0]`, `[-1]`, `[*]`, `[1:3]`, `..a`, `[?(@.type=="Ready")]`. Missing keys select nothing.

use serde_json::Value;

/// How many values a path may select, and how deep `..` looks.
const SELECTED_MAX: usize = 10_000;
const DEPTH_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    /// This value and all below it.
    Descendants,
    Filter {
        path: Vec<Step>,
        comparison: Option<(Comparison, Value)>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

impl JsonPath {
    /// Reads a path without its braces.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text.trim();
        rest = rest.strip_prefix('$').unwrap_or(rest);
        let (steps, rest) = parse_steps(rest)?;
        if rest.is_empty() { Ok(Self { steps }) } else { Err(format!("unrecognized character in {rest:?}")) }
    }

    /// What the path selects.
    pub fn select<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        walk(&self.steps, value)
    }

    /// The first that the path selects.
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        self.select(value).into_iter().next()
    }
}

fn parse_steps(mut rest: &str) -> Result<(Vec<Step>, &str), String> {
    let mut steps = Vec::new();
    loop {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Descendants);
            rest = after;
            if rest.starts_with('[') {
                continue;
            }
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (step, after) = parse_bracket(after)?;
            steps.push(step);
            rest = after;
            continue;
        } else {
            return Ok((steps, rest));
        }
        let (name, after) = parse_name(rest);
        match name.as_str() {
            "" => {}
            "*" => steps.push(Step::All),
            _ => steps.push(Step::Field(name)),
        }
        rest = after;
    }
}

/// A name ends where something else begins; a backslash takes what follows it as it is.
fn parse_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' | ' ' | '=' | '!' | '<' | '>' | ')' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn parse_bracket(text: &str) -> Result<(Step, &str), String> {
    if let Some(after) = text.strip_prefix("?(") {
        return parse_filter(after);
    }
    if let Some(quote) = text.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let end = text[1..].find(quote).ok_or("unterminated quoted string")?;
        let after =
            text[end + 2..].strip_prefix(']').ok_or_else(|| format!("unterminated array in {text:?}"))?;
        return Ok((Step::Field(text[1..=end].to_owned()), after));
    }
    let (inner, after) = text.split_once(']').ok_or("unterminated array")?;
    let number = |text: &str| {
        text.trim().parse::<i64>().map_err(|_| format!("invalid array index {}", api::field::quote(text)))
    };
    let bound = |text: &str| if text.trim().is_empty() { Ok(None) } else { number(text).map(Some) };
    let step = match inner.split_once(':') {
        _ if inner == "*" => Step::All,
        Some((from, to)) => Step::Slice(bound(from)?, bound(to)?),
        None => Step::Index(number(inner)?),
    };
    Ok((step, after))
}

/// `@.type=="Ready")]`
fn parse_filter(text: &str) -> Result<(Step, &str), String> {
    let text = text.trim_start();
    let text = text.strip_prefix('@').ok_or("a filter must begin with @")?;
    let (path, rest) = parse_steps(text)?;
    let rest = rest.trim_start();
    if let Some(after) = rest.strip_prefix(")]") {
        return Ok((Step::Filter { path, comparison: None }, after));
    }
    let comparisons = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let (comparison, rest) = comparisons
        .iter()
        .find_map(|(text, comparison)| Some((*comparison, rest.strip_prefix(text)?)))
        .ok_or_else(|| format!("unrecognized operator in {rest:?}"))?;
    let rest = rest.trim_start();
    let (literal, rest) = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let end = rest[1..].find(quote).ok_or("unterminated quoted string")?;
            (Value::from(&rest[1..=end]), &rest[end + 2..])
        }
        _ => {
            let (literal, _) = rest.split_once(')').ok_or("unterminated filter")?;
            let value = serde_json::from_str(literal.trim()).unwrap_or_else(|_| Value::from(literal.trim()));
            (value, &rest[literal.len()..])
        }
    };
    let rest = rest.trim_start().strip_prefix(")]").ok_or("unterminated filter")?;
    Ok((Step::Filter { path, comparison: Some((comparison, literal)) }, rest))
}

fn walk<'a>(steps: &[Step], value: &'a Value) -> Vec<&'a Value> {
    let mut selected = vec![value];
    for step in steps {
        let mut next = Vec::new();
        for value in selected {
            apply(step, value, &mut next);
            if next.len() > SELECTED_MAX {
                break;
            }
        }
        selected = next;
    }
    selected
}

fn apply<'a>(step: &Step, value: &'a Value, out: &mut Vec<&'a Value>) {
    match (step, value) {
        (Step::Field(name), Value::Object(object)) => out.extend(object.get(name)),
        (Step::Index(index), Value::Array(items)) => out.extend(at(items, *index)),
        (Step::Slice(from, to), Value::Array(items)) => {
            let place = |index: i64| match usize::try_from(index) {
                Ok(index) => index.min(items.len()),
                Err(_) => items.len().saturating_sub(usize::try_from(-index).unwrap_or(usize::MAX)),
            };
            let (from, to) = (from.map_or(0, place), to.map_or(items.len(), place));
            out.extend(items.get(from..to).unwrap_or_default());
        }
        (Step::All, Value::Array(items)) => out.extend(items),
        (Step::All, Value::Object(object)) => out.extend(object.values()),
        (Step::Filter { path, comparison }, Value::Array(items)) => {
            out.extend(items.iter().filter(|item| holds(path, comparison.as_ref(), item)));
        }
        (Step::Descendants, value) => descendants(value, DEPTH_MAX, out),
        _ => {}
    }
}

fn at(items: &[Value], index: i64) -> Option<&Value> {
    match usize::try_from(index) {
        Ok(index) => items.get(index),
        Err(_) => items.len().checked_sub(usize::try_from(-index).ok()?).and_then(|index| items.get(index)),
    }
}

fn descendants<'a>(value: &'a Value, depth: usize, out: &mut Vec<&'a Value>) {
    if depth == 0 || out.len() > SELECTED_MAX {
        return;
    }
    out.push(value);
    match value {
        Value::Object(object) => object.values().for_each(|value| descendants(value, depth - 1, out)),
        Value::Array(items) => items.iter().for_each(|value| descendants(value, depth - 1, out)),
        _ => {}
    }
}

fn holds(path: &[Step], comparison: Option<&(Comparison, Value)>, item: &Value) -> bool {
    let found = walk(path, item);
    let (Some(value), Some((comparison, literal))) = (found.first(), comparison) else {
        return comparison.is_none() && !found.is_empty();
    };
    let ordering = match (value, literal) {
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().unwrap_or_default().partial_cmp(&b.as_f64().unwrap_or_default())
        }
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (*a == b).then_some(std::cmp::Ordering::Equal),
    };
    match comparison {
        Comparison::Equal => ordering.is_some_and(std::cmp::Ordering::is_eq),
        Comparison::NotEqual => !ordering.is_some_and(std::cmp::Ordering::is_eq),
        Comparison::Less => ordering.is_some_and(std::cmp::Ordering::is_lt),
        Comparison::LessOrEqual => ordering.is_some_and(std::cmp::Ordering::is_le),
        Comparison::Greater => ordering.is_some_and(std::cmp::Ordering::is_gt),
        Comparison::GreaterOrEqual => ordering.is_some_and(std::cmp::Ordering::is_ge),
    }
}

/// The fields of a path without brackets, as scale paths and selectable fields are written: `.spec.replicas`.
pub fn simple_fields(path: &str) -> Vec<&str> {
    path.strip_prefix('.').unwrap_or(path).split('.').collect()
}

/// The value at a path of [`simple_fields`].
pub fn at_fields<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    simple_fields(path).into_iter().try_fold(value, |value, field| value.get(field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn select(path: &str, value: &Value) -> Value {
        JsonPath::parse(path).unwrap().select(value).into_iter().cloned().collect()
    }

    #[test]
    fn paths_select_what_kubectl_would() {
        let value = json!({
            "spec": {"n": 3, "list": [1, 2, 3], "a.b": "dotted"},
            "status": {"conditions": [{"type": "Ready", "status": "True", "n": 1}, {"type": "Other", "status": "False", "n": 5}]},
            "metadata": {"labels": {"app.kubernetes.io/name": "web"}},
        });
        for (path, expected) in [
            (".spec.n", json!([3])),
            (".spec.missing.deeper", json!([])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([3])),
            (".spec.list[1:]", json!([2, 3])),
            (".spec.list[*]", json!([1, 2, 3])),
            (".spec['a.b']", json!(["dotted"])),
            (r".metadata.labels.app\.kubernetes\.io/name", json!(["web"])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type == 'Other')].status", json!(["False"])),
            (".status.conditions[?(@.n>2)].type", json!(["Other"])),
            ("..type", json!(["Ready", "Other"])),
            ("$.spec.n", json!([3])),
        ] {
            assert_eq!(select(path, &value), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_path_is_an_error() {
        for path in [".a[", ".a[x]", ".a[?(@.b==1]", ".a[?(b)]", ".a['b", "a b"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }
}
