//! Environments: which variables and types expressions may name.

use std::sync::Arc;

use crate::{
    checker::{self, Checked, Reference},
    error::Issues,
    estimate::{self, Estimate, Sizes},
    functions::{self, Function},
    parser, plan,
    program::Program,
    types::{Name, NoTypes, Type, TypeProvider},
};

/// Variables and types; functions are always all of Kubernetes 1.36's, except those of mutation.
#[derive(Clone)]
pub struct Environment {
    variables: Vec<(Name, Type)>,
    types: Arc<dyn TypeProvider>,
    mutation: bool,
}

/// Builds an [`Environment`].
#[must_use]
pub struct Builder {
    environment: Environment,
}

impl Environment {
    /// An environment without variables.
    pub fn builder() -> Builder {
        Builder { environment: Self { variables: Vec::new(), types: Arc::new(NoTypes), mutation: false } }
    }

    /// The environment again, with more variables.
    pub fn extend(&self) -> Builder {
        Builder { environment: self.clone() }
    }

    /// Parses and checks an expression.
    ///
    /// # Errors
    /// All that is wrong with it; prints as upstream prints it.
    pub fn check(&self, source: &str) -> Result<Expression, Issues> {
        let ast = parser::parse(source)?;
        let checked = checker::check(source, ast, self)?;
        Ok(Expression { checked })
    }

    /// Parses, checks and plans an expression.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn compile(&self, source: &str) -> Result<Program, Issues> {
        Ok(self.check(source)?.program())
    }

    pub(crate) fn lookup(&self, name: &str) -> Option<(Type, Reference)> {
        if let Some((full, ty)) = self.variables.iter().find(|(variable, _)| &**variable == name) {
            return Some((ty.clone(), Reference::Variable(full.clone())));
        }
        let of = |ty: Type| (Type::Type(Some(Arc::new(ty))), Reference::TypeName(name.into()));
        if self.types.has_type(name) {
            return Some(of(Type::object(name)));
        }
        functions::named_type(name).map(of)
    }

    pub(crate) fn function(&self, name: &str) -> Option<&'static Function> {
        functions::find(name).filter(|_| self.mutation || name != "jsonpatch.escapeKey")
    }

    pub(crate) fn has_type(&self, object: &str) -> bool {
        self.types.has_type(object)
    }

    pub(crate) fn field(&self, object: &str, field: &str) -> Option<Type> {
        self.types.field(object, field)
    }
}

impl Builder {
    /// Declares a variable; a qualified name such as `variables.x` may be declared too, and wins over the field `x`.
    pub fn variable(mut self, name: &str, ty: Type) -> Self {
        self.environment.variables.push((name.into(), ty));
        self
    }

    /// What knows the fields of object types.
    pub fn types(mut self, types: Arc<dyn TypeProvider>) -> Self {
        self.environment.types = types;
        self
    }

    /// Adds the functions of mutating policies.
    pub fn mutation(mut self) -> Self {
        self.environment.mutation = true;
        self
    }

    pub fn build(self) -> Environment {
        self.environment
    }
}

/// An expression that passed the checker.
#[derive(Clone, Debug)]
pub struct Expression {
    checked: Checked,
}

impl Expression {
    pub fn result_type(&self) -> &Type {
        self.checked.result_type()
    }

    /// Whether a variable of the environment is named.
    pub fn uses(&self, variable: &str) -> bool {
        self.checked
            .references
            .iter()
            .any(|reference| matches!(reference, Some(Reference::Variable(name)) if &**name == variable))
    }

    /// The range of costs that evaluations may have, given how large the variables' parts may be.
    pub fn estimate(&self, sizes: &dyn Sizes) -> Estimate {
        estimate::estimate(&self.checked, sizes)
    }

    /// The form that can be evaluated; it does not keep the source.
    pub fn program(&self) -> Program {
        plan::plan(&self.checked)
    }
}
