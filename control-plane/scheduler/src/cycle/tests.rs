use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, ContainerPort, Node, Pod, PodAffinity, PodAffinityTerm, PodAntiAffinity,
    PreferredSchedulingTerm, Taint, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use proptest::prelude::*;

use super::*;
use crate::plugins::default_preemption::{Budget, preempt};
use crate::plugins::default_profile;
use crate::testing::{node, pod};

struct Cluster {
    scheduler: Scheduler,
    snapshot: Snapshot,
}

impl Cluster {
    fn new(nodes: impl IntoIterator<Item = Node>) -> Self {
        let mut snapshot = Snapshot::default();
        nodes.into_iter().for_each(|node| snapshot.set_node(&node));
        Self { scheduler: Scheduler::new(default_profile()), snapshot }
    }

    fn three() -> Self {
        Self::new([node("n1", "4"), node("n2", "4"), node("n3", "4")])
    }

    /// Schedules and assumes.
    fn place(&mut self, pod: Pod) -> Result<String, Box<FitError>> {
        let pod = Arc::new(PodInfo::new(Arc::new(pod)));
        let node = self.scheduler.schedule(&self.snapshot, &pod)?;
        let name = self.snapshot.node(node).name.clone();
        self.snapshot.set_pod(pod, &name);
        Ok(name)
    }

    fn message(&mut self, pod: Pod) -> String {
        self.place(pod).expect_err("the pod fits nowhere").to_string()
    }

    fn counts(&self) -> Vec<usize> {
        self.snapshot.nodes().map(|node| self.snapshot.node(node).pods.len()).collect()
    }
}

fn tainted(mut node: Node, key: &str, value: &str, effect: &str) -> Node {
    let taint = Taint { key: key.into(), value: Some(value.into()), effect: effect.into(), time_added: None };
    node.spec.get_or_insert_default().taints.get_or_insert_default().push(taint);
    node
}

fn selector() -> LabelSelector {
    LabelSelector { match_labels: Some([("app".into(), "web".into())].into()), ..LabelSelector::default() }
}

fn labelled(mut node: Node, key: &str, value: &str) -> Node {
    node.metadata.labels.get_or_insert_default().insert(key.into(), value.into());
    node
}

fn with_affinity(mut pod: Pod, affinity: Affinity) -> Pod {
    pod.spec.as_mut().unwrap().affinity = Some(affinity);
    pod
}

fn anti_affinity(key: &str) -> Affinity {
    let term = PodAffinityTerm {
        label_selector: Some(selector()),
        topology_key: key.into(),
        ..PodAffinityTerm::default()
    };
    let anti = PodAntiAffinity {
        required_during_scheduling_ignored_during_execution: Some(vec![term]),
        ..Default::default()
    };
    Affinity { pod_anti_affinity: Some(anti), ..Affinity::default() }
}

#[test]
fn six_equal_replicas_on_three_empty_nodes_go_two_each() {
    for cpu in ["", "100m"] {
        let mut cluster = Cluster::three();
        for number in 0..6 {
            cluster.place(pod(&format!("p{number}"), cpu)).unwrap();
        }
        assert_eq!(cluster.counts(), [2, 2, 2], "requests {cpu:?}");
    }
}

#[test]
fn replicas_spread_even_where_one_node_has_the_image_and_another_is_larger() {
    let mut big = node("n1", "16");
    let image = k8s_openapi::api::core::v1::ContainerImage {
        names: Some(vec!["nginx:latest".into()]),
        size_bytes: Some(150_000_000),
    };
    big.status.as_mut().unwrap().images = Some(vec![image]);
    let mut cluster = Cluster::new([big, node("n2", "4"), node("n3", "4")]);
    for number in 0..6 {
        let mut pod = pod(&format!("p{number}"), "100m");
        pod.spec.as_mut().unwrap().containers[0].image = Some("nginx".into());
        cluster.place(pod).unwrap();
    }
    assert_eq!(cluster.counts(), [2, 2, 2]);
}

#[test]
fn the_message_counts_each_reason() {
    let mut cluster = Cluster::new([
        tainted(node("n1", "4"), "dedicated", "gpu", "NoSchedule"),
        node("n2", "1"),
        node("n3", "1"),
    ]);
    let message = cluster.message(pod("p", "2"));
    assert_eq!(
        message,
        "0/3 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}, 2 Insufficient cpu."
    );
    assert_eq!(Cluster::new([]).message(pod("p", "2")), "no nodes available to schedule pods");
}

#[test]
fn a_tolerated_taint_does_not_matter_and_a_soft_one_is_avoided() {
    let hard = tainted(node("n1", "4"), "dedicated", "gpu", "NoSchedule");
    let soft = tainted(node("n2", "4"), "old", "", "PreferNoSchedule");
    let mut cluster = Cluster::new([hard, soft]);
    let mut tolerant = pod("p1", "100m");
    let toleration = Toleration {
        key: Some("dedicated".into()),
        operator: Some("Exists".into()),
        ..Toleration::default()
    };
    tolerant.spec.as_mut().unwrap().tolerations = Some(vec![toleration]);
    assert_eq!(cluster.place(tolerant).unwrap(), "n1");
    assert_eq!(cluster.place(pod("p2", "100m")).unwrap(), "n2");
}

