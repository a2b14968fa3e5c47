//! Validation of a pod spec as a whole; containers, volumes and affinity have files of their own.

use api::{field::FieldError, names};
use serde_json::Value;

use super::{
    super::{fields::*, metadata, rules::Errors},
    affinity, containers, volumes,
};

const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
pub(super) const TAINT_EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const NAMESERVERS_MAX: usize = 3;
const SEARCH_PATHS_MAX: usize = 32;
const SEARCH_LIST_CHARS_MAX: usize = 2048;
const SYSCTL_LENGTH_MAX: usize = 253;
const SYSCTL_REGEX: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// What is wrong with a pod spec that stands at `path` (`spec`, `spec.template.spec`).
pub(crate) fn validate_pod_spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let known_volumes = volumes::validate(&mut errors, spec, path);
    containers::validate(&mut errors, spec, path, &known_volumes);
    host_network(&mut errors, spec, path);
    errors.one_of(format!("{path}.restartPolicy"), at(spec, "/restartPolicy"), &RESTART_POLICIES);
    errors.one_of(format!("{path}.dnsPolicy"), at(spec, "/dnsPolicy"), &DNS_POLICIES);
    errors.labels(&format!("{path}.nodeSelector"), at(spec, "/nodeSelector"));
    security_context(&mut errors, spec, path);
    affinity::validate(&mut errors, at(spec, "/affinity"), &format!("{path}.affinity"));
    dns_config(&mut errors, spec, path);
    gates(&mut errors, spec, path);
    topology_spread(&mut errors, spec, path);
    names_and_deadlines(&mut errors, spec, path);
    errors.extend(tolerations(at(spec, "/tolerations"), &format!("{path}.tolerations")));
    host_aliases(&mut errors, spec, path);
    errors.into_vec()
}

/// What is wrong with the template under `template` of a controller's spec at `path`.
pub(crate) fn validate_template(owner_spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let template = at(owner_spec, "/template");
    errors.labels(&format!("{path}.template.labels"), at(template, "/metadata/labels"));
    let annotations = at(template, "/metadata/annotations");
    metadata::annotations(&mut errors, &format!("{path}.template.annotations"), annotations);
    errors.extend(validate_pod_spec(at(template, "/spec"), &format!("{path}.template.spec")));
    if !items(template, "/spec/ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.forbidden(format!("{path}.template.spec.ephemeralContainers"), detail);
    }
    errors.into_vec()
}

fn host_network(errors: &mut Errors, spec: &Value, path: &str) {
    if !flag(spec, "/hostNetwork") {
        return;
    }
    for list in ["containers", "initContainers"] {
        for (c, container) in items(spec, &format!("/{list}")).iter().enumerate() {
            for (i, port) in items(container, "/ports").iter().enumerate() {
                let host_port = int(port, "/hostPort");
                if host_port != 0 && host_port != int(port, "/containerPort") {
                    errors.invalid(
                        format!("{path}.{list}[{c}].ports[{i}].containerPort"),
                        at(port, "/containerPort"),
                        "must match `hostPort` when `hostNetwork` is true",
                    );
                }
            }
        }
    }
}

fn security_context(errors: &mut Errors, spec: &Value, path: &str) {
    let context = at(spec, "/securityContext");
    let path = format!("{path}.securityContext");
    for id in ["fsGroup", "runAsUser", "runAsGroup"] {
        id_in_range(errors, format!("{path}.{id}"), at(context, &format!("/{id}")));
    }
    for (i, group) in items(context, "/supplementalGroups").iter().enumerate() {
        id_in_range(errors, format!("{path}.supplementalGroups[{i}]"), group);
    }
    if flag(spec, "/shareProcessNamespace") && flag(spec, "/hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(format!("{path}.shareProcessNamespace"), &true.into(), detail);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in items(context, "/sysctls").iter().enumerate() {
        let (name, at_name) = (text(sysctl, "/name"), format!("{path}.sysctls[{i}].name"));
        if name.is_empty() {
            errors.required(at_name, "");
        } else if !is_sysctl_name(name) {
            let detail =
                format!("must have at most {SYSCTL_LENGTH_MAX} characters and match regex {SYSCTL_REGEX}");
            errors.invalid(at_name, at(sysctl, "/name"), detail);
        } else if seen.contains(&name) {
            errors.duplicate(at_name, at(sysctl, "/name"));
        }
        seen.push(name);
    }
    let policies = ["Always", "OnRootMismatch"];
    errors.optional_one_of(
        format!("{path}.fsGroupChangePolicy"),
        at(context, "/fsGroupChangePolicy"),
        &policies,
    );
}

