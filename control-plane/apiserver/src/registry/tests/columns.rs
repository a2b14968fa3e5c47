use serde_json::{Value, json};

use super::{super::human_duration, Kind, metadata, with};

fn pod(status: Value) -> Value {
    json!({
        "metadata": metadata("web"),
        "spec": { "nodeName": "node-1", "containers": [{ "name": "web", "image": "nginx" }] },
        "status": status,
    })
}

fn row(pod: &Value) -> String {
    Kind::new("", "pods").row(pod)
}

fn state(state: Value, restarts: i64) -> Value {
    let ready = state.get("running").is_some();
    json!({ "phase": "Running", "containerStatuses": [{ "name": "web", "ready": ready, "restartCount": restarts, "state": state }] })
}

#[test]
fn durations_have_two_units_at_most() {
    for (seconds, shown) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600 + 60, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (49 * 3600, "2d1h"),
        (8 * 86400, "8d"),
        (700 * 86400, "700d"),
        (2 * 365 * 86400, "2y"),
        (3 * 365 * 86400 + 86400, "3y1d"),
        (9 * 365 * 86400, "9y"),
        (-1, "0s"),
        (-5, "<invalid>"),
    ] {
        assert_eq!(human_duration(seconds), shown, "{seconds}");
    }
}

#[test]
fn pods_show_the_word_that_kubectl_shows() {
    let running = with(
        &pod(state(json!({ "running": {} }), 0)),
        json!({ "status": { "podIPs": [{ "ip": "10.244.0.5" }] } }),
    );
    assert_eq!(row(&running), "web  1/1  Running  0  5m | 10.244.0.5  node-1  <none>  <none>");
    let status = |pod: &Value| row(pod).split("  ").nth(2).unwrap_or_default().to_owned();
    let crashing = pod(state(json!({ "waiting": { "reason": "CrashLoopBackOff" } }), 3));
    assert_eq!(status(&crashing), "CrashLoopBackOff");
    let done = pod(json!({ "phase": "Succeeded", "containerStatuses": [
        { "name": "web", "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } },
    ] }));
    assert_eq!(status(&done), "Completed");
    let failed = pod(
        json!({ "phase": "Failed", "containerStatuses": [{ "name": "web", "state": { "terminated": { "exitCode": 3 } } }] }),
    );
    assert_eq!(status(&failed), "ExitCode:3");
    let evicted = pod(json!({ "phase": "Failed", "reason": "Evicted" }));
    assert_eq!(status(&evicted), "Evicted");
    let going = with(&running, json!({ "metadata": { "deletionTimestamp": "2026-03-01T12:00:10Z" } }));
    assert_eq!(status(&going), "Terminating");
    let lost = with(&going, json!({ "status": { "reason": "NodeLost" } }));
    assert_eq!(status(&lost), "Unknown");
    let pending = pod(json!({ "phase": "Pending" }));
    assert_eq!(row(&pending), "web  0/1  Pending  0  5m | <none>  node-1  <none>  <none>");
}

#[test]
fn restarts_say_how_long_ago() {
    let mut crashing = pod(state(json!({ "running": {} }), 2));
    crashing["status"]["containerStatuses"][0]["lastState"] =
        json!({ "terminated": { "exitCode": 1, "finishedAt": "2026-03-01T11:55:00Z" } });
    assert_eq!(row(&crashing).split("  ").nth(3).unwrap(), "2 (5m ago)");
}

#[test]
fn init_containers_are_counted_while_they_run() {
    let base = with(
        &pod(json!({ "phase": "Pending" })),
        json!({ "spec": { "initContainers": [{ "name": "a" }, { "name": "b" }] } }),
    );
    let status = |statuses: Value| {
        let pod = with(&base, json!({ "status": { "initContainerStatuses": statuses } }));
        row(&pod).split("  ").nth(2).unwrap().to_owned()
    };
    let done = json!({ "name": "a", "state": { "terminated": { "exitCode": 0 } } });
    assert_eq!(status(json!([{ "name": "a", "state": { "running": {} } }])), "Init:0/2");
    assert_eq!(status(json!([done, { "name": "b", "state": { "running": {} } }])), "Init:1/2");
    assert_eq!(
        status(json!([{ "name": "a", "state": { "terminated": { "exitCode": 1, "reason": "Error" } } }])),
        "Init:Error"
    );
    assert_eq!(
        status(json!([{ "name": "a", "state": { "waiting": { "reason": "CrashLoopBackOff" } } }])),
        "Init:CrashLoopBackOff"
    );
    let sidecar =
        with(&base, json!({ "spec": { "initContainers": [{ "name": "a", "restartPolicy": "Always" }] } }));
    let running = with(
        &sidecar,
        json!({ "status": {
        "phase": "Running",
        "initContainerStatuses": [{ "name": "a", "started": true, "ready": true, "state": { "running": {} } }],
        "containerStatuses": [{ "name": "web", "ready": true, "state": { "running": {} } }],
    } }),
    );
    assert!(row(&running).starts_with("web  2/2  Running  0"));
}

#[test]
fn deployments_show_ready_of_desired() {
    let deployment = json!({
        "metadata": metadata("web"),
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "spec": { "containers": [{ "name": "a", "image": "nginx:1" }, { "name": "b", "image": "envoy" }] } },
        },
        "status": { "readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2 },
    });
    assert_eq!(
        Kind::new("apps", "deployments").row(&deployment),
        "web  2/3  3  2  5m | a,b  nginx:1,envoy  app=web"
    );
    let names: Vec<_> = Kind::new("apps", "deployments").strategy.columns().iter().map(|c| c.name).collect();
    assert_eq!(
        names,
        ["Name", "Ready", "Up-to-date", "Available", "Age", "Containers", "Images", "Selector"]
    );
}

