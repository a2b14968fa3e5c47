use serde_json::json;

use super::*;

const NAMESPACES: usize = 50;
const PODS: usize = 10_000;
const POLICIES: usize = 100;
const HERE: usize = 100;

fn namespace(n: usize) -> String {
    format!("n{}", n % NAMESPACES)
}

fn address(n: usize) -> String {
    format!("10.{}.{}.{}", 64 + (n >> 16), (n >> 8) & 255, n & 255)
}

/// A pod of a Deployment of its namespace, of ten.
fn nth(n: usize) -> Pod {
    let app = n / NAMESPACES % 10;
    pod(&format!("app=a{app},pod-template-hash=h{app}"), &[&address(n)], &[("http", 8080)])
}

/// Two policies in each namespace, with peers here and in other namespaces, and a range.
fn spec(n: usize) -> serde_json::Value {
    json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            { "from": [{ "podSelector": { "matchLabels": { "app": format!("a{}", n % 10) } } }],
                "ports": [{ "port": "http" }, { "port": 9000, "endPort": 9010 }] },
            { "from": [{ "namespaceSelector": { "matchLabels": { "of": namespace(n + 1) } },
                "podSelector": { "matchLabels": { "app": "a1" } } }] },
        ],
        "egress": [{ "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": [format!("10.{n}.0.0/16")] } }] },
            { "ports": [{ "port": 53, "protocol": "UDP" }] }] })
}

fn cluster() -> Policer {
    let mut policer = Policer::new(1);
    for n in 0..NAMESPACES {
        policer.insert_namespace(&namespace(n), &labels(&format!("of={}", namespace(n))));
    }
    for n in 0..PODS {
        policer.insert_pod(&namespace(n), &format!("p{n}"), &nth(n));
    }
    for n in 0..HERE {
        policer.attach(&namespace(n), &format!("p{n}"), &[ip(&address(n))]);
    }
    for n in 0..POLICIES {
        policer.insert_policy(&policy(&namespace(n), &format!("policy{n}"), spec(n)));
    }
    policer.update();
    policer
}

#[test]
fn one_pod_more_or_less_among_ten_thousand_is_little_work() {
    let mut policer = cluster();
    let told = policer.policies().clone();
    assert!(told.pods.len() == HERE && told.peers.len() > 1_000, "{} peers", told.peers.len());

    let before = policer.identities.comparisons;
    for n in PODS..PODS + 20 {
        policer.insert_pod(&namespace(n), &format!("p{n}"), &nth(n));
        assert!(policer.update().peers.len() <= 1);
    }
    for n in PODS..PODS + 20 {
        policer.remove_pod(&namespace(n), &format!("p{n}"));
        policer.update();
    }
    assert_eq!(*policer.policies(), told, "all is as it was");
    for n in HERE..HERE + 20 {
        for addresses in [&[ip(&address(n))][..], &[]] {
            policer.attach(&namespace(n), &format!("p{n}"), addresses);
            let changes = policer.update();
            assert!(changes.pods.len() == 1 && changes.peers.len() <= 1, "{changes:?}");
        }
    }
    assert_eq!(policer.identities.comparisons, before, "they are like others");

    for n in 0..20 {
        let unlike = Pod { labels: labels(&format!("app=a1,n={n}")), ..nth(PODS + n) };
        policer.insert_pod(&namespace(n), &format!("new{n}"), &unlike);
        assert_eq!(policer.update().peers.len(), 1);
    }
    let each = (policer.identities.comparisons - before) / 20;
    assert!(each <= POLICIES as u64 + 10, "{each} comparisons for a pod that is like no other");
}