pub(super) fn id_in_range(errors: &mut Errors, path: String, id: &Value) {
    if id.as_i64().is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id)) {
        errors.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let part = |part: &str| {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.iter().all(|b| alphanumeric(*b) || matches!(b, b'-' | b'_'))
            && bytes.first().is_some_and(|b| alphanumeric(*b))
            && bytes.last().is_some_and(|b| alphanumeric(*b))
    };
    name.len() <= SYSCTL_LENGTH_MAX && name.split(['.', '/']).all(part)
}

fn dns_config(errors: &mut Errors, spec: &Value, path: &str) {
    let config = at(spec, "/dnsConfig");
    let path = format!("{path}.dnsConfig");
    let (nameservers, searches) = (items(config, "/nameservers"), items(config, "/searches"));
    if text(spec, "/dnsPolicy") == "None" {
        if config.is_null() {
            return errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if nameservers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.required(format!("{path}.nameservers"), detail);
        }
    }
    if nameservers.len() > NAMESERVERS_MAX {
        let detail = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.invalid(format!("{path}.nameservers"), at(config, "/nameservers"), detail);
    }
    for (i, nameserver) in nameservers.iter().enumerate() {
        errors.ip(format!("{path}.nameservers[{i}]"), nameserver);
    }
    if searches.len() > SEARCH_PATHS_MAX {
        let detail = format!("must not have more than {SEARCH_PATHS_MAX} search paths");
        errors.invalid(format!("{path}.searches"), at(config, "/searches"), detail);
    }
    let length: usize = searches.iter().filter_map(Value::as_str).map(|search| search.len() + 1).sum();
    if length > SEARCH_LIST_CHARS_MAX + 1 {
        let detail = format!(
            "must not have more than {SEARCH_LIST_CHARS_MAX} characters (including spaces) in the search list"
        );
        errors.invalid(format!("{path}.searches"), at(config, "/searches"), detail);
    }
    for (i, search) in searches.iter().enumerate() {
        let domain = search.as_str().unwrap_or("");
        if domain != "." {
            let domain = domain.strip_suffix('.').unwrap_or(domain).replace('_', "-");
            let at_search = format!("{path}.searches[{i}]");
            errors.all_invalid(&at_search, search, names::dns1123_subdomain(&domain, false));
        }
    }
    for (i, option) in items(config, "/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            errors.required(format!("{path}.options[{i}]"), "must not be empty");
        }
    }
}

fn gates(errors: &mut Errors, spec: &Value, path: &str) {
    for (i, gate) in items(spec, "/readinessGates").iter().enumerate() {
        errors.label_name(&format!("{path}.readinessGates[{i}].conditionType"), text(gate, "/conditionType"));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, gate) in items(spec, "/schedulingGates").iter().enumerate() {
        let name = text(gate, "/name");
        errors.label_name(&format!("{path}.schedulingGates[{i}]"), name);
        if seen.contains(&name) {
            errors.duplicate(format!("{path}.schedulingGates[{i}]"), &name.into());
        }
        seen.push(name);
    }
}

