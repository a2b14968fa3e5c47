//! The language of admission policies and of webhooks' match conditions: their variables, what expressions must return,
//! and variables that are computed once, when first named.
//!
//! ```text
//! Scope --environment--> compile(expression, Returns) --> Compiled --evaluate(Inputs)--> Val
//! ```

mod kinds;
mod types;
mod typing;

use std::cell::{Cell, RefCell};

pub use kinds::{matched_kinds, param_kind};
pub use typing::{TypeSource, check_types};

use crate::{
    environment::Environment,
    error::EvalError,
    program::{Activation, Bindings, Budget, Program},
    types::{Name, Type},
    value::{Object, Val},
};

/// The cost of all match conditions for one request.
pub const MATCH_CONDITIONS_COST_MAX: u64 = 2_500_000;

/// What expressions may name besides `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub params: bool,
    pub authorizer: bool,
    /// `Object{...}` and `JSONPatch{...}`.
    pub patches: bool,
    /// `variables.NAME`, in the order of their definition.
    pub variables: Option<Vec<(Name, Type)>>,
}

impl Scope {
    /// The environment of expressions in this scope.
    pub fn environment(&self) -> Environment {
        self.typed_environment(&Type::Dyn, &Type::Dyn, None)
    }

    fn typed_environment(
        &self,
        object: &Type,
        params: &Type,
        schema: Option<typing::Objects>,
    ) -> Environment {
        let mut builder = Environment::builder()
            .variable("object", object.clone())
            .variable("oldObject", object.clone())
            .variable("namespaceObject", Type::object("kubernetes.Namespace"))
            .variable("request", Type::object("kubernetes.AdmissionRequest"));
        if self.params {
            builder = builder.variable("params", params.clone());
        }
        if self.authorizer {
            let check = Type::object("kubernetes.authorization.ResourceCheck");
            builder = builder
                .variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
                .variable("authorizer.requestResource", check);
        }
        if self.patches {
            builder = builder.mutation();
        }
        if let Some(variables) = &self.variables {
            builder = builder.variable("variables", Type::object(types::VARIABLES));
            for (name, ty) in variables {
                builder = builder.variable(&format!("variables.{name}"), ty.clone());
            }
        }
        let variables = self.variables.clone().unwrap_or_default();
        builder
            .types(std::sync::Arc::new(types::PolicyTypes { variables, patches: self.patches, schema }))
            .build()
    }
}

/// What an expression must return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    Bool,
    String,
    StringOrNull,
    Any,
    /// `Object{...}`.
    ApplyConfiguration,
    /// A list of `JSONPatch{...}`.
    JsonPatch,
}

impl Returns {
    fn types(self) -> Vec<Type> {
        match self {
            Self::Bool => vec![Type::Bool],
            Self::String => vec![Type::String],
            Self::StringOrNull => vec![Type::String, Type::Null],
            Self::Any => Vec::new(),
            Self::ApplyConfiguration => vec![Type::object("Object")],
            Self::JsonPatch => vec![Type::list(Type::object("JSONPatch"))],
        }
    }
}

/// An expression of a policy, or why it does not compile.
#[derive(Debug)]
pub struct Compiled {
    pub source: String,
    pub program: Result<Program, String>,
}

impl Compiled {
    pub fn new(environment: &Environment, source: &str, returns: Returns) -> Self {
        Self { source: source.to_owned(), program: compile(environment, source, returns) }
    }

    /// Evaluates; what lazy variables cost is taken from the budget first.
    ///
    /// # Errors
    /// Upstream's words for what failed.
    pub fn evaluate<'a>(&self, inputs: &Inputs<'a, '_>, budget: &mut Budget) -> Result<Val<'a>, Failure> {
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => return Err(Failure::Expression(format!("compilation error: {error}"))),
        };
        let (result, cost) = program.evaluate_with_cost(inputs, crate::CALL_COST_MAX);
        let spent = budget.spend(inputs.spent.take()).and_then(|()| budget.spend(cost));
        spent.map_err(|error| Failure::Budget(error.to_string()))?;
        result.map_err(|error| {
            Failure::Expression(format!("expression '{}' resulted in error: {error}", self.source))
        })
    }
}

/// Why an expression of a policy has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This expression failed; others may be evaluated.
    Expression(String),
    /// The budget is used up; nothing more may be evaluated.
    Budget(String),
}

