//! Security contexts of pod and container, merged into what CRI asks for. Pure.

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{AppArmorProfile, PodSpec, SELinuxOptions, SeccompProfile};

use crate::pod::{self, Entry};

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Namespaces that the pod shares with the host or among its containers. `target` is the container whose processes
/// an ephemeral container sees.
pub fn namespaces(spec: &PodSpec, target: Option<&str>) -> cri::NamespaceOption {
    let node = cri::NamespaceMode::Node as i32;
    let of_pod = cri::NamespaceMode::Pod as i32;
    let shared = spec.share_process_namespace.unwrap_or(false);
    let (pid, target_id) = match target {
        _ if spec.host_pid.unwrap_or(false) => (node, String::new()),
        _ if shared => (of_pod, String::new()),
        Some(id) => (cri::NamespaceMode::Target as i32, id.to_owned()),
        None => (cri::NamespaceMode::Container as i32, String::new()),
    };
    cri::NamespaceOption {
        network: if pod::is_host_network(spec) { node } else { of_pod },
        pid,
        ipc: if spec.host_ipc.unwrap_or(false) { node } else { of_pod },
        target_id,
        userns_options: None,
    }
}

pub fn int64(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

/// The sandbox's own context.
pub fn of_sandbox(spec: &PodSpec) -> cri::LinuxSandboxSecurityContext {
    let context = spec.security_context.clone().unwrap_or_default();
    let privileged = pod::entries(spec)
        .iter()
        .any(|e| e.container.security_context.as_ref().and_then(|c| c.privileged).unwrap_or(false));
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec, None)),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        run_as_user: context.run_as_user.map(int64),
        // A group without a user is refused by CRI.
        run_as_group: context.run_as_user.and(context.run_as_group).map(int64),
        supplemental_groups: groups(spec),
        privileged,
        seccomp: Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::RuntimeDefault as i32,
            localhost_ref: String::new(),
        }),
        ..cri::LinuxSandboxSecurityContext::default()
    }
}

fn groups(spec: &PodSpec) -> Vec<i64> {
    let context = spec.security_context.as_ref();
    let listed = context.iter().flat_map(|context| context.supplemental_groups.iter().flatten().copied());
    listed.chain(context.and_then(|context| context.fs_group)).collect()
}

fn selinux(options: &SELinuxOptions) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

fn profile(kind: &str, localhost: Option<&String>) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let profile_type = match kind {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = localhost.cloned().unwrap_or_default();
    cri::SecurityProfile { profile_type: profile_type as i32, localhost_ref }
}

fn seccomp(found: Option<&SeccompProfile>) -> cri::SecurityProfile {
    found.map_or_else(|| profile("Unconfined", None), |p| profile(&p.type_, p.localhost_profile.as_ref()))
}

fn apparmor(found: Option<&AppArmorProfile>) -> Option<cri::SecurityProfile> {
    found.map(|p| profile(&p.type_, p.localhost_profile.as_ref()))
}

/// The container's context. The error is a sentence for `CreateContainerConfigError`.
pub fn of_container(
    spec: &PodSpec,
    entry: &Entry,
    image: &cri::Image,
    target: Option<&str>,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let own = entry.container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(of_pod.run_as_user);
    let image_uid = image.uid.as_ref().map(|uid| uid.value);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        verify_non_root(user, image_uid, &image.username, entry.name())?;
    }
    let (run_as_user, run_as_username) = match (user, image_uid) {
        (Some(user), _) => (Some(int64(user)), String::new()),
        (None, Some(uid)) => (Some(int64(uid)), String::new()),
        (None, None) => (None, image.username.clone()),
    };
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| -> Vec<String> {
        if unmasked { vec![] } else { list.iter().map(|path| (*path).to_owned()).collect() }
    };
    let capabilities = own.capabilities.unwrap_or_default();
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            add_ambient_capabilities: vec![],
        }),
        privileged: own.privileged.unwrap_or(false),
        namespace_options: Some(namespaces(spec, target)),
        selinux_options: own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref()).map(selinux),
        run_as_user,
        run_as_username,
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(int64),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(spec),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()))),
        apparmor: apparmor(own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref())),
        ..cri::LinuxContainerSecurityContext::default()
    })
}

fn verify_non_root(
    user: Option<i64>,
    image_uid: Option<i64>,
    username: &str,
    name: &str,
) -> Result<(), String> {
    match (user, image_uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy (container: {name})")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => {
            Err(format!("container has runAsNonRoot and image will run as root (container: {name})"))
        }
        (None, Some(_)) => Ok(()),
        (None, None) if !username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({username}), cannot verify user is non-root \
             (container: {name})"
        )),
        (None, None) => {
            Err(format!("container has runAsNonRoot and image will run as root (container: {name})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn context(
        spec: serde_json::Value,
        image: &cri::Image,
    ) -> Result<cri::LinuxContainerSecurityContext, String> {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        of_container(&spec, &pod::entries(&spec)[0], image, None)
    }

    #[test]
    fn the_container_wins_over_the_pod_and_the_pod_over_the_image() {
        let image = cri::Image { uid: Some(int64(7)), ..Default::default() };
        let user = |spec| context(spec, &image).unwrap().run_as_user.unwrap().value;
        assert_eq!(user(json!({"containers": [{"name": "c"}]})), 7);
        let of_pod = json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "c"}]});
        assert_eq!(user(of_pod), 5);
        let both = json!({"securityContext": {"runAsUser": 5},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 6}}]});
        assert_eq!(user(both), 6);
    }

    #[test]
    fn non_root_is_verified_against_user_and_image() {
        let spec = |user: serde_json::Value| json!({"securityContext": {"runAsNonRoot": true, "runAsUser": user}, "containers": [{"name": "c"}]});
        let root = cri::Image { uid: Some(int64(0)), ..Default::default() };
        let named = cri::Image { username: "web".into(), ..Default::default() };
        assert!(context(spec(json!(null)), &root).unwrap_err().contains("image will run as root"));
        assert!(context(spec(json!(null)), &named).unwrap_err().contains("non-numeric user (web)"));
        assert!(context(spec(json!(0)), &named).unwrap_err().contains("breaks non-root policy"));
        assert!(context(spec(json!(1000)), &root).is_ok());
    }

    #[test]
    fn groups_are_those_listed_and_the_volumes_group() {
        let spec = json!({"securityContext": {"supplementalGroups": [1, 2], "fsGroup": 3}, "containers": [{"name": "c"}]});
        let context = context(spec, &cri::Image::default()).unwrap();
        assert_eq!(context.supplemental_groups, [1, 2, 3]);
        assert!(context.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn host_namespaces_and_shared_processes_are_asked_for() {
        let spec: PodSpec = serde_json::from_value(
            json!({"containers": [], "hostNetwork": true, "shareProcessNamespace": true}),
        )
        .unwrap();
        let option = namespaces(&spec, Some("id"));
        assert_eq!(option.network, cri::NamespaceMode::Node as i32);
        assert_eq!(option.pid, cri::NamespaceMode::Pod as i32);
    }
}
