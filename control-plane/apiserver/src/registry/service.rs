//! Services: defaults, what depends on the type, allocated fields that a PUT may leave out, and the rules of ports and
//! cluster IPs. The addresses themselves come from [`super::service_ip`].

use api::{field::FieldError, names};
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    keep_all_but_status, keep_status,
    rules::Errors,
    table::{AGE, NAME, NONE, labels, or},
};

pub(super) struct Services;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const AFFINITY_TIMEOUT_SECONDS: i64 = 10_800;
const AFFINITY_TIMEOUT_SECONDS_MAX: i64 = 86_400;
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Type", "string", |o, _| text(o, "/spec/type").into()),
    Column::new("Cluster-IP", "string", |o, _| or(text(o, "/spec/clusterIPs/0"), NONE).into()),
    Column::new("External-IP", "string", |o, _| external_ip(o).into()),
    Column::new("Port(s)", "string", |o, _| ports(o).into()),
    AGE,
    Column::new("Selector", "string", |o, _| labels(entries(o, "/spec/selector")).into()).wide(),
];

/// `ClusterIP: None`: names only, no address.
pub(crate) fn is_headless(service: &Value) -> bool {
    text(service, "/spec/clusterIP") == "None" || text(service, "/spec/clusterIPs/0") == "None"
}

pub(crate) fn needs_cluster_ip(service: &Value) -> bool {
    matches!(text(service, "/spec/type"), "ClusterIP" | "NodePort" | "LoadBalancer") && !is_headless(service)
}

/// Whether ports without a node port get one.
pub(crate) fn needs_node_ports(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => at(service, "/spec/allocateLoadBalancerNodePorts") != false,
        _ => false,
    }
}

pub(crate) fn needs_health_check_port(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer" && text(service, "/spec/externalTrafficPolicy") == "Local"
}

