//! The type checker: resolves names and overloads, gives every node a type, reports what cannot work.

mod literals;

use std::sync::Arc;

use crate::{
    ast::{Ast, Comprehension, Element, Entry, Field, Id, Kind, Literal},
    environment::Environment,
    error::Issues,
    functions::{Function, Overload},
    types::{Name, Substitutions, Type, most_general, signature},
};

/// What a name or a call stands for.
#[derive(Clone, Debug)]
pub(crate) enum Reference {
    /// A variable of the environment, by its full name.
    Variable(Name),
    /// A variable of a comprehension.
    Local,
    /// The name of a type, as a value.
    TypeName(Name),
    Function {
        function: &'static Function,
        overloads: Vec<&'static Overload>,
        /// Whether what looked like a target was the function's namespace.
        global: bool,
    },
}

/// An expression whose types are known.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub ast: Ast,
    pub types: Vec<Type>,
    pub references: Vec<Option<Reference>>,
}

/// Checks a parsed expression.
///
/// # Errors
/// All type errors.
pub(crate) fn check(source: &str, ast: Ast, environment: &Environment) -> Result<Checked, Issues> {
    let count = ast.nodes.len();
    let mut checker = Checker {
        ast: &ast,
        environment,
        issues: Issues::new(source),
        types: vec![Type::Error; count],
        references: vec![None; count],
        substitutions: Substitutions::default(),
        scopes: Vec::new(),
    };
    checker.check(ast.root);
    let Checker { mut issues, types, references, substitutions, .. } = checker;
    let types: Vec<Type> = types.iter().map(|ty| substitutions.apply(ty, true)).collect();
    let checked = Checked { ast, types, references };
    if issues.is_empty() {
        literals::validate(&checked, &mut issues);
    }
    if issues.is_empty() { Ok(checked) } else { Err(issues.sorted()) }
}

impl Checked {
    pub fn result_type(&self) -> &Type {
        &self.types[self.ast.root as usize]
    }
}

struct Checker<'c> {
    ast: &'c Ast,
    environment: &'c Environment,
    issues: Issues,
    types: Vec<Type>,
    references: Vec<Option<Reference>>,
    substitutions: Substitutions,
    scopes: Vec<(Name, Type)>,
}

