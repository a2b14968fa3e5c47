//! What the server serves, as clients discover it: `/api`, `/apis`, the lists per group and version, and the two
//! aggregated documents. Built once from the resource table, then answered from bytes with an ETag.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use api::{
    schema::{Resource, Schema, Subresource},
    shared::Shared,
};
use arc_swap::ArcSwap;
use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::remote::RemoteVersion;
use crate::{
    negotiate::media_ranges,
    server::body::{self, Body},
};

pub mod openapi;
pub mod remote;

/// The order of `/apis`, which decides what kubectl prefers where two groups serve one name.
const GROUP_ORDER: [&str; 20] = [
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

const DISCOVERY_V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const DISCOVERY_V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// A document with its entity tag.
#[derive(Clone)]
pub struct Document {
    bytes: Bytes,
    etag: String,
    content_type: &'static str,
}

impl Document {
    pub fn json(value: &Value) -> Self {
        Self::new(value.to_string().into(), "application/json")
    }

    pub fn new(bytes: Bytes, content_type: &'static str) -> Self {
        let etag = hash(&bytes);
        Self { bytes, etag, content_type }
    }

    pub fn etag(&self) -> &str {
        &self.etag
    }

    /// 200 with the document, or 304 where the client has it.
    pub fn respond(&self, headers: &HeaderMap) -> Response<Body> {
        let quoted = format!("\"{}\"", self.etag);
        let has = headers
            .get(header::IF_NONE_MATCH)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == quoted));
        let builder = Response::builder()
            .header(header::ETAG, quoted)
            .header(header::VARY, "Accept")
            .header(header::CACHE_CONTROL, "public");
        let (builder, body) = if has {
            (builder.status(StatusCode::NOT_MODIFIED), body::empty())
        } else {
            (builder.header(header::CONTENT_TYPE, self.content_type), body::full(self.bytes.clone()))
        };
        builder.body(body).expect("the headers are valid")
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// All discovery documents, made anew when a kind comes or goes.
pub struct Discovery {
    address: String,
    current: ArcSwap<Documents>,
    /// Held while documents are made, so that the newest resources win.
    remote: Mutex<Vec<RemoteVersion>>,
}

impl Discovery {
    /// `address` is `host:port`, what clients in the cluster reach.
    pub fn new(schema: &'static Schema, address: String) -> Self {
        let resources: Vec<&Resource> = schema.resources().iter().collect();
        let current = ArcSwap::from_pointee(Documents::new(&resources, &[], &address));
        Self { address, current, remote: Mutex::default() }
    }

    /// Shows these resources from now on.
    pub fn publish(&self, resources: &[&Resource]) {
        let remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.store(Arc::new(Documents::new(resources, &remote, &self.address)));
    }

    /// Shows these versions of aggregated servers from now on, beside the resources that are served here.
    pub fn set_remote(
        &self,
        versions: Vec<RemoteVersion>,
        resources: impl FnOnce() -> Vec<Shared<Resource>>,
    ) {
        let mut remote = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        *remote = versions;
        let resources = resources();
        let resources: Vec<&Resource> = resources.iter().map(|resource| &**resource).collect();
        self.current.store(Arc::new(Documents::new(&resources, &remote, &self.address)));
    }

    /// The document at `path` in the best form that the client accepts.
    pub fn find(&self, path: &str, headers: &HeaderMap) -> Option<Document> {
        self.current.load().find(path, headers).cloned()
    }

    /// Every path, for the index at `/`.
    pub fn paths(&self) -> Vec<String> {
        self.current.load().documents.keys().cloned().collect()
    }
}

/// By path.
struct Documents {
    documents: BTreeMap<String, Document>,
    aggregated: BTreeMap<(&'static str, &'static str), Document>,
}

impl Documents {
    fn new(resources: &[&Resource], remote: &[RemoteVersion], address: &str) -> Self {
        let groups = groups(resources);
        let mut documents = BTreeMap::new();
        documents.insert("/api".to_owned(), Document::json(&api_versions(address)));
        let mut list = Vec::new();
        for group in &groups {
            for (version, resources) in &group.versions {
                let path = if group.name.is_empty() {
                    format!("/api/{version}")
                } else {
                    format!("/apis/{}/{version}", group.name)
                };
                documents.insert(path, Document::json(&resource_list(group.name, version, resources)));
            }
        }
        let (core, mut named): (Vec<Value>, Vec<Value>) =
            groups.iter().map(Group::aggregated).partition(|group| group["metadata"]["name"].is_null());
        remote::merge(&mut named, remote);
        for group in &named {
            let mut document = legacy_group(group);
            list.push(document.clone());
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            documents.insert(format!("/apis/{name}"), Document::json(&document));
        }
        let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list});
        documents.insert("/apis".to_owned(), Document::json(&list));
        let mut aggregated = BTreeMap::new();
        for (version, content_type) in [("v2", DISCOVERY_V2), ("v2beta1", DISCOVERY_V2BETA1)] {
            for (path, items) in [("/api", &core), ("/apis", &named)] {
                let document = json!({
                    "kind": "APIGroupDiscoveryList",
                    "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                    "metadata": {},
                    "items": items,
                });
                let document = Document::new(document.to_string().into(), content_type);
                aggregated.insert((path, version), document);
            }
        }
        Self { documents, aggregated }
    }

    fn find(&self, path: &str, headers: &HeaderMap) -> Option<&Document> {
        let path = path.trim_end_matches('/');
        if matches!(path, "/api" | "/apis") {
            for range in media_ranges(headers) {
                if range.kind != "application/json" && range.kind != "*/*" {
                    continue;
                }
                match (range.parameter("as"), range.parameter("g")) {
                    (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io")) => {
                        let key = (path, range.parameter("v").unwrap_or("v2"));
                        if let Some(found) = self.aggregated.iter().find(|(at, _)| **at == key) {
                            return Some(found.1);
                        }
                    }
                    (None, _) => break,
                    _ => {}
                }
            }
        }
        self.documents.get(path)
    }
}

