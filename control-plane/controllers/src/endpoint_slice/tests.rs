use std::collections::BTreeSet;

use super::*;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, PodCondition, PodIP, PodSpec, PodStatus, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

fn service(target: IntOrString) -> Service {
    let port = ServicePort {
        name: Some("http".into()),
        port: 80,
        target_port: Some(target),
        ..ServicePort::default()
    };
    Service {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("svc".into()),
            labels: Some([("tier".into(), "front".into())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some([("app".into(), "web".into())].into()),
            ports: Some(vec![port]),
            ip_families: Some(vec!["IPv4".into()]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn pod(number: usize, ready: bool) -> Pod {
    let port = ContainerPort { name: Some("web".into()), container_port: 8000, ..ContainerPort::default() };
    let container = Container { name: "c".into(), ports: Some(vec![port]), ..Container::default() };
    let mut pod = Pod::default();
    pod.metadata.name = Some(format!("p{number}"));
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some(format!("u{number}"));
    pod.spec =
        Some(PodSpec { containers: vec![container], node_name: Some("n1".into()), ..PodSpec::default() });
    let condition = PodCondition {
        type_: "Ready".into(),
        status: if ready { "True" } else { "False" }.into(),
        ..PodCondition::default()
    };
    let ips = vec![
        PodIP { ip: format!("10.244.{}.{}", number / 250, number % 250) },
        PodIP { ip: format!("fd00::{number:x}") },
    ];
    pod.status =
        Some(PodStatus { pod_ips: Some(ips), conditions: Some(vec![condition]), ..PodStatus::default() });
    pod
}

fn pods(numbers: impl IntoIterator<Item = usize>) -> Vec<Arc<Pod>> {
    numbers.into_iter().map(|number| Arc::new(pod(number, true))).collect()
}

fn no_zone(_: &str) -> Option<String> {
    None
}

/// Applies a plan as the API would.
fn apply(actual: &[Arc<EndpointSlice>], plan: Plan, names: &mut usize) -> Vec<Arc<EndpointSlice>> {
    let mut slices: Vec<Arc<EndpointSlice>> = actual
        .iter()
        .filter(|slice| !plan.delete.iter().any(|gone| gone.name_any() == slice.name_any()))
        .cloned()
        .collect();
    for update in plan.update {
        let slot = slices.iter_mut().find(|slice| slice.name_any() == update.name_any()).unwrap();
        *slot = Arc::new(update);
    }
    for mut created in plan.create {
        *names += 1;
        created.metadata.name = Some(format!("web-{names}"));
        slices.push(Arc::new(created));
    }
    slices
}

/// Whom `slices` name, to compare two ways of getting there.
fn addresses(slices: &[EndpointSlice]) -> BTreeSet<String> {
    slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).map(identity).collect()
}

fn owned(slices: &[Arc<EndpointSlice>]) -> Vec<EndpointSlice> {
    slices.iter().map(|slice| (**slice).clone()).collect()
}

#[test]
fn a_service_without_pods_gets_one_empty_slice_and_keeps_it() {
    let web = service(IntOrString::Int(80));
    let mut names = 0;
    let slices = apply(&[], plan(&Origin::of(&web), desired(&web, &[], no_zone), &[], None), &mut names);
    assert_eq!(slices.len(), 1);
    assert_eq!(plan(&Origin::of(&web), desired(&web, &[], no_zone), &slices, None), Plan::default());
}

#[test]
fn two_hundred_and_fifty_pods_fill_three_slices() {
    let web = service(IntOrString::Int(80));
    let plan = plan(&Origin::of(&web), desired(&web, &pods(0..250), no_zone), &[], None);
    let sizes: Vec<usize> = plan.create.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[test]
fn a_named_port_is_resolved_per_pod_and_pods_without_it_stand_apart() {
    let web = service(IntOrString::String("web".into()));
    let mut other = pod(2, true);
    other.spec.as_mut().unwrap().containers[0].ports.as_mut().unwrap()[0].container_port = 9000;
    let mut without = pod(3, true);
    without.spec.as_mut().unwrap().containers[0].ports = None;
    let backends = [Arc::new(pod(1, true)), Arc::new(other), Arc::new(without)];
    let groups = desired(&web, &backends, no_zone);
    let ports: Vec<Vec<i32>> =
        groups.keys().map(|group| group.ports.iter().map(|port| port.port).collect()).collect();
    assert_eq!(ports, [vec![], vec![8000], vec![9000]]);
}

#[test]
fn a_terminating_pod_is_serving_but_not_ready() {
    let web = service(IntOrString::Int(80));
    let mut leaving = pod(1, true);
    leaving.metadata.deletion_timestamp = Some(crate::reconcile::now());
    let groups = desired(&web, &[Arc::new(leaving.clone())], no_zone);
    let conditions = groups.values().next().unwrap()[0].conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(false), Some(true), Some(true))
    );
    let mut publishing = web.clone();
    publishing.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    let groups = desired(&publishing, &[Arc::new(leaving)], no_zone);
    assert_eq!(groups.values().next().unwrap()[0].conditions.as_ref().unwrap().ready, Some(true));
}

#[test]
fn dual_stack_services_get_slices_of_both_families() {
    let mut web = service(IntOrString::Int(80));
    web.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into(), "IPv6".into()]);
    let groups = desired(&web, &pods([1]), no_zone);
    let types: Vec<&str> = groups.keys().map(|group| group.address_type).collect();
    assert_eq!(types, ["IPv4", "IPv6"]);
    assert_eq!(groups.values().nth(1).unwrap()[0].addresses, ["fd00::1"]);
}

#[test]
fn one_more_pod_rewrites_one_slice_only() {
    let web = service(IntOrString::Int(80));
    let mut names = 0;
    let slices =
        apply(&[], plan(&Origin::of(&web), desired(&web, &pods(0..250), no_zone), &[], None), &mut names);
    let plan = plan(&Origin::of(&web), desired(&web, &pods(0..251), no_zone), &slices, None);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
}

#[test]
fn a_changed_label_of_the_service_reaches_its_slices() {
    let mut web = service(IntOrString::Int(80));
    let mut names = 0;
    let slices =
        apply(&[], plan(&Origin::of(&web), desired(&web, &pods(0..2), no_zone), &[], None), &mut names);
    web.labels_mut().insert("tier".into(), "back".into());
    let plan = plan(&Origin::of(&web), desired(&web, &pods(0..2), no_zone), &slices, None);
    assert_eq!(plan.update[0].labels()["tier"], "back");
}

proptest! {
    /// Whatever states came before, in whatever order, the slices name what a fresh computation names, and are settled.
    #[test]
    fn any_history_ends_at_the_fresh_computation(
        history in prop::collection::vec(prop::collection::btree_set(0_usize..260, 0..240), 1..6),
    ) {
        let web = service(IntOrString::Int(80));
        let (mut slices, mut names) = (Vec::new(), 0);
        for state in &history {
            let next = plan(&Origin::of(&web), desired(&web, &pods(state.iter().copied()), no_zone), &slices, None);
            slices = apply(&slices, next, &mut names);
        }
        let last = pods(history.last().unwrap().iter().copied());
        let fresh = plan(&Origin::of(&web), desired(&web, &last, no_zone), &[], None).create;
        prop_assert_eq!(addresses(&owned(&slices)), addresses(&fresh));
        prop_assert!(slices.iter().all(|slice| slice.endpoints.as_ref().unwrap().len() <= ENDPOINTS_MAX));
        prop_assert_eq!(plan(&Origin::of(&web), desired(&web, &last, no_zone), &slices, None), Plan::default());
    }
}

#[test]
fn endpoints_that_are_ready_are_for_their_zone_and_node_as_the_traffic_distribution_asks() {
    let zone = |node: &str| (node == "n1").then(|| "z1".to_owned());
    let hints = |distribution: Option<&str>, zone: &dyn Fn(&str) -> Option<String>, ready: bool| {
        let mut service = service(IntOrString::String("web".into()));
        service.spec.as_mut().unwrap().traffic_distribution = distribution.map(str::to_owned);
        let groups = desired(&service, &[Arc::new(pod(1, ready))], zone);
        let hints = groups.into_values().next().unwrap().remove(0).hints?;
        let zones = hints.for_zones.map(|zones| zones.into_iter().map(|zone| zone.name).collect::<Vec<_>>());
        let nodes = hints.for_nodes.map(|nodes| nodes.into_iter().map(|node| node.name).collect::<Vec<_>>());
        Some((zones, nodes))
    };
    let z1 = || Some(vec!["z1".to_owned()]);
    let n1 = || Some(vec!["n1".to_owned()]);
    for distribution in ["PreferClose", "PreferSameZone"] {
        assert_eq!(hints(Some(distribution), &zone, true), Some((z1(), None)), "{distribution}");
        assert_eq!(hints(Some(distribution), &no_zone, true), None, "{distribution}");
    }
    assert_eq!(hints(Some("PreferSameNode"), &zone, true), Some((z1(), n1())));
    assert_eq!(hints(Some("PreferSameNode"), &no_zone, true), Some((None, n1())));
    assert_eq!(hints(Some("PreferSameNode"), &zone, false), None, "who is not ready is for nobody");
    assert_eq!(hints(None, &zone, true), None);
}
