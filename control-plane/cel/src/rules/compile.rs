//! The rules of each node, compiled and with their estimated costs.

use std::sync::Arc;

use super::{Level, Rule, field_path};
use crate::{
    environment::{Environment, Expression},
    estimate::{Estimate, Sizes},
    program::Program,
    structural::{Kind, Node, RuleText, SchemaTypes, unescape},
    types::Type,
};

pub(super) fn level(root: &Node) -> Level {
    let types = SchemaTypes::new(root);
    below(root, &types)
}

fn below(node: &Node, types: &Arc<SchemaTypes>) -> Level {
    let mut level = Level { rules: rules(node, types), ..Level::default() };
    match &node.kind {
        Kind::List(inner, _) | Kind::Map(inner) => {
            let elements = below(inner, types);
            level.elements = (!elements.is_empty()).then(|| Box::new(elements));
        }
        Kind::Object { properties, .. } => {
            for (name, property) in properties {
                let below = below(property, types);
                if !below.is_empty() {
                    level.properties.insert(name.clone(), below);
                }
            }
        }
        _ => {}
    }
    level
}

fn rules(node: &Node, types: &Arc<SchemaTypes>) -> Vec<Rule> {
    if node.rules.is_empty() {
        return Vec::new();
    }
    let environment = |optional: bool| {
        let ty = node.ty()?;
        let old = if optional { Type::optional(ty.clone()) } else { ty.clone() };
        Some(
            Environment::builder().variable("self", ty).variable("oldSelf", old).types(types.clone()).build(),
        )
    };
    let (plain, optional) = (environment(false), environment(true));
    let compile = |text: &RuleText| {
        let environment = if text.optional_old_self { &optional } else { &plain };
        match environment {
            Some(environment) => rule(node, environment, text),
            None => {
                let why = "failed to convert to declType for CEL validation rules".to_owned();
                Rule { program: Some(Err(why)), ..empty(text) }
            }
        }
    };
    node.rules.iter().map(compile).collect()
}

fn empty(text: &RuleText) -> Rule {
    Rule {
        text: text.clone(),
        program: None,
        uses_old: false,
        cost_max: 0,
        message: None,
        message_cost_max: 0,
        field_path: None,
    }
}

fn rule(node: &Node, environment: &Environment, text: &RuleText) -> Rule {
    let mut rule = empty(text);
    if text.rule.trim().is_empty() {
        return rule;
    }
    match checked(
        environment,
        &text.rule,
        &Type::Bool,
        "compilation failed",
        "cel expression must evaluate to a bool",
    ) {
        Err(error) => {
            rule.program = Some(Err(error));
            return rule;
        }
        Ok(expression) => {
            rule.uses_old = expression.uses("oldSelf");
            rule.cost_max = expression.estimate(&NodeSizes(node)).max;
            rule.program = Some(Ok(expression.program()));
        }
    }
    if !text.message_expression.is_empty() {
        let failed = "messageExpression compilation failed";
        let wrong = "messageExpression must evaluate to a string";
        let message = checked(environment, &text.message_expression, &Type::String, failed, wrong);
        rule.message_cost_max = message.as_ref().map_or(0, |message| message.estimate(&NodeSizes(node)).max);
        rule.message = Some(message.map(|message| -> Program { message.program() }));
    }
    if !text.field_path.is_empty() {
        rule.field_path = field_path::resolve(&text.field_path, node).ok();
    }
    rule
}

fn checked(
    environment: &Environment,
    source: &str,
    result: &Type,
    failed: &str,
    wrong: &str,
) -> Result<Expression, String> {
    let expression = environment.check(source).map_err(|issues| format!("{failed}: {issues}"))?;
    if expression.result_type() == result { Ok(expression) } else { Err(wrong.to_owned()) }
}

/// Sizes below the node that a rule stands at.
struct NodeSizes<'n>(&'n Node);

impl Sizes for NodeSizes<'_> {
    fn size(&self, path: &[String]) -> Option<Estimate> {
        let (_, path) = path.split_first()?;
        let mut node = self.0;
        for (index, step) in path.iter().enumerate() {
            node = match (&**step, &node.kind) {
                ("@items" | "@values", Kind::List(inner, _) | Kind::Map(inner)) => inner,
                // Upstream gives keys no size of their own.
                ("@keys", Kind::Map(_)) if index + 1 == path.len() => return Some(Estimate::up_to(0)),
                (name, Kind::Object { properties, .. }) => properties.get(&*unescape(name)?)?,
                _ => return None,
            };
            node.ty()?;
        }
        Some(Estimate::up_to(node.elements_max))
    }
}
