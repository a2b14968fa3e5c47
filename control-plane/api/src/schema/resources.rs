//! What no source says: short names, categories, verbs and subresources of the built-in resources, in discovery's order.

use super::{Resource, Schema, Subresource};

const ALL: &str = "create delete deletecollection get list patch update watch";
const REVIEW: &str = "create";
const MODIFY: &str = "get patch update";
const CONNECT: &str = "create get";
const PROXY: &str = "create delete get patch update";

/// A subresource: name, kind with group and version where they are not the parent's (empty: the parent's kind), verbs.
type SubresourceRow = (&'static str, &'static str, &'static str);

const STATUS: SubresourceRow = ("status", "", MODIFY);
const SCALE: SubresourceRow = ("scale", "autoscaling/v1/Scale", MODIFY);

struct Row {
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short_names: &'static str,
    categories: &'static str,
    verbs: &'static str,
    subresources: &'static [SubresourceRow],
}

const fn row(kind: &'static str, plural: &'static str, namespaced: bool) -> Row {
    Row { kind, plural, namespaced, short_names: "", categories: "", verbs: ALL, subresources: &[] }
}

const fn namespaced(kind: &'static str, plural: &'static str) -> Row {
    row(kind, plural, true)
}

const fn cluster(kind: &'static str, plural: &'static str) -> Row {
    row(kind, plural, false)
}

impl Row {
    const fn short(self, short_names: &'static str) -> Self {
        Self { short_names, ..self }
    }

    const fn category(self, categories: &'static str) -> Self {
        Self { categories, ..self }
    }

    const fn verbs(self, verbs: &'static str) -> Self {
        Self { verbs, ..self }
    }

    const fn with(self, subresources: &'static [SubresourceRow]) -> Self {
        Self { subresources, ..self }
    }
}

/// Groups in the order of discovery, newest version first.
const GROUPS: &[(&str, &str, &[Row])] = &[
    ("", "v1", CORE),
    ("apiregistration.k8s.io", "v1", APIREGISTRATION),
    ("apps", "v1", APPS),
    ("events.k8s.io", "v1", &[namespaced("Event", "events").short("ev")]),
    ("authentication.k8s.io", "v1", AUTHENTICATION),
    ("authorization.k8s.io", "v1", AUTHORIZATION),
    ("autoscaling", "v2", AUTOSCALING),
    ("autoscaling", "v1", AUTOSCALING),
    ("batch", "v1", BATCH),
    ("certificates.k8s.io", "v1", CERTIFICATES),
    ("networking.k8s.io", "v1", NETWORKING),
    ("policy", "v1", POLICY),
    ("rbac.authorization.k8s.io", "v1", RBAC),
    ("storage.k8s.io", "v1", STORAGE),
    ("admissionregistration.k8s.io", "v1", ADMISSIONREGISTRATION),
    ("apiextensions.k8s.io", "v1", APIEXTENSIONS),
    ("scheduling.k8s.io", "v1", &[cluster("PriorityClass", "priorityclasses").short("pc")]),
    ("coordination.k8s.io", "v1", &[namespaced("Lease", "leases")]),
    ("node.k8s.io", "v1", &[cluster("RuntimeClass", "runtimeclasses")]),
    ("discovery.k8s.io", "v1", &[namespaced("EndpointSlice", "endpointslices")]),
    ("resource.k8s.io", "v1", RESOURCE),
    ("flowcontrol.apiserver.k8s.io", "v1", FLOWCONTROL),
];

const CORE: &[Row] = &[
    namespaced("Binding", "bindings").verbs(REVIEW),
    cluster("ComponentStatus", "componentstatuses").short("cs").verbs("get list"),
    namespaced("ConfigMap", "configmaps").short("cm"),
    namespaced("Endpoints", "endpoints").short("ep"),
    namespaced("Event", "events").short("ev"),
    namespaced("LimitRange", "limitranges").short("limits"),
    cluster("Namespace", "namespaces")
        .short("ns")
        .verbs("create delete get list patch update watch")
        .with(&[("finalize", "", "update"), STATUS]),
    cluster("Node", "nodes").short("no").with(&[("proxy", "NodeProxyOptions", PROXY), STATUS]),
    namespaced("PersistentVolumeClaim", "persistentvolumeclaims").short("pvc").with(&[STATUS]),
    cluster("PersistentVolume", "persistentvolumes").short("pv").with(&[STATUS]),
    namespaced("Pod", "pods").short("po").category("all").with(&[
        ("attach", "PodAttachOptions", CONNECT),
        ("binding", "Binding", REVIEW),
        ("ephemeralcontainers", "", MODIFY),
        ("eviction", "policy/v1/Eviction", REVIEW),
        ("exec", "PodExecOptions", CONNECT),
        ("log", "", "get"),
        ("portforward", "PodPortForwardOptions", CONNECT),
        ("proxy", "PodProxyOptions", PROXY),
        ("resize", "", MODIFY),
        STATUS,
    ]),
    namespaced("PodTemplate", "podtemplates"),
    namespaced("ReplicationController", "replicationcontrollers")
        .short("rc")
        .category("all")
        .with(&[SCALE, STATUS]),
    namespaced("ResourceQuota", "resourcequotas").short("quota").with(&[STATUS]),
    namespaced("Secret", "secrets"),
    namespaced("ServiceAccount", "serviceaccounts").short("sa").with(&[(
        "token",
        "authentication.k8s.io/v1/TokenRequest",
        REVIEW,
    )]),
    namespaced("Service", "services")
        .short("svc")
        .category("all")
        .with(&[("proxy", "ServiceProxyOptions", PROXY), STATUS]),
];

const APIREGISTRATION: &[Row] =
    &[cluster("APIService", "apiservices").category("api-extensions").with(&[STATUS])];

const APPS: &[Row] = &[
    namespaced("ControllerRevision", "controllerrevisions"),
    namespaced("DaemonSet", "daemonsets").short("ds").category("all").with(&[STATUS]),
    namespaced("Deployment", "deployments").short("deploy").category("all").with(&[SCALE, STATUS]),
    namespaced("ReplicaSet", "replicasets").short("rs").category("all").with(&[SCALE, STATUS]),
    namespaced("StatefulSet", "statefulsets").short("sts").category("all").with(&[SCALE, STATUS]),
];

const AUTHENTICATION: &[Row] = &[
    cluster("SelfSubjectReview", "selfsubjectreviews").verbs(REVIEW),
    cluster("TokenReview", "tokenreviews").verbs(REVIEW),
];

const AUTHORIZATION: &[Row] = &[
    namespaced("LocalSubjectAccessReview", "localsubjectaccessreviews").verbs(REVIEW),
    cluster("SelfSubjectAccessReview", "selfsubjectaccessreviews").verbs(REVIEW),
    cluster("SelfSubjectRulesReview", "selfsubjectrulesreviews").verbs(REVIEW),
    cluster("SubjectAccessReview", "subjectaccessreviews").verbs(REVIEW),
];

const AUTOSCALING: &[Row] = &[namespaced("HorizontalPodAutoscaler", "horizontalpodautoscalers")
    .short("hpa")
    .category("all")
    .with(&[STATUS])];

const BATCH: &[Row] = &[
    namespaced("CronJob", "cronjobs").short("cj").category("all").with(&[STATUS]),
    namespaced("Job", "jobs").category("all").with(&[STATUS]),
];

const CERTIFICATES: &[Row] = &[cluster("CertificateSigningRequest", "certificatesigningrequests")
    .short("csr")
    .with(&[("approval", "", MODIFY), STATUS])];

const NETWORKING: &[Row] = &[
    cluster("IngressClass", "ingressclasses"),
    namespaced("Ingress", "ingresses").short("ing").with(&[STATUS]),
    cluster("IPAddress", "ipaddresses").short("ip"),
    namespaced("NetworkPolicy", "networkpolicies").short("netpol"),
    cluster("ServiceCIDR", "servicecidrs").with(&[STATUS]),
];

const POLICY: &[Row] =
    &[namespaced("PodDisruptionBudget", "poddisruptionbudgets").short("pdb").with(&[STATUS])];

const RBAC: &[Row] = &[
    cluster("ClusterRoleBinding", "clusterrolebindings"),
    cluster("ClusterRole", "clusterroles"),
    namespaced("RoleBinding", "rolebindings"),
    namespaced("Role", "roles"),
];

const STORAGE: &[Row] = &[
    cluster("CSIDriver", "csidrivers"),
    cluster("CSINode", "csinodes"),
    namespaced("CSIStorageCapacity", "csistoragecapacities"),
    cluster("StorageClass", "storageclasses").short("sc"),
    cluster("VolumeAttachment", "volumeattachments").with(&[STATUS]),
    cluster("VolumeAttributesClass", "volumeattributesclasses").short("vac"),
];

const ADMISSIONREGISTRATION: &[Row] = &[
    cluster("MutatingAdmissionPolicy", "mutatingadmissionpolicies").category("api-extensions"),
    cluster("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings").category("api-extensions"),
    cluster("MutatingWebhookConfiguration", "mutatingwebhookconfigurations").category("api-extensions"),
    cluster("ValidatingAdmissionPolicy", "validatingadmissionpolicies")
        .category("api-extensions")
        .with(&[STATUS]),
    cluster("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
        .category("api-extensions"),
    cluster("ValidatingWebhookConfiguration", "validatingwebhookconfigurations").category("api-extensions"),
];

const APIEXTENSIONS: &[Row] = &[cluster("CustomResourceDefinition", "customresourcedefinitions")
    .short("crd crds")
    .category("api-extensions")
    .with(&[STATUS])];

const RESOURCE: &[Row] = &[
    cluster("DeviceClass", "deviceclasses"),
    namespaced("ResourceClaim", "resourceclaims").with(&[STATUS]),
    namespaced("ResourceClaimTemplate", "resourceclaimtemplates"),
    cluster("ResourceSlice", "resourceslices"),
];

const FLOWCONTROL: &[Row] = &[
    cluster("FlowSchema", "flowschemas").with(&[STATUS]),
    cluster("PriorityLevelConfiguration", "prioritylevelconfigurations").with(&[STATUS]),
];

/// # Panics
/// When a kind of this file is not in the table of types: both are part of the binary, and the tests read them.
pub(super) fn builtin(schema: &Schema) -> Vec<Resource> {
    let rows =
        GROUPS.iter().flat_map(|(group, version, rows)| rows.iter().map(move |row| (*group, *version, row)));
    rows.map(|(group, version, row)| resource(schema, group, version, row)).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn resource(schema: &Schema, group: &str, version: &str, row: &Row) -> Resource {
    let ty = schema
        .type_of(group, version, row.kind)
        .unwrap_or_else(|| panic!("{group}/{version} {} is not in the schema table", row.kind));
    Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: row.kind.to_owned(),
        list_kind: format!("{}List", row.kind),
        plural: row.plural.to_owned(),
        singular: row.kind.to_lowercase(),
        short_names: words(row.short_names),
        categories: words(row.categories),
        namespaced: row.namespaced,
        verbs: words(row.verbs),
        subresources: row.subresources.iter().map(|row_of| subresource(row.kind, row_of)).collect(),
        storage_version: if group == "autoscaling" { "v2" } else { version }.to_owned(),
        ty,
    }
}

fn subresource(parent: &str, (name, kind, verbs): &SubresourceRow) -> Subresource {
    let (group, version, kind) = match kind.split('/').collect::<Vec<_>>().as_slice() {
        [group, version, kind] => (*group, *version, *kind),
        [""] => ("", "", parent),
        _ => ("", "", *kind),
    };
    Subresource {
        name: (*name).to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        verbs: words(verbs),
    }
}
