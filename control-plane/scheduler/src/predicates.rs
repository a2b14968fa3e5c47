//! Whether a node suits a pod by labels and taints: the terms of node selectors, and tolerations. No IO.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration};

/// Whether `toleration` covers `taint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key, value) = (text(&toleration.effect), text(&toleration.key), text(&toleration.value));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("") {
        "" | "Equal" => value == text(&taint.value),
        "Exists" => true,
        operator @ ("Lt" | "Gt") => {
            let (Ok(asked), Ok(actual)) = (value.parse::<i64>(), text(&taint.value).parse::<i64>()) else {
                return false;
            };
            if operator == "Lt" { actual < asked } else { actual > asked }
        }
        _ => false,
    }
}

/// The first taint with one of these effects that nothing in `tolerations` covers.
pub fn untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    let mut taints = taints.iter().filter(|taint| effects.contains(&taint.effect.as_str()));
    taints.find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// Whether the pod's node selector and its required node affinity accept a node of this name with these labels.
pub fn accepts_node(spec: &PodSpec, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| term_matches(term, name, labels))
    })
}

/// Whether all requirements of `term` hold; a term without any matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let field = |key: &str| (key == "metadata.name").then_some(name);
    expressions.iter().all(|requirement| holds(requirement, labels.get(&requirement.key).map(String::as_str)))
        && fields.iter().all(|requirement| holds(requirement, field(&requirement.key)))
}

fn holds(requirement: &NodeSelectorRequirement, actual: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let contains = |actual: &str| values.iter().any(|value| value == actual);
    let numbers = || {
        let asked = values.first()?.parse::<i64>().ok()?;
        Some((actual?.parse::<i64>().ok()?, asked))
    };
    match requirement.operator.as_str() {
        "In" => actual.is_some_and(contains),
        "NotIn" => !actual.is_some_and(contains),
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => numbers().is_some_and(|(actual, asked)| actual > asked),
        "Lt" => numbers().is_some_and(|(actual, asked)| actual < asked),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        let values = Some(values.iter().map(|value| (*value).to_owned()).collect());
        NodeSelectorRequirement { key: key.into(), operator: operator.into(), values }
    }

    fn term(requirements: Vec<NodeSelectorRequirement>) -> NodeSelectorTerm {
        NodeSelectorTerm { match_expressions: Some(requirements), match_fields: None }
    }

    #[test]
    fn each_operator_says_what_it_means() {
        let labels = [("disk".to_owned(), "ssd".to_owned()), ("cores".to_owned(), "8".to_owned())].into();
        let cases = [
            (requirement("disk", "In", &["ssd", "nvme"]), true),
            (requirement("disk", "NotIn", &["ssd"]), false),
            (requirement("absent", "NotIn", &["ssd"]), true),
            (requirement("disk", "Exists", &[]), true),
            (requirement("absent", "DoesNotExist", &[]), true),
            (requirement("cores", "Gt", &["4"]), true),
            (requirement("cores", "Lt", &["8"]), false),
            (requirement("disk", "Gt", &["4"]), false),
        ];
        for (requirement, expected) in cases {
            assert_eq!(
                term_matches(&term(vec![requirement.clone()]), "n1", &labels),
                expected,
                "{requirement:?}"
            );
        }
        assert!(!term_matches(&NodeSelectorTerm::default(), "n1", &labels));
    }

    #[test]
    fn a_field_term_matches_the_name() {
        let by_name = NodeSelectorTerm {
            match_fields: Some(vec![requirement("metadata.name", "In", &["n1"])]),
            ..Default::default()
        };
        assert!(term_matches(&by_name, "n1", &BTreeMap::new()));
        assert!(!term_matches(&by_name, "n2", &BTreeMap::new()));
    }

    #[test]
    fn equal_needs_the_value_and_an_effect_narrows() {
        let value = Some("gpu".to_owned());
        let dedicated = Taint {
            key: "dedicated".into(),
            value: value.clone(),
            effect: "NoSchedule".into(),
            time_added: None,
        };
        let mut wanted = Toleration {
            key: Some("dedicated".into()),
            operator: Some("Equal".into()),
            ..Toleration::default()
        };
        assert!(!tolerates(&wanted, &dedicated));
        wanted.value = value;
        assert!(tolerates(&wanted, &dedicated));
        wanted.effect = Some("NoExecute".into());
        assert!(!tolerates(&wanted, &dedicated));
    }

    #[test]
    fn only_the_asked_effects_are_looked_at() {
        let taints = [Taint { key: "a".into(), effect: "PreferNoSchedule".into(), ..Taint::default() }];
        assert!(untolerated(&taints, &[], &["NoSchedule", "NoExecute"]).is_none());
        assert!(untolerated(&taints, &[], &["PreferNoSchedule"]).is_some());
    }
}
