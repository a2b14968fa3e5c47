//! `/scale`: the replica count of a workload as an `autoscaling/v1` Scale, the same for every kind that has one.

use api::{
    apply::{OneVersion, Ownership, Reset, ScaleFields},
    field::FieldError,
    meta,
    schema::{Schema, TypeId},
    status::Status,
};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    conversion::Form,
    custom::jsonpath::{at_fields, simple_fields},
    decode::Expected,
    handlers::{
        Call, Target,
        apply::{Configuration, applied},
        now,
        patch::{Patch, is_apply},
        target::read,
        update::{Face, Update, check_name},
    },
    negotiate,
    ownership::{self, Writer},
    query::{FieldValidation, WriteOptions},
    respond,
    server::body::Body,
};

const GROUP_VERSION: &str = "autoscaling/v1";

pub async fn get(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accepted(&call.headers, &[])?;
    let key = target.key(&call.info.namespace, &call.info.name);
    let object =
        read(&call.state.cache, &key, true).await?.ok_or_else(|| target.not_found(&call.info.name))?;
    Ok(respond::value(StatusCode::OK, accepted, &scale_of(target, &target.shown(&object).await?)?))
}

/// What a PUT or a PATCH wants the Scale to be.
enum Wanted {
    Whole(Value),
    Patch(Patch),
    Configuration(Configuration),
}

impl Wanted {
    async fn read(
        call: &mut Call,
        expected: Expected<'_>,
        validation: FieldValidation,
    ) -> Result<Self, Status> {
        if call.info.verb == "patch" {
            return Ok(if is_apply(call) {
                Self::Configuration(Configuration::read(call).await?)
            } else {
                Self::Patch(Patch::read(call).await?)
            });
        }
        let mut scale = call.decode_body(expected, validation).await?;
        check_name(&call.info.name, &mut scale)?;
        Ok(Self::Whole(scale))
    }
}

/// One write of a Scale.
struct Writing<'a> {
    schema: &'a Schema,
    expected: Expected<'a>,
    options: &'a WriteOptions,
    manager: &'a str,
}

impl Writing<'_> {
    /// The Scale that is wanted, with its owners, from the one that is there.
    fn scale(&self, wanted: &Wanted, old: &Value, said: &mut Vec<String>) -> Result<Value, Status> {
        let now = now();
        let write = Ownership {
            schema: self.schema,
            ty: self.expected.ty,
            api_version: GROUP_VERSION,
            kind: "Scale",
            subresource: "scale",
            manager: self.manager,
            now: &now,
            reset: Reset::NONE,
            versions: &OneVersion,
        };
        let validation = self.options.field_validation;
        let mut scale = match wanted {
            Wanted::Whole(scale) => scale.clone(),
            Wanted::Patch(patch) => patch.apply(self.schema, self.expected, old, validation, said)?,
            Wanted::Configuration(config) => {
                config.judge(validation, said)?;
                let force = self.options.force;
                return applied(&write, self.schema, self.expected, Some(old), &config.value, force);
            }
        };
        write.record(Some(old), &mut scale);
        Ok(scale)
    }
}

/// A workload as a Scale.
struct Parent<'a> {
    target: &'a Target,
    /// The version in which the parent was asked for.
    api_version: &'a str,
}

impl Parent<'_> {
    /// Runs `with` on the owners of the parent's fields.
    fn with_owners<T>(
        &self,
        parent: &Value,
        with: impl FnOnce(&ScaleFields<'_>) -> Result<T, String>,
    ) -> Result<T, Status> {
        let fields = ScaleFields {
            parent: &parent["metadata"]["managedFields"],
            api_version: self.api_version,
            replicas: &|version| {
                if let Form::Custom(form) = self.target.form() {
                    return form.replicas_path(version).map(names_of);
                }
                let is_served = meta::group_and_version(version).0 == self.target.resource.group;
                is_served.then(|| replicas_path(self.target))
            },
        };
        with(&fields).map_err(Status::plain_internal)
    }
}

impl Face for Parent<'_> {
    fn subresource(&self) -> &str {
        "scale"
    }

    fn of(&self, parent: &Value) -> Result<Value, Status> {
        let mut scale = scale_of(self.target, parent)?;
        if let Some(owners) = self.with_owners(parent, |fields| fields.to_scale())? {
            scale["metadata"]["managedFields"] = owners;
        }
        Ok(scale)
    }

    fn applied_to(&self, scale: &Value, old: &Value) -> Result<Value, Status> {
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", meta::name(old), vec![error]));
        }
        let mut new = old.clone();
        set_replicas(self.target, &mut new, replicas);
        if !meta::resource_version(scale).is_empty() {
            meta::set_resource_version(&mut new, meta::resource_version(scale));
        }
        if !meta::uid(scale).is_empty() {
            meta::set_uid(&mut new, meta::uid(scale));
        }
        let owners = self.with_owners(old, |fields| fields.to_parent(&scale["metadata"]["managedFields"]))?;
        ownership::put(&mut new, owners);
        Ok(new)
    }
}

