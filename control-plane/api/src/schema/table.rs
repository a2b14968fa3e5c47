//! Reads the committed table: a line `T name attributes` for each type, then a line for each of its fields, tab, name,
//! protobuf tags, form, attributes, all separated by tabs. Names and keys stay slices of the text in the binary.

use std::{borrow::Cow, collections::HashMap};

use super::{
    Alternative, Field, GroupVersionKind, ListType, MapType, PatchStrategy, Shape, Text, Type, TypeId,
};

pub(super) const BUILTIN: &str = include_str!("../../schema/types.txt");

/// # Panics
/// When the table is not what `cargo xtask schema` writes: it is part of the binary, and the tests read it.
pub(super) fn parse(text: &'static str) -> Vec<Type> {
    let lines = || text.lines().filter(|line| !line.starts_with('#')).zip(0..);
    let mut ids: HashMap<&str, TypeId> = HashMap::new();
    for (line, _) in lines() {
        if let Some(header) = line.strip_prefix("T ") {
            let name = header.split('\t').next().expect("split yields at least one part");
            let id = TypeId(ids.len() as u32);
            ids.insert(name, id);
        }
    }
    let mut types: Vec<Type> = Vec::with_capacity(ids.len());
    for (line, number) in lines() {
        if let Some(header) = line.strip_prefix("T ") {
            types.push(parse_type(header, number));
        } else if let (Some(field), Some(ty)) = (line.strip_prefix('\t'), types.last_mut()) {
            ty.fields.push(parse_field(field, &ids));
        }
    }
    for ty in &mut types {
        ty.fields.shrink_to_fit();
        ty.by_tag = super::by_tag(&ty.fields);
        debug_assert!(ty.fields.is_sorted_by(|a, b| a.name < b.name), "fields of {} are sorted", ty.name);
    }
    types
}

fn parse_type(header: &'static str, description_line: u32) -> Type {
    let mut parts = header.split('\t');
    let name = Cow::Borrowed(parts.next().expect("split yields at least one part"));
    let mut ty = Type {
        name,
        fields: Vec::new(),
        by_tag: Box::default(),
        stated: Box::default(),
        leaf: None,
        atomic: false,
        gvk: None,
        open: false,
        structural: None,
        description_line,
    };
    for attribute in parts {
        match attribute.split_once('=') {
            Some(("gvk", gvk)) => {
                let mut parts = gvk.split('/').map(Cow::Borrowed);
                let mut part = || parts.next().expect("gvk has three parts");
                ty.gvk = Some(GroupVersionKind { group: part(), version: part(), kind: part() });
            }
            Some(("leaf", leaf)) => ty.leaf = Some(scalar(leaf)),
            _ if attribute == "atomic" => ty.atomic = true,
            _ => panic!("the schema table has an unknown attribute {attribute:?}"),
        }
    }
    ty
}

fn parse_field(line: &'static str, ids: &HashMap<&str, TypeId>) -> Field {
    let mut parts = line.split('\t');
    let mut part = || parts.next().expect("a field has at least three columns");
    let (name, tags, shape) = (part(), part(), part());
    let mut field = Field {
        name: Cow::Borrowed(name),
        shape: parse_shape(shape, ids),
        tags: tags.split('/').filter_map(|tag| tag.parse().ok()).collect(),
        list: ListType::Unset,
        map: None,
        patch: PatchStrategy::default(),
        merge_key: None,
        default: None,
        required: false,
        pointer: false,
        shows_zero: false,
        wrapped: false,
    };
    for attribute in parts {
        match attribute.split_once('=') {
            None if attribute == "required" => field.required = true,
            None if attribute == "pointer" => field.pointer = true,
            None if attribute == "zero" => field.shows_zero = true,
            None if attribute == "wrapped" => field.wrapped = true,
            Some(("list", list)) => field.list = parse_list(list),
            Some(("map", "atomic")) => field.map = Some(MapType::Atomic),
            Some(("map", "granular")) => field.map = Some(MapType::Granular),
            Some(("default", default)) => field.default = Some(Cow::Borrowed(default)),
            Some(("patch", patch)) => {
                let (strategies, key) = patch.split_once(':').unwrap_or((patch, ""));
                field.merge_key = (!key.is_empty()).then_some(Cow::Borrowed(key));
                let has = |wanted: &str| strategies.split(',').any(|strategy| strategy == wanted);
                field.patch = PatchStrategy {
                    merge: has("merge"),
                    replace: has("replace"),
                    retain_keys: has("retainKeys"),
                };
            }
            _ => panic!("the schema table has an unknown attribute {attribute:?}"),
        }
    }
    field
}

fn parse_list(list: &'static str) -> ListType {
    match list.split_once(':') {
        Some(("map", keys)) => ListType::Map(keys.split(',').map(Text::from).collect()),
        None if list == "atomic" => ListType::Atomic,
        None if list == "set" => ListType::Set,
        _ => panic!("the schema table has an unknown list type {list:?}"),
    }
}

fn parse_shape(text: &str, ids: &HashMap<&str, TypeId>) -> Shape {
    if let Some(item) = text.strip_prefix("[]") {
        return Shape::List(Box::new(parse_shape(item, ids)));
    }
    if let Some(value) = text.strip_prefix("{}") {
        return Shape::Map(Box::new(parse_shape(value, ids)));
    }
    match text.strip_prefix('@') {
        Some(name) => {
            Shape::Ref(*ids.get(name).unwrap_or_else(|| panic!("the schema table has no type {name:?}")))
        }
        None => scalar(text),
    }
}

fn scalar(text: &str) -> Shape {
    match text {
        "string" => Shape::String,
        "byte" => Shape::Bytes,
        "boolean" => Shape::Boolean,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "double" => Shape::Double,
        "int-or-string" => Shape::IntOrString,
        "quantity" => Shape::Quantity,
        "time" => Shape::Time,
        "micro-time" => Shape::MicroTime,
        "object" => Shape::Object,
        "any" => Shape::Any,
        "schema-or-bool" => Shape::SchemaOr(Alternative::Boolean),
        "schema-or-array" => Shape::SchemaOr(Alternative::Schemas),
        "schema-or-strings" => Shape::SchemaOr(Alternative::Strings),
        _ => panic!("the schema table has an unknown form {text:?}"),
    }
}
