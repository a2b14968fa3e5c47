//! Admission webhooks: MutatingWebhookConfigurations and ValidatingWebhookConfigurations, asked with AdmissionReviews.
//!
//! Mutating webhooks are asked one after the other, by the name of their configuration and then in its order; validating ones
//! all at once. A configuration counts for the first request after the write that made it: what was parsed of it is kept
//! until the watch cache shows another version.

mod call;
mod hook;

use std::sync::Arc;

use api::status::Status;
use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};
use tracing::warn;

use self::{
    call::{Failure, Review},
    hook::{Hook, Source},
};
use super::{Extension, Pass, Request, policy::Documents, rules::Matched};
use crate::{callout::Callout, context, ownership, security::Authorizer, storage::cache::Cache};

/// See the module's documentation.
pub struct Webhooks {
    cache: Arc<Cache>,
    callout: Arc<Callout>,
    authorizer: Arc<Authorizer>,
    mutating: Source,
    validating: Source,
}

impl Webhooks {
    pub fn new(cache: Arc<Cache>, callout: Arc<Callout>, authorizer: Arc<Authorizer>) -> Self {
        Self {
            cache,
            callout,
            authorizer,
            mutating: Source::new("mutatingwebhookconfigurations"),
            validating: Source::new("validatingwebhookconfigurations"),
        }
    }
}

fn out_of_time() -> Status {
    Status::timeout("request did not complete within requested timeout", 0)
}

#[async_trait]
impl Extension for Webhooks {
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
        pass.begin(object);
        for (index, hook) in hooks.iter().enumerate() {
            let Some(matched) = self.matches(hook, request, object).await? else { continue };
            if !pass.asks(&hook.id) {
                continue;
            }
            let result = self.ask_mutating(hook, index, &matched, request, object, pass).await;
            let changed = matches!(result, Ok(true));
            let place = format!("mutation.webhook.admission.k8s.io/round_{}_index_{index}", pass.round());
            context::annotate(&place, || {
                json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed})
                    .to_string()
            });
            pass.asked(&hook.id, hook.is_asked_again, changed);
            if let Err(failure) = result {
                self.judge(hook, failure, &place)?;
            }
        }
        pass.end(object);
        Ok(())
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
        let mut asked = Vec::new();
        for hook in hooks.iter() {
            if let Some(matched) = self.matches(hook, request, object).await? {
                asked.push((hook, matched));
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        if context::remaining().is_zero() {
            return Err(out_of_time());
        }
        let calls = asked.iter().map(|(hook, matched)| self.ask_validating(hook, matched, request, object));
        let mut verdict = Ok(());
        for (index, ((hook, _), (result, said))) in asked.iter().zip(join_all(calls).await).enumerate() {
            warnings.extend(said);
            if let Err(failure) = result {
                let place = format!("validating.webhook.admission.k8s.io/round_0_index_{index}");
                verdict = verdict.and(self.judge(hook, failure, &place));
            }
        }
        verdict
    }
}

impl Webhooks {
    async fn matches(
        &self,
        hook: &Hook,
        request: &Request<'_>,
        object: &Value,
    ) -> Result<Option<Matched>, Status> {
        let matched = hook.rules.matches(request, object, &*self.cache)?;
        let (Some(matched), Some(conditions)) = (&matched, &hook.conditions) else { return Ok(matched) };
        let documents = Documents::new(request, object, matched).await?;
        let hold = conditions
            .hold(request, &documents, &Value::Null, &self.authorizer)
            .map_err(|why| request.forbidden(why))?;
        Ok(hold.then(|| matched.clone()))
    }

    /// Whether the object was changed.
    async fn ask_mutating(
        &self,
        hook: &Hook,
        index: usize,
        matched: &Matched,
        request: &Request<'_>,
        object: &mut Value,
        pass: &mut Pass<'_>,
    ) -> Result<bool, Failure> {
        let review = Review::new(request, object, matched).await?;
        let answer = review.ask(hook, &self.callout, true).await?;
        pass.warnings.extend(answer.warnings.iter().cloned());
        let Some(patch) = answer.allowed_patch(hook)? else { return Ok(false) };
        let Some(patched) = review.patched(hook, &patch)? else { return Ok(false) };
        let place = format!("patch.webhook.admission.k8s.io/round_{}_index_{index}", pass.round());
        context::annotate_content(&place, || {
            json!({
                "configuration": hook.configuration, "webhook": hook.name, "patch": patch, "patchType": "JSONPatch",
            })
            .to_string()
        });
        match review.accepted(patched).await? {
            Some(mut changed) => {
                pass.warnings.extend(ownership::keep_readable(&mut changed, object));
                *object = changed;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn ask_validating(
        &self,
        hook: &Hook,
        matched: &Matched,
        request: &Request<'_>,
        object: &Value,
    ) -> (Result<(), Failure>, Vec<String>) {
        let asked = async {
            let review = Review::new(request, object, matched).await?;
            review.ask(hook, &self.callout, false).await
        };
        match asked.await {
            Ok(answer) => {
                let verdict = answer.allowed_patch(hook).map(drop);
                (verdict, answer.warnings)
            }
            Err(failure) => (Err(failure), Vec::new()),
        }
    }

    /// What a failure means by the webhook's policy.
    fn judge(&self, hook: &Hook, failure: Failure, place: &str) -> Result<(), Status> {
        match failure {
            Failure::Status(status) => Err(*status),
            Failure::Calling(why) if hook.fails_open => {
                warn!(webhook = hook.name, why, "failed calling webhook, failing open");
                context::annotate(&format!("failed-open.{place}"), || hook.name.clone());
                if context::remaining().is_zero() { Err(out_of_time()) } else { Ok(()) }
            }
            Failure::Calling(why) => {
                let why = format!("failed calling webhook {:?}: {why}", hook.name);
                warn!(webhook = hook.name, why, "failing closed");
                Err(Status::internal(why))
            }
        }
    }
}
