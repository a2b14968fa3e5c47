//! A checked expression to a [`Program`]: names become slots, constants are folded, constant patterns compiled.

use std::sync::Arc;

use crate::{
    ast::{Comprehension, Id, Kind, Literal},
    checker::{Checked, Reference},
    functions::{self, regex},
    program::{Bind, Call, Fold, Mode, Program, Step},
    types::{Name, Type},
    value::{List, Map, OwnedMap, Str, Val},
};

pub(crate) fn plan(checked: &Checked) -> Program {
    let mut planner = Planner { checked, scopes: Vec::new(), slots: 0 };
    let root = planner.step(checked.ast.root);
    Program { root, slots: planner.slots, result_type: checked.result_type().clone() }
}

struct Planner<'c> {
    checked: &'c Checked,
    /// Local variables, innermost last; a variable's slot is its place.
    scopes: Vec<Name>,
    slots: usize,
}

impl Planner<'_> {
    fn step(&mut self, id: Id) -> Step {
        let checked = self.checked;
        match checked.ast.kind(id) {
            Kind::Literal(literal) => Step::Const(constant(literal)),
            Kind::Ident(name) => self.name(id, name),
            Kind::Select { operand, field, test } => self.select(id, *operand, field, *test),
            Kind::Call { function, target, args } => self.call(id, function, *target, args),
            Kind::List(elements) => {
                let items =
                    elements.iter().map(|element| (self.step(element.value), element.optional)).collect();
                fold_list(items)
            }
            Kind::Map(entries) => {
                let entries = entries
                    .iter()
                    .map(|entry| (self.step(entry.key), self.step(entry.value), entry.optional))
                    .collect();
                fold_map(entries)
            }
            Kind::Struct { name, fields } => {
                let name = name.strip_prefix('.').map_or_else(|| name.clone(), Name::from);
                let fields = fields
                    .iter()
                    .map(|field| (field.name.clone(), self.step(field.value), field.optional))
                    .collect();
                Step::Struct(name, fields)
            }
            Kind::Comprehension(comprehension) if checked.ast.is_bind(comprehension) => {
                self.bind(comprehension)
            }
            Kind::Comprehension(comprehension) => self.fold(comprehension),
        }
    }

    fn name(&mut self, id: Id, name: &str) -> Step {
        match &self.checked.references[id as usize] {
            Some(Reference::Variable(name)) => {
                Step::Variable { name: name.clone(), cost: 1 + name.matches('.').count() as u64 }
            }
            Some(Reference::TypeName(name)) => Step::Const(Val::Type(name.clone())),
            _ => {
                let name = name.strip_prefix('.').unwrap_or(name);
                let slot = self.scopes.iter().rposition(|local| &**local == name);
                slot.map_or_else(|| Step::Variable { name: name.into(), cost: 1 }, Step::Slot)
            }
        }
    }

    fn select(&mut self, id: Id, operand: Id, field: &Name, test: bool) -> Step {
        if let Some(Reference::Variable(_) | Reference::TypeName(_)) = &self.checked.references[id as usize] {
            return self.name(id, field);
        }
        let operand = Box::new(self.step(operand));
        let own = if test { 0 } else { 1 };
        let cost = own + u64::from(!is_attribute(&operand));
        Step::Select { operand, field: field.clone(), mode: if test { Mode::Test } else { Mode::Get }, cost }
    }

    fn call(&mut self, id: Id, name: &str, target: Option<Id>, args: &[Id]) -> Step {
        if name == "_?._" {
            let operand = Box::new(self.step(args[0]));
            let Kind::Literal(Literal::String(field)) = self.checked.ast.kind(args[1]) else {
                return Step::Const(Val::Null);
            };
            let cost = u64::from(!is_attribute(&operand));
            return Step::Select { operand, field: field.clone(), mode: Mode::Optional, cost };
        }
        let Some(Reference::Function { function, global, .. }) = &self.checked.references[id as usize] else {
            return Step::Const(Val::Null);
        };
        let target = target.filter(|_| !global);
        if let Some(step) = self.accumulate(function.name, args) {
            return step;
        }
        let args: Vec<Step> = target.iter().chain(args).map(|arg| self.step(*arg)).collect();
        match function.name {
            "_&&_" => Step::And(args),
            "_||_" => Step::Or(args),
            "_==_" | "_!=_" => pair(args, |args| Step::Equal(args, function.name == "_==_")),
            "_[_]" => pair(args, |args| index(args, false)),
            "_[?_]" => pair(args, |args| index(args, true)),
            "or" | "orValue" => pair(args, |args| Step::OrElse(args, function.name == "orValue")),
            "_?:_" => match <[Step; 3]>::try_from(args) {
                Ok(args) => {
                    let discounts = [base_cost(&args[1]), base_cost(&args[2])];
                    Step::Conditional(Box::new(args), discounts)
                }
                Err(_) => Step::Const(Val::Null),
            },
            "@not_strictly_false" => args
                .into_iter()
                .next()
                .map_or(Step::Const(Val::Null), |arg| Step::NotStrictlyFalse(Box::new(arg))),
            "@in" => membership(function, args),
            _ => call(function, args),
        }
    }

    /// `accu + [x]` and its like for maps, inside of the loop that owns the accumulator: done in place.
    fn accumulate(&mut self, function: &str, args: &[Id]) -> Option<Step> {
        let Kind::Ident(accu) = self.checked.ast.kind(*args.first()?) else { return None };
        if &**accu != crate::ast::ACCUMULATOR {
            return None;
        }
        let slot = self.scopes.iter().rposition(|local| local == accu)?;
        match function {
            "_+_" if matches!(self.checked.ast.kind(*args.get(1)?), Kind::List(_)) => {
                let list = self.step(args[1]);
                Some(Step::Append(slot, Box::new(list)))
            }
            "cel.@mapInsert" => {
                let args = args[1..].iter().map(|arg| self.step(*arg)).collect();
                Some(Step::Insert(slot, args))
            }
            _ => None,
        }
    }

    fn push(&mut self, name: &Name) -> usize {
        self.scopes.push(name.clone());
        self.slots = self.slots.max(self.scopes.len());
        self.scopes.len() - 1
    }

    fn bind(&mut self, comprehension: &Comprehension) -> Step {
        let value = self.step(comprehension.init);
        let slot = self.push(&comprehension.accu);
        let body = self.step(comprehension.result);
        self.scopes.pop();
        Step::Bind(Box::new(Bind { value, body, slot }))
    }

    fn fold(&mut self, comprehension: &Comprehension) -> Step {
        let range = self.step(comprehension.range);
        let init = self.step(comprehension.init);
        let accu = self.push(&comprehension.accu);
        let var = self.push(&comprehension.var);
        let var2 = comprehension.var2.as_ref().map(|name| self.push(name));
        let condition = self.step(comprehension.condition);
        let step = self.step(comprehension.step);
        self.scopes.truncate(accu + 1);
        let result = self.step(comprehension.result);
        self.scopes.truncate(accu);
        Step::Fold(Box::new(Fold { range, init, condition, step, result, accu, var, var2 }))
    }
}

