//! Cluster IPs: ranges, IPAddress objects and their repair, against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use k8s_openapi::api::core::v1::{Event, Service};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use support::{Cluster, create, eventually, refused};

fn service(name: &str, spec: Value) -> Value {
    let mut service = json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

fn cluster_ips(service: &Service) -> Vec<String> {
    service.spec.as_ref().and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default()
}

fn condition(range: &ServiceCIDR) -> Option<(String, String)> {
    let conditions = range.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some((ready.status.clone(), ready.reason.clone()))
}

async fn is(ranges: &Api<ServiceCIDR>, name: &str, status: &str) {
    eventually("the range's condition", async || {
        let range = ranges.get(name).await.unwrap();
        match condition(&range) {
            Some((now, _)) if now == status => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_range_is_used_and_goes_only_without_addresses() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let ranges = Api::<ServiceCIDR>::all(cluster.client());
    let addresses = Api::<IPAddress>::all(cluster.client());
    let services = cluster.api::<Service>("team");
    let own = ranges.get("kubernetes").await.unwrap();
    assert_eq!(own.spec.as_ref().unwrap().cidrs.as_ref().unwrap(), &["10.96.0.0/16"]);
    assert_eq!(condition(&own), Some(("True".to_owned(), String::new())));
    let api = addresses.get("10.96.0.1").await.unwrap();
    assert_eq!(api.spec.parent_ref.name, "kubernetes");

    let outside = service("web", json!({ "clusterIP": "203.0.113.10", "type": "NodePort" }));
    assert!(
        refused(&services, outside.clone())
            .await
            .ends_with("the provided network does not match the current range")
    );
    create(&ranges, json!({ "metadata": { "name": "extra" }, "spec": { "cidrs": ["203.0.113.0/24"] } }))
        .await;
    is(&ranges, "extra", "True").await;
    let extra = ranges.get("extra").await.unwrap();
    assert_eq!(extra.finalizers(), ["networking.k8s.io/service-cidr-finalizer"]);
    create(&services, outside).await;
    let address = addresses.get("203.0.113.10").await.unwrap();
    assert_eq!(address.labels()["ipaddress.kubernetes.io/managed-by"], "ipallocator.k8s.io");
    assert_eq!(address.labels()["ipaddress.kubernetes.io/ip-family"], "IPv4");
    let parent = address.spec.parent_ref;
    assert_eq!(
        (parent.resource.as_str(), parent.namespace.as_deref(), parent.name.as_str()),
        ("services", Some("team"), "web")
    );

    let other = service("other", json!({ "clusterIP": "203.0.113.10" }));
    assert!(refused(&services, other).await.ends_with("provided IP is already allocated"));
    ranges.delete("extra", &DeleteParams::default()).await.unwrap();
    is(&ranges, "extra", "False").await;
    let late = service("late", json!({ "clusterIP": "203.0.113.11" }));
    assert!(
        refused(&services, late).await.contains("does not match the current range"),
        "a range that ends gives no more"
    );
    services.delete("web", &DeleteParams::default()).await.unwrap();
    assert!(addresses.get_opt("203.0.113.10").await.unwrap().is_none(), "it goes with its Service");
    eventually("the range to go", async || {
        ranges.get_opt("extra").await.unwrap().map_or(Ok(()), |range| Err(condition(&range)))
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_follow_their_service_and_are_repaired() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let addresses = Api::<IPAddress>::all(cluster.client());
    let services = cluster.api::<Service>("team");
    let made = create(&services, service("web", json!({}))).await;
    let ip = cluster_ips(&made).remove(0);
    let first = addresses.get(&ip).await.unwrap();

    let dry = serde_json::from_value(service("dry", json!({ "clusterIP": "10.96.7.7" }))).unwrap();
    services.create(&PostParams { dry_run: true, ..PostParams::default() }, &dry).await.unwrap();
    assert!(addresses.get_opt("10.96.7.7").await.unwrap().is_none(), "a dry run allocates nothing");

    addresses.delete(&ip, &DeleteParams::default()).await.unwrap();
    let again = eventually("the IPAddress to come back", async || {
        addresses.get_opt(&ip).await.unwrap().ok_or("it is missing")
    })
    .await;
    assert_ne!(again.uid(), first.uid());
    assert_eq!(again.spec.parent_ref.name, "web");
    let events = cluster.api::<Event>("team");
    eventually("the Event of the repair", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let told = |event: &&Event| event.reason.as_deref() == Some("ClusterIPNotAllocated");
        events.iter().find(told).map(drop).ok_or("no Event")
    })
    .await;

    let external = Patch::Merge(json!({ "spec": { "type": "ExternalName", "externalName": "example.com" } }));
    services.patch("web", &PatchParams::default(), &external).await.unwrap();
    assert!(addresses.get_opt(&ip).await.unwrap().is_none(), "a change of type gives the address back");
    let internal = Patch::Merge(json!({ "spec": { "type": "ClusterIP", "externalName": null } }));
    let back = services.patch("web", &PatchParams::default(), &internal).await.unwrap();
    let ip = cluster_ips(&back).remove(0);
    assert!(addresses.get_opt(&ip).await.unwrap().is_some());

    // One that says it is the allocator's but names no Service is cleaned up.
    let foreign = json!({
        "metadata": { "name": "10.96.9.9", "labels": { "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io" } },
        "spec": { "parentRef": { "group": "mygroup", "resource": "things", "name": "x" } },
    });
    create(&addresses, foreign).await;
    eventually("the foreign IPAddress to go", async || {
        addresses.get_opt("10.96.9.9").await.unwrap().map_or(Ok(()), |_| Err("it is there"))
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_of_two_families_have_an_address_of_each() {
    let cluster = Cluster::start_with(vec!["10.96.0.0/16", "fd00:96::/112"]).await;
    cluster.namespace("team").await;
    let addresses = Api::<IPAddress>::all(cluster.client());
    let services = cluster.api::<Service>("team");
    let made = create(&services, service("dual", json!({ "ipFamilyPolicy": "RequireDualStack" }))).await;
    let ips = cluster_ips(&made);
    assert_eq!(ips.len(), 2, "{ips:?}");
    for (ip, family) in ips.iter().zip(["IPv4", "IPv6"]) {
        let address = addresses.get(ip).await.unwrap();
        assert_eq!(address.labels()["ipaddress.kubernetes.io/ip-family"], family);
    }
    let single = Patch::Merge(json!({ "spec": { "ipFamilyPolicy": "SingleStack" } }));
    let single = services.patch("dual", &PatchParams::default(), &single).await.unwrap();
    assert_eq!(cluster_ips(&single), ips[..1]);
    assert!(addresses.get_opt(&ips[1]).await.unwrap().is_none(), "the second address is given back");
    let both = Patch::Merge(json!({ "spec": { "ipFamilyPolicy": "PreferDualStack" } }));
    let both = services.patch("dual", &PatchParams::default(), &both).await.unwrap();
    assert_eq!(cluster_ips(&both).len(), 2);
    assert_eq!(cluster_ips(&both)[0], ips[0]);
    cluster.stop().await;
}
