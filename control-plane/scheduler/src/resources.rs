//! Amounts of resources as whole numbers: CPU in milli-cores, everything else in its unit. No IO.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

/// The name of CPU.
pub const CPU: &str = "cpu";
/// The name of memory.
pub const MEMORY: &str = "memory";
/// The number of pods, a resource of nodes only.
pub const PODS: &str = "pods";

/// What a container without a CPU request counts as when nodes are compared, in milli-cores.
const CPU_ASSUMED: i64 = 100;
/// What a container without a memory request counts as when nodes are compared, in bytes.
const MEMORY_ASSUMED: i64 = 200 * 1024 * 1024;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, i64>;

/// One quantity in the unit of its resource; what cannot be parsed counts as nothing, as the API admits no such value.
fn amount(name: &str, quantity: &ApiQuantity) -> i64 {
    let Ok(quantity) = Quantity::parse(&quantity.0) else { return 0 };
    let exact = if name == CPU { quantity.milli() } else { quantity.value() };
    i64::try_from(exact).unwrap_or(i64::MAX)
}

/// All quantities of a list.
pub fn amounts(list: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
    list.into_iter().flatten().map(|(name, quantity)| (name.clone(), amount(name, quantity))).collect()
}

fn add(sum: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let sum = sum.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(max: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let max = max.entry(name.clone()).or_default();
        *max = (*max).max(*amount);
    }
}

/// What a pod asks of its node: for the filter, and with assumed minimums for comparing nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    /// Exactly what is asked.
    pub asked: Amounts,
    /// CPU in milli-cores with a minimum per container that asks for none.
    pub cpu_assumed: i64,
    /// Memory in bytes with a minimum per container that asks for none.
    pub memory_assumed: i64,
}

/// The sum over containers that run together, or the largest moment of initialisation if that is more, plus overhead.
pub fn requests(pod: &Pod) -> Requests {
    let Some(spec) = &pod.spec else { return Requests::default() };
    let asked = total(spec, |container| container_requests(container, false));
    let assumed = total(spec, |container| container_requests(container, true));
    let of = |name: &str| assumed.get(name).copied().unwrap_or(0);
    Requests { cpu_assumed: of(CPU), memory_assumed: of(MEMORY), asked }
}

fn container_requests(container: &Container, assume: bool) -> Amounts {
    let mut requests =
        amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    if assume {
        requests.entry(CPU.into()).or_insert(CPU_ASSUMED);
        requests.entry(MEMORY.into()).or_insert(MEMORY_ASSUMED);
    }
    requests
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let mut running = Amounts::new();
    spec.containers.iter().for_each(|container| add(&mut running, &of(container)));
    let (mut sidecars, mut initialising) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let requests = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &requests);
            add(&mut sidecars, &requests);
            raise(&mut initialising, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, &requests);
            raise(&mut initialising, &moment);
        }
    }
    raise(&mut running, &initialising);
    // What is asked for the pod as a whole goes before the sum of its containers.
    running.extend(amounts(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref())));
    add(&mut running, &amounts(spec.overhead.as_ref()));
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ResourceRequirements;

    fn container(cpu: &str, restart: Option<&str>) -> Container {
        let requests = [(CPU.to_owned(), ApiQuantity(cpu.into()))].into();
        let resources = ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() };
        Container {
            resources: Some(resources),
            restart_policy: restart.map(Into::into),
            ..Container::default()
        }
    }

    fn cpu(init: Vec<Container>, main: Vec<Container>, overhead: Option<&str>) -> i64 {
        let overhead = overhead.map(|cpu| [(CPU.to_owned(), ApiQuantity(cpu.into()))].into());
        let spec = PodSpec { init_containers: Some(init), containers: main, overhead, ..PodSpec::default() };
        requests(&Pod { spec: Some(spec), ..Pod::default() }).asked[CPU]
    }

    #[test]
    fn the_largest_moment_counts() {
        assert_eq!(cpu(vec![], vec![container("100m", None), container("0.2", None)], None), 300);
        assert_eq!(cpu(vec![container("1", None)], vec![container("100m", None)], None), 1000);
        assert_eq!(
            cpu(
                vec![container("50m", Some("Always")), container("1", None)],
                vec![container("100m", None)],
                None
            ),
            1050
        );
        assert_eq!(cpu(vec![], vec![container("100m", None)], Some("20m")), 120);
    }

    #[test]
    fn containers_that_ask_for_nothing_still_weigh_something() {
        let spec =
            PodSpec { containers: vec![Container::default(), Container::default()], ..PodSpec::default() };
        let requests = requests(&Pod { spec: Some(spec), ..Pod::default() });
        assert!(requests.asked.is_empty());
        assert_eq!((requests.cpu_assumed, requests.memory_assumed), (2 * CPU_ASSUMED, 2 * MEMORY_ASSUMED));
    }
}
