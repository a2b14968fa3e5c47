//! Type checking of ValidatingAdmissionPolicies: what in their expressions cannot fit the kinds that they match goes to
//! `status.typeChecking`, once for each generation. Warnings only; nothing depends on them.

use std::sync::Arc;

use cel::policy::{check_types, matched_kinds, param_kind};
use k8s_openapi::api::admissionregistration::v1::{
    ExpressionWarning, TypeChecking, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyStatus,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;
use crate::reconcile::{self, Next, Reconcile, Result};
use crate::store::{Key, Store, feed};

/// The controller.
pub struct Controller {
    client: Client,
    policies: Arc<Store<ValidatingAdmissionPolicy>>,
}

/// Checks policies until `cancel` is cancelled.
pub async fn run(client: Client, cancel: CancellationToken) {
    let policies: Arc<Store<ValidatingAdmissionPolicy>> = Arc::default();
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    policies.subscribe(move |_, new| {
        if let Some(policy) = new.filter(|policy| !is_checked(policy)) {
            dirty.add(Key::of(&**policy));
        }
    });
    let api = Api::<ValidatingAdmissionPolicy>::all(client.clone());
    let watch = feed(api, watcher::Config::default(), policies.clone(), cancel.clone());
    let controller = Arc::new(Controller { client, policies });
    tokio::join!(watch, reconcile::work(controller, queue, 1, cancel));
}

fn is_checked(policy: &ValidatingAdmissionPolicy) -> bool {
    let status = policy.status.as_ref();
    status.is_some_and(|status| {
        status.type_checking.is_some() && status.observed_generation == policy.metadata.generation
    })
}

/// The status of a checked policy.
pub fn status(policy: &ValidatingAdmissionPolicy, definitions: &[Value]) -> ValidatingAdmissionPolicyStatus {
    let value = serde_json::to_value(policy).unwrap_or_default();
    let params = param_kind(&value, definitions);
    let warnings = check_types(&value, &matched_kinds(&value, definitions), params.as_ref());
    let warnings: Vec<ExpressionWarning> =
        warnings.into_iter().filter_map(|warning| serde_json::from_value(warning).ok()).collect();
    ValidatingAdmissionPolicyStatus {
        observed_generation: policy.metadata.generation,
        type_checking: Some(TypeChecking { expression_warnings: (!warnings.is_empty()).then_some(warnings) }),
        ..policy.status.clone().unwrap_or_default()
    }
}

impl Reconcile for Controller {
    const NAME: &'static str = "validatingadmissionpolicy-status-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(policy) = self.policies.get(key).filter(|policy| !is_checked(policy)) else {
            return Ok(Next::Change);
        };
        let definitions = Api::<CustomResourceDefinition>::all(self.client.clone());
        let definitions = definitions.list(&ListParams::default()).await?;
        let definitions: Vec<Value> =
            definitions.items.iter().filter_map(|definition| serde_json::to_value(definition).ok()).collect();
        let api = Api::<ValidatingAdmissionPolicy>::all(self.client.clone());
        let checked =
            ValidatingAdmissionPolicy { status: Some(status(&policy, &definitions)), ..(*policy).clone() };
        let written = api.replace_status(&key.name, &PostParams::default(), &checked).await?;
        self.policies.observe(&written);
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_is_checked_once_for_each_generation() {
        let policy = json!({
            "metadata": {"name": "p", "generation": 2},
            "spec": {
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments", "*"]},
                    {"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["foos"]}]},
                "validations": [{"expression": "object.spec.replicas > 1"}, {"expression": "object.spec.nope == 1"}]
            },
            "status": {"observedGeneration": 1, "typeChecking": {}}
        });
        let mut policy: ValidatingAdmissionPolicy = serde_json::from_value(policy).expect("a policy");
        assert!(!is_checked(&policy));
        let definition = json!({"spec": {"group": "example.com", "names": {"plural": "foos", "kind": "Foo"}, "versions": [
            {"name": "v1", "served": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {"replicas": {"type": "string"}, "nope": {"type": "integer"}}}}}}}]}});
        let found = status(&policy, &[definition]);
        let warnings = found.type_checking.clone().and_then(|checking| checking.expression_warnings);
        let texts: Vec<(String, String)> =
            warnings.into_iter().flatten().map(|warning| (warning.field_ref, warning.warning)).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].1.starts_with("example.com/v1, Kind=Foo: compilation failed: ERROR"), "{texts:?}");
        assert!(
            texts[1].1.contains("apps/v1, Kind=Deployment") && texts[1].1.contains("undefined field 'nope'")
        );
        policy.status = Some(found);
        assert!(is_checked(&policy));
    }
}
