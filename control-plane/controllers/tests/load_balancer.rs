//! Addresses of Services of type LoadBalancer, against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;

use calico::{IpPool, IpReservation};
use k8s_openapi::api::core::v1::{Event, Service};
use k8s_openapi::api::networking::v1::IPAddress;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use support::{Cluster, client_of, create, eventually};
use tokio_util::sync::CancellationToken;

fn service(name: &str, annotations: Value, spec: Value) -> Value {
    let mut service = json!({
        "metadata": { "name": name, "annotations": annotations },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 80 }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

fn pool(name: &str, cidr: &str, mode: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "cidr": cidr, "allowedUses": ["LoadBalancer"], "assignmentMode": mode, "nodeSelector": "all()" },
    })
}

fn addresses(service: &Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default();
    assert!(ingress.iter().all(|at| at.ip_mode.as_deref() == Some("VIP")));
    ingress.into_iter().filter_map(|at| at.ip).collect()
}

async fn has(services: &Api<Service>, name: &str, expected: &[&str]) {
    eventually(name, async || {
        let found = addresses(&services.get(name).await.unwrap());
        if found == expected { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Waits for an Event about a Service that says this.
async fn is_told(cluster: &Cluster, name: &str, text: &str) {
    let events = cluster.api::<Event>("team");
    eventually(text, async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        let mut about =
            events.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(name));
        let messages: Vec<_> = about.by_ref().filter_map(|event| event.message).collect();
        if messages.iter().any(|message| message.contains(text)) { Ok(()) } else { Err(messages) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_balancer_is_given_an_address_and_gives_it_back() {
    let cluster = Cluster::start_with(vec!["10.96.0.0/16", "fd00:10:96::/112"]).await;
    cluster.namespace("team").await;
    let services = cluster.api::<Service>("team");
    let pools = Api::<IpPool>::all(cluster.client());
    let claims = Api::<IPAddress>::all(cluster.client());
    create(&services, service("web", json!({}), json!({}))).await;
    is_told(&cluster, "web", "no IPPool has allowedUses [LoadBalancer]").await;
    create(&pools, pool("manual", "198.51.100.0/28", "Manual")).await;
    is_told(&cluster, "web", "no IPPool gives addresses of IPv4").await;
    create(&pools, pool("v4", "203.0.113.0/28", "Automatic")).await;
    has(&services, "web", &["203.0.113.1"]).await;
    create(&pools, pool("v6", "2001:db8::/120", "Automatic")).await;
    create(&services, service("dual", json!({}), json!({ "ipFamilyPolicy": "RequireDualStack" }))).await;
    has(&services, "dual", &["203.0.113.2", "2001:db8::1"]).await;

    // Asked for by annotation, by pool, by spec; who has it is said to who comes second.
    let exact = json!({ "projectcalico.org/loadBalancerIPs": "[\"198.51.100.9\"]" });
    create(&services, service("exact", exact.clone(), json!({}))).await;
    has(&services, "exact", &["198.51.100.9"]).await;
    create(&services, service("second", json!({}), json!({ "loadBalancerIP": "198.51.100.9" }))).await;
    is_told(&cluster, "second", "198.51.100.9 is asked for, but Service team/exact has it").await;
    let named = json!({ "projectcalico.org/ipv4pools": "[\"manual\"]" });
    create(&services, service("named", named, json!({}))).await;
    has(&services, "named", &["198.51.100.1"]).await;
    create(&services, service("foreign", json!({}), json!({ "loadBalancerClass": "example.com/lb" }))).await;

    // What comes free goes to who waits for it.
    services.delete("exact", &DeleteParams::default()).await.unwrap();
    has(&services, "second", &["198.51.100.9"]).await;
    let claim = claims.get("198.51.100.9").await.unwrap();
    assert_eq!(claim.spec.parent_ref.name, "second");
    let other = Patch::Merge(json!({ "spec": { "type": "ClusterIP" } }));
    services.patch("web", &PatchParams::default(), &other).await.unwrap();
    support::gone(&claims, "203.0.113.1").await;
    assert_eq!(addresses(&services.get("web").await.unwrap()), Vec::<String>::new());
    assert_eq!(addresses(&services.get("foreign").await.unwrap()), Vec::<String>::new());

    // A reservation keeps an address back, and takes none away.
    let kept = json!({ "metadata": { "name": "kept" }, "spec": { "reservedCIDRs": ["203.0.113.0/30"] } });
    create(&Api::<IpReservation>::all(cluster.client()), kept).await;
    create(&services, service("late", json!({}), json!({}))).await;
    has(&services, "late", &["203.0.113.4"]).await;
    has(&services, "dual", &["203.0.113.2", "2001:db8::1"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_control_planes_never_give_one_address_twice() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    // As another server of the cluster would run, or the next one before the last has ended.
    let stop = CancellationToken::new();
    let client = client_of(&cluster.server, "second", "system:masters");
    let second = tokio::spawn(controllers::run(client, stop.clone()));
    let services = cluster.api::<Service>("team");
    create(&Api::<IpPool>::all(cluster.client()), pool("v4", "203.0.113.0/28", "Automatic")).await;
    let names: Vec<String> = (0..20).map(|index| format!("s{index}")).collect();
    for name in &names {
        create(&services, service(name, json!({}), json!({}))).await;
    }
    let given = async || {
        let all = services.list(&ListParams::default()).await.unwrap();
        let given: Vec<String> = all.iter().flat_map(addresses).collect();
        let distinct: BTreeSet<&String> = given.iter().collect();
        assert_eq!(distinct.len(), given.len(), "{given:?}");
        given
    };
    eventually("all 14 addresses to be given", async || {
        let given = given().await;
        if given.len() == 14 { Ok(()) } else { Err(given) }
    })
    .await;
    for name in &names[..10] {
        services.delete(name, &DeleteParams::default()).await.unwrap();
        given().await;
    }
    eventually("the others to be served", async || {
        let given = given().await;
        if given.len() == 10 { Ok(()) } else { Err(given) }
    })
    .await;
    let claims = Api::<IPAddress>::all(cluster.client());
    let ours = ListParams::default().labels("ipaddress.kubernetes.io/managed-by=load-balancer.seaway.dev");
    eventually("no claim to be left over", async || {
        let claims = claims.list(&ours).await.unwrap();
        if claims.items.len() == 10 {
            Ok(())
        } else {
            Err(claims.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
        }
    })
    .await;
    stop.cancel();
    second.await.unwrap().unwrap();
    cluster.stop().await;
}
