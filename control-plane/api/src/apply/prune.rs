//! What an apply removes: fields and items that this applier applied last time, does not apply now, and nobody else owns.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    element::PathElement,
    managed::{Entry, Id, Managed},
    ownership::Ownership,
    set::FieldSet,
    typed::{Atom, Typed},
    walk,
};
use crate::schema::Shape;

/// Removes from `merged` what only the last configuration had. `managed` holds the new set of the applier already.
pub(super) fn prune(
    write: &Ownership<'_>,
    merged: Value,
    managed: &mut Managed,
    applier: &Id,
    last: Option<Entry>,
) -> Result<Value, String> {
    let Some(mut last) = last else { return Ok(merged) };
    let version = last.api_version.clone();
    let last = std::mem::take(last.fields.set()?);
    let applied = match managed.0.get_mut(applier) {
        Some(entry) if entry.api_version == version => entry.fields.set()?,
        _ => &mut FieldSet::default(),
    };
    if last.is_subset(applied) {
        return Ok(merged);
    }
    let Some((at_last, shape)) = write.in_version(&merged, &version) else { return Ok(merged) };
    let at_last = at_last.into_owned();
    let typed = Typed::root(write.schema, &shape);
    let pruned = walk::remove(typed, at_last.clone(), &walk::with_named_parents(typed, &last));
    let pruned = add_back_owned(write, &at_last, pruned, &version, managed)?;
    let pruned = add_back_dangling(write, at_last, pruned, &shape, &last, &version);
    match write.in_version(&pruned, write.api_version) {
        Some((pruned, _)) => Ok(pruned.into_owned()),
        None => Err(format!("failed to convert pruned object to {}", write.api_version)),
    }
}

/// Puts back what somebody owns, the new configuration of the applier included.
fn add_back_owned(
    write: &Ownership<'_>,
    merged: &Value,
    mut pruned: Value,
    version: &str,
    managed: &mut Managed,
) -> Result<Value, String> {
    let mut by_version: BTreeMap<&str, FieldSet> = BTreeMap::new();
    for Entry { api_version, fields, .. } in managed.0.values_mut() {
        let set = by_version.entry(api_version).or_default();
        *set = set.union(fields.set()?);
    }
    // In the version of the last configuration first: other versions may not be made without what is put back.
    let first = by_version.remove_entry(version);
    for (version, owned) in first.into_iter().chain(by_version) {
        let Some((merged, shape)) = write.in_version(merged, version) else { continue };
        let Some((rest, _)) = write.in_version(&pruned, version) else { continue };
        let typed = Typed::root(write.schema, &shape);
        let named = |set: &FieldSet| walk::with_named_parents(typed, set);
        let had = named(&walk::fields(typed, &merged));
        let kept = named(&walk::fields(typed, &rest)).union(&named(&owned));
        pruned = walk::remove(typed, merged.into_owned(), &had.difference(&kept));
    }
    Ok(pruned)
}

/// Puts back what was removed along, though the applier never had it.
fn add_back_dangling(
    write: &Ownership<'_>,
    merged: Value,
    pruned: Value,
    shape: &Shape,
    last: &FieldSet,
    version: &str,
) -> Value {
    let Some((pruned, _)) = write.in_version(&pruned, version) else { return merged };
    let typed = Typed::root(write.schema, shape);
    let named = |set: &FieldSet| walk::with_named_parents(typed, set);
    let had = named(&walk::fields(typed, &merged));
    let kept = named(&walk::fields(typed, &pruned));
    walk::remove(typed, merged, &had.difference(&kept).intersection(&named(last)))
}

/// The set as the schema of today has it, where that differs: fields below what is owned whole today become the whole.
pub(super) fn reconciled(typed: Typed<'_>, set: &FieldSet) -> Option<FieldSet> {
    let mut is_changed = false;
    let fitting = fit(typed, set, &mut is_changed);
    is_changed.then_some(fitting)
}

fn fit(typed: Typed<'_>, set: &FieldSet, is_changed: &mut bool) -> FieldSet {
    let atom = typed.atom(&Value::Null);
    set.map(|element, member, children| {
        let below = match (element, atom) {
            (PathElement::Field(name), Atom::Struct(ty)) => typed.of_field(ty, name),
            (PathElement::Field(name), atom) => typed.of_entry(atom, name),
            _ => typed.of_item(atom),
        };
        match below.atom(&Value::Null) {
            Atom::AtomicObject | Atom::AtomicList if !children.is_empty() => {
                *is_changed = true;
                (true, FieldSet::default())
            }
            _ => (member, fit(below, children, is_changed)),
        }
    })
}
