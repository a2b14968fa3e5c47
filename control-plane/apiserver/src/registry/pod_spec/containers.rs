//! Validation of containers, init containers and ephemeral containers.

use std::collections::BTreeSet;

use api::names;
use serde_json::{Value, json};

use super::{
    super::{fields::*, rules::*},
    CONTAINER_LISTS, is_restartable_init,
    validate::id_in_range,
    volumes::descending_path,
};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
const ONLY_SIDECARS: &str = "may not be set for init containers without restartPolicy=Always";

/// Reports what is wrong with all containers of a pod spec at `path`.
pub(super) fn validate(errors: &mut Errors, spec: &Value, path: &str, volumes: &BTreeSet<String>) {
    if items(spec, "/containers").is_empty() {
        errors.required(format!("{path}.containers"), "");
    }
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in items(spec, &format!("/{list}")).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            common(errors, container, &path, volumes);
            let name = text(container, "/name");
            if !name.is_empty() && !names.insert(name) {
                errors.duplicate(format!("{path}.name"), &name.into());
            }
            match list {
                "initContainers" if !is_restartable_init(container) => plain_init(errors, container, &path),
                "ephemeralContainers" => ephemeral(errors, container, &path),
                _ => hooks_and_probes(errors, spec, container, &path),
            }
            if list == "initContainers" {
                host_ports.clear();
            }
            unique_host_ports(errors, container, &path, &mut host_ports);
        }
    }
}

fn common(errors: &mut Errors, container: &Value, path: &str, volumes: &BTreeSet<String>) {
    if text(container, "/name").is_empty() {
        errors.required(format!("{path}.name"), "");
    } else {
        errors.dns1123_label(&format!("{path}.name"), at(container, "/name"));
    }
    let image = text(container, "/image");
    if image.is_empty() {
        errors.required(format!("{path}.image"), "");
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.invalid(format!("{path}.image"), at(container, "/image"), detail);
    }
    errors.one_of(
        format!("{path}.terminationMessagePolicy"),
        at(container, "/terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
    );
    ports(errors, container, path);
    env(errors, container, path);
    env_from(errors, container, path);
    mounts(errors, container, path, volumes);
    errors.one_of(format!("{path}.imagePullPolicy"), at(container, "/imagePullPolicy"), &PULL_POLICIES);
    resources(errors, at(container, "/resources"), &format!("{path}.resources"));
    security_context(errors, at(container, "/securityContext"), &format!("{path}.securityContext"));
}

fn ports(errors: &mut Errors, container: &Value, path: &str) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (i, port) in items(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            let wrong = names::port_name(name);
            if wrong.is_empty() && !seen.insert(name) {
                errors.duplicate(format!("{path}.name"), &name.into());
            }
            errors.all_invalid(&format!("{path}.name"), &name.into(), wrong);
        }
        if int(port, "/containerPort") == 0 {
            errors.required(format!("{path}.containerPort"), "");
        } else {
            errors.port_number(&format!("{path}.containerPort"), at(port, "/containerPort"));
        }
        if int(port, "/hostPort") != 0 {
            errors.port_number(&format!("{path}.hostPort"), at(port, "/hostPort"));
        }
        errors.one_of(format!("{path}.protocol"), at(port, "/protocol"), &PROTOCOLS);
    }
}

fn unique_host_ports(errors: &mut Errors, container: &Value, path: &str, seen: &mut BTreeSet<String>) {
    for (i, port) in items(container, "/ports").iter().enumerate() {
        let host_port = int(port, "/hostPort");
        if host_port == 0 {
            continue;
        }
        let key = format!("{}/{}/{host_port}", text(port, "/protocol"), text(port, "/hostIP"));
        if !seen.insert(key.clone()) {
            errors.duplicate(format!("{path}.ports[{i}].hostPort"), &key.into());
        }
    }
}