#[test]
fn cordoned_nodes_full_nodes_and_other_names_are_named() {
    let mut cordoned = node("n1", "4");
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    assert_eq!(
        Cluster::new([cordoned]).message(pod("p", "")),
        "0/1 nodes are available: 1 node(s) were unschedulable."
    );
    let mut full = node("n1", "4");
    full.status.as_mut().unwrap().allocatable.as_mut().unwrap().get_mut("pods").unwrap().0 = "0".into();
    assert_eq!(Cluster::new([full]).message(pod("p", "")), "0/1 nodes are available: 1 Too many pods.");
    let mut picky = pod("p", "");
    picky.spec.as_mut().unwrap().node_selector = Some([("disk".into(), "ssd".into())].into());
    let message = Cluster::three().message(picky);
    assert_eq!(message, "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.");
    let mut named = pod("p", "");
    named.spec.as_mut().unwrap().node_name = Some("elsewhere".into());
    assert!(Cluster::three().message(named).contains("3 node(s) didn't match the requested node name"));
}

#[test]
fn an_unknown_resource_is_insufficient_everywhere() {
    let mut wanting = pod("p", "100m");
    let requests =
        wanting.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap().requests.as_mut().unwrap();
    requests.insert(
        "example.com/gpu".into(),
        k8s_openapi::apimachinery::pkg::api::resource::Quantity("1".into()),
    );
    assert_eq!(Cluster::three().message(wanting), "0/3 nodes are available: 3 Insufficient example.com/gpu.");
}

#[test]
fn one_host_port_goes_to_each_node_once() {
    let mut cluster = Cluster::three();
    let with_port = |name: &str| {
        let mut pod = pod(name, "");
        let port = ContainerPort { container_port: 80, host_port: Some(80), ..ContainerPort::default() };
        pod.spec.as_mut().unwrap().containers[0].ports = Some(vec![port]);
        pod
    };
    for name in ["a", "b", "c"] {
        cluster.place(with_port(name)).unwrap();
    }
    assert_eq!(cluster.counts(), [1, 1, 1]);
    let message = cluster.message(with_port("d"));
    assert_eq!(
        message,
        "0/3 nodes are available: 3 node(s) didn't have free ports for the requested pod ports."
    );
}

#[test]
fn required_and_preferred_node_affinity_choose_the_node() {
    let term = |key: &str| NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: key.into(),
            operator: "Exists".into(),
            values: None,
        }]),
        match_fields: None,
    };
    let mut cluster = Cluster::new([
        node("n1", "4"),
        labelled(node("n2", "4"), "ssd", "yes"),
        labelled(labelled(node("n3", "4"), "ssd", "yes"), "fast", "yes"),
    ]);
    let preferred = PreferredSchedulingTerm { weight: 100, preference: term("fast") };
    let affinity = NodeAffinity {
        required_during_scheduling_ignored_during_execution: Some(NodeSelector {
            node_selector_terms: vec![term("ssd")],
        }),
        preferred_during_scheduling_ignored_during_execution: Some(vec![preferred]),
    };
    let affinity = Affinity { node_affinity: Some(affinity), ..Affinity::default() };
    assert_eq!(cluster.place(with_affinity(pod("p", ""), affinity)).unwrap(), "n3");
}

#[test]
fn anti_affinity_works_both_ways() {
    let mut cluster = Cluster::three();
    for number in 0..3 {
        cluster
            .place(with_affinity(pod(&format!("p{number}"), ""), anti_affinity("kubernetes.io/hostname")))
            .unwrap();
    }
    assert_eq!(cluster.counts(), [1, 1, 1]);
    let message = cluster.message(with_affinity(pod("p3", ""), anti_affinity("kubernetes.io/hostname")));
    assert_eq!(message, "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.");
    let message = cluster.message(pod("plain", ""));
    assert_eq!(
        message,
        "0/3 nodes are available: 3 node(s) didn't satisfy existing pods anti-affinity rules."
    );
}

#[test]
fn affinity_joins_its_group_and_the_first_of_a_group_may_start_anywhere() {
    let zoned = |name: &str, zone: &str| labelled(node(name, "4"), "zone", zone);
    let mut cluster = Cluster::new([zoned("n1", "a"), zoned("n2", "b"), zoned("n3", "b")]);
    let term = PodAffinityTerm {
        label_selector: Some(selector()),
        topology_key: "zone".into(),
        ..PodAffinityTerm::default()
    };
    let near = PodAffinity {
        required_during_scheduling_ignored_during_execution: Some(vec![term]),
        ..Default::default()
    };
    let near = Affinity { pod_affinity: Some(near), ..Affinity::default() };
    let first = cluster.place(with_affinity(pod("p0", ""), near.clone())).unwrap();
    let zone = |name: &str| if name == "n1" { "a" } else { "b" };
    for number in 1..5 {
        let next = cluster.place(with_affinity(pod(&format!("p{number}"), ""), near.clone())).unwrap();
        assert_eq!(zone(&next), zone(&first));
    }
}

