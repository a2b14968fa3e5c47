//! The checks of the Pod Security Standards, each with the versions in which it changed. Pure: a pod's metadata and spec
//! in, what is wrong out, in upstream's words.

use std::collections::BTreeSet;

use api::field::quote;
use serde_json::Value;

use crate::registry::fields::*;

/// What a check looks at; of a workload, its template.
#[derive(Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) metadata: &'a Value,
    pub(super) spec: &'a Value,
}

/// Why a pod breaks a policy: the words that are always shown, and the detail for one object.
pub(super) struct Forbidden {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

type CheckPod = fn(Pod<'_>) -> Option<Forbidden>;

/// A check from one minor version of the policy on.
struct Version {
    minor: u32,
    check: CheckPod,
}

struct Check {
    id: &'static str,
    restricted: bool,
    /// Ascending.
    versions: &'static [Version],
    /// The baseline checks that this one makes superfluous.
    overrides: &'static [&'static str],
}

const fn since(minor: u32, check: CheckPod) -> Version {
    Version { minor, check }
}

const fn baseline(id: &'static str, versions: &'static [Version]) -> Check {
    Check { id, restricted: false, versions, overrides: &[] }
}

const fn restricted(
    id: &'static str,
    versions: &'static [Version],
    overrides: &'static [&'static str],
) -> Check {
    Check { id, restricted: true, versions, overrides }
}

/// In the order in which violations are listed: baseline before restricted, each by id.
static CHECKS: [Check; 19] = [
    baseline("appArmorProfile", &[since(0, app_armor_profile)]),
    baseline("capabilities_baseline", &[since(0, capabilities_baseline)]),
    baseline("hostNamespaces", &[since(0, host_namespaces)]),
    baseline("hostPathVolumes", &[since(0, host_path_volumes)]),
    baseline("hostPorts", &[since(0, host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[since(34, host_probes_and_lifecycle)]),
    baseline("privileged", &[since(0, privileged)]),
    baseline("procMount", &[since(0, proc_mount), since(35, |pod| unless_user_namespace(pod, proc_mount))]),
    baseline(
        "seLinuxOptions",
        &[
            since(0, |pod| se_linux_options(pod, &SE_LINUX_TYPES[..4])),
            since(31, |pod| se_linux_options(pod, &SE_LINUX_TYPES)),
        ],
    ),
    baseline(
        "seccompProfile_baseline",
        &[since(0, seccomp_annotations), since(19, |pod| seccomp_profile(pod, false))],
    ),
    baseline(
        "sysctls",
        &[
            since(0, |pod| sysctls(pod, &SYSCTLS[..5])),
            since(27, |pod| sysctls(pod, &SYSCTLS[..6])),
            since(29, |pod| sysctls(pod, &SYSCTLS[..10])),
            since(32, |pod| sysctls(pod, &SYSCTLS)),
        ],
    ),
    baseline("windowsHostProcess", &[since(0, windows_host_process)]),
    restricted(
        "allowPrivilegeEscalation",
        &[since(8, privilege_escalation), since(25, |pod| unless_windows(pod, privilege_escalation))],
        &[],
    ),
    restricted(
        "capabilities_restricted",
        &[since(22, capabilities_restricted), since(25, |pod| unless_windows(pod, capabilities_restricted))],
        &["capabilities_baseline"],
    ),
    restricted("procMount_restricted", &[since(35, proc_mount)], &["procMount"]),
    restricted("restrictedVolumes", &[since(0, restricted_volumes)], &["hostPathVolumes"]),
    restricted(
        "runAsNonRoot",
        &[since(0, run_as_non_root), since(35, |pod| unless_user_namespace(pod, run_as_non_root))],
        &[],
    ),
    restricted(
        "runAsUser",
        &[since(23, run_as_user), since(35, |pod| unless_user_namespace(pod, run_as_user))],
        &[],
    ),
    restricted(
        "seccompProfile_restricted",
        &[
            since(19, |pod| seccomp_profile(pod, true)),
            since(25, |pod| unless_windows(pod, |pod| seccomp_profile(pod, true))),
        ],
        &["seccompProfile_baseline"],
    ),
];

/// Runs the checks of a level (baseline or restricted) as they were in a minor version.
pub(super) fn run(is_restricted: bool, minor: u32, pod: Pod<'_>) -> Vec<Forbidden> {
    let in_force = |check: &Check| {
        (is_restricted || !check.restricted)
            && check.versions.first().is_some_and(|first| first.minor <= minor)
    };
    let overridden = |id: &str| {
        is_restricted && CHECKS.iter().any(|check| in_force(check) && check.overrides.contains(&id))
    };
    let checks = CHECKS.iter().filter(|check| in_force(check) && !overridden(check.id));
    let current =
        |check: &Check| check.versions.iter().rfind(|version| version.minor <= minor).map(|v| v.check);
    checks.filter_map(current).filter_map(|check| check(pod)).collect()
}

const SE_LINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// In the order in which versions added them.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];
const ALLOWED_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
/// In the order in which upstream looks for them.
const RESTRICTED_VOLUMES: [&str; 21] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

fn containers<'a>(pod: Pod<'a>) -> impl Iterator<Item = &'a Value> {
    ["/initContainers", "/containers", "/ephemeralContainers"]
        .into_iter()
        .flat_map(move |list| items(pod.spec, list))
}

