//! Ingresses and NetworkPolicies.

use api::{field::FieldError, names};
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    service::load_balancer_addresses,
    table::{AGE, NAME, NONE, or, selector},
};

pub(super) struct Ingresses;
pub(super) struct NetworkPolicies;

const HOSTS_SHOWN: usize = 3;

impl Strategy for Ingresses {
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({ "loadBalancer": {} }));
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        if items(spec, "/rules").is_empty() && !present(spec, "/defaultBackend") {
            errors.invalid(
                "spec",
                at(spec, "/rules"),
                "either `defaultBackend` or `rules` must be specified",
            );
        }
        if present(spec, "/defaultBackend") {
            backend(&mut errors, at(spec, "/defaultBackend"), "spec.defaultBackend");
        }
        for (i, tls) in items(spec, "/tls").iter().enumerate() {
            for (h, name) in items(tls, "/hosts").iter().enumerate() {
                host(&mut errors, name, &format!("spec.tls[{i}].hosts[{h}]"));
            }
        }
        for (i, rule) in items(spec, "/rules").iter().enumerate() {
            if !text(rule, "/host").is_empty() {
                host(&mut errors, at(rule, "/host"), &format!("spec.rules[{i}].host"));
            }
            if present(rule, "/http") {
                paths(&mut errors, at(rule, "/http"), &format!("spec.rules[{i}].http"));
            }
        }
        if !text(spec, "/ingressClassName").is_empty() {
            errors.dns1123_subdomain("spec.ingressClassName", at(spec, "/ingressClassName"));
        }
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Class", "string", |o, _| or(text(o, "/spec/ingressClassName"), NONE).into()),
            Column::new("Hosts", "string", |o, _| hosts(items(o, "/spec/rules")).into()),
            Column::new("Address", "string", |o, _| {
                load_balancer_addresses(at(o, "/status/loadBalancer")).join(",").into()
            }),
            Column::new("Ports", "string", |o, _| {
                if items(o, "/spec/tls").is_empty() { "80" } else { "80, 443" }.into()
            }),
            AGE,
        ];
        COLUMNS
    }
}

fn host(errors: &mut Errors, host: &Value, path: &str) {
    let name = host.as_str().unwrap_or("");
    if name.parse::<std::net::IpAddr>().is_ok() {
        errors.invalid(path, host, "must be a DNS name, not an IP address");
    } else if name.contains('*') {
        errors.all_invalid(path, host, names::wildcard_dns1123_subdomain(name));
    } else {
        errors.dns1123_subdomain(path, host);
    }
}

fn paths(errors: &mut Errors, http: &Value, path: &str) {
    let paths = items(http, "/paths");
    if paths.is_empty() {
        errors.required(format!("{path}.paths"), "");
    }
    for (i, entry) in paths.iter().enumerate() {
        let path = format!("{path}.paths[{i}]");
        let (url, kind) = (at(entry, "/path"), at(entry, "/pathType"));
        match kind.as_str() {
            None => errors.required(format!("{path}.pathType"), "pathType must be specified"),
            Some("Exact" | "Prefix") => {
                if !text(entry, "/path").starts_with('/') {
                    errors.invalid(format!("{path}.path"), url, "must be an absolute path");
                }
                for wrong in ["//", "/./", "/../", "%2f", "%2F"] {
                    if text(entry, "/path").contains(wrong) {
                        let detail = format!("must not contain '{wrong}'");
                        errors.invalid(format!("{path}.path"), url, detail);
                    }
                }
            }
            Some("ImplementationSpecific") => {
                if !text(entry, "/path").is_empty() && !text(entry, "/path").starts_with('/') {
                    errors.invalid(format!("{path}.path"), url, "must be an absolute path");
                }
            }
            Some(_) => {
                let supported = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.not_supported(format!("{path}.pathType"), kind, &supported);
            }
        }
        backend(errors, at(entry, "/backend"), &format!("{path}.backend"));
    }
}

fn backend(errors: &mut Errors, backend: &Value, path: &str) {
    let (service, resource) = (at(backend, "/service"), at(backend, "/resource"));
    match (service.is_null(), resource.is_null()) {
        (false, false) => {
            errors.invalid(path, &json!(""), "cannot set both resource and service backends");
        }
        (true, true) => errors.required(path, "either `service` or `resource` backend must be specified"),
        (true, false) => {}
        (false, true) => {
            if text(service, "/name").is_empty() {
                errors.required(format!("{path}.service.name"), "");
            } else {
                errors.dns1123_label(&format!("{path}.service.name"), at(service, "/name"));
            }
            let (name, number) = (text(service, "/port/name"), int(service, "/port/number"));
            let at_port = format!("{path}.service.port");
            match (name.is_empty(), number == 0) {
                (false, false) => {
                    errors.invalid(at_port, &json!(""), "cannot set both port name & port number")
                }
                (true, true) => errors.required(at_port, "port name or number is required"),
                (false, true) => {
                    errors.all_invalid(&format!("{at_port}.name"), &name.into(), names::port_name(name));
                }
                (true, false) => {
                    errors.port_number(&format!("{at_port}.number"), at(service, "/port/number"))
                }
            }
        }
    }
}

