//! The parsed expression: nodes in one vector, named by their index.

use std::sync::Arc;

use crate::types::Name;

/// A node of an [`Ast`].
pub(crate) type Id = u32;

/// Nodes of one expression, macros expanded.
pub(crate) const NODES_MAX: usize = 200_000;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Literal(Literal),
    /// A leading dot is kept.
    Ident(Name),
    Select {
        operand: Id,
        field: Name,
        /// `has(operand.field)`.
        test: bool,
    },
    /// Operators too: `_+_`, `_&&_` (with all terms of a chain), `_?_:_`, `_[_]`, `_?._`, `_[?_]`.
    Call {
        function: Name,
        target: Option<Id>,
        args: Vec<Id>,
    },
    List(Vec<Element>),
    Map(Vec<Entry>),
    Struct {
        name: Name,
        fields: Vec<Field>,
    },
    Comprehension(Box<Comprehension>),
}

#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub value: Id,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Id,
    pub value: Id,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub name: Name,
    pub value: Id,
    pub optional: bool,
    pub offset: usize,
}

/// A loop over a list or map.
#[derive(Clone, Debug)]
pub(crate) struct Comprehension {
    pub range: Id,
    pub var: Name,
    pub var2: Option<Name>,
    pub accu: Name,
    pub init: Id,
    pub condition: Id,
    pub step: Id,
    pub result: Id,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub kind: Kind,
    /// In bytes from the start of the source.
    pub offset: usize,
    /// Levels from here down to the deepest leaf.
    pub height: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Ast {
    pub nodes: Vec<Node>,
    pub root: Id,
}

impl Ast {
    pub fn kind(&self, id: Id) -> &Kind {
        &self.nodes[id as usize].kind
    }

    pub fn offset(&self, id: Id) -> usize {
        self.nodes[id as usize].offset
    }

    pub fn push(&mut self, kind: Kind, offset: usize) -> Id {
        let height =
            1 + self.children(&kind).map(|child| self.nodes[child as usize].height).max().unwrap_or(0);
        self.nodes.push(Node { kind, offset, height });
        (self.nodes.len() - 1) as Id
    }

    pub fn height(&self, id: Id) -> usize {
        self.nodes[id as usize].height
    }

    fn children<'k>(&self, kind: &'k Kind) -> Box<dyn Iterator<Item = Id> + 'k> {
        match kind {
            Kind::Literal(_) | Kind::Ident(_) => Box::new(std::iter::empty()),
            Kind::Select { operand, .. } => Box::new(std::iter::once(*operand)),
            Kind::Call { target, args, .. } => Box::new(target.iter().chain(args).copied()),
            Kind::List(elements) => Box::new(elements.iter().map(|element| element.value)),
            Kind::Map(entries) => Box::new(entries.iter().flat_map(|entry| [entry.key, entry.value])),
            Kind::Struct { fields, .. } => Box::new(fields.iter().map(|field| field.value)),
            Kind::Comprehension(inner) => {
                Box::new([inner.range, inner.init, inner.condition, inner.step, inner.result].into_iter())
            }
        }
    }

    /// `a.b.c` as text, where the node is nothing but names.
    pub fn qualified_name(&self, id: Id) -> Option<String> {
        match self.kind(id) {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test: false } => {
                Some(format!("{}.{field}", self.qualified_name(*operand)?))
            }
            _ => None,
        }
    }

    /// Whether a comprehension only gives a name to a value.
    pub fn is_bind(&self, comprehension: &Comprehension) -> bool {
        matches!(self.kind(comprehension.range), Kind::List(elements) if elements.is_empty())
            && matches!(self.kind(comprehension.condition), Kind::Literal(Literal::Bool(false)))
            && &*comprehension.accu != ACCUMULATOR
    }
}

/// The accumulator of macros; no source can name it.
pub(crate) const ACCUMULATOR: &str = "@result";
