//! Type checking of a ValidatingAdmissionPolicy against the kinds that it matches: `status.typeChecking`.
//!
//! Warnings only: a policy with wrong types still runs, on whatever the objects hold.

use std::sync::Arc;

use api::schema::{self, Schema, Shape, TypeId};
use serde_json::{Value as Json, json};

use super::{Scope, declared};
use crate::{
    structural::{Node, SchemaTypes, escape, unescape},
    types::{Type, TypeProvider as _},
};

/// Kinds that one policy is checked against.
const KINDS_MAX: usize = 10;

/// A kind that a policy matches.
#[derive(Clone)]
pub struct TypeSource {
    pub group: String,
    pub version: String,
    pub kind: String,
    /// The structural schema of a custom resource; `None` for a built-in kind.
    pub schema: Option<Json>,
}

/// The object types of one kind and of one kind of parameters.
#[derive(Clone)]
pub(super) struct Objects {
    object: Known,
    params: Option<Known>,
}

#[derive(Clone)]
enum Known {
    Builtin(TypeId),
    Custom { root: Type, types: Arc<SchemaTypes> },
}

const BUILTIN: &str = "builtin.";

impl Known {
    fn of(source: &TypeSource, name: &str) -> Option<Self> {
        let Some(schema) = &source.schema else {
            return schema::builtin()
                .type_of(&source.group, &source.version, &source.kind)
                .map(Self::Builtin);
        };
        let node = Node::parse(schema, name, true);
        let types = SchemaTypes::new(&node);
        Some(Self::Custom { root: node.ty()?, types })
    }

    fn ty(&self) -> Type {
        match self {
            Self::Builtin(id) => Type::object(&format!("{BUILTIN}{}", schema::builtin().get(*id).name)),
            Self::Custom { root, .. } => root.clone(),
        }
    }
}

impl Objects {
    pub fn has(&self, object: &str) -> bool {
        object.strip_prefix(BUILTIN).is_some_and(|name| schema::builtin().type_named(name).is_some())
            || self.customs().any(|types| types.has_type(object))
    }

    pub fn field(&self, object: &str, field: &str) -> Option<Type> {
        if let Some(name) = object.strip_prefix(BUILTIN) {
            return builtin_field(name, field);
        }
        self.customs().find_map(|types| types.field(object, field))
    }

    fn customs(&self) -> impl Iterator<Item = &Arc<SchemaTypes>> {
        [Some(&self.object), self.params.as_ref()].into_iter().flatten().filter_map(|known| match known {
            Known::Custom { types, .. } => Some(types),
            Known::Builtin(_) => None,
        })
    }
}

fn builtin_field(name: &str, field: &str) -> Option<Type> {
    let schema = schema::builtin();
    let ty = schema.get(schema.type_named(name)?);
    let plain = unescape(field)?;
    let found = ty.field(&plain)?;
    escape(&plain)?;
    shape_type(schema, &found.shape)
}

/// The type of a form; `None` for what expressions cannot see.
fn shape_type(schema: &Schema, shape: &Shape) -> Option<Type> {
    Some(match shape {
        Shape::String => Type::String,
        Shape::Bytes => Type::Bytes,
        Shape::Boolean => Type::Bool,
        Shape::Int32 | Shape::Int64 => Type::Int,
        Shape::Double => Type::Double,
        Shape::IntOrString | Shape::Quantity => Type::Dyn,
        Shape::Time | Shape::MicroTime => Type::Timestamp,
        Shape::Object | Shape::Any | Shape::SchemaOr(_) => Type::Dyn,
        Shape::List(item) => Type::list(shape_type(schema, item)?),
        Shape::Map(item) => Type::map(Type::String, shape_type(schema, item)?),
        Shape::Ref(id) => {
            let ty = schema.get(*id);
            match &ty.leaf {
                Some(leaf) => shape_type(schema, leaf)?,
                None => Type::object(&format!("{BUILTIN}{}", ty.name)),
            }
        }
    })
}

/// Checks the expressions of a policy against each kind; gives `status.typeChecking.expressionWarnings`.
pub fn check_types(policy: &Json, kinds: &[TypeSource], params: Option<&TypeSource>) -> Vec<Json> {
    let spec = &policy["spec"];
    let has_params = spec["paramKind"].is_object();
    let params = params.and_then(|source| Known::of(source, "@params"));
    let objects: Vec<(&TypeSource, Objects)> = kinds
        .iter()
        .take(KINDS_MAX)
        .filter_map(|source| {
            let object = Known::of(source, "@object")?;
            Some((source, Objects { object, params: params.clone() }))
        })
        .collect();
    let mut warnings = Vec::new();
    for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for field in ["expression", "messageExpression"] {
            let Some(source) = validation[field].as_str().filter(|source| !source.is_empty()) else {
                continue;
            };
            let found: Vec<String> = objects
                .iter()
                .filter_map(|(kind, objects)| check(spec, has_params, kind, objects, source))
                .collect();
            if !found.is_empty() {
                let place = format!("spec.validations[{index}].{field}");
                warnings.push(json!({"fieldRef": place, "warning": found.join("\n")}));
            }
        }
    }
    warnings
}

fn check(spec: &Json, params: bool, kind: &TypeSource, objects: &Objects, source: &str) -> Option<String> {
    let object = objects.object.ty();
    let params_type = objects.params.as_ref().map_or(Type::Dyn, Known::ty);
    let mut scope = Scope { params, authorizer: true, patches: false, variables: Some(Vec::new()) };
    let environment = |scope: &Scope| scope.typed_environment(&object, &params_type, Some(objects.clone()));
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let (Some(name), Some(source)) = (variable["name"].as_str(), variable["expression"].as_str()) else {
            continue;
        };
        let ty = environment(&scope).check(source).map_or(Type::Dyn, |found| match found.result_type() {
            object @ Type::Object(_) => object.clone(),
            other => declared_with_objects(other),
        });
        scope.variables.get_or_insert_default().push((name.into(), ty));
    }
    let issues = environment(&scope).check(source).err()?;
    let group_version = if kind.group.is_empty() {
        format!("/{}", kind.version)
    } else {
        format!("{}/{}", kind.group, kind.version)
    };
    Some(format!("{group_version}, Kind={}: compilation failed: {issues}\n", kind.kind))
}

/// As variables are declared to others, objects within lists and maps included.
fn declared_with_objects(ty: &Type) -> Type {
    match ty {
        Type::List(element) => Type::list(declared_with_objects(element)),
        Type::Map(key, value) => Type::map(declared_with_objects(key), declared_with_objects(value)),
        Type::Object(_) => ty.clone(),
        other => declared(other),
    }
}
