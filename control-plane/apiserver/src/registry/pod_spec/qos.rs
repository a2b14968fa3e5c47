//! The quality of service class of a pod, fixed when it is created.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{super::fields::*, init_and_app_containers};

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`, by the cpu and memory requests and limits of the pod, or of its
/// containers where the pod has none of its own.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut guaranteed = true;
    let mut count = |resources: &Value| {
        add_positive(&mut requests, at(resources, "/requests"));
        guaranteed &= add_positive(&mut limits, at(resources, "/limits")) == COMPUTE.len();
    };
    if present(spec, "/resources") {
        count(at(spec, "/resources"));
    } else {
        init_and_app_containers(spec).for_each(|container| count(at(container, "/resources")));
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds the compute resources above zero to `sums`, in thousandths; returns how many there were.
fn add_positive(sums: &mut BTreeMap<&'static str, i128>, amounts: &Value) -> usize {
    let mut found = 0;
    for resource in COMPUTE {
        let amount = amounts.get(resource).and_then(quantity).map_or(0, |q| q.milli());
        if amount > 0 {
            found += 1;
            *sums.entry(resource).or_default() += amount;
        }
    }
    found
}
