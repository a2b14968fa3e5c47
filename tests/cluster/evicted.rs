//! Pods that use more local storage than they may: they end, say why, and their Service leads nowhere.

use harness::{Cluster, eventually, eventually_some};
use serde_json::Value;

/// The kubelet looks every 10 s, and containerd measures writable layers every 10 s.
const SECONDS_MAX: u64 = 60;

const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: volume, labels: {app: full}}
spec:
  containers:
  - name: writer
    image: busybox:1.36
    command: [sh, -c, 'dd if=/dev/zero of=/data/file bs=1M count=10; sleep 10000']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {sizeLimit: 5Mi}}]
---
apiVersion: v1
kind: Pod
metadata: {name: layer, labels: {app: full}}
spec:
  containers:
  - name: writer
    image: busybox:1.36
    command: [sh, -c, 'dd if=/dev/zero of=/file bs=1M count=10; sleep 10000']
    resources: {limits: {ephemeral-storage: 5Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: within, labels: {app: within}}
spec:
  containers:
  - name: writer
    image: busybox:1.36
    command: [sh, -c, 'dd if=/dev/zero of=/data/file bs=1M count=10; sleep 10000']
    resources: {limits: {ephemeral-storage: 50Mi}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {sizeLimit: 20Mi}}]
---
apiVersion: v1
kind: Service
metadata: {name: full}
spec:
  selector: {app: full}
  publishNotReadyAddresses: true
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: client, image: 'multitool:1', args: [sleep]}
";

#[test]
fn a_pod_that_fills_more_than_it_may_is_evicted_and_its_service_refuses() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("evicted");
    namespace.apply(MANIFEST);
    namespace.wait_ready("app=client", 1, 60);
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"data\" exceeds the limit \"5Mi\". "),
        ("layer", "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "),
    ] {
        let pod = eventually_some(SECONDS_MAX, &format!("the pod {name} to be evicted"), || {
            let pod: Value = cluster.json(&format!("-n evicted get pod {name}"));
            if pod["status"]["reason"] == "Evicted" { Ok(Some(pod)) } else { Err(pod["status"].to_string()) }
        });
        let status = &pod["status"];
        assert_eq!((&status["phase"], &status["message"]), (&"Failed".into(), &message.into()), "{status}");
        assert!(status["containerStatuses"][0]["state"]["terminated"].is_object(), "{status}");
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        assert!(
            conditions.iter().all(|condition| condition["type"] != "DisruptionTarget"),
            "its own fault: {status}"
        );
        let events =
            namespace.kubectl(&format!("get events --field-selector involvedObject.name={name}")).ok();
        assert!(events.contains("Evicted") && events.contains(message.trim_end()), "{events}");
    }
    eventually(20, "nothing of an evicted pod to be kept but its status", || {
        let text = namespace.kubectl("logs layer");
        let gone = text.stderr.contains("unable to retrieve container logs");
        if gone { Ok(()) } else { Err(format!("{text:?}")) }
    });
    let status: Value = cluster.json("-n evicted get pod layer");
    assert_eq!(
        status["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Error",
        "{status}"
    );
    eventually(20, "the Service to have no endpoint and to refuse", || {
        let slices: Value = cluster.json("-n evicted get endpointslices -l kubernetes.io/service-name=full");
        let items = slices["items"].as_array().cloned().unwrap_or_default();
        let left =
            items.iter().any(|slice| slice["endpoints"].as_array().is_some_and(|list| !list.is_empty()));
        let run = namespace.exec("client", &["multitool", "tcp", "full:80", "x"]);
        let refused = run.code != 0 && run.stderr.contains("refused");
        if refused && !left { Ok(()) } else { Err(format!("{run:?} {slices}")) }
    });
    assert_eq!(namespace.wait_ready("app=within", 1, 1).len(), 1, "who stays within its limits stays");
}