impl Checker<'_> {
    fn report(&mut self, id: Id, message: String) {
        self.issues.report(Some(self.ast.offset(id)), message);
    }

    fn ty(&self, id: Id) -> Type {
        self.types[id as usize].clone()
    }

    fn check(&mut self, id: Id) -> Type {
        let ast = self.ast;
        let ty = match ast.kind(id) {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Ident(name) => self.ident(id, name),
            Kind::Select { operand, field, test } => self.select(id, *operand, field, *test),
            Kind::Call { function, target, args } => self.call(id, function, *target, args),
            Kind::List(elements) => self.list(elements),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.message(id, name, fields),
            Kind::Comprehension(comprehension) => self.comprehension(comprehension),
        };
        self.types[id as usize] = ty.clone();
        ty
    }

    fn lookup(&self, name: &str) -> Option<(Type, Reference)> {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some((_, ty)) = self.scopes.iter().rev().find(|(local, _)| &**local == name) {
            return Some((ty.clone(), Reference::Local));
        }
        self.environment.lookup(name)
    }

    fn undeclared(&mut self, id: Id, name: &str) -> Type {
        self.report(id, format!("undeclared reference to '{name}' (in container '')"));
        Type::Error
    }

    fn ident(&mut self, id: Id, name: &str) -> Type {
        let Some((ty, reference)) = self.lookup(name) else { return self.undeclared(id, name) };
        self.references[id as usize] = Some(reference);
        ty
    }

    fn select(&mut self, id: Id, operand: Id, field: &str, test: bool) -> Type {
        let qualified = self.ast.qualified_name(id);
        if let Some((ty, reference)) = qualified.and_then(|name| self.lookup(&name)) {
            self.references[id as usize] = Some(reference);
            return ty;
        }
        let ty = self.field(id, operand, field, false);
        if test { Type::Bool } else { self.substitutions.apply(&ty, false) }
    }

    fn field(&mut self, id: Id, operand: Id, field: &str, optional: bool) -> Type {
        let operand = self.check(operand);
        let operand = self.substitutions.apply(&operand, false);
        let wrapped = operand.unwrap_optional();
        let result = match wrapped.unwrap_or(&operand) {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(object) => match self.environment.field(object, field) {
                Some(ty) => ty,
                None => {
                    self.report(id, format!("undefined field '{field}'"));
                    Type::Error
                }
            },
            param @ Type::Param(_) => {
                self.substitutions.try_assign(&Type::Dyn, param);
                Type::Dyn
            }
            other => {
                if !other.is_dyn_or_error() {
                    self.report(id, format!("type '{other}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if wrapped.is_some() || optional { Type::optional(result) } else { result }
    }

    fn call(&mut self, id: Id, function: &str, target: Option<Id>, args: &[Id]) -> Type {
        if function == "_?._" {
            return self.optional_select(id, args);
        }
        for arg in args {
            self.check(*arg);
        }
        let Some(target) = target else {
            let name = function.strip_prefix('.').unwrap_or(function);
            return match self.environment.function(name) {
                Some(found) => self.resolve(id, found, None, args, false),
                None => self.undeclared(id, function),
            };
        };
        if let Some(prefix) = self.ast.qualified_name(target) {
            let name = format!("{}.{function}", prefix.strip_prefix('.').unwrap_or(&prefix));
            if let Some(found) = self.environment.function(&name) {
                return self.resolve(id, found, None, args, true);
            }
        }
        self.check(target);
        match self.environment.function(function) {
            Some(found) => self.resolve(id, found, Some(target), args, false),
            None => self.undeclared(id, function),
        }
    }

    fn optional_select(&mut self, id: Id, args: &[Id]) -> Type {
        let [operand, field] = args else { return Type::Error };
        let Kind::Literal(Literal::String(name)) = self.ast.kind(*field).clone() else { return Type::Error };
        self.types[*field as usize] = Type::String;
        let ty = self.field(id, *operand, &name, true);
        self.substitutions.apply(&ty, false)
    }

    fn resolve(
        &mut self,
        id: Id,
        function: &'static Function,
        target: Option<Id>,
        args: &[Id],
        global: bool,
    ) -> Type {
        let arg_types: Vec<Type> = target.iter().chain(args).map(|arg| self.ty(*arg)).collect();
        if matches!(function.name, "_&&_" | "_||_") {
            return self.logical(id, function, args, &arg_types);
        }
        let mut result: Option<Type> = None;
        let mut matching = Vec::new();
        for overload in &function.overloads {
            if overload.member != target.is_some() {
                continue;
            }
            let (params, declared) = self.instantiate(overload);
            if !self.substitutions.assign_all(&arg_types, &params) {
                continue;
            }
            matching.push(overload);
            let found = self.substitutions.apply(&declared, false);
            result = match result {
                None => Some(found),
                Some(known) if known == Type::Dyn || known == found => Some(known),
                Some(_) => Some(Type::Dyn),
            };
        }
        let Some(result) = result else {
            let arg_types: Vec<Type> =
                arg_types.iter().map(|ty| self.substitutions.apply(ty, true)).collect();
            let applied = signature(&arg_types, target.is_some());
            self.report(
                id,
                format!("found no matching overload for '{}' applied to '{applied}'", function.name),
            );
            return Type::Error;
        };
        self.references[id as usize] = Some(Reference::Function { function, overloads: matching, global });
        result
    }

    fn logical(&mut self, id: Id, function: &'static Function, args: &[Id], types: &[Type]) -> Type {
        let mut result = Type::Bool;
        for (arg, ty) in args.iter().zip(types) {
            if !self.substitutions.try_assign(ty, &Type::Bool) {
                let ty = self.substitutions.apply(ty, false);
                self.report(*arg, format!("expected type 'bool' but found '{ty}'"));
                result = Type::Error;
            }
        }
        let overloads = function.overloads.iter().collect();
        self.references[id as usize] = Some(Reference::Function { function, overloads, global: false });
        result
    }

    /// An overload's parameters and result, with fresh type parameters.
    fn instantiate(&mut self, overload: &Overload) -> (Vec<Type>, Type) {
        if !overload.generic {
            return (overload.args.clone(), overload.result.clone());
        }
        let mut fresh: Vec<(Name, Type)> = Vec::new();
        let args = overload.args.iter().map(|arg| self.freshen(arg, &mut fresh)).collect();
        let result = self.freshen(&overload.result, &mut fresh);
        (args, result)
    }

    fn freshen(&mut self, ty: &Type, fresh: &mut Vec<(Name, Type)>) -> Type {
        match ty {
            Type::Param(name) => {
                if let Some((_, known)) = fresh.iter().find(|(param, _)| param == name) {
                    return known.clone();
                }
                let new = self.substitutions.fresh();
                fresh.push((name.clone(), new.clone()));
                new
            }
            Type::List(element) => Type::list(self.freshen(element, fresh)),
            Type::Map(key, value) => Type::map(self.freshen(key, fresh), self.freshen(value, fresh)),
            Type::Opaque(name, params) => {
                Type::Opaque(name.clone(), params.iter().map(|param| self.freshen(param, fresh)).collect())
            }
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(self.freshen(of, fresh)))),
            other => other.clone(),
        }
    }

    fn join(&mut self, previous: Option<Type>, current: Type) -> Type {
        let Some(previous) = previous else { return current };
        if self.substitutions.try_assign(&previous, &current) {
            return most_general(&previous, &current).clone();
        }
        // Elements of different types are reported later, except for those that are arguments of `format`.
        Type::Dyn
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        let expected = self.substitutions.apply(expected, false);
        let found = self.substitutions.apply(found, false);
        self.report(id, format!("expected type '{expected}' but found '{found}'"));
    }

    /// The type of an entry; one marked optional must be an optional, and counts as what is in it.
    fn entry(&mut self, id: Id, optional: bool) -> Type {
        let ty = self.check(id);
        if !optional {
            return ty;
        }
        if let Some(inner) = ty.unwrap_optional() {
            return inner.clone();
        }
        if !ty.is_dyn_or_error() {
            self.mismatch(id, &Type::optional(ty.clone()), &ty);
        }
        ty
    }

    fn list(&mut self, elements: &[Element]) -> Type {
        let mut joined = None;
        for element in elements {
            let ty = self.entry(element.value, element.optional);
            joined = Some(self.join(joined, ty));
        }
        Type::list(joined.unwrap_or_else(|| self.substitutions.fresh()))
    }

    fn map(&mut self, entries: &[Entry]) -> Type {
        let (mut keys, mut values) = (None, None);
        for entry in entries {
            let key = self.check(entry.key);
            keys = Some(self.join(keys, key));
            let value = self.entry(entry.value, entry.optional);
            values = Some(self.join(values, value));
        }
        let key = keys.unwrap_or_else(|| self.substitutions.fresh());
        let value = values.unwrap_or_else(|| self.substitutions.fresh());
        Type::map(key, value)
    }

    fn message(&mut self, id: Id, name: &str, fields: &[Field]) -> Type {
        let name = name.strip_prefix('.').unwrap_or(name);
        if !self.environment.has_type(name) {
            let result = match self.lookup(name) {
                None => self.undeclared(id, name),
                Some((Type::Type(_), _)) => {
                    self.report(id, format!("'{name}' is not a message type"));
                    Type::Error
                }
                Some((ty, _)) => {
                    self.report(id, format!("'{ty}' is not a type"));
                    Type::Error
                }
            };
            for field in fields {
                self.check(field.value);
            }
            return result;
        }
        for field in fields {
            let value = self.entry(field.value, field.optional);
            let Some(expected) = self.environment.field(name, &field.name) else {
                self.issues.report(Some(field.offset), format!("undefined field '{}'", field.name));
                continue;
            };
            if !self.substitutions.try_assign(&expected, &value) {
                let value = self.substitutions.apply(&value, false);
                let field_name = &field.name;
                let message = format!(
                    "expected type of field '{field_name}' is '{expected}' but provided type is '{value}'"
                );
                self.issues.report(Some(field.offset), message);
            }
        }
        Type::object(name)
    }

    fn comprehension(&mut self, comprehension: &Comprehension) -> Type {
        let range = self.check(comprehension.range);
        let accu = self.check(comprehension.init);
        let range = self.substitutions.apply(&range, false);
        let depth = self.scopes.len();
        self.scopes.push((comprehension.accu.clone(), accu.clone()));
        let two = comprehension.var2.is_some();
        let (first, second) = match &range {
            Type::List(element) if two => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Error),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.substitutions.try_assign(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.report(comprehension.range, message);
                (Type::Error, Type::Error)
            }
        };
        self.scopes.push((comprehension.var.clone(), first));
        if let Some(var2) = &comprehension.var2 {
            self.scopes.push((var2.clone(), second));
        }
        self.check(comprehension.condition);
        self.expect(comprehension.condition, &Type::Bool);
        self.check(comprehension.step);
        self.expect(comprehension.step, &accu);
        self.scopes.truncate(depth + 1);
        let result = self.check(comprehension.result);
        self.scopes.truncate(depth);
        self.substitutions.apply(&result, false)
    }

    fn expect(&mut self, id: Id, expected: &Type) {
        let found = self.ty(id);
        if !self.substitutions.try_assign(expected, &found) {
            self.mismatch(id, expected, &found);
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}
