//! Programs: planned expressions, what they are evaluated with, and what that may cost.

use regex::Regex;

use crate::{
    error::EvalError,
    eval::Evaluator,
    functions::Function,
    types::{Name, Type},
    value::Val,
};

/// Cost of one evaluation.
pub const CALL_COST_MAX: u64 = 1_000_000;
/// Cost of all evaluations for one request.
pub const REQUEST_COST_MAX: u64 = 10_000_000;

/// What evaluations may still cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    remaining: u64,
    call_max: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(REQUEST_COST_MAX)
    }
}

impl Budget {
    /// A budget for several evaluations; each single one is bounded by [`CALL_COST_MAX`].
    pub fn new(cost: u64) -> Self {
        Self { remaining: cost, call_max: CALL_COST_MAX }
    }

    /// With another bound for single evaluations.
    #[must_use]
    pub fn with_call_max(self, call_max: u64) -> Self {
        Self { call_max, ..self }
    }

    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// # Errors
    /// [`EvalError::Budget`] where the cost is more than what remains.
    pub fn spend(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.remaining.checked_sub(cost) {
            Some(remaining) => {
                self.remaining = remaining;
                Ok(())
            }
            None => {
                self.remaining = 0;
                Err(EvalError::Budget)
            }
        }
    }
}

/// The values of variables.
pub trait Activation<'a> {
    /// The value of a declared variable, `None` where it has none.
    ///
    /// # Errors
    /// Why the value cannot be computed.
    fn resolve(&self, name: &str) -> Result<Option<Val<'a>>, EvalError>;
}

/// Variables with values that are there already.
#[derive(Clone, Default)]
pub struct Bindings<'a> {
    values: Vec<(Name, Val<'a>)>,
}

impl<'a> Bindings<'a> {
    pub fn new() -> Self {
        Self { values: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: Val<'a>) -> Self {
        self.values.push((name.into(), value));
        self
    }
}

impl<'a> Activation<'a> for Bindings<'a> {
    fn resolve(&self, name: &str) -> Result<Option<Val<'a>>, EvalError> {
        Ok(self.values.iter().find(|(bound, _)| &**bound == name).map(|(_, value)| value.clone()))
    }
}

/// An expression, ready to be evaluated any number of times, by any number of threads.
#[derive(Debug)]
pub struct Program {
    pub(crate) root: Step,
    pub(crate) slots: usize,
    pub(crate) result_type: Type,
}

impl Program {
    pub fn result_type(&self) -> &Type {
        &self.result_type
    }

    /// Evaluates, and takes what that cost from the budget.
    ///
    /// # Errors
    /// What failed; too high a cost of this call; or the end of the budget.
    pub fn evaluate<'a>(
        &self,
        activation: &dyn Activation<'a>,
        budget: &mut Budget,
    ) -> Result<Val<'a>, EvalError> {
        let (result, cost) = self.evaluate_with_cost(activation, budget.call_max);
        budget.spend(cost)?;
        result
    }

    /// Evaluates within a cost limit, and says the cost.
    pub fn evaluate_with_cost<'a>(
        &self,
        activation: &dyn Activation<'a>,
        cost_max: u64,
    ) -> (Result<Val<'a>, EvalError>, u64) {
        let mut evaluator = Evaluator::new(activation, self.slots, cost_max);
        let result = evaluator.eval(&self.root);
        (result, evaluator.cost())
    }
}

/// How a field is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// An absent field is an error.
    Get,
    /// `has(a.b)`.
    Test,
    /// `a.?b`.
    Optional,
}

/// A planned expression. What a step costs besides its parts is known from the plan or counted by the evaluator.
#[derive(Debug)]
pub(crate) enum Step {
    Const(Val<'static>),
    Variable {
        name: Name,
        cost: u64,
    },
    Slot(usize),
    Select {
        operand: Box<Step>,
        field: Name,
        mode: Mode,
        cost: u64,
    },
    Index {
        parts: Box<[Step; 2]>,
        optional: bool,
        cost: u64,
    },
    Call(Box<Call>),
    NotStrictlyFalse(Box<Step>),
    And(Vec<Step>),
    Or(Vec<Step>),
    /// With what the branches cost less as branches than by themselves.
    Conditional(Box<[Step; 3]>, [u64; 2]),
    Equal(Box<[Step; 2]>, bool),
    /// Membership in a list of constants.
    InSet(Box<Step>, Vec<Val<'static>>),
    /// `a.or(b)`, or with `true` `a.orValue(b)`.
    OrElse(Box<[Step; 2]>, bool),
    List(Vec<(Step, bool)>),
    Map(Vec<(Step, Step, bool)>),
    Struct(Name, Vec<(Name, Step, bool)>),
    Fold(Box<Fold>),
    Bind(Box<Bind>),
    /// Adds elements to the list in a slot.
    Append(usize, Box<Step>),
    /// Adds entries to the map in a slot.
    Insert(usize, Vec<Step>),
}

#[derive(Debug)]
pub(crate) struct Call {
    pub function: &'static Function,
    pub args: Vec<Step>,
    /// The second argument, where it is a constant pattern.
    pub pattern: Option<Regex>,
}

#[derive(Debug)]
pub(crate) struct Fold {
    pub range: Step,
    pub init: Step,
    pub condition: Step,
    pub step: Step,
    pub result: Step,
    pub accu: usize,
    pub var: usize,
    pub var2: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Bind {
    pub value: Step,
    pub body: Step,
    pub slot: usize,
}
