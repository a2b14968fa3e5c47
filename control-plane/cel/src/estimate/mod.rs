//! Static cost estimation: the range of costs that evaluations of a checked expression may have.
//!
//! Follows upstream's rules exactly, since they decide which rules a CustomResourceDefinition may have: each part's path
//! from a variable gives its largest size, calls cost by the sizes of their arguments, loops cost their turns.

mod calls;
mod range;

use std::collections::HashMap;

pub use range::Estimate;

use crate::{
    ast::{Comprehension, Element, Entry, Id, Kind, Literal},
    checker::{Checked, Reference},
    types::Type,
};

/// How large the parts of variables may be.
pub trait Sizes {
    /// The size of what a path leads to: a variable's name, then names of fields, `@items`, `@keys` or `@values`.
    fn size(&self, path: &[String]) -> Option<Estimate>;
}

/// Knows no sizes.
pub struct NoSizes;

impl Sizes for NoSizes {
    fn size(&self, _path: &[String]) -> Option<Estimate> {
        None
    }
}

pub(crate) fn estimate(checked: &Checked, sizes: &dyn Sizes) -> Estimate {
    let mut coster = Coster {
        checked,
        sizes,
        paths: HashMap::new(),
        computed: HashMap::new(),
        entries: HashMap::new(),
        locals: Vec::new(),
    };
    coster.cost(checked.ast.root)
}

/// Sizes of the keys and values of a map, or of the elements of a list.
#[derive(Clone, Copy, Debug)]
struct EntrySizes {
    list: bool,
    key: Estimate,
    value: Estimate,
}

impl EntrySizes {
    fn union(self, other: Self) -> Self {
        Self { list: self.list, key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

struct Local {
    name: String,
    path: Option<Vec<String>>,
    size: Option<Estimate>,
    entries: Option<EntrySizes>,
}

/// An argument of a call, as the cost of calls needs it.
#[derive(Clone)]
struct Argument {
    path: Option<Vec<String>>,
    ty: Type,
    size: Option<Estimate>,
    id: Id,
}

struct Coster<'c> {
    checked: &'c Checked,
    sizes: &'c dyn Sizes,
    paths: HashMap<Id, Vec<String>>,
    computed: HashMap<Id, Estimate>,
    entries: HashMap<Id, EntrySizes>,
    locals: Vec<Local>,
}

impl Coster<'_> {
    fn ty(&self, id: Id) -> &Type {
        &self.checked.types[id as usize]
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|local| local.name == name)
    }

    fn cost(&mut self, id: Id) -> Estimate {
        let checked = self.checked;
        match checked.ast.kind(id) {
            Kind::Literal(_) => Estimate::fixed(0),
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select { operand, field, test } => self.select(id, *operand, field, *test),
            Kind::Call { function, target, args } => self.call(id, function, *target, args),
            Kind::List(elements) => self.list(id, elements),
            Kind::Map(entries) => self.map(id, entries),
            Kind::Struct { fields, .. } => {
                let fields: Vec<Id> = fields.iter().map(|field| field.value).collect();
                fields.into_iter().fold(Estimate::fixed(40), |sum, field| sum.plus(self.cost(field)))
            }
            Kind::Comprehension(comprehension) if checked.ast.is_bind(comprehension) => {
                self.bind(id, comprehension)
            }
            Kind::Comprehension(comprehension) => self.comprehension(id, comprehension),
        }
    }

    fn ident(&mut self, id: Id, name: &str) -> Estimate {
        let path = match self.local(name) {
            Some(local) => local.path.clone(),
            None => Some(vec![name.to_owned()]),
        };
        if let Some(path) = path {
            self.paths.insert(id, path);
        }
        Estimate::fixed(1)
    }

    fn select(&mut self, id: Id, operand: Id, field: &str, test: bool) -> Estimate {
        if let Some(Reference::Variable(name) | Reference::TypeName(name)) =
            &self.checked.references[id as usize]
        {
            self.paths.insert(id, vec![name.to_string()]);
            return Estimate::fixed(1);
        }
        let cost = self.cost(operand);
        if test {
            return cost;
        }
        let charged = matches!(self.ty(operand), Type::Map(..) | Type::Object(_) | Type::Param(_));
        self.extend_path(id, operand, field);
        cost.plus(Estimate::fixed(u64::from(charged)))
    }

