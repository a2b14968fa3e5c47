//! What an apply removes: fields and items that this applier applied last time, does not apply now, and nobody else owns.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    element::PathElement,
    managed::{Entry, Id, Managed},
    ownership::{InVersion, Ownership},
    set::FieldSet,
    typed::{Atom, Typed},
    walk,
};

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
    let Some(at_last) = write.in_version(&merged, &version)? else { return Ok(merged) };
    let typed = at_last.typed(write);
    let last = walk::with_named_parents(typed, &last);
    let pruned = walk::remove(typed, at_last.object.clone().into_owned(), &last);
    let pruned = add_back_owned(write, &at_last.object, pruned, &version, managed)?;
    let pruned = add_back_dangling(write, &at_last, pruned, &last, &version)?;
    match write.in_version(&pruned, write.api_version)? {
        Some(pruned) => Ok(pruned.object.into_owned()),
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
        let (merged, rest) = (write.in_version(merged, version), write.in_version(&pruned, version));
        let (Some(merged), Some(rest)) = (merged?, rest?) else { continue };
        let typed = merged.typed(write);
        let named = |set: &FieldSet| walk::with_named_parents(typed, set);
        let had = named(&walk::fields(typed, &merged.object));
        let kept = named(&walk::fields(typed, &rest.object)).union(&named(&owned));
        pruned = walk::remove(typed, merged.object.clone().into_owned(), &had.difference(&kept));
    }
    Ok(pruned)
}

/// Puts back what was removed along, though the applier never had it.
fn add_back_dangling(
    write: &Ownership<'_>,
    merged: &InVersion<'_>,
    pruned: Value,
    last: &FieldSet,
    version: &str,
) -> Result<Value, String> {
    let whole = merged.object.clone().into_owned();
    let Some(pruned) = write.in_version(&pruned, version)? else { return Ok(whole) };
    let typed = merged.typed(write);
    let named = |set: &FieldSet| walk::with_named_parents(typed, set);
    let had = named(&walk::fields(typed, &whole));
    let kept = named(&walk::fields(typed, &pruned.object));
    Ok(walk::remove(typed, whole, &had.difference(&kept).intersection(last)))
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
