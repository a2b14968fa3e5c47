//! What is wrong with the rules of a schema, as a write of its CustomResourceDefinition is told.

use api::field::{self, FieldError};
use serde_json::{Value as Json, json};

use super::{Level, Rule, field_path};
use crate::structural::{Kind, Node, RuleText};

/// Estimated cost of one expression.
const EXPRESSION_COST_MAX: u64 = 10_000_000;
/// Estimated cost of all expressions of a schema.
const SCHEMA_COST_MAX: u64 = 100_000_000;
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// The most expensive rules that are named.
const EXPENSIVE_MAX: usize = 4;

pub(super) fn find(node: &Node, root: &Level, path: &str) -> Vec<FieldError> {
    let mut finder = Finder { errors: Vec::new(), total: 0, expensive: Vec::new() };
    finder.level(node, root, path, Some(1), None);
    if finder.total > SCHEMA_COST_MAX {
        finder.expensive.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, path) in finder.expensive.into_iter().take(EXPENSIVE_MAX) {
            let why =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            finder.errors.push(FieldError::forbidden(path, why));
        }
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        finder.errors.push(FieldError::forbidden(path, cost_message(name, finder.total, SCHEMA_COST_MAX)));
    }
    finder.errors
}

struct Finder {
    errors: Vec<FieldError>,
    total: u64,
    expensive: Vec<(u64, String)>,
}

impl Finder {
    /// `count` is how often the node may occur, `None` where nothing bounds it; `loose` the path of a list whose items
    /// have no old versions.
    fn level(&mut self, node: &Node, level: &Level, path: &str, count: Option<u64>, loose: Option<&str>) {
        let before = self.errors.len();
        match &node.kind {
            Kind::List(inner, kind) => {
                if let Some(elements) = &level.elements {
                    let path_below = field::child(path, "items");
                    let keyed = matches!(kind, crate::structural::ListKind::Map(_));
                    let loose = if keyed { loose } else { loose.or(Some(path)) };
                    self.level(inner, elements, &path_below, below_count(node, count), loose);
                }
            }
            Kind::Map(inner) => {
                if let Some(elements) = &level.elements {
                    let path_below = field::child(path, "additionalProperties");
                    self.level(inner, elements, &path_below, below_count(node, count), loose);
                }
            }
            Kind::Object { properties, .. } => {
                for (name, below) in &level.properties {
                    if let Some(property) = properties.get(name) {
                        let path_below = field::key(&field::child(path, "properties"), name);
                        self.level(property, below, &path_below, count, loose);
                    }
                }
            }
            _ => {}
        }
        let texts_fit = self.texts(node, level, path) && self.errors.len() == before;
        if texts_fit {
            for (index, rule) in level.rules.iter().enumerate() {
                let path = field::index(&field::child(path, "x-kubernetes-validations"), index);
                self.rule(node, rule, &path, count, loose);
            }
        }
    }

    fn texts(&mut self, node: &Node, level: &Level, path: &str) -> bool {
        let before = self.errors.len();
        for (index, rule) in level.rules.iter().enumerate() {
            let path = field::index(&field::child(path, "x-kubernetes-validations"), index);
            text_errors(&rule.text, node, &path, &mut self.errors);
        }
        self.errors.len() == before
    }

    fn observe(&mut self, path: String, cost: u64) {
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_COST_MAX / 100 {
            self.expensive.push((cost, path));
        }
    }

    fn rule(&mut self, node: &Node, rule: &Rule, path: &str, count: Option<u64>, loose: Option<&str>) {
        let rule_path = field::child(path, "rule");
        let cost = rule.cost_max.saturating_mul(count.unwrap_or_else(|| node.cardinality_max()));
        if cost > EXPRESSION_COST_MAX {
            let message = cost_message("estimated rule cost", cost, EXPRESSION_COST_MAX);
            self.errors.push(FieldError::forbidden(&*rule_path, message));
        }
        self.observe(rule_path.clone(), cost);
        if let Some(Err(error)) = &rule.program {
            self.errors.push(FieldError::invalid(&*rule_path, shown(&rule.text), error));
        }
        let message_path = field::child(path, "messageExpression");
        match &rule.message {
            Some(Err(error)) => self.errors.push(FieldError::invalid(message_path, shown(&rule.text), error)),
            Some(Ok(_)) => {
                if rule.message_cost_max > EXPRESSION_COST_MAX {
                    let cost = rule.message_cost_max;
                    let message = cost_message("estimated messageExpression cost", cost, EXPRESSION_COST_MAX);
                    self.errors.push(FieldError::forbidden(&*message_path, message));
                }
                self.observe(message_path, rule.message_cost_max);
            }
            None => {}
        }
        if rule.uses_old {
            if let Some(loose) = loose {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {loose}"
                );
                self.errors.push(FieldError::invalid(rule_path, &*rule.text.rule, why));
            }
        } else if rule.text.optional_old_self {
            let path = field::child(path, "optionalOldSelf");
            self.errors.push(FieldError::invalid(
                path,
                true,
                "may not be set if oldSelf is not used in rule",
            ));
        }
    }
}

fn below_count(node: &Node, count: Option<u64>) -> Option<u64> {
    count.filter(|_| node.bounded).map(|count| count.saturating_mul(node.elements_max))
}

fn text_errors(rule: &RuleText, node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    let at = |name: &str| field::child(path, name);
    let broken = |text: &str| text.contains(['\n', '\r']);
    let (text, message) = (rule.rule.trim(), rule.message.trim());
    if text.is_empty() {
        errors.push(FieldError::required(at("rule"), "rule is not specified"));
    } else if !rule.message.is_empty() && message.is_empty() {
        errors.push(FieldError::invalid(at("message"), &*rule.message, "must be non-empty if specified"));
    } else if broken(message) {
        errors.push(FieldError::invalid(at("message"), &*rule.message, "must not contain line breaks"));
    } else if broken(text) && message.is_empty() {
        errors.push(FieldError::required(
            at("message"),
            "message must be specified if rule contains line breaks",
        ));
    }
    if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
        let why = "messageExpression must be non-empty if specified";
        errors.push(FieldError::required(at("messageExpression"), why));
    }
    if !rule.reason.is_empty() && !REASONS.contains(&&*rule.reason) {
        errors.push(FieldError::not_supported(at("reason"), &*rule.reason, &REASONS));
    }
    if rule.field_path.is_empty() {
        return;
    }
    if rule.field_path.trim().is_empty() {
        errors.push(FieldError::invalid(
            at("fieldPath"),
            &*rule.field_path,
            "must be non-empty if specified",
        ));
    }
    if broken(&rule.field_path) {
        errors.push(FieldError::invalid(at("fieldPath"), &*rule.field_path, "must not contain line breaks"));
    }
    if field_path::resolve(&rule.field_path, node).is_err() {
        errors.push(FieldError::invalid(at("fieldPath"), &*rule.field_path, "must be a valid path"));
    }
}

/// The rule as errors show it.
fn shown(rule: &RuleText) -> Json {
    let optional = |text: &str| if text.is_empty() { Json::Null } else { json!(text) };
    json!({
        "Rule": rule.rule,
        "Message": rule.message,
        "MessageExpression": rule.message_expression,
        "Reason": optional(&rule.reason),
        "FieldPath": rule.field_path,
        "OptionalOldSelf": if rule.optional_old_self { json!(true) } else { Json::Null },
    })
}

fn cost_message(name: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}
