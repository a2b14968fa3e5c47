//! The functions: their overloads, as the checker sees them, and what they do.
//!
//! A function's one implementation looks at its arguments; which overload the checker chose does not matter then.

pub(crate) mod authz;
pub(crate) mod format;
pub(crate) mod lists;
pub(crate) mod net;
pub(crate) mod printf;
pub(crate) mod quantity;
pub(crate) mod regex;
pub(crate) mod semver;
mod signature;
mod standard;
mod strings;
pub(crate) mod url;

use std::{collections::HashMap, sync::LazyLock};

pub(crate) use standard::{element as standard_element, missing as standard_missing};

use crate::{error::EvalError, types::Type, value::Val};

/// What a function does; the name is the function's own, for implementations that serve several.
pub(crate) type Implementation = for<'a> fn(&'static str, &[Val<'a>]) -> Result<Val<'a>, EvalError>;

/// A function, its implementation, and its overloads as identifier and signature.
pub(crate) type Entry = (&'static str, Implementation, &'static [(&'static str, &'static str)]);

#[derive(Debug)]
pub(crate) struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
    pub implementation: Implementation,
}

#[derive(Debug)]
pub(crate) struct Overload {
    pub id: &'static str,
    /// Whether the first argument stands before the dot.
    pub member: bool,
    pub args: Vec<Type>,
    pub result: Type,
    /// Whether the types have parameters.
    pub generic: bool,
}

/// All functions by name.
static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let tables = [
        standard::OPERATORS,
        standard::COMPARISONS,
        standard::CONVERSIONS,
        standard::TIMES,
        standard::OPTIONALS,
        strings::TABLE,
        lists::TABLE,
        lists::SETS,
        lists::MAPS,
        regex::TABLE,
        net::TABLE,
        url::TABLE,
        quantity::TABLE,
        semver::TABLE,
        format::TABLE,
        authz::TABLE,
    ];
    let mut functions: HashMap<&'static str, Function> = HashMap::new();
    for (name, implementation, overloads) in tables.into_iter().flatten() {
        let parsed = overloads.iter().map(|(id, text)| signature::parse(id, text));
        functions
            .entry(name)
            .or_insert_with(|| Function { name, overloads: Vec::new(), implementation: *implementation })
            .overloads
            .extend(parsed);
    }
    functions
});

pub(crate) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}

/// Types that expressions can name, by name.
pub(crate) fn named_type(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "null_type" => Type::Null,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => Type::Type(None),
        "optional_type" => Type::optional(Type::Dyn),
        "google.protobuf.Timestamp" => Type::Timestamp,
        "google.protobuf.Duration" => Type::Duration,
        "net.IP" | "net.CIDR" => Type::opaque(name),
        "kubernetes.URL"
        | "kubernetes.Quantity"
        | "kubernetes.Semver"
        | "kubernetes.NamedFormat"
        | "kubernetes.authorization.Authorizer"
        | "kubernetes.authorization.PathCheck"
        | "kubernetes.authorization.GroupCheck"
        | "kubernetes.authorization.ResourceCheck"
        | "kubernetes.authorization.Decision" => Type::object(name),
        _ => return None,
    })
}

/// What the evaluator handles itself.
fn built_in<'a>(_: &'static str, _: &[Val<'a>]) -> Result<Val<'a>, EvalError> {
    Err(EvalError::no_such_overload())
}

fn no_overload<'a>() -> Result<Val<'a>, EvalError> {
    Err(EvalError::no_such_overload())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_parses_and_identifiers_are_unique() {
        let mut ids = std::collections::HashSet::new();
        for function in FUNCTIONS.values() {
            for overload in &function.overloads {
                assert!(ids.insert(overload.id), "{} is there twice", overload.id);
            }
        }
        assert!(ids.len() > 250);
    }
}
