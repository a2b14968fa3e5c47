//! `nodes/NAME/proxy`, `pods/NAME/proxy` and `services/NAME/proxy`: one request passed to the node's kubelet, a pod or
//! one of a Service's endpoints. Names are `[scheme:]name[:port]`.

use std::{net::IpAddr, sync::Arc};

use api::status::Status;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{HOST, LOCATION},
};
use rand::seq::IndexedRandom as _;
use serde_json::Value;

use super::{
    pod_streams::{kubelet, percent_encode},
    rewrite::Place,
    upstream::{Backend, is_upgrade},
};
use crate::{
    handlers::{Call, Target, target::read},
    server::body::{self, Body},
};

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let named = Named::parse(&call.info.name).ok_or_else(|| {
        Status::bad_request(format!("invalid {} request {:?}", target.resource.kind, call.info.name))
    })?;
    let backend = match target.resource.plural.as_str() {
        "nodes" => kubelet(&call.state, &named.name)?,
        "pods" => pod_backend(call, target, &named).await?,
        _ => service_backend(call, target, &named).await?,
    };
    let upgrade = is_upgrade(&call.headers).then(|| call.upgrade.take()).flatten();
    if upgrade.is_none() && is_bare(call) {
        return with_slash(call);
    }
    let rest: Vec<String> = call.info.rest.split('/').map(percent_encode).collect();
    let slash = if call.info.path.ends_with('/') && !call.info.rest.is_empty() { "/" } else { "" };
    let mut uri = format!("/{}{slash}", rest.join("/"));
    if let Some(query) = call.uri.query() {
        uri.push('?');
        uri.push_str(query);
    }
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(uri)
        .body(call.take_body())
        .map_err(Status::internal)?;
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().remove(http::header::AUTHORIZATION);
    if upgrade.is_some() {
        return backend.exchange(request, upgrade).await;
    }
    let of_http1 = || call.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = call.uri.authority().map(|host| host.as_str()).or_else(of_http1).unwrap_or_default();
    let place = Place { prefix: prefix(call), backend: backend.authority(), host: host.to_owned() };
    let forwarded = HeaderValue::try_from(call.uri.path()).map_err(Status::internal)?;
    request.headers_mut().insert("x-forwarded-uri", forwarded);
    Ok(place.apply(backend.exchange(request, None).await?).await)
}

/// The path of the proxy itself: the request's, without what is passed on.
fn prefix(call: &Call) -> String {
    let path = call.uri.path().trim_end_matches('/');
    let passed_on = call.info.rest.split('/').filter(|segment| !segment.is_empty()).count();
    path.rsplitn(passed_on + 1, '/').last().unwrap_or(path).to_owned()
}

/// A page whose path does not end with a slash: what it links to would be sought beside `proxy`, and not below.
fn is_bare(call: &Call) -> bool {
    matches!(call.method, Method::GET | Method::HEAD)
        && call.info.rest.is_empty()
        && !call.info.path.ends_with('/')
}

fn with_slash(call: &Call) -> Result<Response<Body>, Status> {
    let query = call.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Response::builder()
        .status(StatusCode::MOVED_PERMANENTLY)
        .header(LOCATION, format!("{}/{query}", call.uri.path()))
        .body(body::empty())
        .map_err(Status::internal)
}

/// `[scheme:]name[:port]`.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    is_tls: bool,
    name: String,
    port: String,
}

impl Named {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, name, port) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
            return None;
        }
        Some(Self { is_tls: scheme == "https", name: name.to_owned(), port: port.to_owned() })
    }
}

fn backend(call: &Call, address: &str, port: u16, is_tls: bool) -> Result<Backend, Status> {
    let address: IpAddr =
        address.parse().map_err(|_| Status::service_unavailable("the backend has no IP address yet"))?;
    Ok(Backend { address, port, tls: is_tls.then(|| Arc::clone(&call.state.proxy_tls)) })
}

async fn pod_backend(call: &Call, target: &Target, named: &Named) -> Result<Backend, Status> {
    let key = target.key(&call.info.namespace, &named.name);
    let pod =
        read(&call.state.cache, &key, true).await?.ok_or_else(|| target.not_found(&named.name))?.value();
    let ports = || {
        let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        containers.iter().flat_map(|container| container["ports"].as_array().into_iter().flatten())
    };
    let port = match named.port.as_str() {
        "" => ports().next().map(|port| port["containerPort"].as_u64().unwrap_or(80)).unwrap_or(80),
        text => match text.parse() {
            Ok(number) => number,
            Err(_) => ports()
                .find(|port| port["name"] == text)
                .and_then(|port| port["containerPort"].as_u64())
                .ok_or_else(|| {
                    Status::bad_request(format!("pod {} has no port named {text:?}", named.name))
                })?,
        },
    };
    let port =
        u16::try_from(port).map_err(|_| Status::bad_request(format!("port {port} is out of range")))?;
    backend(call, pod["status"]["podIP"].as_str().unwrap_or_default(), port, named.is_tls)
}

async fn service_backend(call: &Call, target: &Target, named: &Named) -> Result<Backend, Status> {
    let namespace = &call.info.namespace;
    let key = target.key(namespace, &named.name);
    let service =
        read(&call.state.cache, &key, true).await?.ok_or_else(|| target.not_found(&named.name))?.value();
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let port = match named.port.as_str() {
        "" => ports.first().filter(|_| ports.len() == 1),
        text => ports.iter().find(|port| port["name"] == text || port["port"].as_u64() == text.parse().ok()),
    };
    let port_name = port.map(|port| port["name"].as_str().unwrap_or_default()).ok_or_else(|| {
        Status::service_unavailable(format!(
            "no service port {:?} found for service {:?}",
            named.port, named.name
        ))
    })?;
    let slices = call
        .state
        .schema
        .resource("discovery.k8s.io", "v1", "endpointslices")
        .ok_or_else(|| Status::internal("no resource endpointslices"))?;
    let slices = call.state.cache.list(&Target::new(slices).list_prefix(namespace));
    let mut found: Vec<(String, u16)> = Vec::new();
    for slice in slices.iter() {
        if slice.meta().label("kubernetes.io/service-name") == Some(named.name.as_str()) {
            collect_endpoints(&slice.value(), port_name, &mut found);
        }
    }
    let (address, port) = found.choose(&mut rand::rng()).ok_or_else(|| {
        Status::service_unavailable(format!("no endpoints available for service {:?}", named.name))
    })?;
    backend(call, address, *port, named.is_tls)
}

fn collect_endpoints(slice: &Value, port_name: &str, found: &mut Vec<(String, u16)>) {
    let ports = slice["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(port) = ports
        .iter()
        .find(|port| port["name"].as_str().unwrap_or_default() == port_name)
        .and_then(|port| u16::try_from(port["port"].as_u64()?).ok())
    else {
        return;
    };
    for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
        if endpoint["conditions"]["ready"] == false {
            continue;
        }
        if let Some(address) = endpoint["addresses"][0].as_str() {
            found.push((address.to_owned(), port));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_carry_scheme_and_port() {
        let named = |is_tls, name: &str, port: &str| {
            Some(Named { is_tls, name: name.to_owned(), port: port.to_owned() })
        };
        assert_eq!(Named::parse("web"), named(false, "web", ""));
        assert_eq!(Named::parse("web:http"), named(false, "web", "http"));
        assert_eq!(Named::parse("https:web:"), named(true, "web", ""));
        assert_eq!(Named::parse("ftp:web:1"), None);
        assert_eq!(Named::parse(""), None);
    }
}
