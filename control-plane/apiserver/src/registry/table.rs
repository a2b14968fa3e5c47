//! Cells that many kinds share: ages, selectors, container lists. Texts equal those of `kubectl get` against upstream,
//! which are made on the server: ages are strings.

use serde_json::{Map, Value};

use super::{
    Column,
    fields::{at, entries, int, items, seconds, text},
};

pub(crate) const NONE: &str = "<none>";
pub(crate) const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

pub(crate) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "",
    priority: 0,
    cell: |o, _| name(o).into(),
};
pub(crate) const AGE: Column = Column::new("Age", "string", |o, now| age(o, now).into());

/// The columns of a custom resource that has none of its own.
pub const NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// The columns of a built-in kind that upstream has no printer for.
pub(crate) const NAME_AND_CREATED: &[Column] =
    &[NAME, Column::new("Created At", "date", |o, _| text(o, "/metadata/creationTimestamp").into())];

impl Column {
    /// A column that is always shown.
    pub const fn new(name: &'static str, kind: &'static str, cell: fn(&Value, i64) -> Value) -> Self {
        Self { name, kind, format: "", description: "", priority: 0, cell }
    }

    /// The same column, shown with `-o wide` only.
    pub const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn age(object: &Value, now: i64) -> String {
    since(at(object, "/metadata/creationTimestamp"), now)
}

/// The time since a timestamp as kubectl shows it.
pub(crate) fn since(timestamp: &Value, now: i64) -> String {
    seconds(timestamp).map_or_else(|| UNKNOWN.to_owned(), |then| human_duration(now - then))
}

/// The short form of a duration: two units at most, one where the second says little.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |a: i64, unit_a: &str, b: i64, unit_b: &str| {
        if b == 0 { format!("{a}{unit_a}") } else { format!("{a}{unit_a}{b}{unit_b}") }
    };
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(hours / 24, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{}d", hours / 24),
        63_072_000..252_288_000 => two(hours / 24 / 365, "y", (hours / 24) % 365, "d"),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// `a=1,b=2`, sorted; `<none>` where there are none.
pub(crate) fn labels(map: &Map<String, Value>) -> String {
    let mut pairs: Vec<_> = map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
    pairs.sort();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A `metav1.LabelSelector` in the syntax of `-l`; empty for an empty or absent one.
pub(crate) fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in entries(selector, "/matchLabels") {
        parts.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or(""))));
    }
    for expression in items(selector, "/matchExpressions") {
        let key = text(expression, "/key").to_owned();
        let mut values: Vec<_> = items(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let shown = match text(expression, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.clone(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        parts.push((key, shown));
    }
    parts.sort();
    parts.into_iter().map(|(_, shown)| shown).collect::<Vec<_>>().join(",")
}

/// The same, with `<none>` for nothing.
pub(crate) fn selector(selector: &Value) -> String {
    let shown = selector_text(selector);
    if shown.is_empty() { NONE.to_owned() } else { shown }
}

pub(crate) fn container_names(pod_spec: &Value) -> String {
    joined(items(pod_spec, "/containers"), "/name")
}

pub(crate) fn container_images(pod_spec: &Value) -> String {
    joined(items(pod_spec, "/containers"), "/image")
}

fn joined(values: &[Value], pointer: &str) -> String {
    values.iter().map(|v| text(v, pointer)).collect::<Vec<_>>().join(",")
}

/// `a,b,c + 2 more...`: the first three of many.
pub(crate) fn first_three(all: &[String]) -> String {
    match all.len() {
        0 => UNSET.to_owned(),
        1..=3 => all.join(","),
        count => format!("{} + {} more...", all[..3].join(","), count - 3),
    }
}

/// `text`, or `other` where it is empty.
pub(crate) fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}

pub(crate) const CONTAINERS: Column =
    Column::new("Containers", "string", |o, _| container_names(at(o, "/spec/template/spec")).into()).wide();
pub(crate) const IMAGES: Column =
    Column::new("Images", "string", |o, _| container_images(at(o, "/spec/template/spec")).into()).wide();
pub(crate) const SELECTOR: Column =
    Column::new("Selector", "string", |o, _| selector(at(o, "/spec/selector")).into()).wide();

/// An integer cell: the number at a pointer, 0 where absent.
pub(crate) fn number(object: &Value, pointer: &str) -> Value {
    int(object, pointer).into()
}