fn is_externally_accessible(service: &Value) -> bool {
    match text(service, "/spec/type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !items(service, "/spec/externalIPs").is_empty(),
        _ => false,
    }
}

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        let externally_accessible = {
            set_if_zero(child(object, "spec"), "type", "ClusterIP");
            is_externally_accessible(object)
        };
        let spec = child(object, "spec");
        set_if_zero(spec, "sessionAffinity", "None");
        match text(spec, "/sessionAffinity") {
            "None" => remove(spec, "sessionAffinityConfig"),
            "ClientIP" => {
                let client_ip = child(child(spec, "sessionAffinityConfig"), "clientIP");
                set_default(client_ip, "timeoutSeconds", AFFINITY_TIMEOUT_SECONDS);
            }
            _ => {}
        }
        for port in each(spec, "ports") {
            set_if_zero(port, "protocol", "TCP");
            let number = int(port, "/port");
            set_if_zero(port, "targetPort", number);
        }
        if externally_accessible {
            set_if_zero(spec, "externalTrafficPolicy", "Cluster");
        }
        if text(spec, "/type") != "ExternalName" {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if text(spec, "/type") == "LoadBalancer" {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
            if let Some(balancer) =
                existing(object, "status").and_then(|status| existing(status, "loadBalancer"))
            {
                for ingress in each(balancer, "ingress").filter(|ingress| !text(ingress, "/ip").is_empty()) {
                    set_default(ingress, "ipMode", "VIP");
                }
            }
        }
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({ "loadBalancer": {} }));
        let cluster_ip = text(object, "/spec/clusterIP").to_owned();
        if !cluster_ip.is_empty() && items(object, "/spec/clusterIPs").is_empty() {
            set(child(object, "spec"), "clusterIPs", json!([cluster_ip]));
        }
        drop_what_the_type_has_not(object);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        if context.subresource == "status" {
            return keep_all_but_status(new, old);
        }
        keep_status(new, old);
        normalize_cluster_ips(new, old);
        keep_allocated(new, old);
        drop_after_type_change(new, old);
        if text(new, "/spec/type") != "LoadBalancer" {
            set(new, "status", json!({ "loadBalancer": {} }));
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        validate(object)
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let mut errors = Errors::default();
        cluster_ips_stay(&mut errors, new, old);
        if needs_health_check_port(new) && needs_health_check_port(old) {
            let port = |service: &Value| int(service, "/spec/healthCheckNodePort");
            if port(new) != port(old) {
                errors.forbidden("spec.healthCheckNodePort", "field is immutable");
            }
        }
        errors.extend(validate(new));
        errors.into_vec()
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        names::dns1123_label(name, is_prefix)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![
            ("spec.clusterIP", text(object, "/spec/clusterIP").to_owned()),
            ("spec.type", text(object, "/spec/type").to_owned()),
        ]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

/// `clusterIP` and `clusterIPs[0]` are one field; a client that knows only one of them changes both.
fn normalize_cluster_ips(new: &mut Value, old: &Value) {
    let (ip, old_ip) = (text(new, "/spec/clusterIP").to_owned(), text(old, "/spec/clusterIP"));
    let same_list = items(new, "/spec/clusterIPs") == items(old, "/spec/clusterIPs");
    let spec = child(new, "spec");
    if ip != old_ip && same_list {
        if ip.is_empty() {
            remove(spec, "clusterIPs");
        } else {
            set(spec, "clusterIPs", json!([ip]));
        }
    } else if ip == old_ip && !same_list && items(spec, "/clusterIPs").is_empty() {
        remove(spec, "clusterIP");
    } else if !ip.is_empty() && items(spec, "/clusterIPs").is_empty() {
        set(spec, "clusterIPs", json!([ip]));
    }
}

/// What the old version was given and the new one leaves out stays.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        let spec = child(new, "spec");
        if is_zero(at(spec, "/clusterIP")) {
            copy(spec, at(old, "/spec"), "clusterIP");
        }
        if is_zero(at(spec, "/clusterIPs")) && at(spec, "/clusterIP") == at(old, "/spec/clusterIP") {
            copy(spec, at(old, "/spec"), "clusterIPs");
        }
    }
    let headless_change = is_headless(new) != is_headless(old);
    if text(new, "/spec/type") != "ExternalName"
        && text(old, "/spec/type") != "ExternalName"
        && !headless_change
    {
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if is_zero(at(new, &format!("/spec/{key}"))) {
                copy(child(new, "spec"), at(old, "/spec"), key);
            }
        }
    }
    if needs_node_ports(old) && needs_node_ports(new) {
        let before = items(old, "/spec/ports");
        let taken: Vec<i64> = items(new, "/spec/ports").iter().map(|port| int(port, "/nodePort")).collect();
        for port in each(child(new, "spec"), "ports").filter(|port| int(port, "/nodePort") == 0) {
            let same_port = |b: &&Value| {
                at(b, "/port") == at(port, "/port") && text(b, "/protocol") == text(port, "/protocol")
            };
            let node_port = before.iter().find(same_port).map_or(0, |b| int(b, "/nodePort"));
            if node_port != 0 && !taken.contains(&node_port) {
                set(port, "nodePort", node_port);
            }
        }
    }
    if needs_health_check_port(old) && needs_health_check_port(new) {
        let port = int(old, "/spec/healthCheckNodePort");
        set_if_zero(child(new, "spec"), "healthCheckNodePort", port);
    }
}

/// Fields that a change of type leaves behind unchanged, and that would make the new type invalid.
fn drop_after_type_change(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, pointer: &str| same(at(new, pointer), at(old, pointer));
    if needs_cluster_ip(old)
        && text(new, "/spec/type") == "ExternalName"
        && unchanged(new, "/spec/clusterIPs")
    {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            remove(child(new, "spec"), key);
        }
    }
    let has_node_ports = |service: &Value| matches!(text(service, "/spec/type"), "NodePort" | "LoadBalancer");
    if has_node_ports(old) && !has_node_ports(new) {
        let before: Vec<i64> = items(old, "/spec/ports").iter().map(|port| int(port, "/nodePort")).collect();
        for port in each(child(new, "spec"), "ports") {
            if before.contains(&int(port, "/nodePort")) {
                remove(port, "nodePort");
            }
        }
    }
    if !needs_health_check_port(new) && unchanged(new, "/spec/healthCheckNodePort") {
        remove(child(new, "spec"), "healthCheckNodePort");
    }
    drop_what_the_type_has_not(new);
    let load_balancer = |service: &Value| text(service, "/spec/type") == "LoadBalancer";
    if load_balancer(old) && !load_balancer(new) {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if unchanged(new, &format!("/spec/{key}")) {
                remove(child(new, "spec"), key);
            }
        }
    }
}

