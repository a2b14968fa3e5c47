//! The CNI plugin as a runtime calls it, against a running agent.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::agent::{Agent, plugin};
use super::peers::wire;
use crate::netns::{NetNs, eventually};

pub struct Call<'a> {
    pub command: &'a str,
    pub container: &'a str,
    /// Its name; the namespace is `default`.
    pub pod: &'a str,
    pub netns: Option<&'a NetNs>,
    pub config: Value,
}

/// Runs the plugin; standard output as JSON, and whether it succeeded.
pub fn call(agent: &Agent, of: &Call<'_>) -> (bool, Value) {
    call_at(&agent.socket(), of)
}

/// As [`call`], of whatever agent listens there.
pub fn call_at(socket: &Path, call: &Call<'_>) -> (bool, Value) {
    let mut config = json!({
        "cniVersion": "1.1.0",
        "name": "seaway",
        "type": "seaway-cni",
        "socket": socket,
    });
    for (key, value) in call.config.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    let mut command = Command::new(plugin());
    command
        .env("CNI_COMMAND", call.command)
        .env("CNI_CONTAINERID", call.container)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", call.pod));
    if let Some(netns) = call.netns {
        command.env("CNI_NETNS", netns.path());
    }
    let run = harness::run(&mut command, &config.to_string());
    let value = if run.stdout.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}", run.stdout))
    };
    (run.code == 0, value)
}

fn add(agent: &Agent, container: &str, pod: &NetNs) -> Value {
    let (success, result) =
        call(agent, &Call { command: "ADD", container, pod: "web", netns: Some(pod), config: json!({}) });
    assert!(success, "{result}\n{}", agent.log());
    result
}

pub fn address_of(result: &Value) -> String {
    let address = result["ips"][0]["address"].as_str().expect("an address");
    address.split_once('/').expect("a length").0.to_owned()
}

#[test]
fn a_pod_is_added_checked_and_deleted() {
    let (host, _other) = wire();
    let agent = Agent::start(&host, &[]);
    let pod = NetNs::new();
    let result = add(&agent, "c1", &pod);
    assert_eq!(result["cniVersion"], "1.1.0");
    let address = address_of(&result);
    assert!(address.starts_with("10.244.0."), "{address}");
    pod.output("ping", &["-c", "1", "-W", "2", "192.0.2.1"]);
    let check = |config: Value| {
        call(&agent, &Call { command: "CHECK", container: "c1", pod: "web", netns: Some(&pod), config })
    };
    assert_eq!(check(json!({ "prevResult": result })), (true, Value::Null));
    let mut wrong = result.clone();
    wrong["ips"][0]["address"] = json!("10.244.0.99/32");
    let (success, error) = check(json!({ "prevResult": wrong }));
    assert!(!success && error["code"] == 100, "{error}");
    assert!(error["details"].as_str().unwrap().contains("10.244.0.99"), "{error}");
    // What CHECK is for: somebody took the route away.
    host.ip(&format!("route del {address} proto 180"));
    let delete = Call { command: "DEL", container: "c1", pod: "web", netns: Some(&pod), config: json!({}) };
    assert_eq!(call(&agent, &delete), (true, Value::Null));
    assert_eq!(call(&agent, &delete), (true, Value::Null), "DEL again is no error");
    assert_eq!(agent.json("/v1/pods"), json!([]));
    eventually("the link goes", || (!host.output("ip", &["link"]).contains("swp")).then_some(()));
    assert!(!host.output("ip", &["route"]).contains(&format!("{address} dev")), "the route is gone");
}

#[test]
fn add_again_answers_the_same_address_and_two_pods_reach_each_other() {
    let (host, _other) = wire();
    let agent = Agent::start(&host, &[]);
    let (a, b) = (NetNs::new(), NetNs::new());
    let first = add(&agent, "c1", &a);
    let second = add(&agent, "c2", &b);
    assert_ne!(address_of(&first), address_of(&second));
    a.output("ping", &["-c", "1", "-W", "2", &address_of(&second)]);
    a.ip("link del eth0");
    assert_eq!(address_of(&add(&agent, "c1", &a)), address_of(&first));
    b.output("ping", &["-c", "1", "-W", "2", &address_of(&first)]);
}

#[test]
fn gc_releases_what_is_not_valid_and_status_says_why_pods_cannot_be_served() {
    let (host, _other) = wire();
    let agent = Agent::start(&host, &[]);
    let (a, b) = (NetNs::new(), NetNs::new());
    add(&agent, "keep", &a);
    add(&agent, "drop", &b);
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "keep", "ifname": "eth0" }] });
    let (success, error) =
        call(&agent, &Call { command: "GC", container: "-", pod: "web", netns: None, config: valid });
    assert!(success, "{error}");
    let pods = agent.json("/v1/pods");
    assert_eq!(pods.as_array().unwrap().len(), 1);
    assert_eq!(pods[0]["containerId"], "keep");
    let status = Call { command: "STATUS", container: "-", pod: "web", netns: None, config: json!({}) };
    let (success, error) = call(&agent, &status);
    assert!(!success && error["code"] == 50, "{error}");
    assert!(error["details"].as_str().unwrap().contains("Services"), "no API server was there: {error}");
}

#[test]
fn pods_outlive_their_agent_and_the_next_one_knows_them() {
    let (host, _other) = wire();
    let mut agent = Agent::start(&host, &[]);
    let (a, b) = (NetNs::new(), NetNs::new());
    let address = address_of(&add(&agent, "c1", &a));
    agent.kill();
    a.output("ping", &["-c", "1", "-W", "2", "192.0.2.1"]);
    let call_without_agent =
        Call { command: "ADD", container: "c2", pod: "web", netns: Some(&b), config: json!({}) };
    let (success, error) = call(&agent, &call_without_agent);
    assert!(!success && error["code"] == 11, "{error}");
    agent.run(&host, &[]);
    assert_eq!(agent.json("/v1/pods")[0]["address"], address);
    assert_ne!(address_of(&add(&agent, "c2", &b)), address);
    b.output("ping", &["-c", "1", "-W", "2", &address]);
}

#[test]
fn thirty_pods_at_once_are_all_added_with_their_own_addresses() {
    let (host, _other) = wire();
    let agent = Agent::start(&host, &[]);
    let pods: Vec<NetNs> = (0..30).map(|_| NetNs::new()).collect();
    let started = std::time::Instant::now();
    let addresses: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let agent = &agent;
        let threads: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(n, pod)| scope.spawn(move || address_of(&add(agent, &format!("c{n}"), pod))))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("an ADD")).collect()
    });
    println!("30 pods added in {:?}", started.elapsed());
    assert_eq!(addresses.len(), 30);
    for pod in &pods {
        pod.output("ping", &["-c", "1", "-W", "2", "192.0.2.1"]);
    }
}
