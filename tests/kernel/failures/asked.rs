//! What nodes answer where a CalicoNodeStatus asks them.

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::fabric::{Node, Switch};
use crate::netns::eventually;
use crate::routing::server::Server;

fn asked(client: Client) -> Api<DynamicObject> {
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk("projectcalico.org", "v3", "CalicoNodeStatus"));
    Api::all_with(client, &resource)
}

fn answer(server: &Server) -> Value {
    server.ask(async |client| asked(client).get("ask").await.expect("it is there").data["status"].clone())
}

#[test]
fn a_node_answers_what_is_asked_of_it_about_speaker_peers_and_routes_and_no_other_node_may_answer() {
    let switch = Switch::new("192.0.2");
    let server = Server::start(&switch.host(2));
    let nodes = [11, 12].map(|number| Node::join(&server, &switch, number, &[], &json!({ "metadata": {} })));
    let pod = nodes[0].pod("web");
    let spec = json!({ "node": "node-11", "classes": ["Agent", "BGP", "Routes"], "updatePeriodSeconds": 1 });
    server.create(
        asked,
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "CalicoNodeStatus", "metadata": { "name": "ask" }, "spec": spec,
        }),
    );
    let status = eventually("the session is told of", || {
        let status = answer(&server);
        let has_both = status["bgp"]["numberEstablishedV4"] == 1
            && status["routes"]["routesV4"]
                .as_array()?
                .iter()
                .any(|route| route["learnedFrom"]["sourceType"] == "NodeMesh" && route["type"] == "FIB");
        has_both.then_some(status)
    });
    let (speaker, peer) = (&status["agent"]["birdV4"], &status["bgp"]["peersV4"][0]);
    assert!(speaker["routerID"] == "192.0.2.11" && speaker["lastBootTime"].is_string(), "{speaker}");
    assert_eq!(status["agent"]["birdV6"], json!({ "state": "NotReady" }));
    assert_eq!([&peer["peerIP"], &peer["type"], &peer["state"]], ["192.0.2.12", "NodeMesh", "Established"]);
    let routes = status["routes"]["routesV4"].as_array().expect("a list");
    let to = |what: &dyn Fn(&Value) -> bool| routes.iter().find(|route| what(route)).expect("such a route");
    let of_pod = to(&|route| route["destination"] == format!("{}/32", pod.address));
    assert_eq!([&of_pod["gateway"], &of_pod["learnedFrom"]["sourceType"]], ["N/A", "Kernel"], "{of_pod}");
    assert!(of_pod["interface"].as_str().is_some_and(|link| link.starts_with("swp")), "{of_pod}");
    let learned = to(&|route| route["learnedFrom"]["sourceType"] == "NodeMesh");
    assert_eq!([&learned["gateway"], &learned["learnedFrom"]["peerIP"]], ["192.0.2.12"; 2], "{learned}");

    // Again at each period, and of what is asked alone.
    let merge = json!({ "spec": { "classes": ["Agent"] } });
    server.patch(asked, "ask", merge);
    eventually("what is not asked any more is gone, and time goes on", || {
        let now = answer(&server);
        (now["routes"].is_null() && now["bgp"].is_null() && now["lastUpdated"] != status["lastUpdated"])
            .then_some(())
    });

    let patch = Patch::Merge(json!({ "status": { "agent": { "birdV4": { "state": "NotReady" } } } }));
    let kubeconfig = nodes[1].agent.folder.path().join("kubeconfig");
    let refused = server.ask_as(&kubeconfig, async |client| {
        asked(client)
            .patch_status("ask", &PatchParams::default(), &patch)
            .await
            .expect_err("another's answer")
    });
    assert!(refused.to_string().contains("spec.node set to itself"), "{refused}");
}