fn drop_what_the_type_has_not(service: &mut Value) {
    if !is_externally_accessible(service) && text(service, "/spec/externalTrafficPolicy") == "Cluster" {
        remove(child(service, "spec"), "externalTrafficPolicy");
    }
    if text(service, "/spec/type") == "ExternalName" {
        remove(child(service, "spec"), "internalTrafficPolicy");
    }
}

fn validate(service: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let kind = text(service, "/spec/type");
    if items(service, "/spec/ports").is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.required("spec.ports", "");
    }
    if matches!(kind, "LoadBalancer" | "NodePort") && is_headless(service) {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.invalid("spec.clusterIPs[0]", &json!("None"), detail);
    }
    if kind == "ExternalName" {
        external_name(&mut errors, service);
    }
    validate_ports(&mut errors, service);
    errors.labels("spec.selector", at(service, "/spec/selector"));
    affinity(&mut errors, service);
    cluster_ips(&mut errors, service);
    for (i, ip) in items(service, "/spec/externalIPs").iter().enumerate() {
        if let Some(address) = errors.ip(format!("spec.externalIPs[{i}]"), ip) {
            endpoint_ip(&mut errors, &format!("spec.externalIPs[{i}]"), ip, address);
        }
    }
    errors.one_of("spec.type", at(service, "/spec/type"), &TYPES);
    load_balancer(&mut errors, service);
    traffic_policies(&mut errors, service);
    errors.into_vec()
}

fn external_name(errors: &mut Errors, service: &Value) {
    if !items(service, "/spec/clusterIPs").is_empty() {
        errors.forbidden("spec.clusterIPs", "may not be set for ExternalName services");
    }
    for key in ["ipFamilies", "ipFamilyPolicy"] {
        if !is_zero(at(service, &format!("/spec/{key}"))) {
            errors.forbidden(format!("spec.{key}"), "may not be set for ExternalName services");
        }
    }
    let name = text(service, "/spec/externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => errors.required("spec.externalName", ""),
        name => errors.dns1123_subdomain("spec.externalName", &name.into()),
    }
}

