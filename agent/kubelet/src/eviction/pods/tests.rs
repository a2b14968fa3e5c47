use serde_json::{Value, json};

use super::super::signals::{Amount, Observation};
use super::*;

const MIB: u64 = 1 << 20;

fn pod(name: &str, spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": spec})).unwrap()
}

fn container(name: &str, memory_mib: u64, rootfs_mib: u64, logs_mib: u64) -> ContainerUsage {
    ContainerUsage {
        name: name.to_owned(),
        memory_bytes: Some(memory_mib * MIB),
        rootfs: Some(Usage { bytes: rootfs_mib * MIB, inodes: rootfs_mib }),
        logs: Usage { bytes: logs_mib * MIB, inodes: 1 },
    }
}

fn volume(name: &str, mib: u64) -> PodUsage {
    let used = Usage { bytes: mib * MIB, inodes: mib };
    PodUsage { volumes: BTreeMap::from([(name.to_owned(), used)]), ..PodUsage::default() }
}

fn told(pod: &Pod, usage: &PodUsage, dedicated_imagefs: bool) -> Option<String> {
    let orders = over_their_limits(&[Candidate { pod, usage: Some(usage) }], dedicated_imagefs);
    assert!(orders.iter().all(|order| !order.disrupts && order.grace == GRACE && order.uid == pod::uid(pod)));
    orders.into_iter().next().map(|order| order.message)
}

fn scratch(limit: &str, medium: &str) -> Pod {
    let source = json!({"sizeLimit": limit, "medium": medium});
    pod("p", json!({"containers": [{"name": "c"}], "volumes": [{"name": "data", "emptyDir": source}]}))
}

#[test]
fn an_empty_dir_may_be_full_but_no_fuller() {
    for medium in ["", "Memory"] {
        let pod = scratch("5Mi", medium);
        assert_eq!(told(&pod, &volume("data", 5), false), None);
        let message = told(&pod, &volume("data", 6), false).unwrap();
        assert_eq!(message, "Usage of EmptyDir volume \"data\" exceeds the limit \"5Mi\". ");
        assert_eq!(told(&pod, &volume("other", 6), false), None, "what was not measured is within its limit");
    }
    assert_eq!(told(&scratch("0", ""), &volume("data", 6), false), None, "zero is no limit");
    assert!(!has_storage_limits(&scratch("0", "")) && has_storage_limits(&scratch("5Mi", "")));
}

fn limited(limits: &[Option<&str>]) -> Pod {
    let containers = limits.iter().zip(["a", "b", "c"]).map(|(limit, name)| match limit {
        Some(limit) => json!({"name": name, "resources": {"limits": {STORAGE: limit}}}),
        None => json!({"name": name}),
    });
    let volumes =
        json!([{"name": "disk", "emptyDir": {}}, {"name": "ram", "emptyDir": {"medium": "Memory"}}]);
    pod("p", json!({"containers": containers.collect::<Vec<_>>(), "volumes": volumes}))
}

#[test]
fn a_container_is_held_to_its_own_limit_by_its_layer_and_its_logs() {
    let pod = limited(&[Some("5Mi"), Some("20Mi")]);
    let usage =
        |rootfs, logs| PodUsage { containers: vec![container("a", 0, rootfs, logs)], ..PodUsage::default() };
    assert_eq!(told(&pod, &usage(3, 2), false), None);
    let message = told(&pod, &usage(4, 2), false).unwrap();
    assert_eq!(message, "Container a exceeded its local ephemeral storage limit \"5Mi\". ");
    assert_eq!(told(&pod, &usage(4, 2), true), None, "layers on a file system of their own are not counted");
    assert!(told(&pod, &usage(0, 6), true).is_some());
}