fn env(errors: &mut Errors, container: &Value, path: &str) {
    for (i, variable) in items(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else {
            errors.all_invalid(&format!("{path}.name"), &name.into(), names::env_var_name(name));
        }
        if present(variable, "/valueFrom") {
            value_from(errors, variable, &format!("{path}.valueFrom"));
        }
    }
}

fn value_from(errors: &mut Errors, variable: &Value, path: &str) {
    let source = at(variable, "/valueFrom");
    let kinds = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let given = kinds.iter().filter(|kind| present(source, &format!("/{kind}"))).count();
    let field = at(source, "/fieldRef");
    if !field.is_null() && text(field, "/fieldPath").is_empty() {
        errors.required(format!("{path}.fieldRef.fieldPath"), "");
    }
    let resource = at(source, "/resourceFieldRef");
    if !resource.is_null() && text(resource, "/resource").is_empty() {
        errors.required(format!("{path}.resourceFieldRef.resource"), "");
    }
    for kind in ["configMapKeyRef", "secretKeyRef"] {
        let reference = at(source, &format!("/{kind}"));
        if reference.is_null() {
            continue;
        }
        for key in ["name", "key"] {
            if text(reference, &format!("/{key}")).is_empty() {
                errors.required(format!("{path}.{kind}.{key}"), "");
            }
        }
        let key = text(reference, "/key");
        if !key.is_empty() {
            errors.all_invalid(&format!("{path}.{kind}.key"), &key.into(), names::config_map_key(key));
        }
    }
    let none = json!("");
    if given == 0 {
        let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                      `fileKeyRef`";
        errors.invalid(path, &none, detail);
    } else if !text(variable, "/value").is_empty() {
        errors.invalid(path, &none, "may not be specified when `value` is not empty");
    } else if given > 1 {
        errors.invalid(path, &none, "may not have more than one field specified at a time");
    }
}

fn env_from(errors: &mut Errors, container: &Value, path: &str) {
    for (i, source) in items(container, "/envFrom").iter().enumerate() {
        let at_source = format!("{path}.envFrom[{i}]");
        let prefix = text(source, "/prefix");
        if !prefix.is_empty() {
            errors.all_invalid(&format!("{at_source}.prefix"), &prefix.into(), names::env_var_name(prefix));
        }
        let mut given = 0;
        for kind in ["configMapRef", "secretRef"] {
            if present(source, &format!("/{kind}")) {
                given += 1;
                if text(source, &format!("/{kind}/name")).is_empty() {
                    errors.required(format!("{at_source}.{kind}.name"), "");
                }
            }
        }
        let at_list = format!("{path}.envFrom");
        if given == 0 {
            errors.invalid(at_list, &json!(""), "must specify one of: `configMapRef` or `secretRef`");
        } else if given > 1 {
            errors.invalid(at_list, &json!(""), "may not have more than one field specified at a time");
        }
    }
}

fn mounts(errors: &mut Errors, container: &Value, path: &str, volumes: &BTreeSet<String>) {
    let path = format!("{path}.volumeMounts");
    let mut points: BTreeSet<&str> = BTreeSet::new();
    for (i, mount) in items(container, "/volumeMounts").iter().enumerate() {
        let at_mount = format!("{path}[{i}]");
        let name = text(mount, "/name");
        if name.is_empty() {
            errors.required(format!("{at_mount}.name"), "");
        }
        if !volumes.contains(name) {
            errors.not_found(format!("{at_mount}.name"), &name.into());
        }
        let point = text(mount, "/mountPath");
        if point.is_empty() {
            errors.required(format!("{at_mount}.mountPath"), "");
        }
        if !points.insert(point) {
            errors.invalid(format!("{at_mount}.mountPath"), &point.into(), "must be unique");
        }
        if !text(mount, "/subPath").is_empty() {
            descending_path(errors, at(mount, "/subPath"), &format!("{path}.subPath"));
        }
        if !text(mount, "/subPathExpr").is_empty() {
            if !text(mount, "/subPath").is_empty() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(format!("{at_mount}.subPathExpr"), at(mount, "/subPathExpr"), detail);
            }
            descending_path(errors, at(mount, "/subPathExpr"), &format!("{path}.subPathExpr"));
        }
        propagation(errors, container, at(mount, "/mountPropagation"), format!("{path}.mountPropagation"));
    }
}