fn validate_ports(errors: &mut Errors, service: &Value) {
    let ports = items(service, "/spec/ports");
    let (mut seen_names, mut seen_node_ports, mut seen_ports) = (Vec::new(), Vec::new(), Vec::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let (name, protocol) = (text(port, "/name"), text(port, "/protocol"));
        if name.is_empty() {
            if ports.len() > 1 {
                errors.required(format!("{path}.name"), "");
            }
        } else {
            errors.dns1123_label(&format!("{path}.name"), at(port, "/name"));
            if seen_names.contains(&name) {
                errors.duplicate(format!("{path}.name"), &name.into());
            }
            seen_names.push(name);
        }
        errors.port_number(&format!("{path}.port"), at(port, "/port"));
        errors.one_of(format!("{path}.protocol"), at(port, "/protocol"), &PROTOCOLS);
        errors.port_number_or_name(&format!("{path}.targetPort"), at(port, "/targetPort"));
        if !text(port, "/appProtocol").is_empty() {
            errors.label_name(&format!("{path}.appProtocol"), text(port, "/appProtocol"));
        }
        let node_port = int(port, "/nodePort");
        if node_port != 0 {
            if text(service, "/spec/type") == "ClusterIP" {
                errors.forbidden(format!("{path}.nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if seen_node_ports.contains(&(protocol, node_port)) {
                errors.duplicate(format!("{path}.nodePort"), at(port, "/nodePort"));
            }
            seen_node_ports.push((protocol, node_port));
        }
        let number = int(port, "/port");
        if seen_ports.contains(&(protocol, number)) {
            errors.duplicate(&path, &json!({ "port": number, "protocol": protocol }));
        }
        seen_ports.push((protocol, number));
    }
}

fn affinity(errors: &mut Errors, service: &Value) {
    let affinity = at(service, "/spec/sessionAffinity");
    errors.one_of("spec.sessionAffinity", affinity, &["ClientIP", "None"]);
    let config = at(service, "/spec/sessionAffinityConfig");
    let path = "spec.sessionAffinityConfig";
    if affinity == "None" && !config.is_null() {
        errors.forbidden(path, "must not be set when session affinity is None");
    } else if affinity == "ClientIP" {
        let timeout = at(config, "/clientIP/timeoutSeconds");
        let at_timeout = format!("{path}.clientIP.timeoutSeconds");
        match timeout.as_i64() {
            None => errors.required(at_timeout, "when session affinity type is ClientIP"),
            Some(1..=AFFINITY_TIMEOUT_SECONDS_MAX) => {}
            Some(_) => {
                let detail = format!("must be greater than 0 and less than {AFFINITY_TIMEOUT_SECONDS_MAX}");
                errors.invalid(at_timeout, timeout, detail);
            }
        }
    }
}

fn cluster_ips(errors: &mut Errors, service: &Value) {
    if text(service, "/spec/type") == "ExternalName" {
        return;
    }
    let (ip, all) = (text(service, "/spec/clusterIP"), at(service, "/spec/clusterIPs"));
    let list = items(all, "");
    let path = "spec.clusterIPs";
    match (ip, list.first().and_then(Value::as_str)) {
        ("", Some(_)) => errors.invalid(path, all, "must be empty when `clusterIP` is not specified"),
        (ip, None) if !ip.is_empty() => errors.required(path, ""),
        (ip, Some(first)) if ip != first => errors.invalid(path, all, "first value must match `clusterIP`"),
        _ => {}
    }
    let families = items(service, "/spec/ipFamilies");
    for (i, family) in families.iter().enumerate() {
        if !matches!(family.as_str(), Some("IPv4" | "IPv6")) {
            errors.not_supported(format!("spec.ipFamilies[{i}]"), family, &["IPv4", "IPv6"]);
        }
        if families[..i].contains(family) {
            errors.duplicate(format!("spec.ipFamilies[{i}]"), family);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    errors.optional_one_of("spec.ipFamilyPolicy", at(service, "/spec/ipFamilyPolicy"), &policies);
    if list.first().is_some_and(|ip| ip == "None") {
        if list.len() > 1 {
            errors.invalid(path, all, "'None' must be the first and only value");
        }
        return;
    }
    if list.len() > 2 {
        errors.invalid(path, all, "may only hold up to 2 values");
    }
    let parsed: Vec<_> =
        list.iter().enumerate().filter_map(|(i, ip)| errors.ip(format!("{path}[{i}]"), ip)).collect();
    if parsed.len() != list.len() {
        return;
    }
    if let [first, second, ..] = parsed[..]
        && first.is_ipv4() == second.is_ipv4()
    {
        errors.invalid(path, all, "may specify no more than one IP for each IP family");
    }
    for (i, (address, family)) in parsed.iter().zip(families).enumerate() {
        let expected = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if let Some(family) = family.as_str().filter(|family| *family != expected) {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{i}]`");
            errors.invalid(format!("{path}[{i}]"), &list[i], detail);
        }
    }
}

/// An address that traffic may be sent to from outside the host.
pub(super) fn endpoint_ip(errors: &mut Errors, path: &str, value: &Value, ip: std::net::IpAddr) {
    if ip.is_unspecified() {
        let detail = format!("may not be unspecified ({})", ip);
        errors.invalid(path, value, detail);
    } else if ip.is_loopback() {
        errors.invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    } else if matches!(ip, std::net::IpAddr::V4(ip) if ip.is_link_local()) {
        errors.invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    } else if ip.is_multicast() {
        let detail = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        errors.invalid(path, value, detail);
    }
}

fn load_balancer(errors: &mut Errors, service: &Value) {
    let is_load_balancer = text(service, "/spec/type") == "LoadBalancer";
    let ranges = items(service, "/spec/loadBalancerSourceRanges");
    if !ranges.is_empty() && !is_load_balancer {
        errors.forbidden("spec.LoadBalancerSourceRanges", ONLY_LOAD_BALANCER);
    }
    for (i, range) in ranges.iter().enumerate() {
        let trimmed = range.as_str().unwrap_or("").trim().into();
        errors.cidr(format!("spec.LoadBalancerSourceRanges[{i}]"), &trimmed);
    }
    if present(service, "/spec/allocateLoadBalancerNodePorts") && !is_load_balancer {
        errors.forbidden("spec.allocateLoadBalancerNodePorts", ONLY_LOAD_BALANCER);
    }
    let class = text(service, "/spec/loadBalancerClass");
    if !class.is_empty() {
        if !is_load_balancer {
            errors.forbidden("spec.loadBalancerClass", ONLY_LOAD_BALANCER);
        }
        errors.label_name("spec.loadBalancerClass", class);
    }
}

fn traffic_policies(errors: &mut Errors, service: &Value) {
    let external = at(service, "/spec/externalTrafficPolicy");
    if is_externally_accessible(service) {
        errors.one_of("spec.externalTrafficPolicy", external, &["Cluster", "Local"]);
    } else if !is_zero(external) {
        let detail = "may only be set for externally-accessible services";
        errors.invalid("spec.externalTrafficPolicy", external, detail);
    }
    let port = at(service, "/spec/healthCheckNodePort");
    if !is_zero(port) {
        if needs_health_check_port(service) {
            errors.port_number("spec.healthCheckNodePort", port);
        } else {
            let detail =
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid("spec.healthCheckNodePort", port, detail);
        }
    }
    let internal = at(service, "/spec/internalTrafficPolicy");
    if text(service, "/spec/type") != "ExternalName" {
        errors.one_of("spec.internalTrafficPolicy", internal, &["Cluster", "Local"]);
    }
    let supported = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    errors.optional_one_of("spec.trafficDistribution", at(service, "/spec/trafficDistribution"), &supported);
}

fn cluster_ips_stay(errors: &mut Errors, new: &Value, old: &Value) {
    let external = |service: &Value| text(service, "/spec/type") == "ExternalName";
    if external(new) || external(old) || (is_headless(new) && is_headless(old)) {
        return;
    }
    let (all, before) = (at(new, "/spec/clusterIPs"), items(old, "/spec/clusterIPs"));
    let list = items(all, "");
    for (i, ip) in before.iter().enumerate().take(list.len()) {
        if *ip != list[i] {
            errors.invalid(format!("spec.clusterIPs[{i}]"), all, "may not change once set");
        }
    }
    if list.len() < before.len() {
        if list.is_empty() {
            errors.invalid("spec.clusterIPs[0]", all, "primary clusterIP can not be unset");
        }
        let policy = at(new, "/spec/ipFamilyPolicy");
        if list.len() == 1 && policy != "SingleStack" {
            let detail = "must be set to 'SingleStack' when releasing the secondary clusterIP";
            errors.invalid("spec.ipFamilyPolicy", policy, detail);
        }
    }
    let (families, families_before) = (at(new, "/spec/ipFamilies"), items(old, "/spec/ipFamilies"));
    if is_headless(new) == is_headless(old)
        && let (Some(now), Some(then)) = (items(families, "").first(), families_before.first())
        && now != then
    {
        errors.invalid("spec.ipFamilies[0]", families, "may not change once set");
    }
}

fn external_ip(service: &Value) -> String {
    let own: Vec<_> = items(service, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match text(service, "/spec/type") {
        "ClusterIP" | "NodePort" if own.is_empty() => NONE.to_owned(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let balancers = load_balancer_addresses(at(service, "/status/loadBalancer"));
            let all: Vec<_> = balancers.iter().map(String::as_str).chain(own).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => text(service, "/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// Addresses, or names where there is no address, of a load balancer status; sorted, each once.
pub(super) fn load_balancer_addresses(status: &Value) -> Vec<String> {
    let ingress = items(status, "/ingress").iter();
    let mut addresses: Vec<_> = ingress
        .map(|i| or(text(i, "/ip"), text(i, "/hostname")).to_owned())
        .filter(|a| !a.is_empty())
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

fn ports(service: &Value) -> String {
    let shown = items(service, "/spec/ports").iter().map(|port| {
        let (number, protocol) = (int(port, "/port"), text(port, "/protocol"));
        match int(port, "/nodePort") {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    });
    or(&shown.collect::<Vec<_>>().join(","), NONE).to_owned()
}
