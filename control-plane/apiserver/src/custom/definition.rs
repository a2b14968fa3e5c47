//! A CustomResourceDefinition as the server serves it: read once per change, shared by all requests for its kinds.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use api::{
    meta,
    schema::{Resource, Schema, Subresource, TypeId},
    structural::{Definition as Names, Structural},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{form::VersionForm, strategy::CustomStrategy};
use crate::{
    conversion::Form,
    kinds::{Custom, Kinds},
    registry::{Strategy, crd::APPROVED},
};

const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
/// What is left of them while the definition is being deleted.
const VERBS_OF_TERMINATING: [&str; 7] =
    ["delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const MODIFY: [&str; 3] = ["get", "patch", "update"];

/// One version of a definition.
pub struct Version {
    pub name: String,
    pub api_version: String,
    pub served: bool,
    pub schema: Arc<Schema>,
    pub ty: TypeId,
    pub structural: Arc<Structural>,
    /// `specReplicasPath` of its scale.
    pub replicas_path: Option<String>,
}

/// What the forms and strategies of a definition's versions share.
pub struct Definition {
    pub group: String,
    pub kind: String,
    pub versions: Vec<Version>,
    /// The version that is stored.
    pub storage: String,
    /// Whether a webhook converts.
    pub has_webhook: bool,
    /// The definition without its schemas, for the webhook's caller.
    pub outline: Value,
    /// Differs whenever the definition does.
    id: u64,
}

impl Definition {
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// Names the view that `version` has of stored objects.
    pub(super) fn view_id(&self, version: usize) -> u64 {
        self.id * 1024 + version as u64
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A definition without its schemas: what is kept of it in memory.
pub fn outline(mut object: Value) -> Value {
    for version in object["spec"]["versions"].as_array_mut().into_iter().flatten() {
        if let Some(version) = version.as_object_mut() {
            version.remove("schema");
        }
    }
    let metadata = meta::metadata_mut(&mut object);
    metadata.remove("managedFields");
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| name == APPROVED);
    }
    object
}

/// Reads a definition.
///
/// # Errors
/// A schema that cannot be read: it was never accepted by this server.
pub fn parse(object: &Value) -> Result<Definition, String> {
    static NEXT_ID: AtomicU64 = AtomicU64::new(1);
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, kind) = (text(&spec["group"]), text(&spec["names"]["kind"]));
    let mut versions = Vec::new();
    let mut storage = String::new();
    for written in spec["versions"].as_array().into_iter().flatten() {
        let name = text(&written["name"]);
        let structural = Structural::parse(&written["schema"]["openAPIV3Schema"])
            .map_err(|error| format!("version {name}: {error}"))?;
        let (schema, ty) = Names { group: &group, version: &name, kind: &kind }.schema(structural);
        let structural = schema.get(ty).structural.clone().unwrap_or_default();
        if written["storage"] == true {
            storage.clone_from(&name);
        }
        versions.push(Version {
            api_version: format!("{group}/{name}"),
            served: written["served"] == true,
            replicas_path: written["subresources"]["scale"]["specReplicasPath"].as_str().map(str::to_owned),
            schema: Arc::new(schema),
            ty,
            structural,
            name,
        });
    }
    Ok(Definition {
        group,
        kind,
        versions,
        storage,
        has_webhook: spec["conversion"]["strategy"] == "Webhook",
        outline: outline(object.clone()),
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
    })
}

/// The kinds that a definition serves: one for each served version. `ended` is cancelled when they are served no more.
pub fn kinds(
    object: &Value,
    definition: &Arc<Definition>,
    all: &Arc<Kinds>,
    ended: &CancellationToken,
) -> Vec<Arc<Custom>> {
    let written = |name: &str| {
        let versions = object["spec"]["versions"].as_array();
        versions.and_then(|versions| versions.iter().find(|version| version["name"] == name))
    };
    let served = definition.versions.iter().enumerate().filter(|(_, version)| version.served);
    let kind = |(index, version): (usize, &Version)| {
        let written = written(&version.name)?;
        let strategy: Arc<dyn Strategy> = Arc::new(CustomStrategy::new(definition, version, written));
        Some(Arc::new(Custom {
            schema: Arc::clone(&version.schema).into(),
            resource: Arc::new(resource(object, definition, version, written)),
            strategy,
            form: Form::Custom(Arc::new(VersionForm::new(
                Arc::clone(definition),
                index,
                Arc::downgrade(all),
            ))),
            deprecation: deprecation(object, version, written),
            revision: format!("{}/{}", meta::uid(object), meta::generation(object)),
            ended: ended.clone(),
        }))
    };
    served.filter_map(kind).collect()
}

fn resource(object: &Value, definition: &Definition, version: &Version, written: &Value) -> Resource {
    let names = &object["status"]["acceptedNames"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let owned = |verbs: &[&str]| verbs.iter().map(|verb| (*verb).to_owned()).collect::<Vec<_>>();
    let is_terminating = meta::deletion_timestamp(object).is_some();
    let mut subresources = Vec::new();
    if written["subresources"]["status"].is_object() {
        subresources.push(Subresource {
            name: "status".to_owned(),
            group: definition.group.clone(),
            version: version.name.clone(),
            kind: definition.kind.clone(),
            verbs: owned(&MODIFY),
        });
    }
    if written["subresources"]["scale"].is_object() {
        subresources.push(Subresource {
            name: "scale".to_owned(),
            group: "autoscaling".to_owned(),
            version: "v1".to_owned(),
            kind: "Scale".to_owned(),
            verbs: owned(&MODIFY),
        });
    }
    Resource {
        group: definition.group.clone(),
        version: version.name.clone(),
        kind: definition.kind.clone(),
        list_kind: text(&names["listKind"]),
        plural: text(&names["plural"]),
        singular: text(&names["singular"]),
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        namespaced: object["spec"]["scope"] == "Namespaced",
        verbs: if is_terminating { owned(&VERBS_OF_TERMINATING) } else { owned(&VERBS) },
        subresources,
        storage_version: definition.storage.clone(),
        ty: version.ty,
    }
}

/// The warning that clients of a deprecated version get.
fn deprecation(object: &Value, version: &Version, written: &Value) -> Option<String> {
    if written["deprecated"] != true {
        return None;
    }
    if let Some(text) = written["deprecationWarning"].as_str() {
        return Some(text.to_owned());
    }
    let kind = object["spec"]["names"]["kind"].as_str().unwrap_or_default();
    let group = object["spec"]["group"].as_str().unwrap_or_default();
    let rank = crate::discovery::version_rank;
    let better = object["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|other| other["served"] == true && other["deprecated"] != true)
        .filter_map(|other| other["name"].as_str())
        .filter(|other| rank(other) > rank(&version.name))
        .max_by_key(|other| rank(other));
    let instead = better.map_or_else(String::new, |better| format!("; use {group}/{better} {kind}"));
    Some(format!("{} {kind} is deprecated{instead}", version.api_version))
}
