//! The paths of the resources with their operations. Clients read `x-kubernetes-action`, the kind, and which query
//! parameters an operation takes: kubectl decides from `fieldValidation` and `dryRun` what it may ask the server.

use serde_json::{Map, Value, json};

use super::{Dialect, root};
use crate::schema::{Resource, Schema, Subresource};

/// Name, type and text of a query parameter.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = ("pretty", "string", "Whether the output is indented: `true` or `false`.");
const DRY_RUN: Parameter = ("dryRun", "string", "`All`: the request passes every stage but is not stored.");
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name under which the changed fields are owned; at most 128 printable characters.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: `Ignore` drops them, `Warn` (the default) also warns, `Strict` \
     refuses the request.",
);
const FORCE: Parameter = ("force", "boolean", "Server-side apply takes over fields that others own.");

const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds before the object goes; 0 is at once."),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Also deletes an object that cannot be read from the store.",
    ),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: `Orphan`, `Background` or `Foreground`."),
];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "A watch may send events of type BOOKMARK."),
    ("continue", "string", "The token of the page before."),
    ("fieldSelector", "string", "Selects objects by their fields."),
    ("labelSelector", "string", "Selects objects by their labels."),
    ("limit", "integer", "The most objects in one page."),
    ("resourceVersion", "string", "Which state to list, or where to begin to watch."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: `Exact` or `NotOlderThan`."),
    ("sendInitialEvents", "boolean", "A watch begins with the objects that exist, then a bookmark."),
    ("timeoutSeconds", "integer", "How long a list or watch may take."),
    ("watch", "boolean", "Stream changes instead of returning a list."),
];
const LOG: &[Parameter] = &[
    ("container", "string", "Whose log; may be left out where the pod has one container."),
    ("follow", "boolean", "Keep streaming."),
    ("insecureSkipTLSVerifyBackend", "boolean", "Do not verify the certificate of the kubelet."),
    ("limitBytes", "integer", "Stop after as many bytes."),
    ("previous", "boolean", "The log of the container that ended before."),
    ("sinceSeconds", "integer", "Only what is younger."),
    ("stream", "string", "`All`, `Stdout` or `Stderr`."),
    ("tailLines", "integer", "Only the last lines."),
    ("timestamps", "boolean", "Put the time before each line."),
];

const MEDIA_TYPES: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const CUSTOM_MEDIA_TYPES: &[&str] = &["application/json", "application/yaml"];
const CUSTOM_PATCH_TYPES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH_BODY: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const RESOURCE_LIST: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";

/// The paths of one group and version, or of all.
pub(super) fn paths(schema: &Schema, dialect: Dialect, only: Option<(&str, &str)>) -> Value {
    let mut paths = Map::new();
    for resource in schema.resources() {
        let group_version = (resource.group.as_str(), resource.version.as_str());
        if only.is_none_or(|only| only == group_version) {
            let ty = schema.get(resource.ty).definition();
            let list = format!("{ty}List");
            Builder { schema, resource, dialect, ty, list, is_custom: false }.add_to(&mut paths);
        }
    }
    Value::Object(paths)
}

/// Adds the paths of a resource that is not of the table; `ty` and `list` name its definitions.
pub(super) fn add_custom(
    schema: &Schema,
    resource: &Resource,
    dialect: Dialect,
    (ty, list): (String, String),
    paths: &mut Value,
) {
    if let Value::Object(paths) = paths {
        Builder { schema, resource, dialect, ty, list, is_custom: true }.add_to(paths);
    }
}

/// What is about to become an operation.
struct Operation<'a> {
    /// The verb of the operation's id and text: `create`, `read`, `replace`.
    word: &'a str,
    /// `x-kubernetes-action`.
    action: &'a str,
    /// Behind the kind in the id: `Status` for a subresource.
    suffix: String,
    parameters: &'a [Parameter],
    body: Option<&'a str>,
    answer: Option<&'a str>,
    /// Group, version and kind.
    kind: (&'a str, &'a str, &'a str),
}

struct Builder<'a> {
    schema: &'a Schema,
    resource: &'a Resource,
    dialect: Dialect,
    /// The definition of the kind, and that of its list.
    ty: String,
    list: String,
    /// No strategic merge, no protobuf.
    is_custom: bool,
}

