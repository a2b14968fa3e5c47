//! From a Service to the address of one of its endpoints, as EndpointSlices know them.

use std::net::{IpAddr, SocketAddr};

use rand::seq::SliceRandom as _;
use serde_json::Value;

use crate::{admission::Lookup, registry::fields::*};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A port of a Service, by number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    pub port: u16,
}

/// Where to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In random order.
    Endpoints(Vec<SocketAddr>),
    /// A Service of type ExternalName: the name and the port.
    Host(String, u16),
}

impl ServicePort {
    /// Of a ServiceReference; the port is 443 where it is not said.
    pub fn parse(reference: &Value) -> Self {
        let port = reference["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        Self {
            namespace: text(reference, "/namespace").to_owned(),
            name: text(reference, "/name").to_owned(),
            port: port.unwrap_or(443),
        }
    }

    /// The name that its certificate is for.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.name, self.namespace)
    }

    pub fn authority(&self) -> String {
        format!("{}:{}", self.host(), self.port)
    }

    /// # Errors
    /// Upstream's text, where there is no such Service or port, or nothing is ready behind it.
    pub fn resolve(&self, lookup: &dyn Lookup) -> Result<Place, String> {
        let Self { namespace, name, port } = self;
        let service = lookup
            .get("", "services", namespace, name)
            .ok_or_else(|| format!("service {name:?} not found"))?;
        if text(&service, "/spec/type") == "ExternalName" {
            return Ok(Place::Host(text(&service, "/spec/externalName").to_owned(), *port));
        }
        let of_service = items(&service, "/spec/ports")
            .iter()
            .find(|found| int(found, "/port") == i64::from(*port))
            .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
        let port_name = text(of_service, "/name");
        let mut found = Vec::new();
        for slice in lookup.list("discovery.k8s.io", "endpointslices", namespace) {
            if entries(&slice, "/metadata/labels").get(SERVICE_NAME_LABEL).and_then(Value::as_str)
                == Some(name)
            {
                collect(&slice, port_name, &mut found);
            }
        }
        if found.is_empty() {
            return Err(format!("no endpoints available for service {name:?}"));
        }
        found.shuffle(&mut rand::rng());
        Ok(Place::Endpoints(found))
    }
}

fn collect(slice: &Value, port_name: &str, found: &mut Vec<SocketAddr>) {
    let port = items(slice, "/ports").iter().find(|port| text(port, "/name") == port_name);
    let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else { return };
    for endpoint in items(slice, "/endpoints") {
        if endpoint["conditions"]["ready"] == false {
            continue;
        }
        if let Some(address) = endpoint["addresses"][0].as_str().and_then(|text| text.parse::<IpAddr>().ok())
        {
            found.push(SocketAddr::new(address, port));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Cluster {
        service: Value,
        slices: Vec<Value>,
    }

    impl Lookup for Cluster {
        fn get(&self, _group: &str, plural: &str, _namespace: &str, name: &str) -> Option<Value> {
            (plural == "services" && name == "hook").then(|| self.service.clone())
        }

        fn list(&self, _group: &str, _plural: &str, _namespace: &str) -> Vec<Value> {
            self.slices.clone()
        }
    }

    fn slice(service: &str, port_name: &str, ready: bool) -> Value {
        json!({
            "metadata": {"labels": {SERVICE_NAME_LABEL: service}},
            "ports": [{"name": "other", "port": 1}, {"name": port_name, "port": 8443}],
            "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"ready": ready}}],
        })
    }

    #[test]
    fn a_service_is_dialled_at_a_ready_endpoint_of_the_named_port() {
        let service = json!({"spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": 443, "targetPort": 8443}]}});
        let hook = ServicePort { namespace: "a".to_owned(), name: "hook".to_owned(), port: 443 };
        let resolve = |slices: Vec<Value>| hook.resolve(&Cluster { service: service.clone(), slices });
        let ready = vec![slice("else", "https", true), slice("hook", "https", true)];
        assert_eq!(resolve(ready), Ok(Place::Endpoints(vec!["10.0.0.7:8443".parse().unwrap()])));
        let none = Err("no endpoints available for service \"hook\"".to_owned());
        assert_eq!(resolve(vec![slice("hook", "https", false)]), none);
        assert_eq!(resolve(vec![slice("hook", "http", true)]), none);
        let other = ServicePort { port: 80, ..hook.clone() };
        let cluster = Cluster { service, slices: Vec::new() };
        assert_eq!(other.resolve(&cluster), Err("no service port 80 found for service \"hook\"".to_owned()));
        let missing = ServicePort { name: "nobody".to_owned(), ..hook };
        assert_eq!(missing.resolve(&cluster), Err("service \"nobody\" not found".to_owned()));
    }
}