fn propagation(errors: &mut Errors, container: &Value, mode: &Value, path: String) {
    if mode.is_null() {
        return;
    }
    if mode == "Bidirectional" && !flag(container, "/securityContext/privileged") {
        errors.forbidden(path, "Bidirectional mount propagation is available only to privileged containers");
    } else {
        errors.one_of(path, mode, &["Bidirectional", "HostToContainer", "None"]);
    }
}

fn resources(errors: &mut Errors, resources: &Value, path: &str) {
    let limits = entries(resources, "/limits");
    for (list, amounts) in [("limits", limits), ("requests", entries(resources, "/requests"))] {
        for (resource, amount) in amounts {
            let path = format!("{path}.{list}[{resource}]");
            resource_name(errors, resource, &path);
            errors.resource_amount(&path, resource, amount);
        }
    }
    for (resource, amount) in entries(resources, "/requests") {
        let path = format!("{path}.requests");
        let overcommit = is_native(resource) && !resource.starts_with("hugepages-");
        match (quantity(amount), limits.get(resource).and_then(quantity)) {
            (Some(request), Some(limit)) if request.milli() != limit.milli() && !overcommit => {
                let detail = format!("must be equal to {resource} limit of {limit}");
                errors.invalid(path, &request.to_string().into(), detail);
            }
            (Some(request), Some(limit)) if request.milli() > limit.milli() => {
                let detail = format!("must be less than or equal to {resource} limit of {limit}");
                errors.invalid(path, &request.to_string().into(), detail);
            }
            (Some(_), None) if !overcommit => errors.required(
                path.replace(".requests", ".limits"),
                "Limit must be set for non overcommitable resources",
            ),
            _ => {}
        }
    }
}

fn resource_name(errors: &mut Errors, name: &str, path: &str) {
    errors.label_name(path, name);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        errors.invalid(path, &name.into(), "must be a standard resource for containers");
    } else if !is_native(name) && name.starts_with("requests.") {
        errors.invalid(path, &name.into(), "doesn't follow extended resource name standard");
    }
}

fn security_context(errors: &mut Errors, context: &Value, path: &str) {
    for id in ["runAsUser", "runAsGroup"] {
        id_in_range(errors, format!("{path}.{id}"), at(context, &format!("/{id}")));
    }
    if at(context, "/allowPrivilegeEscalation") == false {
        if flag(context, "/privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, context, detail);
        }
        if items(context, "/capabilities/add").iter().any(|capability| capability == "CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, context, detail);
        }
    }
    errors.optional_one_of(format!("{path}.procMount"), at(context, "/procMount"), &["Default", "Unmasked"]);
}

fn plain_init(errors: &mut Errors, container: &Value, path: &str) {
    for field in ["lifecycle"].iter().chain(&PROBES) {
        if present(container, &format!("/{field}")) {
            errors.forbidden(format!("{path}.{field}"), ONLY_SIDECARS);
        }
    }
    if !text(container, "/restartPolicy").is_empty() && !present(container, "/restartPolicyRules") {
        let policies = ["Always", "Never", "OnFailure"];
        errors.optional_one_of(format!("{path}.restartPolicy"), at(container, "/restartPolicy"), &policies);
    }
}

fn ephemeral(errors: &mut Errors, container: &Value, path: &str) {
    for field in ["ports", "lifecycle"].iter().chain(&PROBES) {
        if !is_zero(at(container, &format!("/{field}"))) {
            errors.forbidden(format!("{path}.{field}"), "cannot be set for an Ephemeral Container");
        }
    }
    if !is_zero(at(container, "/resources")) {
        errors.forbidden(format!("{path}.resources"), "cannot be set for an Ephemeral Container");
    }
}

