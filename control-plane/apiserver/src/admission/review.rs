//! A request in the words of `admission.k8s.io/v1` AdmissionReview, for webhooks and for the `request` of CEL expressions.

use api::{meta, schema, status::Status};
use serde_json::{Map, Value, json};

use super::{Operation, Options, Request, rules::Matched};
use crate::{
    decode::{Document, Expected},
    query::{DeleteOptions, FieldValidation, WriteOptions},
    security::Identity,
};

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl GroupVersionKind {
    /// As the object says.
    pub fn of(object: &Value) -> Self {
        let (group, version) = meta::group_and_version(meta::api_version(object));
        Self { group: group.to_owned(), version: version.to_owned(), kind: meta::kind(object).to_owned() }
    }

    pub fn to_value(&self) -> Value {
        json!({"group": self.group, "version": self.version, "kind": self.kind})
    }

    /// Brings the body of a subresource or of a review into its form. See [`Request::normalise`].
    pub(super) fn normalise(&self, object: &mut Value) -> Result<(), Status> {
        let schema = schema::builtin();
        let Some(ty) = schema.type_of(&self.group, &self.version, &self.kind) else { return Ok(()) };
        let group_version = if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        };
        let expected = Expected { group_version: &group_version, kind: &self.kind, ty };
        let document = Document { value: object.take(), duplicates: Vec::new() };
        *object = expected
            .decode(schema, document, FieldValidation::Ignore, &mut Vec::new())
            .map_err(|status| Status::internal(status.message))?;
        schema.default(ty, object);
        Ok(())
    }
}

impl Request<'_> {
    /// The kind of what the request carries: the object, or the stored one for a deletion.
    pub fn kind(&self, object: &Value) -> GroupVersionKind {
        if object.is_object() {
            return GroupVersionKind::of(object);
        }
        let resource = &self.target.resource;
        GroupVersionKind {
            group: resource.group.clone(),
            version: resource.version.clone(),
            kind: resource.kind.clone(),
        }
    }

    /// The namespace as reviews show it: that of a Namespace is itself.
    pub fn review_namespace(&self) -> &str {
        if self.is_any_part_of("", "namespaces") { self.name } else { self.namespace }
    }

    /// AdmissionRequest without `uid`, `object` and `oldObject`, for the form that a rule matched.
    pub fn to_review(&self, object: &Value, matched: &Matched) -> Map<String, Value> {
        let own = self.kind(object);
        let (resource, shown) = (&self.target.resource, &matched.target.resource);
        // The body of a subresource is the same kind whatever the version of its parent.
        let is_own_kind = own.kind == resource.kind && own.group == resource.group;
        let kind = GroupVersionKind {
            group: shown.group.clone(),
            version: shown.version.clone(),
            kind: shown.kind.clone(),
        };
        let kind = if is_own_kind { kind } else { own.clone() };
        let named = |group: &str, version: &str, plural: &str| json!({"group": group, "version": version, "resource": plural});
        let mut review = Map::new();
        let mut put = |key: &str, value: Value| {
            if !matches!(&value, Value::Null) && value != "" {
                review.insert(key.to_owned(), value);
            }
        };
        put("kind", kind.to_value());
        put("resource", named(&shown.group, &shown.version, &shown.plural));
        put("subResource", self.subresource.into());
        put("requestKind", own.to_value());
        put("requestResource", named(&resource.group, &resource.version, &resource.plural));
        put("requestSubResource", self.subresource.into());
        put("name", self.name.into());
        put("namespace", self.review_namespace().into());
        put("operation", self.operation.word().into());
        put("userInfo", user_info(self.user));
        put("dryRun", self.dry_run.into());
        put("options", self.options.to_value(self.operation));
        review
    }
}

/// `authentication.k8s.io/v1` UserInfo.
pub fn user_info(user: &Identity) -> Value {
    let mut info = json!({"username": user.name});
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

impl Options<'_> {
    /// The options as an object of `meta.k8s.io/v1`; null for CONNECT.
    pub fn to_value(self, operation: Operation) -> Value {
        let mut options = match self {
            Self::None => return Value::Null,
            Self::Write(options) => write_options(options),
            Self::Delete(options) => delete_options(options),
        };
        let kind = match operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => return Value::Null,
        };
        options["kind"] = json!(kind);
        options["apiVersion"] = json!("meta.k8s.io/v1");
        options
    }
}

fn write_options(options: &WriteOptions) -> Value {
    let mut value = json!({});
    if options.dry_run {
        value["dryRun"] = json!(["All"]);
    }
    if !options.field_manager.is_empty() {
        value["fieldManager"] = json!(options.field_manager);
    }
    value["fieldValidation"] = json!(match options.field_validation {
        FieldValidation::Ignore => "Ignore",
        FieldValidation::Warn => "Warn",
        FieldValidation::Strict => "Strict",
    });
    value
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut value = json!({});
    let mut put = |key: &str, given: Option<Value>| {
        if let Some(given) = given {
            value[key] = given;
        }
    };
    put("gracePeriodSeconds", options.grace_period_seconds.map(Value::from));
    put("orphanDependents", options.orphan_dependents.map(Value::from));
    put("propagationPolicy", options.propagation.clone().map(Value::from));
    put("dryRun", options.dry_run.then(|| json!(["All"])));
    let mut preconditions = json!({});
    for (key, given) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
        if let Some(given) = given {
            preconditions[key] = json!(given);
        }
    }
    put("preconditions", preconditions.as_object().is_some_and(|p| !p.is_empty()).then_some(preconditions));
    value
}
