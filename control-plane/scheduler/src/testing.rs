//! Nodes and pods for tests.

use k8s_openapi::api::core::v1::{Container, Node, NodeStatus, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// A node with this much CPU, 8 GiB and room for 110 pods.
pub(crate) fn node(name: &str, cpu: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    node.metadata.labels = Some([("kubernetes.io/hostname".into(), name.into())].into());
    let allocatable = [("cpu", cpu), ("memory", "8Gi"), ("pods", "110")];
    let allocatable = allocatable.map(|(name, amount)| (name.to_owned(), Quantity(amount.into()))).into();
    node.status = Some(NodeStatus { allocatable: Some(allocatable), ..NodeStatus::default() });
    node
}

/// A pod that asks for this much CPU; its uid is its name, its controller "set", its label app=web.
pub(crate) fn pod(name: &str, cpu: &str) -> Pod {
    let requests = (!cpu.is_empty()).then(|| [("cpu".to_owned(), Quantity(cpu.into()))].into());
    let resources = ResourceRequirements { requests, ..ResourceRequirements::default() };
    let container = Container { name: "c".into(), resources: Some(resources), ..Container::default() };
    let mut pod =
        Pod { spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }), ..Pod::default() };
    pod.metadata.name = Some(name.into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some(name.into());
    pod.metadata.labels = Some([("app".into(), "web".into())].into());
    let owner = OwnerReference { uid: "set".into(), controller: Some(true), ..OwnerReference::default() };
    pod.metadata.owner_references = Some(vec![owner]);
    pod
}