#[test]
fn nodes_show_status_roles_and_version() {
    let node = json!({
        "metadata": with(&metadata("node-1"), json!({ "labels": { "node-role.kubernetes.io/control-plane": "" } })),
        "spec": { "unschedulable": true },
        "status": {
            "conditions": [{ "type": "Ready", "status": "True" }],
            "addresses": [{ "type": "InternalIP", "address": "10.89.0.11" }],
            "nodeInfo": {
                "kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.18", "architecture": "amd64",
                "containerRuntimeVersion": "containerd://1.6.20",
            },
        },
    });
    let kind = Kind::new("", "nodes");
    assert_eq!(
        kind.row(&node),
        "node-1  Ready,SchedulingDisabled  control-plane  5m  v1.36.0 | 10.89.0.11  <none>  Debian  6.18 (amd64)  \
         containerd://1.6.20"
    );
    assert_eq!(
        kind.row(&json!({ "metadata": metadata("new") })),
        "new  Unknown  <none>  5m   | <none>  <none>  <unknown>  <unknown>  <unknown>"
    );
}

#[test]
fn services_show_addresses_and_ports() {
    let kind = Kind::new("", "services");
    let service = json!({
        "metadata": metadata("web"),
        "spec": {
            "type": "NodePort", "clusterIPs": ["10.96.3.4"], "selector": { "b": "2", "a": "1" },
            "ports": [{ "port": 80, "nodePort": 30080, "protocol": "TCP" }, { "port": 53, "protocol": "UDP" }],
        },
    });
    assert_eq!(kind.row(&service), "web  NodePort  10.96.3.4  <none>  80:30080/TCP,53/UDP  5m | a=1,b=2");
    let balanced = with(&service, json!({ "spec": { "type": "LoadBalancer" } }));
    assert!(kind.row(&balanced).contains("  <pending>  "));
    let given =
        with(&balanced, json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } } }));
    assert!(kind.row(&given).contains("  192.0.2.1  "));
    let headless =
        json!({ "metadata": metadata("db"), "spec": { "type": "ClusterIP", "clusterIPs": ["None"] } });
    assert_eq!(kind.row(&headless), "db  ClusterIP  None  <none>  <none>  5m | <none>");
}