struct Group<'a> {
    name: &'a str,
    /// Preferred first.
    versions: Vec<(&'a str, Vec<&'a Resource>)>,
}

fn groups<'a>(resources: &[&'a Resource]) -> Vec<Group<'a>> {
    let mut by_name: BTreeMap<&str, BTreeMap<&str, Vec<&Resource>>> = BTreeMap::new();
    for resource in resources {
        by_name.entry(&resource.group).or_default().entry(&resource.version).or_default().push(resource);
    }
    let mut groups: Vec<Group<'_>> = by_name
        .into_iter()
        .map(|(name, versions)| {
            let mut versions: Vec<_> = versions.into_iter().collect();
            versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version.0)));
            for (_, resources) in &mut versions {
                resources.sort_by(|left, right| left.plural.cmp(&right.plural));
            }
            Group { name, versions }
        })
        .collect();
    let rank = |name: &str| GROUP_ORDER.iter().position(|known| *known == name).unwrap_or(GROUP_ORDER.len());
    groups.sort_by_key(|group| (rank(group.name), group.name));
    groups
}

/// GA before beta before alpha, then the higher number: upstream's order of versions.
pub(crate) fn version_rank(version: &str) -> (u32, u32, u32) {
    let rest = version.strip_prefix('v').unwrap_or(version);
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let major = digits(rest);
    let rest = &rest[major.len()..];
    let (stage, minor) = if let Some(minor) = rest.strip_prefix("beta") {
        (1, minor)
    } else if let Some(minor) = rest.strip_prefix("alpha") {
        (0, minor)
    } else {
        (2, "0")
    };
    (stage, major.parse().unwrap_or(0), minor.parse().unwrap_or(0))
}

/// A group of the aggregated form in the old one.
fn legacy_group(group: &Value) -> Value {
    let name = group["metadata"]["name"].as_str().unwrap_or_default();
    let versions = group["versions"].as_array().into_iter().flatten();
    let versions: Vec<Value> = versions
        .filter_map(|version| version["version"].as_str())
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

impl Group<'_> {
    fn aggregated(&self) -> Value {
        let versions: Vec<Value> = self
            .versions
            .iter()
            .map(|(version, resources)| {
                let resources: Vec<Value> =
                    resources.iter().map(|resource| aggregated_resource(resource)).collect();
                json!({"version": version, "freshness": "Current", "resources": resources})
            })
            .collect();
        let metadata = if self.name.is_empty() { json!({}) } else { json!({"name": self.name}) };
        json!({"metadata": metadata, "versions": versions})
    }
}

fn api_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn resource_list(group: &str, version: &str, resources: &[&Resource]) -> Value {
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut items = Vec::new();
    for resource in resources {
        items.push(list_entry(resource));
        for subresource in &resource.subresources {
            items.push(list_subresource(resource, subresource));
        }
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": items})
}

fn list_entry(resource: &Resource) -> Value {
    let mut entry = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs,
    });
    insert_names(&mut entry, resource);
    if resource.verbs.iter().any(|verb| verb == "list") {
        entry["storageVersionHash"] = json!(storage_version_hash(resource));
    }
    entry
}

fn list_subresource(resource: &Resource, subresource: &Subresource) -> Value {
    let mut entry = json!({
        "name": format!("{}/{}", resource.plural, subresource.name),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": subresource.kind,
        "verbs": subresource.verbs,
    });
    if (&subresource.group, &subresource.version) != (&resource.group, &resource.version) {
        entry["group"] = json!(subresource.group);
        entry["version"] = json!(subresource.version);
    }
    entry
}

fn insert_names(entry: &mut Value, resource: &Resource) {
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
}

/// Upstream's: the first 8 bytes of SHA-256 over group/version/kind, in base64.
fn storage_version_hash(resource: &Resource) -> String {
    let text = format!("{}/{}/{}", resource.group, resource.storage_version, resource.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text.as_bytes())[..8])
}

