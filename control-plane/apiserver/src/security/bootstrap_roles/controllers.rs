//! Roles of controllers: `system:controller:NAME` for the ServiceAccount `NAME` in kube-system.

use super::Role;

const EVENTS: &str = "event | core, events.k8s.io | events";

pub(super) const ROLES: &[Role] = &[
    Role {
        name: "attachdetach-controller",
        rules: &[
            "list, watch | core | persistentvolumeclaims, persistentvolumes",
            "read | core | nodes",
            "patch, update | core | nodes/status",
            "list, watch | core | pods",
            EVENTS,
            "create, delete, read | storage.k8s.io | volumeattachments",
            "read | storage.k8s.io | csidrivers, csinodes",
        ],
    },
    // Not a role of upstream's: who gives back blocks of addresses and shows them. Its Role in kube-system has the rest.
    Role {
        name: "block-controller",
        rules: &["get | core | nodes", "create, delete, read, update | projectcalico.org | blockaffinities"],
    },
    Role {
        name: "certificate-controller",
        rules: &[
            "delete, read | certificates.k8s.io | certificatesigningrequests",
            "update | certificates.k8s.io | certificatesigningrequests/approval, certificatesigningrequests/status",
            "approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client-kubelet",
            "sign | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client, \
             kubernetes.io/kube-apiserver-client-kubelet, kubernetes.io/kubelet-serving, kubernetes.io/legacy-unknown",
            "create | authorization.k8s.io | subjectaccessreviews",
            EVENTS,
        ],
    },
    Role {
        name: "clusterrole-aggregation-controller",
        rules: &["escalate, patch, read, update | rbac.authorization.k8s.io | clusterroles"],
    },
    Role {
        name: "cronjob-controller",
        rules: &[
            "read, update | batch | cronjobs",
            "create, delete, patch, read, update | batch | jobs",
            "update | batch | cronjobs/finalizers, cronjobs/status",
            "delete, list, watch | core | pods",
            EVENTS,
        ],
    },
    Role {
        name: "daemon-set-controller",
        rules: &[
            "read | apps, extensions | daemonsets",
            "update | apps, extensions | daemonsets/finalizers, daemonsets/status",
            "list, watch | core | nodes",
            "create, delete, list, patch, watch | core | pods",
            "create | core | pods/binding",
            "create, delete, patch, read, update | apps | controllerrevisions",
            EVENTS,
        ],
    },
    Role {
        name: "deployment-controller",
        rules: &[
            "read, update | apps, extensions | deployments",
            "update | apps, extensions | deployments/finalizers, deployments/status",
            "create, delete, patch, read, update | apps, extensions | replicasets",
            "read, update | core | pods",
            EVENTS,
        ],
    },
    Role {
        name: "device-taint-eviction-controller",
        rules: &[
            "delete, read | core | pods",
            "patch, update | core | pods/status",
            "read | resource.k8s.io | deviceclasses, resourceclaims, resourceslices",
            EVENTS,
        ],
    },
    Role {
        name: "disruption-controller",
        rules: &[
            "read | apps, extensions | deployments, replicasets",
            "read | apps | statefulsets",
            "read | core | replicationcontrollers",
            "read | policy | poddisruptionbudgets",
            "update | policy | poddisruptionbudgets/status",
            "patch, update | core | pods/status",
            "get | * | */scale",
            EVENTS,
        ],
    },
    Role {
        name: "endpoint-controller",
        rules: &[
            "read | core | pods, services",
            "create, delete, read, update | core | endpoints",
            "create | core | endpoints/restricted",
            EVENTS,
        ],
    },
    Role {
        name: "endpointslice-controller",
        rules: &[
            "read | core | nodes, pods, services",
            "update | core | services/finalizers",
            "create, delete, read, update | discovery.k8s.io | endpointslices",
            "create | discovery.k8s.io | endpointslices/restricted",
            EVENTS,
        ],
    },
    Role {
        name: "endpointslicemirroring-controller",
        rules: &[
            "read | core | endpoints, services",
            "update | core | endpoints/finalizers, services/finalizers",
            "create, delete, read, update | discovery.k8s.io | endpointslices",
            "create | discovery.k8s.io | endpointslices/restricted",
            EVENTS,
        ],
    },
    Role {
        name: "ephemeral-volume-controller",
        rules: &[
            "read | core | pods",
            "update | core | pods/finalizers",
            "create, read | core | persistentvolumeclaims",
            EVENTS,
        ],
    },
    Role {
        name: "expand-controller",
        rules: &[
            "patch, read, update | core | persistentvolumes",
            "patch, update | core | persistentvolumeclaims/status",
            "read | core | persistentvolumeclaims",
            EVENTS,
        ],
    },
    Role { name: "generic-garbage-collector", rules: &["delete, patch, read, update | * | *", EVENTS] },
    Role {
        name: "horizontal-pod-autoscaler",
        rules: &[
            "read | autoscaling | horizontalpodautoscalers",
            "update | autoscaling | horizontalpodautoscalers/status",
            "get, update | * | */scale",
            "list, watch | core | pods",
            "list, watch | metrics.k8s.io | pods",
            "read | custom.metrics.k8s.io, external.metrics.k8s.io | *",
            EVENTS,
        ],
    },
    Role {
        name: "job-controller",
        rules: &[
            "patch, read, update | batch | jobs",
            "update | batch | jobs/finalizers, jobs/status",
            "create, delete, list, patch, watch | core | pods",
            EVENTS,
        ],
    },
    Role {
        name: "legacy-service-account-token-cleaner",
        rules: &[
            "get | core | configmaps | kube-apiserver-legacy-service-account-token-tracking",
            "delete, patch | core | secrets",
        ],
    },
    // Not a role of upstream's: who gives Services of type LoadBalancer their addresses.
    Role {
        name: "load-balancer-controller",
        rules: &[
            "read | core | services",
            "patch | core | services/status",
            "create, delete, read | networking.k8s.io | ipaddresses",
            EVENTS,
        ],
    },
    Role {
        name: "namespace-controller",
        rules: &[
            "delete, read | core | namespaces",
            "update | core | namespaces/finalize, namespaces/status",
            "delete, deletecollection, read | * | *",
        ],
    },
    Role {
        name: "node-controller",
        rules: &[
            "delete, patch, read, update | core | nodes",
            "patch, update | core | nodes/status",
            "patch, update | core | pods/status",
            "delete, read | core | pods",
            "read | coordination.k8s.io | leases",
            EVENTS,
        ],
    },
    Role {
        name: "persistent-volume-binder",
        rules: &[
            "create, delete, read, update | core | persistentvolumes",
            "update | core | persistentvolumeclaims/status, persistentvolumes/status",
            "read, update | core | persistentvolumeclaims",
            "create, delete, read | core | pods",
            "read | storage.k8s.io | storageclasses",
            "list, watch | core | nodes",
            EVENTS,
            "watch | core | events",
        ],
    },
    Role {
        name: "pod-garbage-collector",
        rules: &["delete, list, watch | core | pods", "read | core | nodes", "patch | core | pods/status"],
    },
    Role {
        name: "pv-protection-controller",
        rules: &["patch, read, update | core | persistentvolumes", EVENTS],
    },
    Role {
        name: "pvc-protection-controller",
        rules: &[
            "patch, read, update | core | persistentvolumeclaims",
            "update | core | persistentvolumeclaims/status",
            "read | core | pods",
            EVENTS,
        ],
    },
    Role {
        name: "replicaset-controller",
        rules: &[
            "read, update | apps, extensions | replicasets",
            "update | apps, extensions | replicasets/finalizers, replicasets/status",
            "create, delete, list, patch, watch | core | pods",
            EVENTS,
        ],
    },
    Role {
        name: "replication-controller",
        rules: &[
            "read, update | core | replicationcontrollers",
            "update | core | replicationcontrollers/finalizers, replicationcontrollers/status",
            "create, delete, list, patch, watch | core | pods",
            EVENTS,
        ],
    },
    Role {
        name: "resource-claim-controller",
        rules: &[
            "read | core | pods",
            "update | core | pods/finalizers",
            "patch, update | core | pods/status",
            "create, delete, read | resource.k8s.io | resourceclaims",
            "patch, update | resource.k8s.io | resourceclaims, resourceclaims/binding, resourceclaims/status",
            EVENTS,
        ],
    },
    Role {
        name: "resourcequota-controller",
        rules: &["list, watch | * | *", "update | core | resourcequotas/status", EVENTS],
    },
    Role {
        name: "route-controller",
        rules: &["list, watch | core | nodes", "patch | core | nodes/status", EVENTS],
    },
    Role { name: "root-ca-cert-publisher", rules: &["create, update | core | configmaps", EVENTS] },
    Role { name: "service-account-controller", rules: &["create | core | serviceaccounts", EVENTS] },
    Role {
        name: "selinux-warning-controller",
        rules: &[
            "read | core | persistentvolumeclaims, persistentvolumes, pods",
            "read | storage.k8s.io | csidrivers",
            EVENTS,
        ],
    },
    Role {
        name: "service-cidrs-controller",
        rules: &[
            "patch, read, update | networking.k8s.io | servicecidrs",
            "patch, update | networking.k8s.io | servicecidrs/finalizers, servicecidrs/status",
            "read | networking.k8s.io | ipaddresses",
            EVENTS,
        ],
    },
    Role {
        name: "service-controller",
        rules: &[
            "read | core | services",
            "patch, update | core | services/status",
            "list, watch | core | nodes",
            EVENTS,
        ],
    },
    Role {
        name: "statefulset-controller",
        rules: &[
            "list, watch | core | pods",
            "read | apps | statefulsets",
            "update | apps | statefulsets/finalizers, statefulsets/status",
            "create, delete, get, patch, update | core | pods",
            "create, delete, patch, read, update | apps | controllerrevisions",
            "create, delete, read, update | core | persistentvolumeclaims",
            "update | core | pods/finalizers",
            EVENTS,
        ],
    },
    Role { name: "ttl-after-finished-controller", rules: &["delete, read | batch | jobs", EVENTS] },
    Role {
        name: "validatingadmissionpolicy-status-controller",
        rules: &[
            "read | admissionregistration.k8s.io | validatingadmissionpolicies",
            "get, patch, update | admissionregistration.k8s.io | validatingadmissionpolicies/status",
            "read | apiextensions.k8s.io | customresourcedefinitions",
            EVENTS,
        ],
    },
    Role {
        name: "volumeattributesclass-protection-controller",
        rules: &[
            "read | core | persistentvolumeclaims, persistentvolumes",
            "read, update | storage.k8s.io | volumeattributesclasses",
            EVENTS,
        ],
    },
    Role { name: "ttl-controller", rules: &["list, patch, update, watch | core | nodes", EVENTS] },
];