fn hooks_and_probes(errors: &mut Errors, spec: &Value, container: &Value, path: &str) {
    for hook in ["postStart", "preStop"] {
        let handler = at(container, &format!("/lifecycle/{hook}"));
        if !handler.is_null() {
            self::handler(errors, spec, handler, &format!("{path}.lifecycle.{hook}"));
        }
    }
    for kind in PROBES {
        let probe = at(container, &format!("/{kind}"));
        if probe.is_null() {
            continue;
        }
        let path = format!("{path}.{kind}");
        handler(errors, spec, probe, &path);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            errors.not_negative(format!("{path}.{field}"), at(probe, &format!("/{field}")));
        }
        let grace = at(probe, "/terminationGracePeriodSeconds");
        let at_grace = format!("{path}.terminationGracePeriodSeconds");
        if kind == "readinessProbe" && !grace.is_null() {
            errors.invalid(at_grace, grace, "must not be set for readinessProbes");
        } else if grace.as_i64().is_some_and(|seconds| seconds <= 0) {
            errors.invalid(at_grace, grace, "must be greater than 0");
        }
        if kind != "readinessProbe" && int(probe, "/successThreshold") != 1 {
            errors.invalid(format!("{path}.successThreshold"), at(probe, "/successThreshold"), "must be 1");
        }
    }
}

fn handler(errors: &mut Errors, spec: &Value, handler: &Value, path: &str) {
    let given: Vec<_> = HANDLERS.iter().filter(|kind| present(handler, &format!("/{kind}"))).collect();
    for extra in given.iter().skip(1) {
        errors.forbidden(format!("{path}.{extra}"), "may not specify more than 1 handler type");
    }
    let Some(kind) = given.first() else {
        return errors.required(path, "must specify a handler type");
    };
    let action = at(handler, &format!("/{kind}"));
    let path = format!("{path}.{kind}");
    match **kind {
        "exec" if items(action, "/command").is_empty() => errors.required(format!("{path}.command"), ""),
        "httpGet" => {
            if text(action, "/path").is_empty() {
                errors.required(format!("{path}.path"), "");
            }
            errors.port_number_or_name(&format!("{path}.port"), at(action, "/port"));
            let scheme = at(action, "/scheme");
            if !matches!(scheme.as_str(), Some("HTTP" | "HTTPS")) {
                errors.not_supported(format!("{path}.scheme"), scheme, &["HTTP", "HTTPS"]);
            }
            for header in items(action, "/httpHeaders") {
                let name = text(header, "/name");
                errors.all_invalid(
                    &format!("{path}.httpHeaders"),
                    &name.into(),
                    names::http_header_name(name),
                );
            }
        }
        "tcpSocket" => errors.port_number_or_name(&format!("{path}.port"), at(action, "/port")),
        "grpc" => errors.port_number(&format!("{path}.port"), at(action, "/port")),
        "sleep" => {
            let (seconds, grace) = (int(action, "/seconds"), int(spec, "/terminationGracePeriodSeconds"));
            if seconds < 0 || seconds > grace {
                let detail =
                    format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.invalid(path, &seconds.into(), detail);
            }
        }
        _ => {}
    }
}

/// What is wrong with the resources of containers, for `/resize`.
pub(in crate::registry) fn validate_resources(spec: &Value, path: &str) -> Vec<api::field::FieldError> {
    let mut errors = Errors::default();
    for list in CONTAINER_LISTS {
        for (i, container) in items(spec, &format!("/{list}")).iter().enumerate() {
            resources(&mut errors, at(container, "/resources"), &format!("{path}.{list}[{i}].resources"));
        }
    }
    errors.into_vec()
}