/// The group and version of a built-in kind are left out where they are those of the list, as upstream does.
fn response_kind(resource: &Resource, group: &str, version: &str, kind: &str) -> Value {
    let is_same = (group, version) == (resource.group.as_str(), resource.version.as_str());
    let is_builtin = api::schema::builtin().has_resource(&resource.group, &resource.version);
    let (group, version) = if is_same && is_builtin { ("", "") } else { (group, version) };
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": response_kind(resource, &resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    insert_names(&mut entry, resource);
    if !resource.subresources.is_empty() {
        let subresources: Vec<Value> = resource
            .subresources
            .iter()
            .map(|subresource| {
                let kind =
                    response_kind(resource, &subresource.group, &subresource.version, &subresource.kind);
                Value::Object(Map::from_iter([
                    ("subresource".to_owned(), json!(subresource.name)),
                    ("responseKind".to_owned(), kind),
                    ("verbs".to_owned(), json!(subresource.verbs)),
                ]))
            })
            .collect();
        entry["subresources"] = json!(subresources);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discovery() -> Discovery {
        Discovery::new(api::schema::builtin(), "127.0.0.1:6443".to_owned())
    }

    fn value(document: Document) -> Value {
        serde_json::from_slice(&document.bytes).unwrap()
    }

    fn accept(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("accept", text.parse().unwrap());
        headers
    }

    #[test]
    fn stable_versions_come_before_unstable_ones() {
        let mut versions = ["v1alpha1", "v2", "v1", "v1beta2", "v1beta1"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1"]);
    }

    #[test]
    fn pods_are_listed_with_their_subresources() {
        let discovery = discovery();
        let list = value(discovery.find("/api/v1", &HeaderMap::new()).unwrap());
        let names: Vec<&str> =
            list["resources"].as_array().unwrap().iter().filter_map(|entry| entry["name"].as_str()).collect();
        for name in ["pods", "pods/log", "pods/eviction", "namespaces/finalize", "services"] {
            assert!(names.contains(&name), "{name} is missing in {names:?}");
        }
    }

    #[test]
    fn kubectl_gets_the_aggregated_form() {
        let discovery = discovery();
        let headers = accept(&format!("{DISCOVERY_V2},{DISCOVERY_V2BETA1},application/json"));
        let document = discovery.find("/apis", &headers).unwrap();
        assert_eq!(document.content_type, DISCOVERY_V2);
        let document = value(document);
        assert_eq!(document["kind"], "APIGroupDiscoveryList");
        assert!(
            document["items"].as_array().unwrap().iter().any(|group| group["metadata"]["name"] == "apps")
        );
        assert_eq!(value(discovery.find("/apis", &HeaderMap::new()).unwrap())["kind"], "APIGroupList");
    }

    /// Every group and version that is served says of its resources what upstream's published document says.
    #[test]
    fn the_aggregated_document_is_that_of_upstream() {
        let file =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/kubernetes-1.36/aggregated_v2.json");
        let Ok(published) = std::fs::read(file) else {
            eprintln!("SKIPPED: no {file}");
            return;
        };
        let published: Value = serde_json::from_slice(&published).unwrap();
        let ours = value(discovery().find("/apis", &accept(DISCOVERY_V2)).unwrap());
        let groups = |document: &Value| -> Vec<(String, Vec<Value>)> {
            let group = |group: &Value| {
                let name = group["metadata"]["name"].as_str().unwrap().to_owned();
                (name, group["versions"].as_array().unwrap().clone())
            };
            document["items"].as_array().unwrap().iter().map(group).collect()
        };
        let published = groups(&published);
        let order: Vec<&String> = published.iter().map(|(name, _)| name).collect();
        let mut places = Vec::new();
        for (name, versions) in groups(&ours) {
            let (place, (_, theirs)) =
                published.iter().enumerate().find(|(_, (theirs, _))| *theirs == name).unwrap();
            places.push(place);
            for version in versions {
                let named = |found: &&Value| found["version"] == version["version"];
                let theirs = theirs.iter().find(named).unwrap();
                let (ours, theirs) = (&version["resources"], &theirs["resources"]);
                assert_eq!(
                    serde_json::to_string_pretty(ours).unwrap(),
                    serde_json::to_string_pretty(theirs).unwrap(),
                    "{name} {}",
                    version["version"]
                );
            }
        }
        assert!(places.is_sorted(), "the groups stand in the order of {order:?}");
    }

    #[test]
    fn a_known_entity_tag_is_answered_with_304() {
        let discovery = discovery();
        let document = discovery.find("/apis", &HeaderMap::new()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, format!("\"{}\"", document.etag()).parse().unwrap());
        assert_eq!(document.respond(&headers).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(document.respond(&HeaderMap::new()).status(), StatusCode::OK);
    }
}
