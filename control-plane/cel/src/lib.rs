//! The Common Expression Language as Kubernetes 1.36 uses it: parser, type checker, static cost estimation, evaluator
//! with cost limits, and Kubernetes' function libraries. No IO; expressions cannot fail in any way but an error.
//!
//! ```text
//! Environment (variables, types) --check--> Expression --program--> Program --evaluate(Activation, Budget)--> Val
//!                                               `--estimate--> Estimate
//! ```
//!
//! An [`Environment`] declares variables. [`Environment::compile`] gives a [`Program`], or [`Issues`] that print as
//! upstream prints them. [`Program::evaluate`] runs it on [`Bindings`] (or any [`Activation`]) within a [`Budget`];
//! values are views of JSON documents ([`Val::json`]), which are never copied. For `x-kubernetes-validations` there is
//! [`rules::Rules`], which does all of that for a whole structural schema.

#![forbid(unsafe_code)]

mod ast;
pub mod authorizer;
mod checker;
mod cost;
mod environment;
mod error;
mod estimate;
mod eval;
mod functions;
mod parser;
mod plan;
pub mod policy;
mod program;
pub mod rules;
pub mod structural;
pub mod time;
mod types;
mod value;

pub use environment::{Builder, Environment, Expression};
pub use error::{EvalError, Issue, Issues};
pub use estimate::{Estimate, NoSizes, Sizes};
pub use functions::regex::compile as compile_pattern;
pub use plan::satisfies;
pub use program::{Activation, Bindings, Budget, CALL_COST_MAX, Program, REQUEST_COST_MAX};
pub use types::{Name, NoTypes, Type, TypeProvider};
pub use value::{List, Map, Object, OwnedMap, Str, Val};

#[cfg(test)]
mod tests;