pub async fn update(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accepted(&call.headers, &[])?;
    let options = match call.info.verb.as_str() {
        "patch" if is_apply(call) => WriteOptions::parse_apply(&call.query)?,
        "patch" => WriteOptions::parse(&call.query, "PatchOptions")?,
        _ => WriteOptions::parse(&call.query, "UpdateOptions")?,
    };
    let schema = call.state.schema;
    let ty: TypeId =
        schema.type_of("autoscaling", "v1", "Scale").ok_or_else(|| Status::internal("no type Scale"))?;
    let expected = Expected { group_version: GROUP_VERSION, kind: "Scale", ty };
    let wanted = Wanted::read(call, expected, options.field_validation).await?;
    let api_version = target.resource.group_version();
    let parent = Parent { target, api_version: &api_version };
    let mut update = Update::of(call, target, &options);
    update.subresource = String::new();
    update.face = Some(&parent);
    let writer = std::mem::replace(&mut update.writer, Writer::Recorded);
    let writing = Writing { schema, expected, options: &options, manager: writer.manager() };
    let mut said = Vec::new();
    let stored = update
        .run(&mut call.warnings, &mut |old| {
            said.clear();
            writing.scale(&wanted, old, &mut said)
        })
        .await?;
    call.warnings.append(&mut said);
    Ok(respond::value(StatusCode::OK, accepted, &scale_of(target, &stored)?))
}

/// The figures of an object: replicas wanted, replicas there, selector.
fn figures(target: &Target, object: &Value) -> Result<(i64, i64, String), Status> {
    let Some(scale) = target.strategy.scale() else {
        return Ok((
            object["spec"]["replicas"].as_i64().unwrap_or(0),
            object["status"]["replicas"].as_i64().unwrap_or(0),
            selector_text(&object["spec"]["selector"]),
        ));
    };
    let count = |path: &str| at_fields(object, path).and_then(Value::as_i64);
    let wanted = count(&scale.replicas).ok_or_else(|| {
        Status::internal(format!("the spec replicas field \"{}\" does not exist", scale.replicas))
    })?;
    let selector = scale.selector.as_ref().and_then(|path| at_fields(object, path)?.as_str());
    Ok((wanted, count(&scale.status_replicas).unwrap_or(0), selector.unwrap_or_default().to_owned()))
}

/// The names of the fields on the way to the count.
fn replicas_path(target: &Target) -> Vec<String> {
    let path = target.strategy.scale().map_or(".spec.replicas", |scale| scale.replicas.as_str());
    names_of(path)
}

fn names_of(path: &str) -> Vec<String> {
    simple_fields(path).into_iter().map(str::to_owned).collect()
}

fn set_replicas(target: &Target, object: &mut Value, replicas: i64) {
    let fields = replicas_path(target).into_iter();
    *fields.fold(object, |value, field| &mut value[field]) = json!(replicas);
}

fn scale_of(target: &Target, object: &Value) -> Result<Value, Status> {
    let (wanted, there, selector) = figures(target, object)?;
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": GROUP_VERSION,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": wanted},
        "status": {"replicas": there},
    });
    if !selector.is_empty() {
        scale["status"]["selector"] = json!(selector);
    }
    if let Some(metadata) = scale["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    Ok(scale)
}

/// A selector in query syntax; of ReplicationControllers it is a plain map of labels.
fn selector_text(selector: &Value) -> String {
    let is_structured = selector.get("matchLabels").is_some_and(Value::is_object)
        || selector.get("matchExpressions").is_some_and(Value::is_array);
    let labels = if is_structured { &selector["matchLabels"] } else { selector };
    let mut terms: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    if is_structured {
        terms.extend(selector["matchExpressions"].as_array().into_iter().flatten().map(expression_text));
    }
    terms.sort();
    terms.join(",")
}

fn expression_text(expression: &Value) -> String {
    let key = expression["key"].as_str().unwrap_or_default();
    let mut values: Vec<&str> =
        expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    values.sort_unstable();
    let values = values.join(",");
    match expression["operator"].as_str().unwrap_or_default() {
        "In" => format!("{key} in ({values})"),
        "NotIn" => format!("{key} notin ({values})"),
        "DoesNotExist" => format!("!{key}"),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_in_query_syntax() {
        let selector = json!({
            "matchLabels": {"b": "1", "a": "2"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "Exists"}],
        });
        assert_eq!(selector_text(&selector), "a=2,b=1,c in (x,y),d");
        assert_eq!(selector_text(&json!({"app": "web"})), "app=web");
        assert_eq!(selector_text(&Value::Null), "");
    }

    #[test]
    fn a_scale_carries_the_identity_of_its_object() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "u", "resourceVersion": "7", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2},
        });
        let target = crate::handlers::Target::new(
            api::schema::builtin().resource("apps", "v1", "deployments").unwrap(),
        );
        let scale = scale_of(&target, &object).unwrap();
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=web"}));
        assert_eq!(scale["metadata"]["resourceVersion"], "7");
        assert_eq!(scale["metadata"].get("labels"), None);
    }
}
