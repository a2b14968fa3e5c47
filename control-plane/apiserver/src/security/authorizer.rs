//! The union of authorizers: masters, the Node authorizer, RBAC. The first that allows decides.

use std::sync::Arc;

use api::status::Status;
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
    /// role grants, or have the verb `escalate`. `name` is the path's, empty for a creation.
    ///
    /// # Errors
    /// Why not, for a 403.
    pub fn check_role_write(
        &self,
        identity: &Identity,
        namespace: &str,
        name: &str,
        role: &Value,
        old: Option<&Value>,
    ) -> Result<(), String> {
        let resource = if namespace.is_empty() { "clusterroles" } else { "roles" };
        if self.authorize(identity, &role_attributes("escalate", resource, namespace, name)).allowed {
            return Ok(());
        }
        self.rbac.covers(identity, namespace, &Rule::parse_all(role))?;
        let aggregates = |role: &Value| {
            let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
            selectors.is_some_and(|selectors| !selectors.is_empty())
        };
        if aggregates(role) || old.is_some_and(aggregates) {
            // Who chooses selectors chooses rules that are not written yet.
            let all = || vec!["*".to_owned()];
            let everything = [
                Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
            ];
            self.rbac
                .covers(identity, namespace, &everything)
                .map_err(|_| "must have cluster-admin privileges to use the aggregationRule".to_owned())?;
        }
        Ok(())
    }

    /// Whether an identity may write a RoleBinding (`namespace` set) or ClusterRoleBinding: it must hold all that the
    /// referenced role grants, or have the verb `bind` on that role.
    ///
    /// # Errors
    /// 403 with why not, or 404 for the role.
    pub fn check_binding_write(
        &self,
        identity: &Identity,
        namespace: &str,
        binding: &Value,
    ) -> Result<(), Status> {
        let role_ref = &binding["roleRef"];
        let name = role_ref["name"].as_str().unwrap_or_default();
        let (resource, role_namespace) =
            if role_ref["kind"] == "ClusterRole" { ("clusterroles", "") } else { ("roles", namespace) };
        // The verb `bind` may be granted in the binding's namespace.
        if self.authorize(identity, &role_attributes("bind", resource, namespace, name)).allowed {
            return Ok(());
        }
        let rules = self.rbac.rules_of(role_namespace, role_ref);
        let rules = rules.ok_or_else(|| Status::not_found(rbac::GROUP, resource, name))?;
        let plural = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
        self.rbac
            .covers(identity, namespace, &rules)
            .map_err(|why| Status::forbidden(rbac::GROUP, plural, api::meta::name(binding), why))
    }
}

fn role_attributes(verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.to_owned(),
        group: rbac::GROUP.to_owned(),
        version: "*".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        is_resource: true,
        ..Attributes::default()
    }
}
