//! One schema engine for every kind: a table of types (fields, list keys, patch keys, defaults, what is required), the
//! resources that the API serves, and the functions that read them.
//!
//! [`builtin`] is the stable API of Kubernetes 1.36, read on first use from the committed table that `cargo xtask schema`
//! derives. Deliberately absent: rules of single kinds; those live in the API server's registry.
//!
//! ```text
//! bytes -> json::parse_strict -> Schema::decode -> Schema::default -> registry rules -> Schema::required
//! ```

mod builder;
mod decode;
mod default;
mod resources;
mod table;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use crate::structural::Structural;

pub(crate) use builder::TypeBuilder;
pub use decode::Decoded;
pub(crate) use decode::is_zero;

/// A type of one [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub(crate) u32);

/// Text that is part of the binary for built-in types, and owned for those of CustomResourceDefinitions.
pub type Text = Cow<'static, str>;

/// The form of a JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    String,
    /// Base64.
    Bytes,
    Boolean,
    Int32,
    Int64,
    Double,
    IntOrString,
    Quantity,
    /// RFC 3339 to the second.
    Time,
    /// RFC 3339 to the microsecond.
    MicroTime,
    /// An object whose fields nobody knows.
    Object,
    /// Any JSON.
    Any,
    /// An OpenAPI schema or, as the case may be, a boolean, a list of schemas, a list of strings.
    SchemaOr(Alternative),
    List(Box<Shape>),
    Map(Box<Shape>),
    Ref(TypeId),
}

/// What may stand in place of an OpenAPI schema inside a CustomResourceDefinition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    Boolean,
    Schemas,
    Strings,
}

/// How a list is owned and merged: `x-kubernetes-list-type`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Unset,
    Atomic,
    Set,
    /// With `x-kubernetes-list-map-keys`.
    Map(Box<[Text]>),
}

/// How a map or object is owned: `x-kubernetes-map-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    Atomic,
    Granular,
}

/// `x-kubernetes-patch-strategy`, as flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

#[derive(Clone, Debug)]
pub struct Field {
    /// The JSON name.
    pub name: Text,
    pub shape: Shape,
    /// The path of protobuf tags; more than one where Go embeds a struct, none where the tag is not known.
    pub tags: Box<[u32]>,
    pub list: ListType,
    /// `x-kubernetes-map-type`, where it is stated.
    pub map: Option<MapType>,
    pub patch: PatchStrategy,
    /// `x-kubernetes-patch-merge-key`.
    pub merge_key: Option<Text>,
    /// JSON text.
    pub default: Option<Text>,
    pub required: bool,
    /// A pointer in Go: absent is not zero. Lists and maps have no such difference.
    pub pointer: bool,
    /// Not required, and yet JSON shows it when it is zero.
    pub shows_zero: bool,
    /// A list that protobuf has as a message of its own, whose first field repeats.
    pub wrapped: bool,
}

impl Field {
    /// Whether a zero value says the same as none: what Go leaves out of JSON, and protobuf cannot tell apart.
    pub fn omits_zero(&self) -> bool {
        !self.pointer && !self.required && !self.shows_zero
    }
}

/// The indices of the fields that JSON has in any case, though nobody must state them: structs that are no pointers in
/// Go, quantities among them, and scalars that it writes also when they are zero.
fn stated<'a>(fields: &'a [Field], resolve: impl Fn(&'a Shape) -> &'a Shape) -> Box<[u16]> {
    let is_stated = |field: &'a Field| match resolve(&field.shape) {
        Shape::List(_) | Shape::Map(_) | Shape::Time | Shape::MicroTime => false,
        Shape::Ref(_) => !field.pointer && !field.required,
        leaf => *leaf == Shape::Quantity && field.omits_zero() || field.shows_zero && field.default.is_none(),
    };
    (0..).zip(fields).filter(|(_, field)| is_stated(field)).map(|(i, _)| i).collect()
}

/// The indices of the fields that protobuf knows, in the order of their tags.
pub(crate) fn by_tag(fields: &[Field]) -> Box<[u16]> {
    let mut order: Vec<u16> =
        (0..).zip(fields).filter(|(_, field)| !field.tags.is_empty()).map(|(i, _)| i).collect();
    order.sort_by_key(|i| &fields[usize::from(*i)].tags);
    order.into()
}

/// Group, version and kind of a type that is a whole object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupVersionKind {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
}

#[derive(Clone, Debug)]
pub struct Type {
    /// The OpenAPI definition without `io.k8s.`, such as `api.core.v1.Pod`.
    pub name: Text,
    /// Sorted by name; none where `leaf` says another form.
    pub fields: Vec<Field>,
    /// See [`by_tag`].
    pub(crate) by_tag: Box<[u16]>,
    /// See [`stated`].
    pub(crate) stated: Box<[u16]>,
    pub leaf: Option<Shape>,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    pub gvk: Option<GroupVersionKind>,
    /// Keeps fields that it does not name: `x-kubernetes-preserve-unknown-fields`.
    pub open: bool,
    /// What decoding and defaulting go by, where the type is a custom kind.
    pub structural: Option<Arc<Structural>>,
    /// Line of the descriptions where this type's text stands; its fields follow.
    pub(crate) description_line: u32,
}

