//! The pod spec, wherever it stands: in a Pod or in a controller's template. Defaults, validation and derived facts.

mod affinity;
pub(super) mod containers;
mod defaults;
mod qos;
mod validate;
mod volumes;

pub(crate) use defaults::{default_pod, default_pod_spec, default_template};
pub(crate) use qos::qos_class;
pub(crate) use validate::{validate_pod_spec, validate_template};

use serde_json::Value;

use super::fields::items;

/// The three lists of containers of a pod spec.
pub(crate) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Init containers that keep running beside the others (sidecars).
pub(crate) fn is_restartable_init(container: &Value) -> bool {
    container.get("restartPolicy").is_some_and(|policy| policy == "Always")
}

/// Init and app containers, in that order.
pub(crate) fn init_and_app_containers(spec: &Value) -> impl Iterator<Item = &Value> {
    items(spec, "/initContainers").iter().chain(items(spec, "/containers"))
}