#[test]
fn a_hard_spread_constraint_keeps_the_skew() {
    let zoned = |name: &str, zone: &str| labelled(node(name, "4"), "zone", zone);
    let mut cluster = Cluster::new([zoned("n1", "a"), zoned("n2", "b"), node("n3", "4")]);
    let spread = |name: &str| {
        let mut pod = pod(name, "");
        let constraint = TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "zone".into(),
            when_unsatisfiable: "DoNotSchedule".into(),
            label_selector: Some(selector()),
            ..TopologySpreadConstraint::default()
        };
        pod.spec.as_mut().unwrap().topology_spread_constraints = Some(vec![constraint]);
        pod
    };
    for number in 0..4 {
        cluster.place(spread(&format!("p{number}"))).unwrap();
    }
    assert_eq!(cluster.counts(), [2, 2, 0]);
    cluster.snapshot.set_node(&zoned("n4", "c"));
    assert_eq!(cluster.place(spread("p4")).unwrap(), "n4");
}

fn important(mut pod: Pod, priority: i32) -> Pod {
    pod.spec.as_mut().unwrap().priority = Some(priority);
    pod
}

#[test]
fn preemption_takes_the_least_important_pods_and_no_more_than_needed() {
    let mut cluster = Cluster::new([node("n1", "2"), node("n2", "2")]);
    for (name, priority) in [("a", 5), ("b", 1), ("c", 5), ("d", 3)] {
        cluster.place(important(pod(name, "1"), priority)).unwrap();
    }
    let vip = PodInfo::new(Arc::new(important(pod("vip", "1"), 10)));
    let error = cluster.scheduler.schedule(&cluster.snapshot, &vip).unwrap_err();
    let choice = preempt(&cluster.scheduler, &cluster.snapshot, &vip, &error, &[]).unwrap();
    let victims: Vec<&str> = choice.victims.iter().map(|pod| pod.uid.as_str()).collect();
    assert_eq!(victims, ["b"]);
    let budget =
        Budget { namespace: "ns".into(), selector: [("app", "web")].into_iter().collect(), allowed: 0 };
    assert!(
        preempt(&cluster.scheduler, &cluster.snapshot, &vip, &error, &[budget]).is_ok(),
        "budgets are a wish"
    );
    let meek = PodInfo::new(Arc::new(pod("meek", "1")));
    let error = cluster.scheduler.schedule(&cluster.snapshot, &meek).unwrap_err();
    let refusal = preempt(&cluster.scheduler, &cluster.snapshot, &meek, &error, &[]).unwrap_err();
    assert_eq!(
        refusal,
        "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."
    );
}

#[test]
fn room_that_is_being_made_for_one_pod_is_not_given_to_a_lesser_one() {
    let mut cluster = Cluster::new([node("n1", "1")]);
    let vip = Arc::new(PodInfo::new(Arc::new(important(pod("vip", "1"), 10))));
    cluster.snapshot.nominate(vip.clone(), Some("n1"));
    assert_eq!(cluster.message(pod("thief", "1")), "0/1 nodes are available: 1 Insufficient cpu.");
    assert!(cluster.scheduler.schedule(&cluster.snapshot, &vip).is_ok());
}

proptest! {
    #[test]
    fn no_node_is_ever_overcommitted(
        capacities in prop::collection::vec(1_u32..8, 1..6),
        asks in prop::collection::vec(1_u32..30, 0..40),
    ) {
        let nodes = capacities.iter().enumerate().map(|(n, cpu)| node(&format!("n{n}"), &cpu.to_string()));
        let mut cluster = Cluster::new(nodes);
        for (number, ask) in asks.iter().enumerate() {
            let result = cluster.place(pod(&format!("p{number}"), &format!("{}m", ask * 100)));
            let column = cluster.snapshot.column("cpu").unwrap();
            let free = column.allocatable.iter().zip(&column.requested).map(|(all, taken)| all - taken);
            prop_assert!(free.clone().all(|free| free >= 0));
            if result.is_err() {
                prop_assert!(free.clone().all(|free| free < i64::from(*ask) * 100), "a node had room");
            }
        }
    }

    #[test]
    fn equal_replicas_differ_by_at_most_one_between_equal_nodes(nodes in 1_usize..7, replicas in 0_usize..30) {
        let mut cluster = Cluster::new((0..nodes).map(|n| node(&format!("n{n}"), "32")));
        for number in 0..replicas {
            cluster.place(pod(&format!("p{number}"), "100m")).unwrap();
        }
        let counts = cluster.counts();
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
    }
}
