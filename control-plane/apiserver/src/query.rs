//! Query parameters and the options that requests carry in them: ListOptions, CreateOptions, UpdateOptions,
//! PatchOptions and DeleteOptions, with upstream's checks and texts.

use std::time::Duration;

use api::{
    field::FieldError,
    selector::{FieldSelector, LabelSelector},
    status::Status,
};
use serde_json::{Value, json};

use crate::{
    ownership::{MANAGER_BYTES_MAX, is_printable},
    request::percent_decode,
};

/// The decoded query of a request; a key may occur more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub fn parse(raw: &str) -> Self {
        let pairs = raw
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (percent_decode(key, true), percent_decode(value, true))
            })
            .collect();
        Self { pairs }
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, key: &str) -> Vec<&str> {
        self.pairs.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect()
    }

    /// Replaces all values of `key`.
    pub fn set(&mut self, key: &str, values: impl IntoIterator<Item = String>) {
        self.pairs.retain(|(name, _)| name != key);
        self.pairs.extend(values.into_iter().map(|value| (key.to_owned(), value)));
    }

    /// A boolean as upstream converts it: present and neither `0` nor `false`.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax ({key})"))
            }),
        }
    }
}

/// How `resourceVersion` is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    Unset,
    Exact,
    NotOlderThan,
}

/// ListOptions of list, watch and deletecollection.
#[derive(Clone, Debug)]
pub struct ListOptions {
    pub labels: Option<LabelSelector>,
    pub fields: Option<FieldSelector>,
    /// 0 is no limit.
    pub limit: usize,
    pub continue_token: String,
    /// `None` where absent or empty: the newest state.
    pub resource_version: Option<u64>,
    pub version_match: VersionMatch,
    pub watch: bool,
    pub allow_bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout: Option<Duration>,
}

impl ListOptions {
    /// Reads the options; `watch` is the verb's word, which outweighs the parameter.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let labels = match query.get("labelSelector") {
            None | Some("") => None,
            Some(text) => Some(
                LabelSelector::parse(text)
                    .map_err(|error| Status::bad_request(format!("unable to parse requirement: {error}")))?,
            )
            .filter(|selector| !selector.is_empty()),
        };
        let fields = match query.get("fieldSelector") {
            None | Some("") => None,
            Some(text) => Some(FieldSelector::parse(text).map_err(Status::bad_request)?)
                .filter(|selector| !selector.requirements().is_empty()),
        };
        check_versions(query, watch)?;
        let options = Self {
            labels,
            fields,
            limit: query.number("limit")?.unwrap_or(0).max(0) as usize,
            continue_token: query.get("continue").unwrap_or_default().to_owned(),
            resource_version: parse_version(query.get("resourceVersion").unwrap_or_default())?,
            version_match: match query.get("resourceVersionMatch") {
                Some("Exact") => VersionMatch::Exact,
                Some("NotOlderThan") => VersionMatch::NotOlderThan,
                _ => VersionMatch::Unset,
            },
            watch,
            allow_bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents")),
            timeout: query
                .number("timeoutSeconds")?
                .filter(|seconds| *seconds > 0)
                .map(|seconds| Duration::from_secs(seconds as u64)),
        };
        Ok(options)
    }

    pub fn has_selector(&self) -> bool {
        self.labels.is_some() || self.fields.is_some()
    }
}

/// A resourceVersion: empty is `None`, else a decimal number.
pub fn parse_version(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Status::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            vec![FieldError::invalid("resourceVersion", text, "must be a decimal number")],
        )
    })
}