/// The names of the containers that `is_bad` holds for.
fn bad_containers<'a>(pod: Pod<'a>, mut is_bad: impl FnMut(&'a Value) -> bool) -> Vec<&'a str> {
    containers(pod).filter(|container| is_bad(container)).map(|container| text(container, "/name")).collect()
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `"a", "b"`; the items are not escaped, as upstream.
fn quoted<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect();
    items.join(", ")
}

/// `container "a"` or `containers "a", "b"`.
fn these(containers: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", containers.len()), quoted(containers))
}

/// `pod and containers "a", "b"`; nothing where neither is bad.
fn setters(pod: bool, containers: &[&str]) -> Vec<String> {
    let mut setters = Vec::new();
    if pod {
        setters.push("pod".to_owned());
    }
    if !containers.is_empty() {
        setters.push(these(containers));
    }
    setters
}

fn forbidden(reason: &'static str, detail: String) -> Option<Forbidden> {
    Some(Forbidden { reason, detail })
}

fn unless_windows(pod: Pod<'_>, check: CheckPod) -> Option<Forbidden> {
    if text(pod.spec, "/os/name") == "windows" { None } else { check(pod) }
}

fn unless_user_namespace(pod: Pod<'_>, check: CheckPod) -> Option<Forbidden> {
    if at(pod.spec, "/hostUsers") == false { None } else { check(pod) }
}

fn app_armor_profile(pod: Pod<'_>) -> Option<Forbidden> {
    let mut values = BTreeSet::new();
    let mut is_bad = |holder: &Value| {
        let profile = at(holder, "/securityContext/appArmorProfile");
        let kind = text(profile, "/type");
        let bad = !profile.is_null() && !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(kind.to_owned());
        }
        bad
    };
    let bad_pod = is_bad(pod.spec);
    let bad = bad_containers(pod, is_bad);
    let mut setters = setters(bad_pod, &bad);
    let mut annotations = Vec::new();
    for (key, value) in entries(pod.metadata, "/annotations") {
        let value = value.as_str().unwrap_or_default();
        let allowed = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
        if key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed {
            annotations.push(format!("{key}={}", quote(value)));
        }
    }
    annotations.sort();
    let mut values: Vec<String> = values.into_iter().collect();
    if !annotations.is_empty() {
        setters.push(plural("annotation", "annotations", annotations.len()).to_owned());
        values.append(&mut annotations);
    }
    if setters.is_empty() {
        return None;
    }
    forbidden(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len()),
        format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(values)),
    )
}

/// The containers that add a capability that is not `allowed`, with those capabilities.
fn adding<'a>(pod: Pod<'a>, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<&'a str>) {
    let mut capabilities = BTreeSet::new();
    let bad = bad_containers(pod, |container| {
        let added = items(container, "/securityContext/capabilities/add").iter();
        let wrong: Vec<_> = added.filter_map(Value::as_str).filter(|c| !allowed.contains(c)).collect();
        capabilities.extend(&wrong);
        !wrong.is_empty()
    });
    (bad, capabilities)
}

fn adding_detail(bad: &[&str], capabilities: &BTreeSet<&str>) -> String {
    format!("{} must not include {} in securityContext.capabilities.add", these(bad), quoted(capabilities))
}

fn capabilities_baseline(pod: Pod<'_>) -> Option<Forbidden> {
    let (bad, capabilities) = adding(pod, &CAPABILITIES);
    if bad.is_empty() {
        return None;
    }
    forbidden("non-default capabilities", adding_detail(&bad, &capabilities))
}

