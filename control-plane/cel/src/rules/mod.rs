//! `x-kubernetes-validations`: the rules of one structural schema, compiled once and applied to custom resources.
//!
//! [`Rules::compile`] takes the OpenAPI schema as JSON. [`Rules::problems`] says what a CustomResourceDefinition must not
//! have; [`Rules::validate`] judges an object, with its old version where there is one.

mod compile;
mod field_path;
mod problems;

use std::collections::BTreeMap;

use api::field::{self, FieldError, FieldErrorKind};
use serde_json::Value as Json;

use crate::{
    error::EvalError,
    program::{Bindings, Budget, Program},
    structural::{Kind, ListKind, Node, RuleText},
    value::Val,
};

/// Bytes of a message that an expression makes.
const MESSAGE_MAX: usize = 5 * 1024;

/// All rules of a schema.
#[derive(Debug)]
pub struct Rules {
    node: Node,
    root: Level,
}

/// The rules of one node and of those below it.
#[derive(Debug, Default)]
struct Level {
    rules: Vec<Rule>,
    /// Of a list's items or a map's values.
    elements: Option<Box<Level>>,
    properties: BTreeMap<String, Level>,
}

#[derive(Debug)]
struct Rule {
    text: RuleText,
    /// `None` where the rule is empty.
    program: Option<Result<Program, String>>,
    uses_old: bool,
    cost_max: u64,
    message: Option<Result<Program, String>>,
    message_cost_max: u64,
    /// The path to blame instead of the node's own.
    field_path: Option<String>,
}

/// What validation found.
#[derive(Debug, Default)]
pub struct Findings {
    pub errors: Vec<FieldError>,
    /// Of rules whose value did not change, so that they do not stand in the way of an update.
    pub warnings: Vec<FieldError>,
}

/// Why validation ends before its end.
struct Stop;

impl Rules {
    /// Compiles the rules of a schema (`openAPIV3Schema`, as JSON). Rules that do not compile are kept: they are
    /// [`Rules::problems`], and errors of every object that they would judge.
    pub fn compile(schema: &Json) -> Self {
        let node = Node::parse(schema, "selfType", true);
        let root = compile::level(&node);
        Self { node, root }
    }

    /// Whether there are no rules at all.
    pub fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// What is wrong with the rules themselves, at paths below `path`: texts, compilation, estimated costs.
    pub fn problems(&self, path: &str) -> Vec<FieldError> {
        problems::find(&self.node, &self.root, path)
    }

    /// Judges an object; `old` is its stored version on update.
    pub fn validate(&self, object: &Json, old: Option<&Json>, budget: &mut Budget) -> Findings {
        let mut pass = Pass { findings: Findings::default(), budget, paths: Vec::new() };
        // An early end is in the findings already.
        let _ended = pass.level(&self.root, &self.node, object, old, Ratchet::start(object, old));
        pass.findings
    }
}

impl Level {
    fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.elements.is_none() && self.properties.is_empty()
    }
}

/// Whether errors are only warnings, since nothing changed here.
#[derive(Clone, Copy)]
struct Ratchet {
    /// The value, or one around it that has an old version, is what it was.
    unchanged: bool,
    /// Whether the value itself has an old version.
    correlated: bool,
}

impl Ratchet {
    fn start(object: &Json, old: Option<&Json>) -> Self {
        Self { unchanged: old == Some(object), correlated: old.is_some() }
    }

    fn below(self, value: &Json, old: Option<&Json>) -> Self {
        match old {
            Some(old) if self.correlated => {
                Self { unchanged: self.unchanged || value == old, correlated: true }
            }
            _ => Self { unchanged: self.unchanged, correlated: false },
        }
    }
}

enum PathPart<'p> {
    Field(&'p str),
    Key(&'p str),
    Index(usize),
}

struct Pass<'p> {
    findings: Findings,
    budget: &'p mut Budget,
    paths: Vec<PathPart<'p>>,
}

impl<'p> Pass<'p> {
    fn path(&self) -> String {
        self.paths.iter().fold(String::new(), |path, part| match part {
            PathPart::Field(name) => field::child(&path, name),
            PathPart::Key(key) => field::key(&path, key),
            PathPart::Index(index) => field::index(&path, *index),
        })
    }

    fn invalid(&mut self, node: &Node, detail: String) {
        self.findings.errors.push(FieldError::invalid(self.path(), node.type_text(), detail));
    }