fn constant(literal: &Literal) -> Val<'static> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(value) => Val::Bool(*value),
        Literal::Int(value) => Val::Int(*value),
        Literal::Uint(value) => Val::Uint(*value),
        Literal::Double(value) => Val::Double(*value),
        Literal::String(text) => Val::String(Str::Shared(text.clone())),
        Literal::Bytes(bytes) => Val::Bytes(bytes.clone()),
    }
}

fn pair(args: Vec<Step>, make: impl FnOnce(Box<[Step; 2]>) -> Step) -> Step {
    <[Step; 2]>::try_from(args).map_or(Step::Const(Val::Null), |args| make(Box::new(args)))
}

/// What upstream's planner treats as one attribute with qualifiers.
fn is_attribute(step: &Step) -> bool {
    matches!(
        step,
        Step::Variable { .. }
            | Step::Slot(_)
            | Step::Select { .. }
            | Step::Index { .. }
            | Step::Conditional(..)
    )
}

/// What an attribute costs besides its qualifiers; nothing where it is a conditional.
fn base_cost(step: &Step) -> u64 {
    match step {
        Step::Variable { .. } | Step::Slot(_) => 1,
        Step::Select { operand, .. } => {
            if is_attribute(operand) {
                base_cost(operand)
            } else {
                1
            }
        }
        Step::Index { parts, .. } => {
            if is_attribute(&parts[0]) {
                base_cost(&parts[0])
            } else {
                1
            }
        }
        _ => 0,
    }
}

fn index(parts: Box<[Step; 2]>, optional: bool) -> Step {
    let relative = u64::from(!is_attribute(&parts[0]));
    let qualifier = 1 - if is_attribute(&parts[1]) { base_cost(&parts[1]) } else { 0 };
    Step::Index { parts, optional, cost: relative + qualifier }
}

fn membership(function: &'static functions::Function, mut args: Vec<Step>) -> Step {
    if let [_, Step::Const(Val::List(list))] = &args[..] {
        let items: Vec<Val<'static>> = list.iter().flatten().collect();
        if items.is_empty() {
            return Step::Const(Val::Bool(false));
        }
        let primitive = |item: &Val<'_>| {
            matches!(item, Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Double(_) | Val::String(_))
        };
        if items.iter().all(primitive) {
            return Step::InSet(Box::new(args.swap_remove(0)), items);
        }
    }
    call(function, args)
}

fn call(function: &'static functions::Function, args: Vec<Step>) -> Step {
    let conversion = matches!(
        function.name,
        "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "type" | "uint"
    );
    if let ([Step::Const(value)], true) = (&args[..], conversion)
        && let Ok(converted) = (function.implementation)(function.name, std::slice::from_ref(value))
    {
        return Step::Const(converted);
    }
    let pattern = match args.get(1) {
        Some(Step::Const(Val::String(pattern))) if regex::takes_pattern(function.name) => {
            regex::compile(pattern).ok()
        }
        _ => None,
    };
    Step::Call(Box::new(Call { function, args, pattern }))
}

fn fold_list(items: Vec<(Step, bool)>) -> Step {
    if !items.iter().all(|(item, optional)| matches!(item, Step::Const(_)) && !optional) {
        return Step::List(items);
    }
    let values = items.into_iter().filter_map(|(item, _)| match item {
        Step::Const(value) => Some(value),
        _ => None,
    });
    Step::Const(Val::List(List::Owned(Arc::new(values.collect()))))
}

fn fold_map(entries: Vec<(Step, Step, bool)>) -> Step {
    let mut map = OwnedMap::default();
    for (key, value, optional) in &entries {
        let (Step::Const(key), Step::Const(value), false) = (key, value, optional) else {
            return Step::Map(entries);
        };
        if map.insert(key.clone(), value.clone()).is_err() {
            return Step::Map(entries);
        }
    }
    Step::Const(Val::Map(Map::Owned(Arc::new(map))))
}

/// Whether a result type is what a caller requires; dyn passes, and is checked when evaluated.
pub fn satisfies(found: &Type, required: &Type) -> bool {
    found == required || *found == Type::Dyn
}