fn check_versions(query: &Query, watch: bool) -> Result<(), Status> {
    let version_match = query.get("resourceVersionMatch").unwrap_or_default();
    let version = query.get("resourceVersion").unwrap_or_default();
    let has_continue = query.get("continue").is_some_and(|token| !token.is_empty());
    let send_initial = query.get("sendInitialEvents").is_some();
    let path = "resourceVersionMatch";
    let with_continue =
        || FieldError::forbidden(path, "resourceVersionMatch is forbidden when continue is provided");
    let mut errors = Vec::new();
    if watch && send_initial && version_match != "NotOlderThan" {
        errors.push(FieldError::forbidden(
            path,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if watch && !version_match.is_empty() {
        if !send_initial {
            errors.push(FieldError::forbidden(
                path,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if version_match != "NotOlderThan" {
            errors.push(FieldError::not_supported(path, Value::from(version_match), &["NotOlderThan"]));
        }
        if has_continue {
            errors.push(with_continue());
        }
    }
    if !watch && !version_match.is_empty() {
        if version.is_empty() {
            errors.push(FieldError::forbidden(
                path,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if has_continue {
            errors.push(with_continue());
        }
        if !matches!(version_match, "Exact" | "NotOlderThan") {
            errors.push(FieldError::not_supported(
                path,
                Value::from(version_match),
                &["Exact", "NotOlderThan", ""],
            ));
        }
        if version_match == "Exact" && version == "0" {
            errors.push(FieldError::forbidden(
                path,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if !watch && send_initial {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", errors)) }
}

/// What is done about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// CreateOptions, UpdateOptions and PatchOptions, which share all that this server reads.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
    pub field_manager: String,
    pub force: bool,
}

impl WriteOptions {
    /// PatchOptions of an apply patch, which must say who applies.
    pub fn parse_apply(query: &Query) -> Result<Self, Status> {
        Self::parse_as(query, "PatchOptions", true)
    }

    /// `kind` is the name of the options, for the text of an error.
    pub fn parse(query: &Query, kind: &str) -> Result<Self, Status> {
        Self::parse_as(query, kind, false)
    }

    fn parse_as(query: &Query, kind: &str, applies: bool) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let dry_run = dry_run(&query.all("dryRun"), &mut errors);
        let field_validation = match query.get("fieldValidation").unwrap_or_default() {
            "Ignore" => FieldValidation::Ignore,
            "" | "Warn" => FieldValidation::Warn,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(FieldError::not_supported(
                    "fieldValidation",
                    Value::from(other),
                    &["Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        let field_manager = query.get("fieldManager").unwrap_or_default().to_owned();
        if applies && field_manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        if !applies && kind == "PatchOptions" && query.get("force").is_some() {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        check_manager(&field_manager, &mut errors);
        if errors.is_empty() {
            Ok(Self { dry_run, field_validation, field_manager, force: query.flag("force") })
        } else {
            Err(Status::invalid("meta.k8s.io", kind, "", errors))
        }
    }
}

/// The name of a manager: 128 bytes that can be printed.
fn check_manager(manager: &str, errors: &mut Vec<FieldError>) {
    if manager.len() > MANAGER_BYTES_MAX {
        errors.push(FieldError::too_long("fieldManager", MANAGER_BYTES_MAX));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| !is_printable(*c)).take(MANAGER_BYTES_MAX) {
        let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
        errors.push(FieldError::invalid("fieldManager", Value::from(manager), why));
    }
}

fn dry_run(values: &[&str], errors: &mut Vec<FieldError>) -> bool {
    for value in values {
        if !matches!(*value, "All" | "") {
            errors.push(FieldError::not_supported("dryRun", json!(values), &["All"]));
        }
    }
    values.contains(&"All")
}

/// DeleteOptions, from the body or else from the query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// Upstream reads the query only where there is no body.
    pub fn parse(body: Option<&Value>, query: &Query) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let options = match body {
            Some(body) => {
                let dry: Vec<&str> = body["dryRun"]
                    .as_array()
                    .map(|values| values.iter().filter_map(Value::as_str).collect())
                    .unwrap_or_default();
                let text = |value: &Value| value.as_str().map(str::to_owned);
                Self {
                    dry_run: dry_run(&dry, &mut errors),
                    grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
                    propagation: text(&body["propagationPolicy"]),
                    orphan_dependents: body["orphanDependents"].as_bool(),
                    uid: text(&body["preconditions"]["uid"]),
                    resource_version: text(&body["preconditions"]["resourceVersion"]),
                }
            }
            None => Self {
                dry_run: dry_run(&query.all("dryRun"), &mut errors),
                grace_period_seconds: query.number("gracePeriodSeconds")?,
                propagation: query.get("propagationPolicy").map(str::to_owned),
                orphan_dependents: query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
                uid: None,
                resource_version: None,
            },
        };
        options.check(&mut errors);
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", errors))
        }
    }

    fn check(&self, errors: &mut Vec<FieldError>) {
        if self.propagation.is_some() && self.orphan_dependents.is_some() {
            errors.push(FieldError::invalid(
                "propagationPolicy",
                json!(self.propagation),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if let Some(policy) = &self.propagation
            && !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan")
        {
            errors.push(FieldError::not_supported(
                "propagationPolicy",
                json!(policy),
                &["Background", "Foreground", "Orphan"],
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_and_plus_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc+in+%28d%29&x&watch=1&no=false");
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert!(query.flag("x"));
        assert!(query.flag("watch"));
        assert!(!query.flag("no"));
        assert!(!query.flag("absent"));
    }

    #[test]
    fn a_watch_with_initial_events_needs_not_older_than() {
        let error = ListOptions::parse(&Query::parse("watch=1&sendInitialEvents=true"), true).unwrap_err();
        assert_eq!(error.code, 422);
        assert!(error.message.contains("requires setting resourceVersionMatch to NotOlderThan"));
        let query = Query::parse("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
        assert_eq!(ListOptions::parse(&query, true).unwrap().send_initial_events, Some(true));
    }

    #[test]
    fn a_list_refuses_a_match_without_a_version() {
        for query in ["resourceVersionMatch=Exact", "resourceVersionMatch=Exact&resourceVersion=0"] {
            assert_eq!(ListOptions::parse(&Query::parse(query), false).unwrap_err().code, 422, "{query}");
        }
    }

    #[test]
    fn dry_run_takes_only_all() {
        assert!(WriteOptions::parse(&Query::parse("dryRun=All"), "CreateOptions").unwrap().dry_run);
        let error = WriteOptions::parse(&Query::parse("dryRun=Some"), "CreateOptions").unwrap_err();
        assert!(error.message.contains("dryRun: Unsupported value"), "{}", error.message);
    }

    #[test]
    fn delete_options_of_the_body_win() {
        let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}});
        let options = DeleteOptions::parse(Some(&body), &Query::parse("gracePeriodSeconds=30")).unwrap();
        assert_eq!(options.grace_period_seconds, Some(0));
        assert_eq!(options.uid.as_deref(), Some("u"));
    }
}
