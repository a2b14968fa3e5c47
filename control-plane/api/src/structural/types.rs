//! A definition's version as a [`Schema`]: the types of its metadata, and the structural schema as types, so that what
//! works on types (server-side apply, decoding, defaults) works on custom kinds.

use std::{borrow::Cow, sync::Arc};

use super::{Additional, Kind, ListKind, Structural};
use crate::schema::{
    Field, GroupVersionKind, ListType, MapType, PatchStrategy, Schema, Shape, Text, TypeBuilder, TypeId,
};

/// What a version of a CustomResourceDefinition is called.
#[derive(Clone, Copy, Debug)]
pub struct Definition<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
}

impl Definition<'_> {
    /// The schema that holds the kind, and the kind's type in it.
    pub fn schema(&self, structural: Structural) -> (Schema, TypeId) {
        let builtin = crate::schema::builtin();
        let mut builder = TypeBuilder::with_metadata(builtin);
        let name = format!("{}.{}.{}", self.group, self.version, self.kind);
        let structural = Arc::new(structural);
        let mut fields = object_fields(&structural, &name, &mut builder);
        fields.retain(|field| !matches!(&*field.name, "apiVersion" | "kind" | "metadata"));
        fields.extend([
            plain("apiVersion", Shape::String),
            plain("kind", Shape::String),
            plain("metadata", Shape::Ref(builder.metadata())),
        ]);
        let gvk =
            GroupVersionKind { group: own(self.group), version: own(self.version), kind: own(self.kind) };
        builder.finish(name, fields, gvk, structural)
    }
}

fn own(text: &str) -> Text {
    Cow::Owned(text.to_owned())
}

fn plain(name: &str, shape: Shape) -> Field {
    Field {
        name: own(name),
        shape,
        tags: Box::default(),
        list: ListType::Unset,
        map: None,
        patch: PatchStrategy::default(),
        merge_key: None,
        default: None,
        required: false,
        pointer: true,
        shows_zero: false,
        wrapped: false,
    }
}

/// The declared fields of an object.
fn object_fields(structural: &Structural, name: &str, builder: &mut TypeBuilder) -> Vec<Field> {
    let field = |(property, schema): (&str, &Structural)| {
        let shape = shape(schema, &format!("{name}.{property}"), builder);
        Field {
            list: list_type(schema),
            map: schema.is_atomic_map.then_some(MapType::Atomic),
            default: schema.default.as_ref().map(|default| Cow::Owned(default.to_string())),
            ..plain(property, shape)
        }
    };
    structural.properties.iter().map(|(name, schema)| (&**name, schema)).map(field).collect()
}

fn list_type(structural: &Structural) -> ListType {
    match &structural.list {
        // Upstream: lists of custom resources that say nothing are atomic.
        ListKind::Unset if structural.kind == Kind::Array => ListType::Atomic,
        ListKind::Unset => ListType::Unset,
        ListKind::Atomic => ListType::Atomic,
        ListKind::Set => ListType::Set,
        ListKind::Map(keys) => ListType::Map(keys.iter().map(|key| own(key)).collect()),
    }
}

/// Whether an object has the fields that its schema names, be it none: what is neither a map nor open.
fn has_fields(structural: &Structural) -> bool {
    !structural.properties.is_empty()
        || structural.is_embedded
        || (structural.additional.is_none() && !structural.preserves_unknown)
}

fn shape(structural: &Structural, name: &str, builder: &mut TypeBuilder) -> Shape {
    match structural.kind {
        Kind::String => Shape::String,
        Kind::Boolean => Shape::Boolean,
        Kind::Integer => Shape::Int64,
        Kind::Number => Shape::Double,
        Kind::IntOrString => Shape::IntOrString,
        Kind::Array => {
            let item = structural.items.as_deref();
            let item = item.map_or(Shape::Any, |item| shape(item, &format!("{name}.items"), builder));
            Shape::List(Box::new(item))
        }
        Kind::Object if has_fields(structural) => {
            let mut fields = object_fields(structural, name, builder);
            if structural.is_embedded {
                fields.retain(|field| !matches!(&*field.name, "apiVersion" | "kind" | "metadata"));
                fields.extend([
                    plain("apiVersion", Shape::String),
                    plain("kind", Shape::String),
                    plain("metadata", Shape::Ref(builder.metadata())),
                ]);
            }
            let (atomic, open) = (structural.is_atomic_map, structural.preserves_unknown);
            Shape::Ref(builder.add(name.to_owned(), fields, atomic, open))
        }
        Kind::Object => match &structural.additional {
            Some(Additional::Schema(inner)) => {
                Shape::Map(Box::new(shape(inner, &format!("{name}.values"), builder)))
            }
            // Of an object that says nothing of its fields all are unknown, and nothing is lost.
            Some(Additional::Allowed(_)) => Shape::Map(Box::new(Shape::Any)),
            None => Shape::Object,
        },
        Kind::Any => Shape::Any,
    }
}
