use super::*;
use crate::actual::Sandbox;

fn pod(spec: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": serde_json::from_str::<Value>(spec).unwrap(),
    }))
    .unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn container(name: &str, state: State, exit_code: i32, attempt: u32) -> Container {
    Container {
        id: format!("{name}-{attempt}"),
        name: name.into(),
        sandbox_id: "s".into(),
        attempt,
        state,
        created_at: at(10 + i64::from(attempt)),
        started_at: at(11),
        finished_at: at(20),
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "docker.io/library/i:latest".into(),
        image_ref: "sha256:abc".into(),
        hash: String::new(),
    }
}

fn actual(containers: Vec<Container>) -> Actual {
    let ips = vec!["10.244.0.5".to_owned(), "fd00::5".to_owned()];
    let sandbox = Sandbox { id: "s".into(), attempt: 0, ready: true, created_at: at(9), ips };
    let mut actual = Actual { sandboxes: vec![sandbox], containers };
    actual.sort();
    actual
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap()
}

const ONE: &str = r#"{"containers":[{"name":"a","image":"i"}]}"#;

#[test]
fn a_pod_without_containers_yet_is_pending_and_creating() {
    let status = compute(&pod(ONE), &PodStatus::default(), &View::for_tests(), at(100));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let waiting = status.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref();
    assert_eq!(waiting.unwrap().reason.as_deref(), Some("ContainerCreating"));
    assert_eq!(condition(&status, "PodReadyToStartContainers").status, "False");
    assert_eq!(condition(&status, "Initialized").status, "True");
    assert_eq!(condition(&status, "Ready").message.as_deref(), Some("containers with unready status: [a]"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn a_running_ready_pod_has_addresses_of_the_nodes_family_first() {
    let actual = actual(vec![container("a", State::Running, 0, 0)]);
    let mut memory = Memory::default();
    memory.started.insert("a-0".into());
    memory.ready.insert("a-0".into());
    let host_ips = ["fd01::1".to_owned()];
    let view = View { actual: &actual, memory: &memory, host_ips: &host_ips, ..View::for_tests() };
    let status = compute(&pod(ONE), &PodStatus::default(), &view, at(100));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&status, "Ready").status, "True");
    assert_eq!(status.pod_ip.as_deref(), Some("fd00::5"));
    assert_eq!(status.pod_ips.unwrap().len(), 2);
    assert_eq!(status.host_ip.as_deref(), Some("fd01::1"));
}

#[test]
fn a_crash_loop_shows_why_it_waits_and_how_the_last_life_ended() {
    let actual = actual(vec![container("a", State::Exited, 3, 1), container("a", State::Exited, 2, 0)]);
    let wait = Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 10s".into() };
    let waiting = BTreeMap::from([("a".to_owned(), wait)]);
    let view = View { actual: &actual, waiting: &waiting, ..View::for_tests() };
    let status = compute(&pod(ONE), &PodStatus::default(), &view, at(100));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let of_a = &status.container_statuses.unwrap()[0];
    assert_eq!(of_a.restart_count, 1);
    let state = of_a.state.as_ref().unwrap();
    assert_eq!(state.waiting.as_ref().unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
    let last = of_a.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
}

#[test]
fn exit_codes_and_policy_give_the_final_phase() {
    for (policy, code, expected) in [
        ("Never", 0, "Succeeded"),
        ("Never", 1, "Failed"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 1, "Running"),
        ("Always", 0, "Running"),
    ] {
        let mut pod = pod(ONE);
        pod.spec.as_mut().unwrap().restart_policy = Some(policy.into());
        let actual = actual(vec![container("a", State::Exited, code, 0)]);
        let status =
            compute(&pod, &PodStatus::default(), &View { actual: &actual, ..View::for_tests() }, at(100));
        assert_eq!(status.phase.as_deref(), Some(expected), "{policy} {code}");
    }
}

#[test]
fn init_containers_hold_the_phase_at_pending_until_done() {
    let spec = r#"{"initContainers":[{"name":"i","image":"i"}],"containers":[{"name":"a","image":"i"}],"restartPolicy":"Never"}"#;
    let phase_of = |containers| {
        let actual = actual(containers);
        let view = View { actual: &actual, ..View::for_tests() };
        let status = compute(&pod(spec), &PodStatus::default(), &view, at(100));
        (status.phase.clone().unwrap(), condition(&status, "Initialized").status.clone())
    };
    assert_eq!(phase_of(vec![container("i", State::Running, 0, 0)]), ("Pending".into(), "False".into()));
    assert_eq!(phase_of(vec![container("i", State::Exited, 0, 0)]), ("Pending".into(), "True".into()));
    assert_eq!(phase_of(vec![container("i", State::Exited, 1, 0)]), ("Failed".into(), "False".into()));
    let both = vec![container("a", State::Running, 0, 0), container("i", State::Exited, 0, 0)];
    assert_eq!(phase_of(both), ("Running".into(), "True".into()));
}

#[test]
fn conditions_keep_their_time_until_they_flip_and_others_are_left_alone() {
    let mut pod = pod(ONE);
    let foreign = json!({"conditions": [{"type": "example.com/gate", "status": "True"}]});
    pod.status = serde_json::from_value(foreign).unwrap();
    let first = compute(&pod, &PodStatus::default(), &View::for_tests(), at(100));
    let second = compute(&pod, &first, &View::for_tests(), at(200));
    assert_eq!(first, second);
    assert_eq!(condition(&second, "Ready").last_transition_time, Some(time(at(100))));
    assert_eq!(condition(&second, "example.com/gate").status, "True");
    let sent = patch("u", &first, &second);
    assert!(sent["status"]["conditions"].as_array().unwrap().iter().all(|c| c["type"] != "example.com/gate"));
    assert_eq!(sent["metadata"]["uid"], "u");
}

#[test]
fn readiness_gates_hold_back_ready_but_not_containers_ready() {
    let mut pod = pod(ONE);
    let gate = json!([{"conditionType": "example.com/gate"}]);
    pod.spec.as_mut().unwrap().readiness_gates = serde_json::from_value(gate).unwrap();
    let actual = actual(vec![container("a", State::Running, 0, 0)]);
    let mut memory = Memory::default();
    memory.ready.insert("a-0".into());
    let view = View { actual: &actual, memory: &memory, ..View::for_tests() };
    let status = compute(&pod, &PodStatus::default(), &view, at(100));
    assert_eq!(condition(&status, "ContainersReady").status, "True");
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
}

#[test]
fn a_running_container_that_the_runtime_lost_is_terminated_with_an_unknown_status() {
    let running = actual(vec![container("a", State::Running, 0, 2)]);
    let view = View { actual: &running, ..View::for_tests() };
    let first = compute(&pod(ONE), &PodStatus::default(), &view, at(100));
    let second = compute(&pod(ONE), &first, &View::for_tests(), at(200));
    let of_a = &second.container_statuses.unwrap()[0];
    let lost = of_a.state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((lost.exit_code, lost.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    assert_eq!(of_a.restart_count, 2);
    assert_eq!(second.pod_ip, first.pod_ip, "a known address is not lost with the sandbox");
}

#[test]
fn a_refused_pod_is_failed_with_the_reason() {
    let failure = Failure::new("OutOfcpu", "too little");
    let view = View { failure: Some(&failure), ..View::for_tests() };
    let status = compute(&pod(ONE), &PodStatus::default(), &view, at(100));
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    assert_eq!(status.container_statuses, None);
    let later = compute(&pod(ONE), &status, &View::for_tests(), at(200));
    assert_eq!(later, status);
}

#[test]
fn a_pod_evicted_for_the_nodes_sake_is_a_target_of_disruption_and_one_for_its_own_is_not() {
    let mut failure = Failure::new("Evicted", "The node was low on resource: memory. ");
    let exited = actual(vec![container("a", State::Exited, 137, 0)]);
    let seen = |failure: Option<&Failure>, previous: &PodStatus, second| {
        let mut pod = pod(ONE);
        pod.status = Some(previous.clone());
        let view = View { actual: &exited, failure, ended: true, ..View::for_tests() };
        let status = compute(&pod, previous, &view, at(second));
        let sent = patch("u", previous, &status)["status"]["conditions"].as_array().unwrap().clone();
        let sent = sent.into_iter().filter(|c| c["type"] == "DisruptionTarget").count();
        (status, sent)
    };
    let running = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
    let (own, sent) = seen(Some(&failure), &running, 100);
    assert_eq!((own.phase.as_deref(), own.reason.as_deref(), sent), (Some("Failed"), Some("Evicted"), 0));
    failure.disrupts = true;
    let (first, sent) = seen(Some(&failure), &running, 100);
    let target = condition(&first, "DisruptionTarget");
    assert_eq!((target.status.as_str(), target.reason.as_deref()), ("True", Some("TerminationByKubelet")));
    assert_eq!((target.message.as_ref(), sent), (first.message.as_ref(), 1));
    assert_eq!(seen(Some(&failure), &first, 200), (first.clone(), 1), "said once");
    assert_eq!(seen(None, &first, 300), (first.clone(), 1), "and kept by the next kubelet");
}

#[test]
fn an_address_that_changed_replaces_the_old_one_in_the_patch() {
    let old = PodStatus { pod_ips: Some(vec![PodIP { ip: "10.0.0.1".into() }]), ..PodStatus::default() };
    let new = PodStatus { pod_ips: Some(vec![PodIP { ip: "10.0.0.2".into() }]), ..PodStatus::default() };
    assert_eq!(patch("u", &old, &new)["status"]["podIPs"][0]["$patch"], "replace");
    assert_eq!(patch("u", &new, &new)["status"]["podIPs"][0]["ip"], "10.0.0.2");
}