#[test]
fn a_pod_is_held_to_the_sum_of_the_limits_that_its_containers_have() {
    let message = "Pod ephemeral local storage usage exceeds the total limit of containers 15Mi. ";
    let pod = limited(&[Some("5Mi"), Some("10Mi")]);
    let mut usage = volume("disk", 9);
    usage.containers = vec![container("a", 0, 2, 1), container("b", 0, 2, 1)];
    assert_eq!(told(&pod, &usage, false), None);
    usage.volumes.insert("ram".to_owned(), Usage { bytes: 50 * MIB, inodes: 1 });
    assert_eq!(told(&pod, &usage, false), None, "volumes in memory are memory");
    usage.volumes.insert("disk".to_owned(), Usage { bytes: 10 * MIB, inodes: 1 });
    assert_eq!(told(&pod, &usage, false).as_deref(), Some(message));

    let one = limited(&[Some("5Mi"), None]);
    assert!(told(&one, &volume("disk", 6), false).unwrap().ends_with("of containers 5Mi. "));
    assert_eq!(told(&limited(&[None]), &volume("disk", 900), false), None);
    assert!(has_storage_limits(&one) && !has_storage_limits(&limited(&[None])));
}

#[test]
fn static_and_system_pods_stay_whatever_they_use() {
    let mut pod = scratch("5Mi", "");
    assert!(told(&pod, &volume("data", 6), false).is_some());
    pod.spec.as_mut().unwrap().priority = Some(SYSTEM_CRITICAL);
    assert_eq!(told(&pod, &volume("data", 6), false), None);
    pod.spec.as_mut().unwrap().priority = Some(SYSTEM_CRITICAL - 1);
    assert!(told(&pod, &volume("data", 6), false).is_some());
    pod.metadata.annotations = Some([(pod::ANNOTATION_CONFIG_SOURCE.to_owned(), "file".to_owned())].into());
    assert_eq!(told(&pod, &volume("data", 6), false), None);
}

/// A pod with a request and a priority, and what it uses of the same resource, in MiB.
fn asking(name: &str, resource: &str, request: u64, priority: i32, used: u64) -> (Pod, PodUsage) {
    let requests = json!({"requests": {resource: format!("{request}Mi")}});
    let pod = pod(name, json!({"priority": priority, "containers": [{"name": "c", "resources": requests}]}));
    let (memory, rootfs) = if resource == "memory" { (used, 0) } else { (0, used) };
    let mut usage = PodUsage {
        containers: vec![container("c", memory, rootfs, 0)],
        processes: used,
        ..PodUsage::default()
    };
    usage.containers[0].logs = Usage::default();
    (pod, usage)
}

fn ranked(signal: Signal, pods: &[(Pod, PodUsage)], without_usage: &str) -> Vec<String> {
    let mut candidates: Vec<Candidate<'_>> = pods
        .iter()
        .map(|(pod, usage)| Candidate { pod, usage: Some(usage).filter(|_| pod::name(pod) != without_usage) })
        .collect();
    rank(signal, &mut candidates, false);
    candidates.iter().map(|candidate| pod::name(candidate.pod).to_owned()).collect()
}

#[test]
fn pods_go_by_excess_then_priority_then_how_far_they_exceed() {
    for (signal, resource) in [
        (Signal::MemoryAvailable, "memory"),
        (Signal::NodefsAvailable, STORAGE),
        (Signal::ImagefsAvailable, STORAGE),
    ] {
        let pods = [
            asking("modest-low", resource, 500, -5, 100),
            asking("over-high", resource, 100, 10, 900),
            asking("over-low", resource, 100, 0, 150),
            asking("far-over-low", resource, 100, 0, 300),
            asking("exact", resource, 100, -10, 100),
            asking("no-request", resource, 0, 0, 400),
        ];
        let order = ["no-request", "far-over-low", "over-low", "over-high", "exact", "modest-low"];
        assert_eq!(ranked(signal, &pods, ""), order, "{signal:?}");
        assert_eq!(
            ranked(signal, &pods, "modest-low")[0],
            "modest-low",
            "of whom nothing is known goes first"
        );
    }
}

#[test]
fn where_processes_are_short_priority_comes_first_and_for_inodes_nobody_asked() {
    let pods = [
        asking("few", "memory", 1, 0, 10),
        asking("many", "memory", 1, 0, 90),
        asking("high", "memory", 1, 7, 99),
    ];
    assert_eq!(ranked(Signal::PidAvailable, &pods, ""), ["many", "few", "high"]);
    let pods = [
        asking("few", STORAGE, 0, 0, 10),
        asking("many", STORAGE, 5000, 0, 90),
        asking("high", STORAGE, 0, 7, 99),
    ];
    assert_eq!(ranked(Signal::NodefsInodesFree, &pods, ""), ["many", "few", "high"]);
}