impl Builder<'_> {
    fn add_to(&self, paths: &mut Map<String, Value>) {
        let resource = self.resource;
        let base = format!("/{}", root(&resource.group, &resource.version));
        if !paths.contains_key(&format!("{base}/")) {
            paths.insert(format!("{base}/"), self.discovery());
        }
        let collection = if resource.namespaced {
            let all = self.list("ForAllNamespaces");
            if resource.has_verb("list") {
                paths.insert(format!("{base}/{}", resource.plural), self.item(&[("get", all)], false));
            }
            format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{base}/{}", resource.plural)
        };
        let on_collection = [("list", "get"), ("create", "post"), ("deletecollection", "delete")];
        self.insert(paths, &collection, &on_collection);
        let object = format!("{collection}/{{name}}");
        let on_object = [("get", "get"), ("update", "put"), ("patch", "patch"), ("delete", "delete")];
        self.insert(paths, &object, &on_object);
        for subresource in &resource.subresources {
            paths.insert(format!("{object}/{}", subresource.name), self.subresource(subresource));
        }
    }

    fn insert(&self, paths: &mut Map<String, Value>, path: &str, verbs: &[(&str, &'static str)]) {
        let has = verbs.iter().filter(|(verb, _)| self.resource.has_verb(verb));
        let operations: Vec<(&str, Value)> = has.map(|(verb, method)| (*method, self.verb(verb))).collect();
        if !operations.is_empty() {
            paths.insert(path.to_owned(), self.item(&operations, path.ends_with("/{name}")));
        }
    }

    fn own_kind(&self) -> (&str, &str, &str) {
        (&self.resource.group, &self.resource.version, &self.resource.kind)
    }

    fn list(&self, suffix: &str) -> Value {
        self.operation(&Operation {
            word: "list",
            action: "list",
            suffix: suffix.to_owned(),
            parameters: LIST,
            body: None,
            answer: Some(&self.list),
            kind: self.own_kind(),
        })
    }

    fn verb(&self, verb: &str) -> Value {
        let ty = self.ty.as_str();
        let (word, action, parameters, body, answer) = match verb {
            "list" => return self.list(""),
            "create" => ("create", "post", WRITE, Some(ty), ty),
            "get" => ("read", "get", &[][..], None, ty),
            "update" => ("replace", "put", WRITE, Some(ty), ty),
            "patch" => ("patch", "patch", PATCH, Some(PATCH_BODY), ty),
            "deletecollection" => {
                ("deleteCollection", "deletecollection", DELETE, Some(DELETE_OPTIONS), STATUS)
            }
            _ => ("delete", "delete", DELETE, Some(DELETE_OPTIONS), STATUS),
        };
        let kind = self.own_kind();
        self.operation(&Operation {
            word,
            action,
            suffix: String::new(),
            parameters,
            body,
            answer: Some(answer),
            kind,
        })
    }

    fn subresource(&self, subresource: &Subresource) -> Value {
        let parent = self.ty.as_str();
        let (group, version) = match subresource.group.as_str() {
            "" => (self.resource.group.as_str(), self.resource.version.as_str()),
            group => (group, subresource.version.as_str()),
        };
        let kind = (group, version, subresource.kind.as_str());
        let ty = self.schema.type_of(group, version, &subresource.kind);
        let is_own = self.is_custom && subresource.kind == self.resource.kind;
        let definition =
            if is_own { Some(parent.to_owned()) } else { ty.map(|id| self.schema.get(id).definition()) };
        let mut operations = Vec::new();
        for verb in &subresource.verbs {
            let (method, word, action, parameters, body) = match (verb.as_str(), &definition) {
                ("get", Some(_)) if subresource.name == "log" => ("get", "read", "get", LOG, None),
                ("get", Some(_)) => ("get", "read", "get", &[][..], None),
                ("create", Some(ty)) => ("post", "create", "post", WRITE, Some(ty.as_str())),
                ("update", Some(ty)) => ("put", "replace", "put", WRITE, Some(ty.as_str())),
                ("patch", Some(_)) => ("patch", "patch", "patch", PATCH, Some(PATCH_BODY)),
                ("get", None) => ("get", "connectGet", "connect", &[][..], None),
                ("create", None) => ("post", "connectPost", "connect", &[][..], None),
                ("update", None) => ("put", "connectPut", "connect", &[][..], None),
                ("patch", None) => ("patch", "connectPatch", "connect", &[][..], None),
                _ => ("delete", "connectDelete", "connect", &[][..], None),
            };
            let text = subresource.name == "log" || definition.is_none();
            let answer = if text { None } else { Some(definition.as_deref().unwrap_or(parent)) };
            let suffix = capitalised(&subresource.name);
            let operation = Operation { word, action, suffix, parameters, body, answer, kind };
            operations.push((method, self.operation(&operation)));
        }
        self.item(&operations, true)
    }

    fn operation(&self, operation: &Operation<'_>) -> Value {
        let resource = self.resource;
        let group = if resource.group.is_empty() { "core" } else { &resource.group };
        let group = group.trim_end_matches(".k8s.io").split('.').map(capitalised).collect::<String>();
        let namespaced =
            if resource.namespaced && operation.suffix != "ForAllNamespaces" { "Namespaced" } else { "" };
        let id = format!(
            "{}{group}{}{namespaced}{}{}",
            operation.word,
            capitalised(&resource.version),
            resource.kind,
            operation.suffix
        );
        let mut first = group.chars();
        let tag: String = first.next().into_iter().flat_map(char::to_lowercase).chain(first).collect();
        let (kind_group, kind_version, kind) = operation.kind;
        let mut parameters: Vec<Value> = operation.parameters.iter().map(|found| self.query(found)).collect();
        let mut out = json!({
            "operationId": id,
            "description": format!("{} {}{}", operation.action, resource.kind, spaced(&operation.suffix)),
            "tags": [format!("{tag}_{}", resource.version)],
            "responses": self.responses(operation),
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": kind_group, "version": kind_version, "kind": kind},
        });
        let media_types = if self.is_custom { CUSTOM_MEDIA_TYPES } else { MEDIA_TYPES };
        let types = match (operation.action, self.is_custom) {
            ("patch", true) => CUSTOM_PATCH_TYPES,
            ("patch", false) => PATCH_TYPES,
            _ => media_types,
        };
        let required = operation.body != Some(DELETE_OPTIONS);
        match (self.dialect, operation.body) {
            (Dialect::V3, Some(body)) => {
                let schema = self.dialect.reference(body);
                out["requestBody"] = json!({"content": content(types, &schema), "required": required});
            }
            (Dialect::V2, Some(body)) => {
                let schema = self.dialect.reference(body);
                parameters
                    .push(json!({"in": "body", "name": "body", "required": required, "schema": schema}));
            }
            (_, None) => {}
        }
        if self.dialect == Dialect::V2 {
            out["consumes"] = if operation.action == "patch" { json!(types) } else { json!(["*/*"]) };
            out["produces"] = if operation.answer.is_some() { json!(media_types) } else { json!(["*/*"]) };
            out["schemes"] = json!(["https"]);
        }
        if !parameters.is_empty() {
            out["parameters"] = Value::from(parameters);
        }
        out
    }

    fn responses(&self, operation: &Operation<'_>) -> Value {
        let answer = match operation.answer {
            Some(definition) => self.dialect.reference(definition),
            None => json!({"type": "string"}),
        };
        let media_types = if self.is_custom { CUSTOM_MEDIA_TYPES } else { MEDIA_TYPES };
        let types = if operation.answer.is_some() { media_types } else { &["*/*"][..] };
        let response = |description: &str| match self.dialect {
            Dialect::V2 => json!({"description": description, "schema": answer}),
            Dialect::V3 => json!({"description": description, "content": content(types, &answer)}),
        };
        let mut out = json!({"200": response("OK"), "401": {"description": "Unauthorized"}});
        if matches!(operation.action, "post" | "put" | "patch") {
            out["201"] = response("Created");
        }
        if matches!(operation.action, "post" | "delete") {
            out["202"] = response("Accepted");
        }
        out
    }

    fn query(&self, (name, ty, description): &Parameter) -> Value {
        self.parameter("query", name, ty, description)
    }

    fn parameter(&self, place: &str, name: &str, ty: &str, description: &str) -> Value {
        let mut out = json!({"in": place, "name": name, "description": description});
        match self.dialect {
            Dialect::V2 => {
                out["type"] = json!(ty);
                out["uniqueItems"] = json!(true);
            }
            Dialect::V3 => out["schema"] = json!({"type": ty, "uniqueItems": true}),
        }
        if place == "path" {
            out["required"] = json!(true);
        }
        out
    }

    /// A path's operations with the parameters that they share.
    fn item(&self, operations: &[(&str, Value)], has_name: bool) -> Value {
        let mut out: Map<String, Value> =
            operations.iter().map(|(method, operation)| ((*method).to_owned(), operation.clone())).collect();
        let mut parameters = vec![self.query(&PRETTY)];
        if has_name {
            let text = format!("name of the {}", self.resource.kind);
            parameters.push(self.parameter("path", "name", "string", &text));
        }
        let all = operations.iter().any(|(_, operation)| {
            operation["operationId"].as_str().is_some_and(|id| id.ends_with("ForAllNamespaces"))
        });
        if self.resource.namespaced && !all {
            parameters.push(self.parameter("path", "namespace", "string", "the namespace of the object"));
        }
        out.insert("parameters".to_owned(), Value::from(parameters));
        Value::Object(out)
    }

    fn discovery(&self) -> Value {
        let kind = self.own_kind();
        let suffix = String::new();
        let operation = Operation {
            word: "get",
            action: "get",
            suffix,
            parameters: &[],
            body: None,
            answer: Some(RESOURCE_LIST),
            kind,
        };
        let mut get = self.operation(&operation);
        let object = get.as_object_mut().expect("operations are objects");
        object.retain(|name, _| !name.starts_with("x-kubernetes"));
        let id = object["operationId"].as_str().unwrap_or("").to_owned();
        let namespaced = if self.resource.namespaced { "Namespaced" } else { "" };
        let own = format!("{namespaced}{}", self.resource.kind);
        object.insert(
            "operationId".to_owned(),
            Value::from(id.trim_end_matches(&own).to_owned() + "APIResources"),
        );
        object.insert("description".to_owned(), Value::from("get available resources"));
        json!({"get": get})
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    types
        .iter()
        .map(|media_type| ((*media_type).to_owned(), json!({"schema": schema})))
        .collect::<Map<_, _>>()
        .into()
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().into_iter().flat_map(char::to_uppercase).chain(chars).collect()
}

fn spaced(suffix: &str) -> String {
    match suffix {
        "" => String::new(),
        "ForAllNamespaces" => " of all namespaces".to_owned(),
        suffix => format!(" {}", suffix.to_lowercase()),
    }
}
