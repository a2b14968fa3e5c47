//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: admission that users write in CEL, bound to requests by bindings.
//!
//! ```text
//! policies, bindings -> Source (compiled once for each version) -> matching -> params -> Documents -> expressions
//! ```
//!
//! A write of a policy or binding counts for the next request: what was compiled of it is kept until the watch cache shows
//! another version. Type checking against the kinds that a policy matches is a controller's work.

mod conditions;
mod documents;
mod merge;
mod mutating;
mod params;
mod source;
mod validating;

use std::sync::Arc;

use api::status::Status;
use async_trait::async_trait;
use serde_json::Value;

pub use self::{conditions::MatchConditions, documents::Documents};
use self::{
    mutating::Mutating,
    source::{Binding, Hook, Source},
    validating::Validating,
};
use super::{Extension, Pass, Request, rules::Matched};
use crate::{security::Authorizer, storage::cache::Cache};

/// See the module's documentation.
pub struct Policies {
    cache: Arc<Cache>,
    authorizer: Arc<Authorizer>,
    validating: Source<Validating>,
    mutating: Source<Mutating>,
}

impl Policies {
    pub fn new(cache: Arc<Cache>, authorizer: Arc<Authorizer>) -> Self {
        Self {
            cache,
            authorizer,
            validating: Source::new("validatingadmissionpolicies", "validatingadmissionpolicybindings"),
            mutating: Source::new("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
        }
    }
}

#[async_trait]
impl Extension for Policies {
    async fn mutate(
        &self,
        request: &Request<'_>,
        object: &mut Value,
        pass: &mut Pass<'_>,
    ) -> Result<(), Status> {
        let hooks = self.mutating.hooks(&self.cache);
        if hooks.is_empty() || request.configures_admission() {
            return Ok(());
        }
        mutating::mutate(self, &hooks, request, object, pass).await
    }

    async fn validate(
        &self,
        request: &Request<'_>,
        object: &Value,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let hooks = self.validating.hooks(&self.cache);
        if hooks.is_empty() || request.configures_admission() {
            return Ok(());
        }
        validating::validate(self, &hooks, request, object, warnings).await
    }
}

/// Why a policy cannot be applied, and at which binding that was found.
struct Misconfigured<'h> {
    binding: Option<&'h Binding>,
    why: String,
}

impl<'h> Misconfigured<'h> {
    fn policy(why: impl Into<String>) -> Self {
        Self { binding: None, why: format!("failed to configure policy: {}", why.into()) }
    }

    fn binding(binding: &'h Binding, why: impl Into<String>) -> Self {
        Self { binding: Some(binding), why: format!("failed to configure binding: {}", why.into()) }
    }
}

/// One binding of a policy that is about a request, with all parameters that it names.
struct Bound<'h> {
    binding: &'h Binding,
    /// Null where the policy has no parameters; empty where none were found and that is allowed.
    params: Vec<Value>,
}

impl Policies {
    /// Whether a policy is about a request, and the bindings that make it so.
    async fn bound<'h, P: source::Policy>(
        &self,
        hook: &'h Hook<P>,
        request: &Request<'_>,
        object: &Value,
        errors: &mut Vec<Misconfigured<'h>>,
    ) -> Option<(Matched, Vec<Bound<'h>>)> {
        let matched = match hook.policy.common().rules.matches(request, object, &*self.cache) {
            Ok(matched) => matched?,
            Err(status) => {
                errors.push(Misconfigured::policy(status.message));
                return None;
            }
        };
        let kind = match params::kind_of(hook.policy.common(), request.kinds) {
            Ok(kind) => kind,
            Err(why) => {
                errors.push(Misconfigured::policy(why));
                return None;
            }
        };
        let mut bound = Vec::new();
        for binding in &hook.bindings {
            let is_about = match &binding.rules {
                None => Ok(true),
                Some(rules) => rules.matches(request, object, &*self.cache).map(|found| found.is_some()),
            };
            match is_about {
                Ok(false) => continue,
                Ok(true) => {}
                Err(status) => {
                    errors.push(Misconfigured::binding(binding, status.message));
                    continue;
                }
            }
            match params::collect(&self.cache, kind.as_ref(), &binding.param_ref, request.namespace).await {
                Ok(params) => bound.push(Bound { binding, params }),
                Err(why) => errors.push(Misconfigured::binding(binding, why)),
            }
        }
        Some((matched, bound))
    }
}
