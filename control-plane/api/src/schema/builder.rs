//! Schemas of custom kinds: the types of metadata, then those of the kind.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use super::{Field, GroupVersionKind, Schema, Shape, Type, TypeId};
use crate::structural::Structural;

pub(super) const OBJECT_META: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Collects the types of one custom kind.
pub(crate) struct TypeBuilder {
    types: Vec<Type>,
    metadata: TypeId,
}

impl TypeBuilder {
    /// Begins with a copy of `ObjectMeta` and of all that it refers to.
    pub(crate) fn with_metadata(builtin: &Schema) -> Self {
        let root = builtin.type_named(OBJECT_META).expect("the table has ObjectMeta");
        let mut ids: BTreeMap<TypeId, TypeId> = BTreeMap::new();
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            if ids.contains_key(&id) {
                continue;
            }
            ids.insert(id, TypeId(0));
            for field in &builtin.get(id).fields {
                references(&field.shape, &mut open);
            }
        }
        for (place, id) in (0..).zip(ids.values_mut()) {
            *id = TypeId(place);
        }
        let types = ids.keys().map(|id| renumbered(builtin.get(*id), &ids)).collect();
        Self { types, metadata: ids[&root] }
    }

    pub(crate) fn metadata(&self) -> TypeId {
        self.metadata
    }

    pub(crate) fn add(&mut self, name: String, fields: Vec<Field>, atomic: bool, open: bool) -> TypeId {
        let id = self.push(name, fields, None, None);
        if let Some(ty) = self.types.last_mut() {
            (ty.atomic, ty.open) = (atomic, open);
        }
        id
    }

    pub(crate) fn finish(
        mut self,
        name: String,
        fields: Vec<Field>,
        gvk: GroupVersionKind,
        structural: Arc<Structural>,
    ) -> (Schema, TypeId) {
        let id = self.push(name, fields, Some(gvk), Some(structural));
        (Schema::from_types(self.types), id)
    }

    fn push(
        &mut self,
        name: String,
        mut fields: Vec<Field>,
        gvk: Option<GroupVersionKind>,
        structural: Option<Arc<Structural>>,
    ) -> TypeId {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let id = TypeId(u32::try_from(self.types.len()).expect("a definition is smaller than its bytes"));
        self.types.push(Type {
            name: Cow::Owned(name),
            fields,
            by_tag: Box::default(),
            stated: Box::default(),
            leaf: None,
            atomic: false,
            gvk,
            open: structural.as_ref().is_some_and(|structural| structural.preserves_unknown),
            structural,
            description_line: 0,
        });
        id
    }
}

fn references(shape: &Shape, found: &mut Vec<TypeId>) {
    match shape {
        Shape::Ref(id) => found.push(*id),
        Shape::List(inner) | Shape::Map(inner) => references(inner, found),
        _ => {}
    }
}

fn renumbered(ty: &Type, ids: &BTreeMap<TypeId, TypeId>) -> Type {
    let mut ty = ty.clone();
    ty.description_line = 0;
    for field in &mut ty.fields {
        renumber(&mut field.shape, ids);
    }
    ty
}

fn renumber(shape: &mut Shape, ids: &BTreeMap<TypeId, TypeId>) {
    match shape {
        Shape::Ref(id) => *id = ids[id],
        Shape::List(inner) | Shape::Map(inner) => renumber(inner, ids),
        _ => {}
    }
}