    fn extend_path(&mut self, id: Id, operand: Id, step: &str) {
        let mut path = self.path(operand).unwrap_or_default();
        path.push(step.to_owned());
        self.paths.insert(id, path);
    }

    fn path(&self, id: Id) -> Option<Vec<String>> {
        if let Kind::Ident(name) = self.checked.ast.kind(id)
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&id).cloned()
    }

    fn call(&mut self, id: Id, function: &str, target: Option<Id>, args: &[Id]) -> Estimate {
        if function == "_?._" {
            // Upstream has no overload for it in its tables of costs, so only its operands would count: they do not.
            return self.optional_select(id, args);
        }
        if function == "dyn"
            && let [arg] = args
        {
            let cost = self.cost(*arg);
            self.copy_sizes(id, *arg);
            return cost.plus(Estimate::fixed(1));
        }
        let costs: Vec<Estimate> = args.iter().map(|arg| self.cost(*arg)).collect();
        let Some(Reference::Function { overloads, global, .. }) =
            self.checked.references[id as usize].clone()
        else {
            return Estimate::fixed(0);
        };
        let target = target.filter(|_| !global);
        let mut sum = Estimate::fixed(0);
        let mut target_argument = None;
        if let Some(target) = target {
            sum = sum.plus(self.cost(target));
            target_argument = Some(self.argument(target));
        }
        let arguments: Vec<Argument> = args.iter().map(|arg| self.argument(*arg)).collect();
        let mut cost = Estimate { min: u64::MAX, max: 0 };
        let mut size: Option<Estimate> = None;
        for overload in overloads {
            let (found, found_size) =
                self.overload_cost(id, function, overload.id, target_argument.as_ref(), &arguments, &costs);
            cost = cost.union(found);
            if let Some(found_size) = found_size {
                size = Some(size.map_or(found_size, |size| size.union(found_size)));
            }
            match (overload.id, args.first()) {
                ("index_list", Some(list)) => {
                    size = self.entry_sizes(*list).map(|entries| entries.value);
                    self.extend_path(id, *list, "@items");
                }
                ("index_map", Some(map)) => {
                    size = self.entry_sizes(*map).map(|entries| entries.value);
                    self.extend_path(id, *map, "@values");
                }
                _ => {}
            }
            if size.is_none() {
                size = self.size(id);
            }
        }
        self.set_size(id, size);
        sum.plus(cost)
    }

    fn optional_select(&mut self, _id: Id, args: &[Id]) -> Estimate {
        let operands = args.iter().fold(Estimate::fixed(0), |sum, arg| sum.plus(self.cost(*arg)));
        operands.plus(Estimate::fixed(1))
    }

    fn argument(&mut self, id: Id) -> Argument {
        let path =
            self.path(id).filter(|path| path.first().is_none_or(|root| root != crate::ast::ACCUMULATOR));
        Argument { path, ty: self.ty(id).clone(), size: self.size(id), id }
    }

    fn list(&mut self, id: Id, elements: &[Element]) -> Estimate {
        let mut sum = Estimate::fixed(10);
        let mut item = Estimate { min: if elements.is_empty() { 0 } else { u64::MAX }, max: 0 };
        for element in elements {
            sum = sum.plus(self.cost(element.value));
            item = item.union(self.size_or_unknown(element.value));
        }
        self.entries.insert(id, EntrySizes { list: true, key: Estimate::fixed(1), value: item });
        sum
    }

    fn map(&mut self, id: Id, entries: &[Entry]) -> Estimate {
        let mut sum = Estimate::fixed(30);
        let empty = Estimate { min: if entries.is_empty() { 0 } else { u64::MAX }, max: 0 };
        let (mut key, mut value) = (empty, empty);
        for entry in entries {
            sum = sum.plus(self.cost(entry.key)).plus(self.cost(entry.value));
            key = key.union(self.size_or_unknown(entry.key));
            value = value.union(self.size_or_unknown(entry.value));
        }
        self.entries.insert(id, EntrySizes { list: false, key, value });
        sum
    }

    fn push_local(&mut self, name: &str, id: Id) {
        let local = Local {
            name: name.to_owned(),
            path: self.path(id),
            size: self.size(id),
            entries: self.entry_sizes(id),
        };
        self.locals.push(local);
    }

    /// A loop's variable: its path is that of the range and one step.
    fn push_iteration(&mut self, name: &str, range: Id, second: bool, two: bool) {
        let entries = self.entry_sizes(range);
        let list = entries.map_or_else(|| matches!(self.ty(range), Type::List(_)), |entries| entries.list);
        let value = second || (list && !two);
        let step = match (list, value) {
            (true, true) => "@items",
            (true, false) => "@indices",
            (false, true) => "@values",
            (false, false) => "@keys",
        };
        let mut path = self.path(range).unwrap_or_default();
        path.push(step.to_owned());
        let size = entries.map(|entries| if value { entries.value } else { entries.key });
        self.locals.push(Local { name: name.to_owned(), path: Some(path), size, entries: None });
    }

    fn bind(&mut self, id: Id, bind: &Comprehension) -> Estimate {
        let sum = self.cost(bind.range).plus(self.cost(bind.init));
        self.push_local(&bind.accu, bind.init);
        let sum = sum.plus(self.cost(bind.result));
        self.locals.pop();
        self.copy_sizes(id, bind.result);
        sum
    }

    fn comprehension(&mut self, id: Id, comprehension: &Comprehension) -> Estimate {
        let mut sum = self.cost(comprehension.range).plus(self.cost(comprehension.init));
        self.push_local(&comprehension.accu, comprehension.init);
        let depth = self.locals.len();
        let two = comprehension.var2.is_some();
        self.push_iteration(&comprehension.var, comprehension.range, false, two);
        if let Some(var2) = &comprehension.var2 {
            self.push_iteration(var2, comprehension.range, true, two);
        }
        let turn = self.cost(comprehension.condition).plus(self.cost(comprehension.step));
        self.locals.truncate(depth);
        sum = sum.plus(self.cost(comprehension.result));
        self.locals.pop();
        let turns = self.size_or_unknown(comprehension.range);
        sum = sum.plus(turns.times(turn));
        match self.checked.ast.kind(comprehension.init) {
            Kind::Literal(_) => {
                let size = self.size(comprehension.init);
                self.set_size(id, size);
            }
            Kind::List(_) | Kind::Map(_) => {
                self.set_size(id, Some(turns));
                if let Some(entries) = self.entry_sizes(comprehension.step) {
                    self.entries.insert(id, entries);
                }
            }
            _ => {}
        }
        sum
    }

    fn set_size(&mut self, id: Id, size: Option<Estimate>) {
        if let Some(size) = size {
            self.computed.insert(id, size);
        }
    }

    fn copy_sizes(&mut self, to: Id, from: Id) {
        let size = self.size(from);
        self.set_size(to, size);
        if let Some(entries) = self.entry_sizes(from) {
            self.entries.insert(to, entries);
        }
    }

    fn size_or_unknown(&mut self, id: Id) -> Estimate {
        self.size(id).unwrap_or(Estimate::UNKNOWN)
    }

    fn size(&mut self, id: Id) -> Option<Estimate> {
        if let Some(known) = self.computed.get(&id) {
            return Some(*known);
        }
        let stated = match self.checked.ast.kind(id) {
            Kind::Literal(Literal::String(text)) => Some(text.chars().count() as u64),
            Kind::Literal(Literal::Bytes(bytes)) => Some(bytes.len() as u64),
            Kind::Literal(_) => Some(1),
            Kind::List(elements) => Some(elements.len() as u64),
            Kind::Map(entries) => Some(entries.len() as u64),
            _ => None,
        };
        if let Some(stated) = stated {
            return Some(Estimate::fixed(stated));
        }
        if let Some(path) = self.path(id)
            && let Some(size) = self.sizes.size(&path)
        {
            self.computed.insert(id, size);
            return Some(size);
        }
        if self.ty(id).is_scalar() {
            return Some(Estimate::fixed(1));
        }
        match self.checked.ast.kind(id) {
            Kind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    fn entry_sizes(&self, id: Id) -> Option<EntrySizes> {
        if let Some(known) = self.entries.get(&id) {
            return Some(*known);
        }
        match self.checked.ast.kind(id) {
            Kind::Ident(name) => self.local(name).and_then(|local| local.entries),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
