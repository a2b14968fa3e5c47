//! ValidatingAdmissionPolicy: expressions that must hold, or the request is denied, warned about or only audited.

use std::collections::BTreeMap;

use api::status::Status;
use cel::{
    Budget, Val,
    policy::{Compiled, Failure, Inputs, Returns, Scope},
};
use serde_json::{Value, json};

use super::{
    Bound, Misconfigured, Policies,
    documents::Documents,
    source::{Binding, Common, Hook, Policy},
};
use crate::{admission::Request, context, registry::fields::*};

/// Bytes of a message that an expression makes.
const MESSAGE_MAX: usize = 5 * 1024;
/// Bytes of an audit annotation's value.
const ANNOTATION_MAX: usize = 10 * 1024;

pub(super) struct Validating {
    common: Common,
    validations: Vec<Validation>,
    audit: Vec<(String, Compiled)>,
}

struct Validation {
    expression: Compiled,
    message: String,
    message_expression: Option<Compiled>,
    /// Empty for `Invalid`.
    reason: String,
}

impl Policy for Validating {
    fn parse(common: Common, policy: &Value) -> Self {
        let messages = Scope { authorizer: false, ..common.scope.clone() }.environment();
        let validation = |value: &Value| {
            let message = text(value, "/messageExpression");
            Validation {
                expression: common.compile(text(value, "/expression"), Returns::Bool),
                message: text(value, "/message").to_owned(),
                message_expression: (!message.is_empty())
                    .then(|| Compiled::new(&messages, message, Returns::String)),
                reason: text(value, "/reason").to_owned(),
            }
        };
        let validations = items(policy, "/spec/validations").iter().map(validation).collect();
        let audit = items(policy, "/spec/auditAnnotations").iter().map(|annotation| {
            let source = text(annotation, "/valueExpression");
            (text(annotation, "/key").to_owned(), common.compile(source, Returns::StringOrNull))
        });
        let audit = audit.collect();
        Self { common, validations, audit }
    }

    fn common(&self) -> &Common {
        &self.common
    }
}

/// Why a request is not as a policy wants it.
struct Denial {
    message: String,
    reason: String,
}

impl Denial {
    fn failure(message: String) -> Self {
        Self { message, reason: String::new() }
    }
}

/// The first denial that counts.
#[derive(Default)]
struct Verdict {
    status: Option<Status>,
}

impl Verdict {
    fn deny(&mut self, request: &Request<'_>, policy: &str, binding: Option<&Binding>, denial: Denial) {
        if self.status.is_some() {
            return;
        }
        let by = binding.map_or_else(String::new, |binding| format!(" with binding '{}'", binding.name));
        let message = format!("ValidatingAdmissionPolicy '{policy}'{by} denied request: {}", denial.message);
        let mut status = request.forbidden(&message).with_cause("", &message, "");
        (status.code, status.reason) = match denial.reason.as_str() {
            "Forbidden" => (403, "Forbidden".into()),
            "Unauthorized" => (401, "Unauthorized".into()),
            "RequestEntityTooLarge" => (413, "RequestEntityTooLarge".into()),
            _ => (422, "Invalid".into()),
        };
        self.status = Some(status);
    }
}

pub(super) async fn validate(
    policies: &Policies,
    hooks: &[Hook<Validating>],
    request: &Request<'_>,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let mut verdict = Verdict::default();
    for hook in hooks {
        let policy = &*hook.policy;
        let name = &policy.common.name;
        let mut errors = Vec::new();
        let bound = policies.bound(hook, request, object, &mut errors).await;
        if !policy.common.fails_open {
            for Misconfigured { binding, why } in errors {
                verdict.deny(request, name, binding, Denial::failure(why));
            }
        }
        let Some((matched, bound)) = bound else { continue };
        if bound.iter().all(|bound| bound.params.is_empty()) {
            continue;
        }
        let documents =
            Documents::new(request, object, &matched).await?.with_namespace(request, &*policies.cache)?;
        let mut notes = Notes::default();
        for Bound { binding, params } in &bound {
            for params in params {
                for (index, denial) in policy.judge(policies, request, &documents, params, &mut notes) {
                    act(request, name, binding, (index, denial), &mut verdict, warnings);
                }
            }
        }
        notes.publish(name);
    }
    verdict.status.map_or(Ok(()), Err)
}

/// Audit annotations of one policy, from all its bindings.
#[derive(Default)]
struct Notes(BTreeMap<String, Vec<String>>);