fn topology_spread(errors: &mut Errors, spec: &Value, path: &str) {
    let constraints = items(spec, "/topologySpreadConstraints");
    for (i, constraint) in constraints.iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        errors.positive(format!("{path}.maxSkew"), at(constraint, "/maxSkew"));
        if text(constraint, "/topologyKey").is_empty() {
            errors.required(format!("{path}.topologyKey"), "can not be empty");
        }
        let action = at(constraint, "/whenUnsatisfiable");
        if !matches!(action.as_str(), Some("DoNotSchedule" | "ScheduleAnyway")) {
            errors.not_supported(
                format!("{path}.whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        let key = |c: &Value| (text(c, "/topologyKey").to_owned(), text(c, "/whenUnsatisfiable").to_owned());
        if constraints[i + 1..].iter().any(|other| key(other) == key(constraint)) {
            let (topology_key, action) = key(constraint);
            let value = format!("{{{topology_key}, {action}}}").into();
            errors.duplicate(format!("{path}.{{topologyKey, whenUnsatisfiable}}"), &value);
        }
        if let Some(min_domains) = at(constraint, "/minDomains").as_i64() {
            if min_domains <= 0 {
                errors.invalid(
                    format!("{path}.minDomains"),
                    &min_domains.into(),
                    "must be greater than zero",
                );
            }
            if action != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    action.as_str().unwrap_or("")
                );
                errors.invalid(format!("{path}.minDomains"), &min_domains.into(), detail);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let value = at(constraint, &format!("/{policy}"));
            errors.optional_one_of(format!("{path}.{policy}"), value, &["Honor", "Ignore"]);
        }
        errors.label_selector(&format!("{path}.labelSelector"), at(constraint, "/labelSelector"));
    }
}

fn names_and_deadlines(errors: &mut Errors, spec: &Value, path: &str) {
    for key in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        let value = at(spec, &format!("/{key}"));
        if value.as_str().is_some_and(|name| !name.is_empty()) {
            errors.dns1123_subdomain(&format!("{path}.{key}"), value);
        }
    }
    for key in ["hostname", "subdomain"] {
        let value = at(spec, &format!("/{key}"));
        if value.as_str().is_some_and(|name| !name.is_empty()) {
            errors.dns1123_label(&format!("{path}.{key}"), value);
        }
    }
    let deadline = at(spec, "/activeDeadlineSeconds");
    if deadline.as_i64().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.invalid(format!("{path}.activeDeadlineSeconds"), deadline, detail);
    }
    let policies = ["PreemptLowerPriority", "Never"];
    errors.optional_one_of(format!("{path}.preemptionPolicy"), at(spec, "/preemptionPolicy"), &policies);
}

fn tolerations(tolerations: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for (i, toleration) in items(tolerations, "").iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (key, operator, value) =
            (text(toleration, "/key"), text(toleration, "/operator"), at(toleration, "/value"));
        let at_operator = format!("{path}.operator");
        if !key.is_empty() {
            errors.label_name(&format!("{path}.key"), key);
        } else if operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&at_operator, &operator.into(), detail);
        }
        if present(toleration, "/tolerationSeconds") && text(toleration, "/effect") != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(format!("{path}.effect"), &text(toleration, "/effect").into(), detail);
        }
        match operator {
            "Equal" | "" => {
                let wrong = names::label_value(value.as_str().unwrap_or(""));
                if !wrong.is_empty() {
                    errors.invalid(&at_operator, value, wrong.join(";"));
                }
            }
            "Exists" if !is_zero(value) => {
                errors.invalid(&at_operator, value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            _ => errors.not_supported(&at_operator, at(toleration, "/operator"), &["Equal", "Exists"]),
        }
        errors.optional_one_of(format!("{path}.effect"), at(toleration, "/effect"), &TAINT_EFFECTS);
    }
    errors.into_vec()
}

fn host_aliases(errors: &mut Errors, spec: &Value, path: &str) {
    for (i, alias) in items(spec, "/hostAliases").iter().enumerate() {
        errors.ip(format!("{path}.hostAliases[{i}].ip"), at(alias, "/ip"));
        for (h, name) in items(alias, "/hostnames").iter().enumerate() {
            errors.dns1123_subdomain(&format!("{path}.hostAliases[{i}].hostnames[{h}]"), name);
        }
    }
}