    fn level(
        &mut self,
        level: &'p Level,
        node: &'p Node,
        object: &'p Json,
        old: Option<&'p Json>,
        ratchet: Ratchet,
    ) -> Result<(), Stop> {
        if object.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        if !level.rules.is_empty() {
            self.rules(level, node, object, old, ratchet)?;
        }
        match object {
            Json::Array(items) => self.items(level, node, items, old, ratchet),
            Json::Object(fields) => self.fields(level, node, fields, old, ratchet),
            _ => Ok(()),
        }
    }

    fn below(
        &mut self,
        part: PathPart<'p>,
        level: &'p Level,
        node: &'p Node,
        object: &'p Json,
        old: Option<&'p Json>,
        ratchet: Ratchet,
    ) -> Result<(), Stop> {
        self.paths.push(part);
        let result = self.level(level, node, object, old, ratchet.below(object, old));
        self.paths.pop();
        result
    }

    fn fields(
        &mut self,
        level: &'p Level,
        node: &'p Node,
        fields: &'p serde_json::Map<String, Json>,
        old: Option<&'p Json>,
        ratchet: Ratchet,
    ) -> Result<(), Stop> {
        let old = old.and_then(Json::as_object);
        let old_of = |name: &str| old.and_then(|old| old.get(name));
        match (&node.kind, &level.elements) {
            (Kind::Map(values), Some(elements)) => {
                for (name, value) in fields {
                    self.below(PathPart::Key(name), elements, values, value, old_of(name), ratchet)?;
                }
            }
            (Kind::Object { properties, .. }, _) => {
                for (name, below) in &level.properties {
                    if let (Some(value), Some(property)) = (fields.get(name), properties.get(name)) {
                        self.below(PathPart::Field(name), below, property, value, old_of(name), ratchet)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn items(
        &mut self,
        level: &'p Level,
        node: &'p Node,
        items: &'p [Json],
        old: Option<&'p Json>,
        ratchet: Ratchet,
    ) -> Result<(), Stop> {
        let (Kind::List(inner, kind), Some(elements)) = (&node.kind, &level.elements) else { return Ok(()) };
        let old = old.and_then(Json::as_array).map(Vec::as_slice).unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            let correlated = match kind {
                ListKind::Map(keys) => {
                    old.iter().find(|old| keys.iter().all(|key| old.get(key) == item.get(key)))
                }
                ListKind::Atomic | ListKind::Set => None,
            };
            self.below(PathPart::Index(index), elements, inner, item, correlated, ratchet)?;
        }
        Ok(())
    }

    fn rules(
        &mut self,
        level: &'p Level,
        node: &'p Node,
        object: &'p Json,
        old: Option<&'p Json>,
        ratchet: Ratchet,
    ) -> Result<(), Stop> {
        if self.budget.remaining() == 0 {
            self.invalid(node, EvalError::Budget.to_string());
            return Err(Stop);
        }
        for rule in &level.rules {
            let program = match &rule.program {
                None => continue,
                Some(Err(error)) => {
                    self.invalid(node, format!("rule compile error: {error}"));
                    continue;
                }
                Some(Ok(program)) => program,
            };
            if rule.uses_old && old.is_none() && !rule.text.optional_old_self {
                continue;
            }
            let variables = match variables(node, object, old, rule) {
                Ok(variables) => variables,
                Err(error) => {
                    self.invalid(node, format!("{error} evaluating rule: {}", rule.label()));
                    continue;
                }
            };
            match program.evaluate(&variables, self.budget) {
                Ok(Val::Bool(true)) => {}
                Ok(_) => self.failed(rule, node, object, &variables, ratchet)?,
                Err(error) => self.rule_error(rule, node, &error)?,
            }
        }
        Ok(())
    }

    fn rule_error(&mut self, rule: &Rule, node: &Node, error: &EvalError) -> Result<(), Stop> {
        let label = rule.label();
        match error {
            EvalError::Budget => {
                self.invalid(node, error.to_string());
                Err(Stop)
            }
            EvalError::CostLimit => {
                let why = "no further validation rules will be run due to call cost exceeds limit for rule";
                self.invalid(node, format!("'{error}': {why}: {label}"));
                Err(Stop)
            }
            EvalError::Failed(message) if message.starts_with("no such overload") => {
                let why =
                    "call arguments did not match a supported operator, function or macro signature for rule";
                self.invalid(node, format!("'{error}': {why}: {label}"));
                Ok(())
            }
            EvalError::Failed(_) => {
                self.invalid(node, format!("{error} evaluating rule: {label}"));
                Ok(())
            }
        }
    }

    fn failed(
        &mut self,
        rule: &Rule,
        node: &Node,
        object: &Json,
        variables: &Bindings<'_>,
        ratchet: Ratchet,
    ) -> Result<(), Stop> {
        let path = match &rule.field_path {
            Some(below) if self.paths.is_empty() => below.clone(),
            Some(below) => format!("{}.{below}", self.path()),
            None => self.path(),
        };
        let detail = match &rule.message {
            Some(Ok(message)) => match message.evaluate(variables, self.budget) {
                Ok(Val::String(text)) => usable_message(&text),
                Ok(_) => None,
                Err(EvalError::Failed(_)) => None,
                Err(error) => {
                    let expression = field::quote(&rule.text.message_expression);
                    let why = match error {
                        EvalError::Budget => {
                            "messageExpression evaluation failed due to running out of cost budget, \
                                              no further validation rules will be run"
                                .to_owned()
                        }
                        _ => format!(
                            "no further validation rules will be run due to call cost exceeds limit for \
                             messageExpression: {expression}"
                        ),
                    };
                    self.findings.errors.push(FieldError::invalid(path, node.type_text(), why));
                    return Err(Stop);
                }
            },
            _ => None,
        };
        let detail = detail.unwrap_or_else(|| rule.default_message());
        let kind = match &*rule.text.reason {
            "FieldValueForbidden" => FieldErrorKind::Forbidden,
            "FieldValueRequired" => FieldErrorKind::Required,
            "FieldValueDuplicate" => FieldErrorKind::Duplicate,
            _ => FieldErrorKind::Invalid,
        };
        let detail = if kind == FieldErrorKind::Duplicate { String::new() } else { detail };
        let mut error = FieldError::new(kind, path, Json::Null, detail);
        if matches!(node.type_text(), "object" | "array") {
            error = error.without_value();
        } else {
            error.value = object.clone();
        }
        let only_warns = ratchet.unchanged && !rule.uses_old;
        if only_warns {
            self.findings.warnings.push(error)
        } else {
            self.findings.errors.push(error)
        }
        Ok(())
    }
}

fn variables<'a>(
    node: &'a Node,
    object: &'a Json,
    old: Option<&'a Json>,
    rule: &Rule,
) -> Result<Bindings<'a>, EvalError> {
    let bindings = Bindings::new().with("self", node.value(object)?);
    if !rule.uses_old {
        return Ok(bindings);
    }
    let old = old.map(|old| node.value(old)).transpose()?;
    Ok(match (old, rule.text.optional_old_self) {
        (Some(old), false) => bindings.with("oldSelf", old),
        (old, true) => bindings.with("oldSelf", Val::Optional(old.map(std::sync::Arc::new))),
        (None, false) => bindings,
    })
}

fn usable_message(text: &str) -> Option<String> {
    let text = text.trim();
    let usable = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
    usable.then(|| text.to_owned())
}

impl Rule {
    /// What names the rule in errors.
    fn label(&self) -> &str {
        if self.text.message.is_empty() { self.text.rule.trim() } else { self.text.message.trim() }
    }

    fn default_message(&self) -> String {
        if self.text.message.is_empty() {
            format!("failed rule: {}", self.text.rule.trim())
        } else {
            self.text.message.trim().to_owned()
        }
    }
}

#[cfg(test)]
mod tests;

/// The estimated and the actual cost of a schema's first rule.
#[cfg(test)]
pub(crate) fn costs_of_rule(schema: &Json, object: &Json, cost_max: u64) -> Result<(u64, u64), String> {
    let node = Node::parse(schema, "selfType", false);
    let level = compile::level(&node);
    let rule = level.rules.first().ok_or("no rule")?;
    let program = rule.program.as_ref().ok_or("empty")?.as_ref().map_err(String::clone)?;
    let variables = variables(&node, object, None, rule).map_err(|error| error.to_string())?;
    match program.evaluate_with_cost(&variables, cost_max) {
        (Ok(Val::Bool(true)), cost) => Ok((rule.cost_max, cost)),
        (other, cost) => Err(format!("{other:?} for {cost}")),
    }
}
