//! FlowSchemas as requests meet them: who asks for what belongs to which level, and to which flow within it.

use std::sync::{Arc, atomic::AtomicU64};

use http::HeaderValue;
use serde_json::Value;

use super::level::Level;
use crate::{
    registry::fields::*,
    request::RequestInfo,
    security::{Identity, USER_SERVICE_ACCOUNT_PREFIX},
};

const ALL: &str = "*";

/// What tells the flows of a schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

/// One FlowSchema, compiled.
pub struct Schema {
    pub(super) name: String,
    pub(super) precedence: i64,
    pub(super) level: Arc<Level>,
    /// For the headers that say how a request was classified.
    pub(super) uid: HeaderValue,
    pub(super) level_uid: HeaderValue,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
    pub(super) counters: Arc<Counters>,
}

/// Live as long as the schema's name.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) dispatched: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) concurrency_limit: AtomicU64,
}

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    User(String),
    Group(String),
    /// Namespace and name.
    Account(String, String),
}

struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

impl Schema {
    pub(super) fn parse(
        object: &Value,
        level: Arc<Level>,
        level_uid: HeaderValue,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            name: text(object, "/metadata/name").to_owned(),
            precedence: int(object, "/spec/matchingPrecedence"),
            level,
            uid: HeaderValue::from_str(text(object, "/metadata/uid"))
                .unwrap_or_else(|_| HeaderValue::from_static("")),
            level_uid,
            distinguisher: match text(object, "/spec/distinguisherMethod/type") {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: items(object, "/spec/rules").iter().map(Rule::parse).collect(),
            counters,
        }
    }

    pub(super) fn matches(&self, user: &Identity, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, info))
    }

    /// What tells this request's flow from others of the schema.
    pub(super) fn distinguisher<'a>(&self, user: &'a Identity, info: &'a RequestInfo) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        }
    }
}

fn strings(value: &Value, pointer: &str) -> Vec<String> {
    items(value, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Rule {
    fn parse(value: &Value) -> Self {
        let subject = |subject: &Value| {
            let name = |pointer| text(subject, pointer).to_owned();
            match text(subject, "/kind") {
                "User" => Some(Subject::User(name("/user/name"))),
                "Group" => Some(Subject::Group(name("/group/name"))),
                "ServiceAccount" => {
                    Some(Subject::Account(name("/serviceAccount/namespace"), name("/serviceAccount/name")))
                }
                _ => None,
            }
        };
        let resources = items(value, "/resourceRules").iter().map(|rule| ResourceRule {
            verbs: strings(rule, "/verbs"),
            groups: strings(rule, "/apiGroups"),
            resources: strings(rule, "/resources"),
            namespaces: strings(rule, "/namespaces"),
            cluster_scope: flag(rule, "/clusterScope"),
        });
        let paths = items(value, "/nonResourceRules").iter().map(|rule| PathRule {
            verbs: strings(rule, "/verbs"),
            paths: strings(rule, "/nonResourceURLs"),
        });
        Self {
            subjects: items(value, "/subjects").iter().filter_map(subject).collect(),
            resources: resources.collect(),
            paths: paths.collect(),
        }
    }

    fn matches(&self, user: &Identity, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|subject| subject.matches(user)) {
            return false;
        }
        if info.is_resource {
            self.resources.iter().any(|rule| rule.matches(info))
        } else {
            self.paths.iter().any(|rule| rule.matches(info))
        }
    }
}

impl Subject {
    fn matches(&self, user: &Identity) -> bool {
        match self {
            Self::User(name) => name == ALL || *name == user.name,
            Self::Group(name) => name == ALL || user.is_in(name),
            Self::Account(namespace, name) => {
                let account = user.name.strip_prefix(USER_SERVICE_ACCOUNT_PREFIX);
                account
                    .and_then(|account| account.split_once(':'))
                    .is_some_and(|(of, account)| of == namespace && (name == ALL || account == name))
            }
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == ALL || item == wanted)
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        has(&self.verbs, &info.verb)
            && has(&self.groups, &info.group)
            && self.resources.iter().any(|resource| resource == ALL || is_resource(resource, info))
            && if info.namespace.is_empty() {
                self.cluster_scope
            } else {
                has(&self.namespaces, &info.namespace)
            }
    }
}

fn is_resource(wanted: &str, info: &RequestInfo) -> bool {
    match wanted.split_once('/') {
        None => info.subresource.is_empty() && wanted == info.resource,
        Some((resource, subresource)) => resource == info.resource && subresource == info.subresource,
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        has(&self.verbs, &info.verb)
            && self.paths.iter().any(|path| match path.strip_suffix(ALL) {
                Some(prefix) => info.path.starts_with(prefix),
                None => *path == info.path,
            })
    }
}
