//! The union of authorizers: masters, the Node authorizer, RBAC. The first that allows decides.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Attributes, Decision, GROUP_MASTERS, Identity,
    node::NodeAuthorizer,
    rbac::{self, Rbac, Rule},
};
use crate::storage::cache::Cache;

/// Decides what identities may do, on the cache as it is at the moment of the question.
pub struct Authorizer {
    node: NodeAuthorizer,
    rbac: Rbac,
}

impl Authorizer {
    pub fn new(cache: &Arc<Cache>) -> Self {
        Self { node: NodeAuthorizer::new(cache), rbac: Rbac::new(cache) }
    }

    pub fn authorize(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        if identity.is_in(GROUP_MASTERS) {
            return Decision::allow("");
        }
        let mut reason = String::new();
        if let Some(node) = identity.node() {
            let decision = self.node.authorize(node, attributes);
            if decision.allowed {
                return decision;
            }
            reason = decision.reason;
        }
        let decision = self.rbac.authorize(identity, attributes);
        if decision.allowed || reason.is_empty() { decision } else { Decision::no_opinion(reason) }
    }

    /// The rules that hold for an identity in a namespace: SelfSubjectRulesReview.
    pub fn rules_for(&self, identity: &Identity, namespace: &str) -> Vec<Rule> {
        if identity.is_in(GROUP_MASTERS) {
            let all = || vec!["*".to_owned()];
            return vec![
                Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
            ];
        }
        self.rbac.rules_for(identity, namespace)
    }

    /// Whether an identity may write a Role (`namespace` set) or ClusterRole with these contents: it must hold all that the
    /// role grants, or have the verb `escalate`.
    ///
    /// # Errors
    /// Why not, for a 403.
    pub fn check_role_write(&self, identity: &Identity, namespace: &str, role: &Value) -> Result<(), String> {
        let resource = if namespace.is_empty() { "clusterroles" } else { "roles" };
        let name = role["metadata"]["name"].as_str().unwrap_or_default();
        if self.authorize(identity, &role_attributes("escalate", resource, namespace, name)).allowed {
            return Ok(());
        }
        if namespace.is_empty() && role["aggregationRule"].is_object() {
            // Who chooses selectors chooses rules that are not written yet.
            let all = || vec!["*".to_owned()];
            let everything = [
                Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
            ];
            self.rbac.covers(identity, namespace, &everything).map_err(|error| {
                format!("must have cluster-admin privileges to use an aggregationRule: {error}")
            })?;
        }
        self.rbac.covers(identity, namespace, &Rule::parse_all(role))
    }

    /// Whether an identity may write a RoleBinding (`namespace` set) or ClusterRoleBinding: it must hold all that the
    /// referenced role grants, or have the verb `bind` on that role.
    ///
    /// # Errors
    /// Why not, for a 403.
    pub fn check_binding_write(
        &self,
        identity: &Identity,
        namespace: &str,
        binding: &Value,
    ) -> Result<(), String> {
        let role_ref = &binding["roleRef"];
        let name = role_ref["name"].as_str().unwrap_or_default();
        let (resource, role_namespace) =
            if role_ref["kind"] == "ClusterRole" { ("clusterroles", "") } else { ("roles", namespace) };
        // The verb `bind` may be granted in the binding's namespace.
        if self.authorize(identity, &role_attributes("bind", resource, namespace, name)).allowed {
            return Ok(());
        }
        let Some(rules) = self.rbac.rules_of(role_namespace, role_ref) else {
            return Err(format!("{resource}.{} {name:?} not found", rbac::GROUP));
        };
        self.rbac.covers(identity, namespace, &rules)
    }
}

fn role_attributes(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.to_owned(),
        group: rbac::GROUP.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        is_resource: true,
        ..Attributes::default()
    }
}