impl Failure {
    pub fn into_text(self) -> String {
        match self {
            Self::Expression(text) | Self::Budget(text) => text,
        }
    }
}

/// Compiles an expression and checks what it returns.
///
/// # Errors
/// Upstream's text for what is wrong.
pub fn compile(environment: &Environment, source: &str, returns: Returns) -> Result<Program, String> {
    let expression = environment.check(source).map_err(|issues| format!("compilation failed: {issues}"))?;
    let (wanted, found) = (returns.types(), expression.result_type());
    if wanted.is_empty() || wanted.contains(found) {
        return Ok(expression.program());
    }
    let wanted: Vec<String> = wanted.iter().map(Type::to_string).collect();
    Err(match &wanted[..] {
        [one] => format!("must evaluate to {one} but got {found}"),
        several => format!("must evaluate to one of [{}] but got {found}", several.join(" ")),
    })
}

/// Compiles variables in their order: each may name those before it. Those that fail count as dyn for the others.
pub fn compile_variables<'v>(
    scope: &mut Scope,
    variables: impl Iterator<Item = (&'v str, &'v str)>,
) -> Vec<(Name, Compiled)> {
    let mut compiled = Vec::new();
    scope.variables.get_or_insert_default();
    for (name, source) in variables {
        let variable = Compiled::new(&scope.environment(), source, Returns::Any);
        let ty = variable.program.as_ref().map_or(Type::Dyn, |program| declared(program.result_type()));
        if let Some(known) = &mut scope.variables {
            known.push((name.into(), ty));
        }
        compiled.push((name.into(), variable));
    }
    compiled
}

/// The type that a variable has for others.
fn declared(ty: &Type) -> Type {
    match ty {
        Type::List(element) => Type::list(declared(element)),
        Type::Map(key, value) => Type::map(declared(key), declared(value)),
        Type::Bool
        | Type::Int
        | Type::Uint
        | Type::Double
        | Type::String
        | Type::Bytes
        | Type::Timestamp
        | Type::Duration
        | Type::Null => ty.clone(),
        _ => Type::Dyn,
    }
}

/// The values of one evaluation. Variables are computed when they are first named, and kept.
pub struct Inputs<'a, 'v> {
    bindings: &'v Bindings<'a>,
    variables: &'v [(Name, Compiled)],
    computed: RefCell<Vec<Option<Result<Val<'a>, EvalError>>>>,
    spent: Cell<u64>,
}

impl<'a, 'v> Inputs<'a, 'v> {
    pub fn new(bindings: &'v Bindings<'a>, variables: &'v [(Name, Compiled)]) -> Self {
        let computed = RefCell::new(vec![None; variables.len()]);
        Self { bindings, variables, computed, spent: Cell::new(0) }
    }

    fn variable(&self, index: usize) -> Result<Val<'a>, EvalError> {
        if let Some(known) = self.computed.borrow()[index].clone() {
            return known;
        }
        let (name, variable) = &self.variables[index];
        let value = match &variable.program {
            Err(error) => {
                Err(EvalError::Failed(format!("composited variable {name:?} fails to compile: {error}")))
            }
            Ok(program) => {
                let (value, cost) = program.evaluate_with_cost(self, crate::CALL_COST_MAX);
                self.spent.set(self.spent.get().saturating_add(cost));
                value.map_err(|error| {
                    EvalError::Failed(format!("composited variable {name:?} fails to evaluate: {error}"))
                })
            }
        };
        self.computed.borrow_mut()[index] = Some(value.clone());
        value
    }
}

impl<'a> Activation<'a> for Inputs<'a, '_> {
    fn resolve(&self, name: &str) -> Result<Option<Val<'a>>, EvalError> {
        if let Some(variable) = name.strip_prefix("variables.") {
            let index = self.variables.iter().position(|(known, _)| &**known == variable);
            return index.map(|index| self.variable(index)).transpose();
        }
        if name == "variables" {
            let mut fields = Vec::with_capacity(self.variables.len());
            for (index, (name, _)) in self.variables.iter().enumerate() {
                fields.push((name.clone(), self.variable(index)?));
            }
            let object = Object { name: types::VARIABLES.into(), fields };
            return Ok(Some(Val::Object(std::sync::Arc::new(object))));
        }
        self.bindings.resolve(name)
    }
}

#[cfg(test)]
mod tests;