fn capabilities_restricted(pod: Pod<'_>) -> Option<Forbidden> {
    let undropped = bad_containers(pod, |container| {
        !items(container, "/securityContext/capabilities/drop").iter().any(|dropped| dropped == "ALL")
    });
    let (bad, capabilities) = adding(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !undropped.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", these(&undropped)));
    }
    if !bad.is_empty() {
        details.push(adding_detail(&bad, &capabilities));
    }
    if details.is_empty() { None } else { forbidden("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(pod: Pod<'_>) -> Option<Forbidden> {
    let set: Vec<_> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| flag(pod.spec, &format!("/{field}")))
        .map(|field| format!("{field}=true"))
        .collect();
    if set.is_empty() { None } else { forbidden("host namespaces", set.join(", ")) }
}

fn host_path_volumes(pod: Pod<'_>) -> Option<Forbidden> {
    let volumes = items(pod.spec, "/volumes").iter().filter(|volume| present(volume, "/hostPath"));
    let bad: Vec<_> = volumes.map(|volume| text(volume, "/name")).collect();
    if bad.is_empty() {
        return None;
    }
    forbidden("hostPath volumes", format!("{} {}", plural("volume", "volumes", bad.len()), quoted(bad)))
}

fn host_ports(pod: Pod<'_>) -> Option<Forbidden> {
    let mut ports = BTreeSet::new();
    let bad = bad_containers(pod, |container| {
        let used = items(container, "/ports").iter().map(|port| int(port, "/hostPort"));
        let used: Vec<_> = used.filter(|port| *port != 0).map(|port| port.to_string()).collect();
        let is_bad = !used.is_empty();
        ports.extend(used);
        is_bad
    });
    if bad.is_empty() {
        return None;
    }
    let list: Vec<_> = ports.into_iter().collect();
    let uses = plural("uses", "use", bad.len());
    let word = plural("hostPort", "hostPorts", list.len());
    forbidden("hostPort", format!("{} {uses} {word} {}", these(&bad), list.join(", ")))
}

fn host_probes_and_lifecycle(pod: Pod<'_>) -> Option<Forbidden> {
    const HANDLERS: [&str; 5] =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let mut hosts: BTreeSet<&str> = BTreeSet::new();
    let bad: BTreeSet<_> = bad_containers(pod, |container| {
        let handlers = HANDLERS.iter().map(|handler| at(container, handler));
        let used =
            handlers.flat_map(|handler| [text(handler, "/httpGet/host"), text(handler, "/tcpSocket/host")]);
        let used: Vec<_> = used.filter(|host| !host.is_empty()).collect();
        hosts.extend(&used);
        !used.is_empty()
    })
    .into_iter()
    .collect();
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<_> = bad.into_iter().collect();
    let uses = plural("uses", "use", bad.len());
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    forbidden("probe or lifecycle host", format!("{} {uses} {word} {}", these(&bad), quoted(hosts)))
}

fn privileged(pod: Pod<'_>) -> Option<Forbidden> {
    let bad = bad_containers(pod, |container| flag(container, "/securityContext/privileged"));
    if bad.is_empty() {
        return None;
    }
    forbidden("privileged", format!("{} must not set securityContext.privileged=true", these(&bad)))
}

fn proc_mount(pod: Pod<'_>) -> Option<Forbidden> {
    let mut kinds = BTreeSet::new();
    let bad = bad_containers(pod, |container| {
        let kind = at(container, "/securityContext/procMount").as_str().filter(|kind| *kind != "Default");
        kinds.extend(kind);
        kind.is_some()
    });
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.procMount to {}", these(&bad), quoted(kinds));
    forbidden("procMount", detail)
}

fn se_linux_options(pod: Pod<'_>, allowed: &[&str]) -> Option<Forbidden> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut is_bad = |holder: &Value| {
        let options = at(holder, "/securityContext/seLinuxOptions");
        let kind = text(options, "/type");
        let bad_type = !allowed.contains(&kind);
        if bad_type {
            types.insert(kind.to_owned());
        }
        let (sets_user, sets_role) = (!text(options, "/user").is_empty(), !text(options, "/role").is_empty());
        user |= sets_user;
        role |= sets_role;
        bad_type || sets_user || sets_role
    };
    let bad_pod = is_bad(pod.spec);
    let bad = bad_containers(pod, is_bad);
    let setters = setters(bad_pod, &bad);
    if setters.is_empty() {
        return None;
    }
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural("type", "types", types.len()), quoted(types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    let (setters, data) = (setters.join(" and "), data.join("; "));
    forbidden("seLinuxOptions", format!("{setters} set forbidden securityContext.seLinuxOptions: {data}"))
}

fn seccomp_annotations(pod: Pod<'_>) -> Option<Forbidden> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    let annotations = entries(pod.metadata, "/annotations");
    let of_containers = containers(pod).map(|container| {
        format!("container.seccomp.security.alpha.kubernetes.io/{}", text(container, "/name"))
    });
    let mut bad = BTreeSet::new();
    for key in std::iter::once(POD.to_owned()).chain(of_containers) {
        let Some(value) = annotations.get(&key).and_then(Value::as_str) else { continue };
        let allowed =
            matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
        if !allowed {
            bad.insert(format!("{key}={}", quote(value)));
        }
    }
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<_> = bad.into_iter().collect();
    let word = plural("annotation", "annotations", bad.len());
    forbidden("seccompProfile", format!("forbidden {word} {}", bad.join(", ")))
}

/// `is_required`: a container without a profile of its own or of its pod is bad too.
fn seccomp_profile(pod: Pod<'_>, is_required: bool) -> Option<Forbidden> {
    fn profile(holder: &Value) -> &Value {
        at(holder, "/securityContext/seccompProfile")
    }
    let mut values = BTreeSet::new();
    let mut is_bad = |holder: &Value| {
        let profile = profile(holder);
        let kind = text(profile, "/type");
        let bad = !profile.is_null() && !matches!(kind, "Localhost" | "RuntimeDefault");
        if bad {
            values.insert(kind.to_owned());
        }
        bad
    };
    let bad_pod = is_bad(pod.spec);
    let bad = bad_containers(pod, is_bad);
    let setters = setters(bad_pod, &bad);
    if !setters.is_empty() {
        let setters = setters.join(" and ");
        let detail =
            format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(values));
        return forbidden("seccompProfile", detail);
    }
    if !is_required || !profile(pod.spec).is_null() {
        return None;
    }
    let implicit = bad_containers(pod, |container| profile(container).is_null());
    if implicit.is_empty() {
        return None;
    }
    forbidden(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            these(&implicit)
        ),
    )
}