fn hosts(rules: &[Value]) -> String {
    let named: Vec<_> =
        rules.iter().map(|rule| text(rule, "/host")).filter(|host| !host.is_empty()).collect();
    match named.len() {
        0 => "*".to_owned(),
        1..=HOSTS_SHOWN => named.join(","),
        _ => format!("{} + {} more...", named[..HOSTS_SHOWN].join(","), rules.len() - HOSTS_SHOWN),
    }
}

impl Strategy for NetworkPolicies {
    fn default(&self, object: &mut Value) {
        let has_egress = !items(object, "/spec/egress").is_empty();
        let spec = child(object, "spec");
        let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        set_if_zero(spec, "policyTypes", types);
        for direction in ["ingress", "egress"] {
            for port in each(spec, direction).flat_map(|rule| each(rule, "ports")) {
                set_default(port, "protocol", "TCP");
            }
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        errors.label_selector("spec.podSelector", at(spec, "/podSelector"));
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in items(spec, &format!("/{direction}")).iter().enumerate() {
                let path = format!("spec.{direction}[{i}]");
                for (p, port) in items(rule, "/ports").iter().enumerate() {
                    policy_port(&mut errors, port, &format!("{path}.ports[{p}]"));
                }
                for (p, peer) in items(rule, &format!("/{peers}")).iter().enumerate() {
                    policy_peer(&mut errors, peer, &format!("{path}.{peers}[{p}]"));
                }
            }
        }
        let types = items(spec, "/policyTypes");
        if types.len() > 2 {
            let detail = "may not specify more than two policyTypes";
            errors.invalid("spec.policyTypes", at(spec, "/policyTypes"), detail);
            return errors.into_vec();
        }
        for (i, kind) in types.iter().enumerate() {
            if !matches!(kind.as_str(), Some("Ingress" | "Egress")) {
                errors.not_supported(format!("spec.policyTypes[{i}]"), kind, &["Egress", "Ingress"]);
            }
        }
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Pod-Selector", "string", |o, _| selector(at(o, "/spec/podSelector")).into()),
            AGE,
        ];
        COLUMNS
    }
}

fn policy_port(errors: &mut Errors, port: &Value, path: &str) {
    let protocol = at(port, "/protocol");
    if !matches!(protocol.as_str(), None | Some("SCTP" | "TCP" | "UDP")) {
        errors.not_supported(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
    let (start, end) = (at(port, "/port"), at(port, "/endPort"));
    if !start.is_null() {
        errors.port_number_or_name(&format!("{path}.port"), start);
    }
    if end.is_null() {
        return;
    }
    let at_end = format!("{path}.endPort");
    if start.is_null() {
        errors.invalid(at_end, end, "may not be specified when `port` is not specified");
    } else if start.is_string() {
        errors.invalid(at_end, end, "may not be specified when `port` is non-numeric");
    } else if end.as_i64() < start.as_i64() {
        errors.invalid(at_end, end, "must be greater than or equal to `port`");
    } else {
        errors.port_number(&at_end, end);
    }
}

fn policy_peer(errors: &mut Errors, peer: &Value, path: &str) {
    let block = at(peer, "/ipBlock");
    let mut given = 0;
    for key in ["podSelector", "namespaceSelector"] {
        let selector = at(peer, &format!("/{key}"));
        if !selector.is_null() {
            given += 1;
            errors.label_selector(&format!("{path}.{key}"), selector);
        }
    }
    if block.is_null() {
        if given == 0 {
            errors.required(path, "must specify a peer");
        }
        return;
    }
    if given > 0 {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
    let path = format!("{path}.ipBlock");
    if text(block, "/cidr").is_empty() {
        return errors.required(format!("{path}.cidr"), "");
    }
    errors.cidr(format!("{path}.cidr"), at(block, "/cidr"));
    let parse = |value: &Value| value.as_str().and_then(|text| text.parse::<ipnetwork::IpNetwork>().ok());
    let Some(outer) = parse(at(block, "/cidr")) else { return };
    for (i, except) in items(block, "/except").iter().enumerate() {
        errors.cidr(format!("{path}.except[{i}]"), except);
        let inside = parse(except).is_none_or(|inner| {
            outer.is_ipv4() == inner.is_ipv4()
                && outer.contains(inner.network())
                && inner.prefix() > outer.prefix()
        });
        if !inside {
            let detail = "must be a strict subset of `cidr`";
            errors.invalid(format!("{path}.except[{i}]"), except, detail);
        }
    }
}
