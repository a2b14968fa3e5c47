//! `matchConditions` of policies and webhooks: all must hold, or nobody is asked.

use cel::{
    Budget, Val,
    policy::{Compiled, Failure, Inputs, MATCH_CONDITIONS_COST_MAX, Returns, Scope},
};
use serde_json::Value;

use super::Documents;
use crate::{admission::Request, registry::fields::*, security::Authorizer};

/// The conditions of one policy or webhook, compiled.
pub struct MatchConditions {
    conditions: Vec<Compiled>,
    fails_open: bool,
}

impl MatchConditions {
    /// Those of a webhook (an item of a configuration's `webhooks`); `None` where it has none.
    pub fn of_webhook(webhook: &Value) -> Option<Self> {
        let fails_open = text(webhook, "/failurePolicy") == "Ignore";
        Self::parse(items(webhook, "/matchConditions"), fails_open, false)
    }

    pub(super) fn parse(conditions: &[Value], fails_open: bool, params: bool) -> Option<Self> {
        if conditions.is_empty() {
            return None;
        }
        let environment = Scope { params, authorizer: true, ..Scope::default() }.environment();
        let compile =
            |condition: &Value| Compiled::new(&environment, text(condition, "/expression"), Returns::Bool);
        Some(Self { conditions: conditions.iter().map(compile).collect(), fails_open })
    }

    /// Whether all conditions hold. Where some fail and none says no, `failurePolicy` decides.
    ///
    /// # Errors
    /// What failed, where the failure policy is `Fail`.
    pub fn hold(
        &self,
        request: &Request<'_>,
        documents: &Documents,
        params: &Value,
        authorizer: &Authorizer,
    ) -> Result<bool, String> {
        let authorizer = documents.authorizer(request, authorizer);
        let bindings = documents.bindings_without_namespace(request, params, &authorizer);
        let inputs = Inputs::new(&bindings, &[]);
        let mut budget = Budget::new(MATCH_CONDITIONS_COST_MAX);
        let mut failures = Vec::new();
        for condition in &self.conditions {
            match condition.evaluate(&inputs, &mut budget) {
                Ok(Val::Bool(false)) => return Ok(false),
                Ok(_) => {}
                Err(Failure::Expression(why)) => failures.push(why),
                Err(Failure::Budget(why)) => {
                    failures = vec![why];
                    break;
                }
            }
        }
        match &failures[..] {
            [] => Ok(true),
            _ if self.fails_open => Ok(false),
            [one] => Err(one.clone()),
            several => Err(format!("[{}]", several.join(", "))),
        }
    }
}