impl Type {
    /// The OpenAPI definition's name.
    pub fn definition(&self) -> String {
        format!("io.k8s.{}", self.name)
    }

    /// The name as Go has it: `Pod`.
    pub fn go_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or("")
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        let found = self.fields.binary_search_by(|field| field.name.as_ref().cmp(name)).ok()?;
        self.fields.get(found)
    }
}

/// A resource of the API: what discovery says about it.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// In discovery's (alphabetical) order.
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    /// The version that is stored.
    pub storage_version: String,
    pub ty: TypeId,
}

/// A subresource; `group`, `version` and `kind` are those of the body, empty group and version for those of the parent.
#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: String,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

impl Resource {
    /// `PodList`.
    pub fn list_kind(&self) -> String {
        self.list_kind.clone()
    }

    /// `v1` or `apps/v1`.
    pub fn group_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|has| has == verb)
    }
}

/// Types and resources.
#[derive(Debug)]
pub struct Schema {
    types: Vec<Type>,
    by_name: HashMap<Text, TypeId>,
    by_gvk: HashMap<GroupVersionKind, TypeId>,
    resources: Vec<Resource>,
}

/// The stable API of Kubernetes 1.36.
pub fn builtin() -> &'static Schema {
    static BUILTIN: LazyLock<Schema> = LazyLock::new(|| {
        let mut schema = Schema::from_types(table::parse(table::BUILTIN));
        schema.resources = resources::builtin(&schema);
        schema
    });
    &BUILTIN
}

/// The table as it is committed, to name its content.
pub(crate) fn table_text() -> &'static str {
    table::BUILTIN
}

/// Kinds that every group and version has, with the type that serves them all.
const UNIVERSAL: [(&str, &str); 3] = [
    ("DeleteOptions", "apimachinery.pkg.apis.meta.v1.DeleteOptions"),
    ("WatchEvent", "apimachinery.pkg.apis.meta.v1.WatchEvent"),
    ("Status", "apimachinery.pkg.apis.meta.v1.Status"),
];

impl Schema {
    fn from_types(types: Vec<Type>) -> Self {
        let ids = || (0..).map(TypeId);
        let by_name = types.iter().zip(ids()).map(|(ty, id)| (ty.name.clone(), id)).collect();
        let by_gvk = types.iter().zip(ids()).filter_map(|(ty, id)| Some((ty.gvk.clone()?, id))).collect();
        let mut schema = Self { types, by_name, by_gvk, resources: Vec::new() };
        let stated: Vec<_> =
            schema.types.iter().map(|ty| stated(&ty.fields, |shape| schema.resolve(shape))).collect();
        schema.types.iter_mut().zip(stated).for_each(|(ty, stated)| ty.stated = stated);
        schema
    }

    /// Every resource, in the order of discovery.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Resource> {
        let mut resources = self.resources.iter();
        resources.find(|found| found.group == group && found.version == version && found.plural == plural)
    }

    /// Whether anything is served under a group and version.
    pub fn has_resource(&self, group: &str, version: &str) -> bool {
        self.resources.iter().any(|found| found.group == group && found.version == version)
    }

    /// The resource that stores a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Resource> {
        let mut resources = self.resources.iter();
        resources.find(|found| found.group == group && found.version == version && found.kind == kind)
    }

    /// The type of a kind, also of those that are never stored: `DeleteOptions`, `Status`, `Scale`, reviews, lists.
    pub fn type_of(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let own = |text: &str| Cow::Owned(text.to_owned());
        let gvk = GroupVersionKind { group: own(group), version: own(version), kind: own(kind) };
        self.by_gvk.get(&gvk).copied().or_else(|| {
            let (_, name) = UNIVERSAL.iter().find(|(universal, _)| *universal == kind)?;
            self.type_named(name)
        })
    }

    /// By the name of its definition without `io.k8s.`.
    pub fn type_named(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The fields of a type that JSON has in any case.
    pub(crate) fn stated<'a>(&self, ty: &'a Type) -> impl Iterator<Item = &'a Field> {
        ty.stated.iter().map(|index| &ty.fields[usize::from(*index)])
    }

    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// The type of OpenAPI schemas, which stand inside CustomResourceDefinitions.
    pub(crate) fn json_schema_props(&self) -> TypeId {
        self.type_named("apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .expect("the table has the type of OpenAPI schemas")
    }

    /// The form behind a reference to a named type that is no object with fields.
    pub(crate) fn resolve<'a>(&'a self, shape: &'a Shape) -> &'a Shape {
        match shape {
            Shape::Ref(id) => self.get(*id).leaf.as_ref().unwrap_or(shape),
            shape => shape,
        }
    }
}

#[cfg(test)]
mod tests;
