//! What a Service asks for, as it says so.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

use super::allocate::Wanted;

/// JSON lists of names or ranges of pools.
const POOLS: [(bool, &str); 2] =
    [(true, "projectcalico.org/ipv4pools"), (false, "projectcalico.org/ipv6pools")];
/// A JSON list of addresses.
const ADDRESSES: &str = "projectcalico.org/loadBalancerIPs";
/// The classes that are served here: Calico's, whose manifests work here, and our own.
const CLASSES: [&str; 2] = ["calico", "seaway"];

/// Whether a Service is of type LoadBalancer, whoever serves it.
pub fn is_load_balancer(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
}

/// Whether a Service is given its addresses here.
pub fn is_served(service: &Service) -> bool {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    is_load_balancer(service) && class.is_none_or(|class| CLASSES.contains(&class))
}

/// Reads the Service's annotations and spec.
///
/// # Errors
/// What cannot be understood, and where it is.
pub fn wanted(service: &Service) -> Result<Wanted, String> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let mut wanted =
        Wanted { families: families.iter().map(|family| family == "IPv4").collect(), ..Wanted::default() };
    if let Some(text) = service.annotations().get(ADDRESSES) {
        wanted.addresses = Some(list::<IpAddr>(ADDRESSES, text, "addresses")?);
    } else if let Some(text) =
        spec.and_then(|spec| spec.load_balancer_ip.as_deref()).filter(|text| !text.is_empty())
    {
        let ip = text.parse().map_err(|_| format!("spec.loadBalancerIP: {text:?} is no address"))?;
        wanted.addresses = Some(vec![ip]);
    }
    wanted.pools = BTreeMap::new();
    for (v4, annotation) in POOLS {
        if let Some(text) = service.annotations().get(annotation) {
            wanted.pools.insert(v4, list(annotation, text, "names or ranges of IPPools")?);
        }
    }
    Ok(wanted)
}

fn list<T: serde::de::DeserializeOwned>(annotation: &str, text: &str, of: &str) -> Result<Vec<T>, String> {
    let list: Result<Vec<T>, _> = serde_json::from_str(text);
    let list =
        list.map_err(|error| format!("annotation {annotation}: {text:?} is no JSON list of {of}: {error}"))?;
    if list.is_empty() {
        return Err(format!("annotation {annotation}: the list is empty"));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(annotations: serde_json::Value, spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({ "metadata": { "annotations": annotations }, "spec": spec }))
            .expect("a Service")
    }

    #[test]
    fn an_annotation_goes_before_load_balancer_ip() {
        let spec = json!({ "ipFamilies": ["IPv6", "IPv4"], "loadBalancerIP": "192.0.2.1" });
        let of_spec = wanted(&service(json!({}), spec.clone())).expect("it is valid");
        assert_eq!(of_spec.families, [false, true]);
        assert_eq!(of_spec.addresses, Some(vec!["192.0.2.1".parse().expect("an address")]));
        let annotations = json!({ ADDRESSES: "[\"192.0.2.2\"]", "projectcalico.org/ipv4pools": "[\"a\"]" });
        let of_annotation = wanted(&service(annotations, spec)).expect("it is valid");
        assert_eq!(of_annotation.addresses, Some(vec!["192.0.2.2".parse().expect("an address")]));
        assert_eq!(of_annotation.pools, BTreeMap::from([(true, vec!["a".to_owned()])]));
    }

    #[test]
    fn what_cannot_be_understood_is_told_with_its_place() {
        for (annotations, spec, place) in [
            (json!({ ADDRESSES: "192.0.2.1" }), json!({}), ADDRESSES),
            (json!({ ADDRESSES: "[\"192.0.2\"]" }), json!({}), ADDRESSES),
            (json!({ ADDRESSES: "[]" }), json!({}), ADDRESSES),
            (json!({ "projectcalico.org/ipv6pools": "a" }), json!({}), "projectcalico.org/ipv6pools"),
            (json!({}), json!({ "loadBalancerIP": "tor1" }), "spec.loadBalancerIP"),
        ] {
            let error = wanted(&service(annotations, spec)).expect_err(place);
            assert!(error.contains(place), "{error}");
        }
    }

    #[test]
    fn services_of_other_classes_are_left_to_others() {
        let of = |class: Option<&str>| {
            is_served(&service(json!({}), json!({ "type": "LoadBalancer", "loadBalancerClass": class })))
        };
        assert!(of(None) && of(Some("calico")) && of(Some("seaway")) && !of(Some("example.com/lb")));
        assert!(!is_served(&service(json!({}), json!({ "type": "NodePort" }))));
    }
}