impl Notes {
    fn add(&mut self, key: &str, value: &str) {
        let end = (0..=value.len().min(ANNOTATION_MAX)).rev().find(|end| value.is_char_boundary(*end));
        let value = &value[..end.unwrap_or(0)];
        let values = self.0.entry(key.to_owned()).or_default();
        if !values.iter().any(|known| known == value) {
            values.push(value.to_owned());
        }
    }

    fn publish(self, policy: &str) {
        for (key, values) in self.0 {
            context::annotate(&format!("{policy}/{key}"), || values.join(", "));
        }
    }
}

/// Does what the binding says about a violation.
fn act(
    request: &Request<'_>,
    policy: &str,
    binding: &Binding,
    (index, denial): (usize, Denial),
    verdict: &mut Verdict,
    warnings: &mut Vec<String>,
) {
    if binding.actions.iter().any(|action| action == "Audit") {
        context::annotate("validation.policy.admission.k8s.io/validation_failure", || {
            let failure = json!([{
                "message": denial.message, "policy": policy, "binding": binding.name, "expressionIndex": index,
                "validationActions": binding.actions,
            }]);
            failure.to_string()
        });
    }
    if binding.actions.iter().any(|action| action == "Warn") {
        warnings.push(format!(
            "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{}': {}",
            binding.name, denial.message
        ));
    }
    if binding.actions.iter().any(|action| action == "Deny") {
        verdict.deny(request, policy, Some(binding), denial);
    }
}

impl Validating {
    /// All that is wrong with a request by this policy and these parameters.
    fn judge(
        &self,
        policies: &Policies,
        request: &Request<'_>,
        documents: &Documents,
        params: &Value,
        notes: &mut Notes,
    ) -> Vec<(usize, Denial)> {
        let failed = |why: String| {
            if self.common.fails_open { Vec::new() } else { vec![(0, Denial::failure(why))] }
        };
        if let Some(conditions) = &self.common.conditions {
            match conditions.hold(request, documents, params, &policies.authorizer) {
                Ok(true) => {}
                Ok(false) => return Vec::new(),
                Err(why) => return failed(why),
            }
        }
        let authorizer = documents.authorizer(request, &policies.authorizer);
        let bindings = documents.bindings(request, params, &authorizer);
        let inputs = Inputs::new(&bindings, &self.common.variables);
        let mut budget = Budget::default();
        let mut results = Vec::with_capacity(self.validations.len());
        for validation in &self.validations {
            match validation.expression.evaluate(&inputs, &mut budget) {
                Err(Failure::Budget(why)) => return failed(why),
                result => results.push((validation, result)),
            }
        }
        let mut denials = Vec::new();
        for (index, (validation, result)) in results.into_iter().enumerate() {
            match result {
                Ok(Val::Bool(true)) => {}
                Ok(_) => denials.push((index, validation.denial(&inputs, &mut budget))),
                Err(failure) => {
                    denials.extend(failed(failure.into_text()).into_iter().map(|(_, denial)| (index, denial)))
                }
            }
        }
        denials.extend(self.annotate(&inputs, notes).into_iter().flat_map(failed));
        denials
    }

    /// Computes the audit annotations; gives what failed.
    fn annotate(&self, inputs: &Inputs<'_, '_>, notes: &mut Notes) -> Vec<String> {
        let mut budget = Budget::default();
        let mut failures = Vec::new();
        for (key, expression) in &self.audit {
            match expression.evaluate(inputs, &mut budget) {
                Ok(Val::String(value)) if !value.trim().is_empty() => notes.add(key, value.trim()),
                Ok(_) => {}
                Err(failure) => failures.push(failure.into_text()),
            }
        }
        failures
    }
}

impl Validation {
    fn denial(&self, inputs: &Inputs<'_, '_>, budget: &mut Budget) -> Denial {
        let expressed = self.message_expression.as_ref().map(|message| message.evaluate(inputs, budget));
        let usable = match expressed {
            Some(Err(Failure::Budget(why))) => {
                return Denial::failure(format!("failed messageExpression: {why}"));
            }
            Some(Ok(Val::String(text))) => {
                let text = text.trim();
                let fits = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
                fits.then(|| text.to_owned())
            }
            _ => None,
        };
        let message = usable.unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed expression: {}", self.expression.source.trim()),
            message => message.to_owned(),
        });
        Denial { message, reason: self.reason.clone() }
    }
}
