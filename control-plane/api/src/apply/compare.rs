//! What one value has that another has not, or has differently.

use std::{cmp::Ordering, collections::BTreeMap, sync::LazyLock};

use serde_json::{Map, Value};

use super::{
    element::{PathElement, compare_values},
    set::FieldSet,
    typed::{Atom, Typed, decisive, zero},
};

/// The difference between two values of one type; no field is in more than one of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What only the left value has.
    pub removed: FieldSet,
    pub modified: FieldSet,
    /// What only the right value has.
    pub added: FieldSet,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Removed,
    Modified,
    Added,
}

impl Comparison {
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// What the right value set: modified and added.
    pub fn set(&self) -> FieldSet {
        self.modified.union(&self.added)
    }

    /// All that differs.
    pub fn all(&self) -> FieldSet {
        self.set().union(&self.removed)
    }

    /// Applies one function to all three sets.
    pub(super) fn each(&mut self, mut change: impl FnMut(&mut FieldSet)) {
        change(&mut self.removed);
        change(&mut self.modified);
        change(&mut self.added);
    }

    fn attach(&mut self, element: &PathElement, (own, below): Difference) {
        if own.is_none() && below.is_empty() {
            return;
        }
        let Self { removed, modified, added } = below;
        self.removed.push(element.clone(), own == Some(Change::Removed), removed);
        self.modified.push(element.clone(), own == Some(Change::Modified), modified);
        self.added.push(element.clone(), own == Some(Change::Added), added);
    }
}

/// Compares two values.
///
/// # Errors
/// When items of a list cannot be told apart: a key is missing, or a set holds objects.
pub(super) fn compare(typed: Typed<'_>, left: &Value, right: &Value) -> Result<Comparison, String> {
    difference(typed, Some(left), Some(right)).map(|(_, below)| below)
}

type Difference = (Option<Change>, Comparison);

/// What became of the value itself, and what of the parts below it.
fn difference(typed: Typed<'_>, left: Option<&Value>, right: Option<&Value>) -> Result<Difference, String> {
    let Some(atom) = decisive(left, right).map(|value| typed.atom(value)) else {
        return Ok((None, Comparison::default()));
    };
    if let (Some(left), Some(right)) = (left, right)
        && is_leaf(typed.atom(left), left) != is_leaf(atom, right)
    {
        return other_form(typed, left, right);
    }
    match atom {
        Atom::Leaf(_) | Atom::AtomicObject | Atom::AtomicList => Ok(leaf(left, right)),
        Atom::Struct(_) | Atom::Map(_) | Atom::Deduced => objects(typed, atom, left, right),
        Atom::Set(_) | Atom::Keyed(..) | Atom::KeyedBy(..) => lists(typed, atom, left, right),
    }
}

fn is_leaf(atom: Atom<'_>, value: &Value) -> bool {
    matches!(atom, Atom::Leaf(_) | Atom::AtomicObject | Atom::AtomicList) && !value.is_null()
}

/// A value of unknown type took another form: an object became a scalar, or the other way round.
fn other_form(typed: Typed<'_>, left: &Value, right: &Value) -> Result<Difference, String> {
    let (_, mut below) = match (left.is_object(), right.is_object()) {
        (true, false) => difference(typed, Some(left), None)?,
        (false, true) => difference(typed, None, Some(right))?,
        _ => return Ok(leaf(Some(left), Some(right))),
    };
    below.modified = FieldSet::default();
    Ok((Some(Change::Modified), below))
}

fn leaf(left: Option<&Value>, right: Option<&Value>) -> Difference {
    let own = match (left, right) {
        (None, _) => Some(Change::Added),
        (_, None) => Some(Change::Removed),
        (Some(left), Some(right)) => compare_values(left, right).is_ne().then_some(Change::Modified),
    };
    (own, Comparison::default())
}

/// For what is no leaf: it appeared, it vanished, or it was there all the time.
fn presence(left: Option<&Value>, right: Option<&Value>) -> Option<Change> {
    match (left, right) {
        (None, _) => Some(Change::Added),
        (_, None) => Some(Change::Removed),
        _ => None,
    }
}

fn objects(
    typed: Typed<'_>,
    atom: Atom<'_>,
    left: Option<&Value>,
    right: Option<&Value>,
) -> Result<Difference, String> {
    static NO_ENTRIES: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    let left_entries = left.and_then(Value::as_object).unwrap_or(&*NO_ENTRIES);
    let right_entries = right.and_then(Value::as_object).unwrap_or(&*NO_ENTRIES);
    if left_entries.is_empty() && right_entries.is_empty() {
        return Ok(leaf(left, right));
    }
    let absent = |side: Option<&Value>, name: &str| match (side, atom) {
        (Some(_), Atom::Struct(ty)) => zero(typed.schema, ty, name),
        _ => None,
    };
    let mut below = Comparison::default();
    let (mut lefts, mut rights) = (left_entries.iter().peekable(), right_entries.iter().peekable());
    loop {
        let order = match (lefts.peek(), rights.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let a = if order.is_le() { lefts.next() } else { None };
        let b = if order.is_ge() { rights.next() } else { None };
        let Some((name, _)) = a.or(b) else { break };
        let a = a.map(|(_, value)| value).or_else(|| absent(left, name));
        let b = b.map(|(_, value)| value).or_else(|| absent(right, name));
        below.attach(&PathElement::field(name), difference(typed.of_entry(atom, name), a, b)?);
    }
    Ok((presence(left, right), below))
}

fn lists(
    typed: Typed<'_>,
    atom: Atom<'_>,
    left: Option<&Value>,
    right: Option<&Value>,
) -> Result<Difference, String> {
    let items = |side: Option<&'_ Value>| side.and_then(Value::as_array).map_or(0, Vec::len);
    if items(left) == 0 && items(right) == 0 {
        return Ok(leaf(left, right));
    }
    let mut by_element: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (i, item) in left.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let element = typed.element(atom, item).map_err(|text| format!("element {i}: {text}"))?;
        by_element.entry(element).or_default().0.push(item);
    }
    for (i, item) in right.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let element = typed.element(atom, item).map_err(|text| format!("element {i}: {text}"))?;
        by_element.entry(element).or_default().1.push(item);
    }
    let below_type = typed.of_item(atom);
    let mut below = Comparison::default();
    for (element, (lefts, rights)) in &by_element {
        let item = match (lefts.as_slice(), rights.as_slice()) {
            ([] | [_], [] | [_]) => difference(below_type, lefts.first().copied(), rights.first().copied())?,
            // Repeated items are owned as one: whole.
            ([_, _, ..], [_, _, ..]) => {
                let same = lefts.len() == rights.len()
                    && lefts.iter().zip(rights).all(|(a, b)| compare_values(a, b).is_eq());
                ((!same).then_some(Change::Modified), Comparison::default())
            }
            ([_, _, ..], rest) => {
                let (_, mut parts) = difference(below_type, None, rest.first().copied())?;
                parts.removed = FieldSet::default();
                below.removed.push(element.clone(), true, FieldSet::default());
                (rest.first().map(|_| Change::Added), parts)
            }
            (rest, _) => {
                let (_, parts) = difference(below_type, rest.first().copied(), None)?;
                below.added.push(element.clone(), true, FieldSet::default());
                (rest.first().map(|_| Change::Removed), parts)
            }
        };
        below.attach(element, item);
    }
    below.each(FieldSet::finish);
    Ok((presence(left, right), below))
}
