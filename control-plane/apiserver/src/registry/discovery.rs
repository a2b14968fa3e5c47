//! Endpoints and EndpointSlices.

use std::net::IpAddr;

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    service::endpoint_ip,
    table::{AGE, NAME, NONE, first_three},
};

pub(super) struct Endpoints;
pub(super) struct EndpointSlices;

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for port in each(object, "subsets").flat_map(|subset| each(subset, "ports")) {
            set_if_zero(port, "protocol", "TCP");
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for (i, subset) in items(object, "/subsets").iter().enumerate() {
            let path = format!("subsets[{i}]");
            let (ready, not_ready) = (items(subset, "/addresses"), items(subset, "/notReadyAddresses"));
            if ready.is_empty() && not_ready.is_empty() {
                errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
            }
            for (list, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
                for (a, address) in addresses.iter().enumerate() {
                    let path = format!("{path}.{list}[{a}].ip");
                    if let Some(ip) = errors.ip(&path, at(address, "/ip")) {
                        endpoint_ip(&mut errors, &path, at(address, "/ip"), ip);
                    }
                }
            }
            let ports = items(subset, "/ports");
            for (p, port) in ports.iter().enumerate() {
                let path = format!("{path}.ports[{p}]");
                if text(port, "/name").is_empty() {
                    if ports.len() > 1 {
                        errors.required(format!("{path}.name"), "");
                    }
                } else {
                    errors.dns1123_label(&format!("{path}.name"), at(port, "/name"));
                }
                errors.port_number(&format!("{path}.port"), at(port, "/port"));
                errors.one_of(format!("{path}.protocol"), at(port, "/protocol"), &PROTOCOLS);
            }
        }
        errors.into_vec()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn warnings(&self, _object: &Value) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] =
            &[NAME, Column::new("Endpoints", "string", |o, _| endpoints(o).into()), AGE];
        COLUMNS
    }
}

/// Up to three `ip:port`, and how many more there are.
fn endpoints(object: &Value) -> String {
    let subsets = items(object, "/subsets");
    if subsets.is_empty() {
        return NONE.to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let ips = || items(subset, "/addresses").iter().map(|address| text(address, "/ip"));
        let ports = items(subset, "/ports");
        if ports.is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in ports {
            all.extend(ips().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{}", int(port, "/port")),
                false => format!("{ip}:{}", int(port, "/port")),
            }));
        }
    }
    if all.is_empty() { String::new() } else { first_three(&all) }
}

impl Strategy for EndpointSlices {
    fn default(&self, object: &mut Value) {
        for port in each(object, "ports") {
            set_default(port, "name", "");
            set_default(port, "protocol", "TCP");
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let kind = at(object, "/addressType");
        errors.one_of("addressType", kind, &["FQDN", "IPv4", "IPv6"]);
        let (endpoints, ports) = (items(object, "/endpoints"), items(object, "/ports"));
        if endpoints.len() > ENDPOINTS_MAX {
            errors.extend([FieldError::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX)]);
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            addresses(&mut errors, endpoint, &format!("endpoints[{i}]"), kind.as_str().unwrap_or(""));
        }
        if ports.len() > PORTS_MAX {
            errors.extend([FieldError::too_many("ports", ports.len(), PORTS_MAX)]);
        }
        let mut names: Vec<&str> = Vec::new();
        for (i, port) in ports.iter().enumerate() {
            let name = text(port, "/name");
            if !name.is_empty() {
                errors.dns1123_label(&format!("ports[{i}].name"), at(port, "/name"));
            }
            if names.contains(&name) {
                errors.duplicate(format!("ports[{i}].name"), &name.into());
            }
            names.push(name);
            errors.one_of(format!("ports[{i}].protocol"), at(port, "/protocol"), &PROTOCOLS);
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        errors.immutable("addressType", at(new, "/addressType"), at(old, "/addressType"));
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("AddressType", "string", |o, _| text(o, "/addressType").into()),
            Column::new("Ports", "string", |o, _| slice_ports(o).into()),
            Column::new("Endpoints", "string", |o, _| slice_endpoints(o).into()),
            AGE,
        ];
        COLUMNS
    }
}

fn addresses(errors: &mut Errors, endpoint: &Value, path: &str, kind: &str) {
    let addresses = items(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.required(format!("{path}.addresses"), "must contain at least 1 address");
    } else if addresses.len() > ADDRESSES_MAX {
        errors.extend([FieldError::too_many(format!("{path}.addresses"), addresses.len(), ADDRESSES_MAX)]);
    }
    for (i, address) in addresses.iter().enumerate() {
        let path = format!("{path}.addresses[{i}]");
        match (kind, address.as_str().and_then(|text| text.parse::<IpAddr>().ok())) {
            ("IPv4", Some(ip @ IpAddr::V4(_))) | ("IPv6", Some(ip @ IpAddr::V6(_))) => {
                endpoint_ip(errors, &path, address, ip);
            }
            ("IPv4", Some(_)) => errors.invalid(path, address, "must be a valid IPv4 address"),
            ("IPv6", Some(_)) => errors.invalid(path, address, "must be a valid IPv6 address"),
            ("IPv4" | "IPv6", None) => {
                errors.invalid(
                    path,
                    address,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                );
            }
            ("FQDN", _) => errors.dns1123_subdomain(&path, address),
            _ => {}
        }
    }
    if !text(endpoint, "/nodeName").is_empty() {
        errors.dns1123_subdomain(&format!("{path}.nodeName"), at(endpoint, "/nodeName"));
    }
    if !text(endpoint, "/hostname").is_empty() {
        errors.dns1123_label(&format!("{path}.hostname"), at(endpoint, "/hostname"));
    }
}

fn slice_ports(slice: &Value) -> String {
    let shown =
        items(slice, "/ports").iter().map(|port| match (at(port, "/port").as_i64(), at(port, "/name")) {
            (Some(number), _) => number.to_string(),
            (None, Value::String(name)) => name.clone(),
            _ => "*".to_owned(),
        });
    first_three(&shown.collect::<Vec<_>>())
}

fn slice_endpoints(slice: &Value) -> String {
    let addresses = items(slice, "/endpoints").iter().flat_map(|endpoint| items(endpoint, "/addresses"));
    first_three(&addresses.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>())
}

/// The EndpointSlice of one ready address set, as controllers and bootstrap write it.
pub(super) fn slice(
    namespace: &str,
    name: &str,
    service: &str,
    addresses: &[IpAddr],
    port: (&str, u16),
) -> Value {
    let kind = if addresses.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" };
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|ip| json!({ "addresses": [ip.to_string()], "conditions": { "ready": true } }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": kind,
        "endpoints": endpoints,
        "ports": [{ "name": port.0, "port": port.1, "protocol": "TCP" }],
    })
}
