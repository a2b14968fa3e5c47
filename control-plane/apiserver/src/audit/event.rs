//! What is noted about one request on its way, and the events that are made of it at each stage.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{log::Log, policy::Decision};
use crate::{admission::review::user_info, request::RequestInfo, security::Identity};

/// How much of a request is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::None, Self::Metadata, Self::Request, Self::RequestResponse]
            .into_iter()
            .find(|level| format!("{level:?}") == text)
    }
}

/// When an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    /// Of what lasts: watches and streams.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::RequestReceived, Self::ResponseStarted, Self::ResponseComplete, Self::Panic]
            .into_iter()
            .find(|stage| format!("{stage:?}") == text)
    }
}

/// Collects what the parts of the server know about one request.
pub struct Recorder {
    decision: Decision,
    log: Arc<Log>,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    fields: Map<String, Value>,
    annotations: BTreeMap<String, String>,
}

/// What is known when the request arrives.
pub struct Arrival<'a> {
    pub id: &'a str,
    pub at: Timestamp,
    pub uri: &'a str,
    pub agent: &'a str,
    pub source: Vec<String>,
    pub user: Option<&'a Identity>,
    pub info: &'a RequestInfo,
}

impl Recorder {
    pub(super) fn new(decision: Decision, log: Arc<Log>) -> Self {
        Self { decision, log, noted: Mutex::default() }
    }

    pub fn level(&self) -> Level {
        self.decision.level
    }

    fn note(&self, key: &str, value: Value) {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).fields.insert(key.to_owned(), value);
    }

    /// Notes the request, and makes the event of its arrival.
    pub fn received(&self, arrival: &Arrival<'_>) {
        let info = arrival.info;
        self.note("level", json!(format!("{:?}", self.decision.level)));
        self.note("auditID", json!(arrival.id));
        self.note("requestURI", json!(arrival.uri));
        self.note("verb", json!(info.verb));
        self.note("user", arrival.user.map_or_else(|| json!({}), user_info));
        if !arrival.source.is_empty() {
            self.note("sourceIPs", json!(arrival.source));
        }
        if !arrival.agent.is_empty() {
            self.note("userAgent", json!(arrival.agent));
        }
        if info.is_resource {
            let fields = [
                ("resource", &info.resource),
                ("namespace", &info.namespace),
                ("name", &info.name),
                ("apiGroup", &info.group),
                ("apiVersion", &info.version),
                ("subresource", &info.subresource),
            ];
            let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
            let object: Map<String, Value> =
                fields.map(|(key, value)| (key.to_owned(), json!(value))).collect();
            self.note("objectRef", object.into());
        }
        self.note("requestReceivedTimestamp", json!(api::time::format_micros(arrival.at)));
        self.write(Stage::RequestReceived);
    }

    /// Whom the user acts as.
    pub fn impersonates(&self, user: &Identity) {
        self.note("impersonatedUser", user_info(user));
    }

    /// The body that was sent, where the level keeps it.
    pub fn request_object(&self, object: &Value) {
        if self.decision.level >= Level::Request {
            self.note("requestObject", self.kept(object));
        }
    }

    /// The body that was answered, where the level keeps it, and what it came to.
    pub fn response(&self, code: u16, body: Option<&Value>) {
        let mut status = json!({"metadata": {}, "code": code});
        if let Some(body) = body {
            if body["kind"] == "Status" {
                for field in ["status", "message", "reason", "details"] {
                    if !body[field].is_null() {
                        status[field] = body[field].clone();
                    }
                }
            }
            if self.decision.level >= Level::RequestResponse {
                self.note("responseObject", self.kept(body));
            }
        }
        self.note("responseStatus", status);
    }

    fn kept(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if self.decision.omit_managed_fields {
            let omit = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            omit(&mut object);
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            items.into_iter().flatten().for_each(omit);
        }
        object
    }

    /// The first value of a key stays, as upstream has it.
    pub fn annotate(&self, key: &str, value: String) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.annotations.entry(key.to_owned()).or_insert(value);
    }

    /// Makes the event of a stage, unless the policy omits it.
    pub fn write(&self, stage: Stage) {
        if self.decision.omit_stages.contains(&stage) {
            return;
        }
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "stage": format!("{stage:?}"),
            "stageTimestamp": api::time::format_micros(Timestamp::now()),
        });
        for (key, value) in &noted.fields {
            event[key] = value.clone();
        }
        if !noted.annotations.is_empty() {
            event["annotations"] = json!(noted.annotations);
        }
        drop(noted);
        self.log.append(event.to_string());
    }
}