#[test]
fn data_and_network_kinds_show_what_kubectl_shows() {
    let cases = [
        (
            "batch",
            "jobs",
            json!({ "spec": { "completions": 3 }, "status": {
            "succeeded": 3, "startTime": "2026-03-01T11:55:00Z", "completionTime": "2026-03-01T11:55:07Z",
            "conditions": [{ "type": "Complete", "status": "True" }] } }),
            "one  Complete  3/3  7s  5m |     <none>",
        ),
        (
            "batch",
            "cronjobs",
            json!({ "spec": { "schedule": "@daily", "suspend": false } }),
            "one  @daily  <none>  False  0  <none>  5m |     <none>",
        ),
        ("", "configmaps", json!({ "data": { "a": "1" }, "binaryData": { "b": "eA==" } }), "one  2  5m"),
        ("", "secrets", json!({ "type": "Opaque", "data": { "a": "eA==" } }), "one  Opaque  1  5m"),
        ("", "namespaces", json!({ "status": { "phase": "Active" } }), "one  Active  5m"),
        (
            "",
            "endpoints",
            json!({ "subsets": [{ "ports": [{ "port": 80 }], "addresses": [
            { "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }, { "ip": "10.0.0.3" }, { "ip": "10.0.0.4" }] }] }),
            "one  10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more...  5m",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({ "addressType": "IPv4", "ports": [{ "port": 80 }],
            "endpoints": [{ "addresses": ["10.0.0.1"] }] }),
            "one  IPv4  80  10.0.0.1  5m",
        ),
        (
            "coordination.k8s.io",
            "leases",
            json!({ "spec": { "holderIdentity": "node-1" } }),
            "one  node-1  5m",
        ),
        (
            "",
            "persistentvolumeclaims",
            json!({ "spec": { "volumeName": "pv", "storageClassName": "fast", "volumeMode": "Filesystem" },
            "status": { "phase": "Bound", "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"] } }),
            "one  Bound  pv  1Gi  RWO  fast  <unset>  5m | Filesystem",
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({ "spec": { "minAvailable": "50%" }, "status": { "disruptionsAllowed": 1 } }),
            "one  50%  N/A  1  5m",
        ),
        (
            "",
            "resourcequotas",
            json!({ "status": { "hard": { "pods": "5", "limits.cpu": "2" }, "used": { "pods": "1" } } }),
            "one  pods: 1/5  limits.cpu: 0/2  5m",
        ),
    ];
    check_rows(&cases);
}

#[test]
fn cluster_and_workload_kinds_show_what_kubectl_shows() {
    let cases = [
        ("rbac.authorization.k8s.io", "roles", json!({}), "one  2026-03-01T11:55:00Z"),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            json!({ "roleRef": { "kind": "Role", "name": "r" }, "subjects": [
            { "kind": "User", "name": "alice" }, { "kind": "ServiceAccount", "name": "sa", "namespace": "ns" }] }),
            "one  Role/r  5m | alice    ns/sa",
        ),
        (
            "certificates.k8s.io",
            "certificatesigningrequests",
            json!({ "spec": { "signerName": "s", "username": "u" },
            "status": { "certificate": "x", "conditions": [{ "type": "Approved" }] } }),
            "one  5m  s  u  <none>  Approved,Issued",
        ),
        (
            "networking.k8s.io",
            "ingresses",
            json!({ "spec": { "rules": [{ "host": "a.example" }], "tls": [{}] } }),
            "one  <none>  a.example    80, 443  5m",
        ),
        (
            "networking.k8s.io",
            "networkpolicies",
            json!({ "spec": { "podSelector": { "matchExpressions": [
            { "key": "app", "operator": "In", "values": ["b", "a"] }] } } }),
            "one  app in (a,b)  5m",
        ),
        (
            "autoscaling",
            "horizontalpodautoscalers",
            json!({ "spec": { "scaleTargetRef": { "kind": "Deployment", "name": "web" },
            "minReplicas": 1, "maxReplicas": 5, "metrics": [{ "type": "Resource", "resource": { "name": "cpu",
            "target": { "averageUtilization": 80 } } }] }, "status": { "currentReplicas": 2 } }),
            "one  Deployment/web  cpu: <unknown>/80%  1  5  2  5m",
        ),
        (
            "apps",
            "statefulsets",
            json!({ "spec": { "replicas": 3 }, "status": { "readyReplicas": 1 } }),
            "one  1/3  5m |   ",
        ),
        (
            "apps",
            "daemonsets",
            json!({ "status": { "desiredNumberScheduled": 3, "numberReady": 2 } }),
            "one  3  0  2  0  0  <none>  5m |     <none>",
        ),
        ("apps", "replicasets", json!({ "spec": { "replicas": 2 } }), "one  2  0  0  5m |     <none>"),
    ];
    check_rows(&cases);
}

fn check_rows(cases: &[(&str, &str, Value, &str)]) {
    for (group, plural, rest, expected) in cases {
        let object = with(&json!({ "metadata": metadata("one") }), rest.clone());
        assert_eq!(&Kind::new(group, plural).row(&object), expected, "{plural}");
    }
}

#[test]
fn events_show_when_what_and_why() {
    let event = json!({
        "metadata": metadata("web.1"),
        "involvedObject": { "kind": "Pod", "name": "web", "fieldPath": "spec.containers{web}" },
        "type": "Warning", "reason": "BackOff", "message": "Back-off restarting\n", "count": 4,
        "source": { "component": "kubelet", "host": "node-1" },
        "firstTimestamp": "2026-03-01T11:50:00Z", "lastTimestamp": "2026-03-01T11:59:30Z",
    });
    assert_eq!(
        Kind::new("", "events").row(&event),
        "30s  Warning  BackOff  pod/web  Back-off restarting | spec.containers{web}  kubelet, node-1  10m  4  web.1"
    );
}
