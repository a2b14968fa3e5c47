//! Whom a write is recorded for in `metadata.managedFields`, and which fields it can own. The algorithm is
//! [`api::apply`]; here is what it has to be told about requests and kinds, and in [`versions`] about versions.

pub mod versions;

use api::{
    apply::{Ownership, Reset, validate_managed_fields},
    meta,
    schema::Resource,
};
use http::{HeaderMap, header::USER_AGENT};
use serde_json::Value;
use tracing::warn;

use self::versions::Conversions;

/// The longest name of a manager, in bytes.
pub const MANAGER_BYTES_MAX: usize = 128;
/// Who makes the objects of every cluster.
pub const SERVER: &str = "kube-apiserver";

/// Whom a write is recorded for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A manager that owns what it changes.
    Manager(String),
    /// The write itself says who owns what, in `metadata.managedFields` of its result.
    Recorded,
    /// The server: owners stay who they are.
    Nobody,
    /// No owners at all, since there is no room for them.
    Forgotten,
}

impl Writer {
    /// The manager of a request: what it says, else what the client calls itself.
    pub fn of(field_manager: &str, headers: &HeaderMap) -> Self {
        if field_manager.is_empty() {
            Self::Manager(client_name(headers))
        } else {
            Self::Manager(field_manager.to_owned())
        }
    }

    /// The manager's name; empty for all that is none.
    pub fn manager(&self) -> &str {
        match self {
            Self::Manager(name) => name,
            _ => "",
        }
    }

    pub fn server() -> Self {
        Self::Manager(SERVER.to_owned())
    }

    /// Records in `new` who owns its fields; `live` is `None` for a new object.
    pub async fn record(
        &self,
        conversions: &Conversions<'_>,
        subresource: &str,
        live: Option<&Value>,
        new: &mut Value,
        now: &str,
    ) {
        match self {
            Self::Recorded => {}
            Self::Forgotten => put(new, None),
            Self::Nobody => {
                let owners = live.and_then(|live| live["metadata"].get("managedFields"));
                if new["metadata"].get("managedFields") != owners {
                    put(new, owners.cloned());
                }
            }
            Self::Manager(manager) => {
                let api_version = conversions.target().resource.group_version();
                let write = of_write(conversions, &api_version, subresource, manager, now);
                if !conversions.may_ask() {
                    return write.record(live, new);
                }
                let recorded = conversions.settle(|| {
                    let mut recorded = new.clone();
                    write.record(live, &mut recorded);
                    Ok(recorded)
                });
                match recorded.await {
                    Ok(recorded) => *new = recorded,
                    Err(status) => {
                        warn!(problem = status.message, "the owners of an object cannot be told any more");
                        put(new, None);
                    }
                }
            }
        }
    }
}

/// Sets `metadata.managedFields`, or takes it away.
pub fn put(object: &mut Value, owners: Option<Value>) {
    let metadata = meta::metadata_mut(object);
    match owners {
        Some(owners) => metadata.insert("managedFields".to_owned(), owners),
        None => metadata.remove("managedFields"),
    };
}

/// Gives an object that admission changed its owners back where it left entries that nobody can read; returns the
/// warning for the client.
pub fn keep_readable(changed: &mut Value, before: &Value) -> Option<String> {
    let owners = changed["metadata"].get("managedFields")?;
    if Some(owners) == before["metadata"].get("managedFields") {
        return None;
    }
    let why = validate_managed_fields(owners).err()?;
    put(changed, before["metadata"].get("managedFields").cloned());
    Some(format!(
        ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating \
         admission controller; please fix your requests: {why}"
    ))
}

/// One write of an object of a resource.
pub fn of_write<'a>(
    conversions: &'a Conversions<'a>,
    api_version: &'a str,
    subresource: &'a str,
    manager: &'a str,
    now: &'a str,
) -> Ownership<'a> {
    let target = conversions.target();
    Ownership {
        schema: &target.schema,
        ty: target.resource.ty,
        api_version,
        kind: &target.resource.kind,
        subresource,
        manager,
        now,
        reset: target.strategy.reset_fields(&target.resource, subresource),
        versions: conversions,
    }
}

/// What stands before the first `/` of the User-Agent, as far as it can be printed.
fn client_name(headers: &HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let agent = agent.as_deref().unwrap_or_default();
    let mut name = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| is_printable(*c)) {
        if name.len() + c.len_utf8() > MANAGER_BYTES_MAX {
            break;
        }
        name.push(c);
    }
    name
}