#[test]
fn with_an_image_file_system_of_their_own_only_layers_count_for_it_and_never_for_the_other() {
    let writer = pod("writer", json!({"containers": [{"name": "c"}]}));
    let logger = pod("logger", json!({"containers": [{"name": "c"}]}));
    let wrote = PodUsage { containers: vec![container("c", 0, 50, 1)], ..PodUsage::default() };
    let logged = PodUsage { containers: vec![container("c", 0, 1, 40)], ..PodUsage::default() };
    let first = |signal, dedicated| {
        let mut pods = [
            Candidate { pod: &writer, usage: Some(&wrote) },
            Candidate { pod: &logger, usage: Some(&logged) },
        ];
        rank(signal, &mut pods, dedicated);
        pod::name(pods[0].pod).to_owned()
    };
    assert_eq!(first(Signal::NodefsAvailable, false), "writer");
    assert_eq!(first(Signal::NodefsAvailable, true), "logger");
    assert_eq!(first(Signal::ImagefsAvailable, true), "writer");
}

fn seen(signal: Signal, available: u64, capacity: u64) -> Observations {
    Observations::from([(signal, Observation { available, capacity })])
}

#[test]
fn the_pod_that_goes_is_told_of_what_there_was_too_little_and_who_took_it() {
    let pods = [asking("small", "memory", 100, 0, 50), asking("large", "memory", 100, 0, 300)];
    let candidates = pods.each_ref().map(|(pod, usage)| Candidate { pod, usage: Some(usage) });
    let settings = Settings::default();
    let starved = [Threshold::hard(Signal::MemoryAvailable, Amount::Whole(100 * MIB))];
    let seen = seen(Signal::MemoryAvailable, 60 * MIB, 4000 * MIB);
    let order = relief(&starved, &candidates, &seen, &settings, false).unwrap();
    assert_eq!((order.uid.as_str(), order.grace, order.disrupts), ("large", GRACE, true));
    assert_eq!(
        order.message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. \
         Container c was using 300Mi, request is 100Mi, has larger consumption of memory. "
    );
}

#[test]
fn a_soft_threshold_gives_the_pods_own_grace_up_to_the_longest_allowed() {
    let soft = Threshold {
        grace: Duration::from_secs(60),
        ..Threshold::hard(Signal::NodefsInodesFree, Amount::Percent(50.0))
    };
    let settings = Settings { grace_max: Duration::from_secs(20), ..Settings::default() };
    let grace = |own: Value| {
        let pod = pod("p", json!({"containers": [{"name": "c"}], "terminationGracePeriodSeconds": own}));
        let seen = seen(Signal::NodefsInodesFree, 20_000, 50_000);
        let order =
            relief(&[soft], &[Candidate { pod: &pod, usage: None }], &seen, &settings, false).unwrap();
        assert_eq!(
            order.message,
            "The node was low on resource: inodes. Threshold quantity: 25k, available: 20k. "
        );
        order.grace.as_secs()
    };
    assert_eq!([grace(json!(5)), grace(json!(30)), grace(Value::Null)], [5, 20, 20]);
}

#[test]
fn a_node_of_critical_pods_evicts_nobody_and_the_next_pod_goes_for_a_critical_one() {
    let mut pods =
        [asking("system", "memory", 1, SYSTEM_CRITICAL, 900), asking("user", "memory", 100, 0, 50)];
    let starved = [Threshold::hard(Signal::MemoryAvailable, Amount::Whole(100 * MIB))];
    let seen = seen(Signal::MemoryAvailable, 0, 4000 * MIB);
    let chosen = |pods: &[(Pod, PodUsage)]| {
        let candidates: Vec<_> =
            pods.iter().map(|(pod, usage)| Candidate { pod, usage: Some(usage) }).collect();
        relief(&starved, &candidates, &seen, &Settings::default(), false).map(|order| order.uid)
    };
    assert_eq!(chosen(&pods).as_deref(), Some("user"));
    pods[1].0.spec.as_mut().unwrap().priority = Some(SYSTEM_CRITICAL + 1000);
    assert_eq!(chosen(&pods), None);
}
