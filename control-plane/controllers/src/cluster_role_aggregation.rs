//! ClusterRole aggregation: fills the rules of roles that are the sum of others.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result};
use crate::store::Key;

/// The controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let (dirty, roles) = (queue.clone(), cluster.cluster_roles.clone());
    cluster.cluster_roles.subscribe(move |old, new| {
        for sum in roles.all().iter().filter(|role| role.aggregation_rule.is_some()) {
            let changed = new.or(old).is_some_and(|role| role.name_any() == sum.name_any());
            if changed || [old, new].into_iter().flatten().any(|role| aggregates(sum, role)) {
                dirty.add(Key::of(&**sum));
            }
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn aggregates(sum: &ClusterRole, role: &ClusterRole) -> bool {
    let selectors = sum.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    let mut selectors = selectors.filter_map(|selector| pods::selector(selector).ok());
    role.name_any() != sum.name_any() && selectors.any(|selector| pods::selects(&selector, role))
}

/// The rules of `sum`, from `roles` ordered by name, each rule once.
pub fn rules(sum: &ClusterRole, roles: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in roles.iter().filter(|role| aggregates(sum, role)).flat_map(|role| role.rules.iter().flatten())
    {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    rules
}

impl Reconcile for Controller {
    const NAME: &'static str = "clusterrole-aggregation-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(sum) = self.cluster.cluster_roles.get(key).filter(|role| role.aggregation_rule.is_some())
        else {
            return Ok(Next::Change);
        };
        let rules = rules(&sum, &self.cluster.cluster_roles.all());
        let actual = sum.rules.clone().unwrap_or_default();
        if actual.len() == rules.len() && rules.iter().all(|rule| actual.contains(rule)) {
            return Ok(Next::Change);
        }
        let api = Api::<ClusterRole>::all(self.cluster.client.clone());
        let role = ClusterRole { rules: Some(rules), ..(*sum).clone() };
        let written = api.replace(&key.name, &PostParams::default(), &role).await?;
        self.cluster.cluster_roles.observe(&written);
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    #[test]
    fn the_sum_has_each_rule_of_the_selected_roles_once() {
        let role = |name: &str, verb: &str, label: &str| {
            let mut role = ClusterRole::default();
            role.metadata.name = Some(name.into());
            role.labels_mut().insert("to".into(), label.into());
            role.rules = Some(vec![PolicyRule { verbs: vec![verb.into()], ..PolicyRule::default() }]);
            Arc::new(role)
        };
        let selector = LabelSelector {
            match_labels: Some([("to".into(), "sum".into())].into()),
            ..LabelSelector::default()
        };
        let mut sum = (*role("sum", "none", "sum")).clone();
        sum.aggregation_rule = Some(AggregationRule { cluster_role_selectors: Some(vec![selector]) });
        let roles = [
            role("a", "get", "sum"),
            role("b", "get", "sum"),
            role("c", "list", "other"),
            Arc::new(sum.clone()),
        ];
        let verbs: Vec<_> = rules(&sum, &roles).into_iter().flat_map(|rule| rule.verbs).collect();
        assert_eq!(verbs, ["get"]);
    }
}