fn sysctls(pod: Pod<'_>, allowed: &[&str]) -> Option<Forbidden> {
    let names = items(pod.spec, "/securityContext/sysctls").iter().map(|sysctl| text(sysctl, "/name"));
    let bad: Vec<_> = names.filter(|name| !allowed.contains(name)).collect();
    if bad.is_empty() { None } else { forbidden("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(pod: Pod<'_>) -> Option<Forbidden> {
    let is_bad = |holder: &Value| flag(holder, "/securityContext/windowsOptions/hostProcess");
    let setters = setters(is_bad(pod.spec), &bad_containers(pod, is_bad));
    if setters.is_empty() {
        return None;
    }
    let setters = setters.join(" and ");
    forbidden(
        "hostProcess",
        format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn privilege_escalation(pod: Pod<'_>) -> Option<Forbidden> {
    let bad =
        bad_containers(pod, |container| at(container, "/securityContext/allowPrivilegeEscalation") != false);
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", these(&bad));
    forbidden("allowPrivilegeEscalation != false", detail)
}

fn restricted_volumes(pod: Pod<'_>) -> Option<Forbidden> {
    let has = |volume: &Value, kind: &&&str| volume.get(**kind).is_some_and(|source| !source.is_null());
    let (mut bad, mut kinds) = (Vec::new(), BTreeSet::new());
    for volume in items(pod.spec, "/volumes") {
        if !ALLOWED_VOLUMES.iter().any(|kind| has(volume, &kind)) {
            bad.push(text(volume, "/name"));
            kinds.insert(
                RESTRICTED_VOLUMES.iter().find(|kind| has(volume, kind)).copied().unwrap_or("unknown"),
            );
        }
    }
    if bad.is_empty() {
        return None;
    }
    let (volumes, uses) = (plural("volume", "volumes", bad.len()), plural("uses", "use", bad.len()));
    let word = plural("restricted volume type", "restricted volume types", kinds.len());
    forbidden("restricted volume types", format!("{volumes} {} {uses} {word} {}", quoted(bad), quoted(kinds)))
}

fn run_as_non_root(pod: Pod<'_>) -> Option<Forbidden> {
    const REASON: &str = "runAsNonRoot != true";
    let set = |holder| at(holder, "/securityContext/runAsNonRoot").as_bool();
    let explicit = bad_containers(pod, |container| set(container) == Some(false));
    let setters = setters(set(pod.spec) == Some(false), &explicit);
    if !setters.is_empty() {
        return forbidden(
            REASON,
            format!("{} must not set securityContext.runAsNonRoot=false", setters.join(" and ")),
        );
    }
    let implicit = bad_containers(pod, |container| set(container).is_none() && set(pod.spec).is_none());
    if implicit.is_empty() {
        return None;
    }
    forbidden(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", these(&implicit)))
}

fn run_as_user(pod: Pod<'_>) -> Option<Forbidden> {
    let is_root = |holder: &Value| at(holder, "/securityContext/runAsUser").as_i64() == Some(0);
    let setters = setters(is_root(pod.spec), &bad_containers(pod, is_root));
    if setters.is_empty() {
        return None;
    }
    forbidden("runAsUser=0", format!("{} must not set runAsUser=0", setters.join(" and ")))
}
