//! A set of fields of an object: a tree of path elements, each of which may itself be a member. Read from and written to
//! the JSON of `metadata.managedFields[].fieldsV1`, where a member without children is `{}` and one with children says
//! so with `"."`.

use std::{cmp::Ordering, fmt, mem};

use serde_json::{Map, Value};

use super::element::PathElement;

/// Deeper sets are refused: no object is that deep.
const DEPTH_MAX: usize = 128;

/// Fields of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Sorted by element; each is a member or has children.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    element: PathElement,
    member: bool,
    children: FieldSet,
}

impl Node {
    fn is_used(&self) -> bool {
        self.member || !self.children.is_empty()
    }
}

impl FieldSet {
    /// A set of these paths.
    pub fn of<P: AsRef<[PathElement]>>(paths: impl IntoIterator<Item = P>) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(path.as_ref());
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.nodes.iter().map(|node| usize::from(node.member) + node.children.len()).sum()
    }

    fn find(&self, element: &PathElement) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.element.cmp(element))
    }

    fn get(&self, element: &PathElement) -> Option<&Node> {
        self.find(element).ok().map(|at| &self.nodes[at])
    }

    /// Adds one path; the empty one names the whole object, which nobody owns.
    pub fn insert(&mut self, path: &[PathElement]) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = self.find(first).unwrap_or_else(|at| {
            self.nodes.insert(at, Node { element: first.clone(), member: false, children: Self::default() });
            at
        });
        let node = &mut self.nodes[at];
        if rest.is_empty() {
            node.member = true;
        } else {
            node.children.insert(rest);
        }
    }

    /// Appends a child with what is below it, in any order; [`FieldSet::finish`] must follow.
    pub(super) fn push(&mut self, element: PathElement, member: bool, children: Self) {
        if member || !children.is_empty() {
            self.nodes.push(Node { element, member, children });
        }
    }

    /// Sorts what was pushed and joins equal elements.
    pub(super) fn finish(&mut self) {
        if self.nodes.windows(2).all(|pair| pair[0].element < pair[1].element) {
            return;
        }
        self.nodes.sort_by(|a, b| a.element.cmp(&b.element));
        let mut joined: Vec<Node> = Vec::with_capacity(self.nodes.len());
        for node in mem::take(&mut self.nodes) {
            match joined.last_mut() {
                Some(last) if last.element == node.element => {
                    last.member |= node.member;
                    last.children = last.children.union(&node.children);
                }
                _ => joined.push(node),
            }
        }
        self.nodes = joined;
    }

    pub fn contains(&self, path: &[PathElement]) -> bool {
        match path.split_first() {
            None => false,
            Some((first, rest)) => self
                .get(first)
                .is_some_and(|node| if rest.is_empty() { node.member } else { node.children.contains(rest) }),
        }
    }

    pub(super) fn has_member(&self, element: &PathElement) -> bool {
        self.get(element).is_some_and(|node| node.member)
    }

    /// What begins with `element`, without it.
    pub fn below(&self, element: &PathElement) -> Option<&Self> {
        self.get(element).map(|node| &node.children).filter(|children| !children.is_empty())
    }

    /// Walks two sets side by side; `join` says what becomes of an element that either has.
    fn zip(&self, other: &Self, mut join: impl FnMut(Option<&Node>, Option<&Node>) -> Option<Node>) -> Self {
        let (mut left, mut right) = (self.nodes.iter().peekable(), other.nodes.iter().peekable());
        let mut nodes = Vec::new();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return Self { nodes },
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.element.cmp(&b.element),
            };
            let a = if order.is_le() { left.next() } else { None };
            let b = if order.is_ge() { right.next() } else { None };
            nodes.extend(join(a, b).filter(Node::is_used));
        }
    }

    /// What either has.
    pub fn union(&self, other: &Self) -> Self {
        self.zip(other, |a, b| match (a, b) {
            (Some(a), Some(b)) => Some(Node {
                element: a.element.clone(),
                member: a.member || b.member,
                children: a.children.union(&b.children),
            }),
            (one, other) => one.or(other).cloned(),
        })
    }

    /// What both have.
    pub fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let (a, b) = a.zip(b)?;
            Some(Node {
                element: a.element.clone(),
                member: a.member && b.member,
                children: a.children.intersection(&b.children),
            })
        })
    }

    /// What is not in `other`; a child stays where only its parent is in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let a = a?;
            let Some(b) = b else { return Some(a.clone()) };
            Some(Node {
                element: a.element.clone(),
                member: a.member && !b.member,
                children: a.children.difference(&b.children),
            })
        })
    }

    /// What is not in `other`, nor below a member of it.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.zip(other, |a, b| {
            let a = a?;
            match b {
                None => Some(a.clone()),
                Some(b) if b.member => None,
                Some(b) => Some(Node {
                    element: a.element.clone(),
                    member: a.member,
                    children: a.children.recursive_difference(&b.children),
                }),
            }
        })
    }

    /// Whether `other` has all that is here.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.nodes.iter().all(|node| {
            other.get(&node.element).is_some_and(|other| {
                (other.member || !node.member) && node.children.is_subset(&other.children)
            })
        })
    }

    /// The members that have no members below them.
    pub fn leaves(&self) -> Self {
        let leaf = |node: &Node| Node {
            element: node.element.clone(),
            member: node.member && node.children.is_empty(),
            children: node.children.leaves(),
        };
        Self { nodes: self.nodes.iter().map(leaf).collect() }
    }

    /// Takes out what is at this path of field names and below.
    pub(super) fn remove_below(&mut self, path: &[&str]) {
        self.remove_at(path, &mut |node| {
            node.member = false;
            node.children = Self::default();
        });
    }

    /// Takes out the member at this path of field names; what is below stays.
    pub(super) fn remove_member(&mut self, path: &[&str]) {
        self.remove_at(path, &mut |node| node.member = false);
    }

    fn remove_at(&mut self, path: &[&str], remove: &mut dyn FnMut(&mut Node)) {
        let Some((first, rest)) = path.split_first() else { return };
        let is_named =
            |node: &Node| matches!(&node.element, PathElement::Field(name) if name.as_ref() == *first);
        let Some(at) = self.nodes.iter().position(is_named) else { return };
        let node = &mut self.nodes[at];
        if rest.is_empty() {
            remove(node);
        } else {
            node.children.remove_at(rest, remove);
        }
        if !node.is_used() {
            self.nodes.remove(at);
        }
    }

    /// Keeps what begins with one of these paths of field names, in which `*` is any one step.
    pub(super) fn keep_prefixes(&self, prefixes: &[&[&str]]) -> Self {
        if prefixes.iter().any(|prefix| prefix.is_empty()) {
            return self.clone();
        }
        let mut kept = Self::default();
        for node in &self.nodes {
            let rests: Vec<&[&str]> = prefixes
                .iter()
                .filter_map(|prefix| {
                    let (first, rest) = prefix.split_first()?;
                    let fits = *first == "*"
                        || matches!(&node.element, PathElement::Field(name) if name.as_ref() == *first);
                    fits.then_some(rest)
                })
                .collect();
            if !rests.is_empty() {
                kept.push(node.element.clone(), node.member, node.children.keep_prefixes(&rests));
            }
        }
        kept
    }

    /// Rebuilds the tree: `visit` gets an element, whether it is a member, and its children; what it returns stands
    /// instead.
    pub(super) fn map(&self, mut visit: impl FnMut(&PathElement, bool, &Self) -> (bool, Self)) -> Self {
        let nodes = self
            .nodes
            .iter()
            .map(|node| {
                let (member, children) = visit(&node.element, node.member, &node.children);
                Node { element: node.element.clone(), member, children }
            })
            .filter(Node::is_used)
            .collect();
        Self { nodes }
    }

    /// The paths of all members, those of one level before those below.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut paths = Vec::new();
        self.add_paths(&mut Vec::new(), &mut paths);
        paths
    }

    fn add_paths(&self, prefix: &mut Vec<PathElement>, paths: &mut Vec<Vec<PathElement>>) {
        for node in self.nodes.iter().filter(|node| node.member) {
            let mut path = prefix.clone();
            path.push(node.element.clone());
            paths.push(path);
        }
        for node in self.nodes.iter().filter(|node| !node.children.is_empty()) {
            prefix.push(node.element.clone());
            node.children.add_paths(prefix, paths);
            prefix.pop();
        }
    }

    /// Reads `fieldsV1`.
    ///
    /// # Errors
    /// When it is not an object of objects, or a key is not a path element.
    pub fn decode(fields: &Value) -> Result<Self, String> {
        let fields = fields.as_object().ok_or("fieldsV1 is not an object")?;
        Self::decode_object(fields, 0).map(|(children, _)| children)
    }

    /// The children, and whether the object itself is a member.
    fn decode_object(fields: &Map<String, Value>, depth: usize) -> Result<(Self, bool), String> {
        if depth >= DEPTH_MAX {
            return Err(format!("fieldsV1 is deeper than {DEPTH_MAX}"));
        }
        let mut set = Self::default();
        let mut member = false;
        for (key, below) in fields {
            if key == "." {
                member = true;
                continue;
            }
            let Some(element) = PathElement::parse(key)? else { continue };
            let below = below.as_object().ok_or_else(|| format!("{key} of fieldsV1 is not an object"))?;
            let (children, is_member) = Self::decode_object(below, depth + 1)?;
            set.push(element, is_member, children);
        }
        set.finish();
        member |= set.is_empty();
        Ok((set, member))
    }

    /// The JSON of `fieldsV1`.
    pub fn encode(&self) -> Value {
        Value::Object(self.encode_object(false))
    }

    fn encode_object(&self, is_member: bool) -> Map<String, Value> {
        let mut object = Map::new();
        if is_member && !self.is_empty() {
            object.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for node in &self.nodes {
            object.insert(node.element.encode(), Value::Object(node.children.encode_object(node.member)));
        }
        object
    }

    /// The text of `fieldsV1` in the order that upstream writes: by element, numbers by amount.
    pub fn to_json(&self) -> String {
        let mut text = String::new();
        self.write_json(false, &mut text);
        text
    }

    fn write_json(&self, is_member: bool, text: &mut String) {
        let start = text.len();
        text.push('{');
        if is_member && !self.is_empty() {
            text.push_str("\".\":{}");
        }
        for node in &self.nodes {
            if text.len() > start + 1 {
                text.push(',');
            }
            text.push_str(&Value::from(node.element.encode()).to_string());
            text.push(':');
            node.children.write_json(node.member, text);
        }
        text.push('}');
    }

    /// Whether a set in the form of `fieldsV1` that this code wrote shares a member with this one.
    pub(super) fn touches_encoded(&self, fields: &Map<String, Value>) -> bool {
        self.nodes.iter().any(|node| {
            let Some(below) = fields.get(&node.element.encode()).and_then(Value::as_object) else {
                return false;
            };
            (node.member && is_member_encoded(below)) || node.children.touches_encoded(below)
        })
    }

    /// Whether a set in the form of `fieldsV1` that this code wrote has all members of this one.
    pub(super) fn is_subset_encoded(&self, fields: &Map<String, Value>) -> bool {
        self.nodes.iter().all(|node| {
            fields.get(&node.element.encode()).and_then(Value::as_object).is_some_and(|below| {
                (!node.member || is_member_encoded(below)) && node.children.is_subset_encoded(below)
            })
        })
    }
}

fn is_member_encoded(below: &Map<String, Value>) -> bool {
    below.is_empty() || below.contains_key(".")
}

/// A path as errors write it: `.spec.ports[port=80,protocol="TCP"].nodePort`.
pub fn path_text(path: &[PathElement]) -> String {
    path.iter().map(PathElement::to_string).collect()
}

impl fmt::Display for FieldSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<String> = self.paths().iter().map(|path| path_text(path)).collect();
        f.write_str(&paths.join("\n"))
    }
}

#[cfg(test)]
mod tests;
