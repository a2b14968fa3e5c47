//! Events: one stored kind with two served forms, that of core/v1 and that of events.k8s.io/v1. The rules here read
//! either form.

use api::field::FieldError;
use serde_json::Value;

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    table::{NAME, human_duration, since},
};

pub(super) struct Events;

/// Fields that carry other names in the two forms: (core/v1, events.k8s.io/v1).
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// A field by its core name, in whichever form the event is.
fn field<'a>(event: &'a Value, core: &str) -> &'a Value {
    let own = RENAMED.iter().find(|(name, _)| *name == core).map_or(core, |(_, own)| own);
    match event.get(core) {
        Some(value) => value,
        None => at(event, &format!("/{own}")),
    }
}

const COLUMNS: &[Column] = &[
    Column::new("Last Seen", "string", |o, now| last_seen(o, now).into()),
    Column::new("Type", "string", |o, _| text(o, "/type").into()),
    Column::new("Reason", "string", |o, _| text(o, "/reason").into()),
    Column::new("Object", "string", |o, _| target(o).into()),
    Column::new("Subobject", "string", |o, _| text(field(o, "involvedObject"), "/fieldPath").into()).wide(),
    Column::new("Source", "string", |o, _| source(o).into()).wide(),
    Column::new("Message", "string", |o, _| field(o, "message").as_str().unwrap_or("").trim().into()),
    Column::new("First Seen", "string", |o, now| first_seen(o, now).into()).wide(),
    Column::new("Count", "string", |o, _| count(o).into()).wide(),
    Column { priority: 1, ..NAME },
];

impl Strategy for Events {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let involved = at(field(object, "involvedObject"), "/namespace");
        let (namespace, own) = (text(object, "/metadata/namespace"), involved.as_str().unwrap_or(""));
        let matches =
            if own.is_empty() { matches!(namespace, "default" | "kube-system") } else { own == namespace };
        if !matches {
            errors.invalid("involvedObject.namespace", &own.into(), "does not match event.namespace");
        }
        errors.into_vec()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let involved = field(object, "involvedObject");
        let of = |key: &str| text(involved, &format!("/{key}")).to_owned();
        let component = field(object, "reportingComponent").as_str().unwrap_or("").to_owned();
        let source = text(field(object, "source"), "/component").to_owned();
        let mut fields = vec![
            ("reason", text(object, "/reason").to_owned()),
            ("reportingComponent", component.clone()),
            ("reportingController", component.clone()),
            ("source", if source.is_empty() { component } else { source }),
            ("type", text(object, "/type").to_owned()),
        ];
        for name in Self::INVOLVED {
            let key = name.split_once('.').map_or("", |(_, key)| key);
            fields.push((name, of(key)));
        }
        fields
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

impl Events {
    const INVOLVED: [&'static str; 14] = [
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
    ];
}

fn first_seen(event: &Value, now: i64) -> String {
    match field(event, "firstTimestamp") {
        Value::Null => since(at(event, "/eventTime"), now),
        time => since(time, now),
    }
}

fn last_seen(event: &Value, now: i64) -> String {
    if present(event, "/series") {
        return since(at(event, "/series/lastObservedTime"), now);
    }
    match seconds(field(event, "lastTimestamp")) {
        Some(then) => human_duration(now - then),
        None => first_seen(event, now),
    }
}

fn count(event: &Value) -> i64 {
    if present(event, "/series") {
        return int(event, "/series/count");
    }
    int(field(event, "count"), "").max(1)
}

fn target(event: &Value) -> String {
    let involved = field(event, "involvedObject");
    let kind = text(involved, "/kind").to_lowercase();
    match text(involved, "/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Value) -> String {
    let source = field(event, "source");
    let or_reporting = |own: &str, key: &str| match own {
        "" => field(event, key).as_str().unwrap_or("").to_owned(),
        own => own.to_owned(),
    };
    let component = or_reporting(text(source, "/component"), "reportingComponent");
    let host = or_reporting(text(source, "/host"), "reportingInstance");
    let mut shown = component;
    if !host.is_empty() {
        if !shown.is_empty() {
            shown.push_str(", ");
        }
        shown.push_str(&host);
    }
    shown
}