/// Go's `unicode.IsPrint`: a graphic character that is no space but the ASCII one.
pub fn is_printable(c: char) -> bool {
    c == ' '
        || !(c.is_control() || c.is_whitespace() || c.escape_debug().next() == Some('\\'))
        || matches!(c, '\\' | '"' | '\'')
}

/// The fields that writes to a built-in resource cannot set.
pub fn reset_fields(resource: &Resource, subresource: &str) -> Reset {
    const STATUS: Reset = Reset::Fields(&[&["status"]]);
    const SPEC: Reset = Reset::Fields(&[&["spec"]]);
    const SPEC_AND_METADATA: Reset = Reset::Fields(&[&["metadata"], &["spec"]]);
    match (resource.plural.as_str(), subresource) {
        ("pods", "ephemeralcontainers") => Reset::AllBut(&[&["spec", "ephemeralContainers"]]),
        ("pods", "resize") => Reset::AllBut(&[
            &["spec", "containers", "*", "resources"],
            &["spec", "containers", "*", "resizePolicy"],
            &["spec", "initContainers", "*", "resources"],
            &["spec", "initContainers", "*", "resizePolicy"],
        ]),
        ("pods", "status") => {
            Reset::Fields(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
        }
        ("deployments", "status") => Reset::Fields(&[&["spec"], &["metadata", "labels"]]),
        ("certificatesigningrequests", "status") => Reset::Fields(&[&["spec"], &["status", "conditions"]]),
        ("certificatesigningrequests", "approval") => Reset::Fields(&[&["spec"], &["status", "certificate"]]),
        (
            "validatingadmissionpolicies"
            | "flowschemas"
            | "prioritylevelconfigurations"
            | "servicecidrs"
            | "resourceclaims"
            | "volumeattachments"
            | "apiservices",
            "status",
        ) => SPEC_AND_METADATA,
        (_, "status") => SPEC,
        (_, "" | "finalize") => STATUS,
        _ => Reset::NONE,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_without_a_field_manager_is_known_by_its_user_agent() {
        let name = |agent: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(USER_AGENT, http::HeaderValue::from_bytes(agent).unwrap());
            client_name(&headers)
        };
        assert_eq!(name(b"kubectl/v1.32.0 (linux/amd64)"), "kubectl");
        assert_eq!(name(b"Go-http-client/2.0"), "Go-http-client");
        assert_eq!(name("k\u{e9}\u{a0}b".as_bytes()), "k\u{e9}b");
        assert_eq!(name("\u{e9}".repeat(100).as_bytes()).len(), 128);
        assert_eq!(client_name(&HeaderMap::new()), "");
        assert_eq!(Writer::of("x", &HeaderMap::new()), Writer::Manager("x".to_owned()));
    }

    #[test]
    fn entries_that_admission_broke_are_put_back() {
        let entry = json!({"manager": "a", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {}}});
        let before = json!({"metadata": {"managedFields": [entry]}});
        let mut same = before.clone();
        assert_eq!(keep_readable(&mut same, &before), None);
        let mut broken = before.clone();
        broken["metadata"]["managedFields"][0]["apiVersion"].take();
        let warning = keep_readable(&mut broken, &before).unwrap();
        assert!(warning.ends_with("please fix your requests: apiVersion must not be empty"), "{warning}");
        assert_eq!(broken, before);
        let mut edited = before.clone();
        edited["metadata"]["managedFields"][0]["manager"] = json!("b");
        assert_eq!(keep_readable(&mut edited, &before), None);
        assert_eq!(edited["metadata"]["managedFields"][0]["manager"], "b");
    }

    #[test]
    fn reset_fields_name_fields_that_exist() {
        let schema = api::schema::builtin();
        for resource in schema.resources() {
            let subresources = resource.subresources.iter().map(|subresource| subresource.name.as_str());
            for subresource in subresources.chain([""]) {
                let paths = match reset_fields(resource, subresource) {
                    Reset::Fields(paths) | Reset::AllBut(paths) => paths,
                };
                for path in paths.iter().filter(|path| path.len() > 1) {
                    assert!(schema.get(resource.ty).field(path[0]).is_some(), "{} {path:?}", resource.plural);
                }
            }
        }
    }
}
