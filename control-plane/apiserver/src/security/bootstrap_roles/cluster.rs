//! Roles for people, for the server's own parts and for nodes.

use super::{PUBLIC, Role, SYSTEM};

/// Name, label of the parts, label that it carries itself.
pub(super) const AGGREGATES: [(&str, &str, &str); 3] =
    [("admin", "admin", ""), ("edit", "edit", "admin"), ("view", "view", "edit")];

pub(super) const ROLES: &[Role] = &[
    Role { name: "cluster-admin", rules: &["* | * | *", "* | *"] },
    Role {
        name: "system:discovery",
        rules: &[
            "get | /api, /api/*, /apis, /apis/*, /healthz, /livez, /openapi, /openapi/*, /readyz, /version, /version/",
        ],
    },
    Role {
        name: "system:monitoring",
        rules: &[
            "get | /flagz, /healthz, /healthz/*, /livez, /livez/*, /metrics, /metrics/slis, /readyz, /readyz/*, /statusz",
            "get | core | nodes/metrics",
        ],
    },
    Role {
        name: "system:basic-user",
        rules: &[
            "create | authorization.k8s.io | selfsubjectaccessreviews, selfsubjectrulesreviews",
            "create | authentication.k8s.io | selfsubjectreviews",
        ],
    },
    Role {
        name: "system:public-info-viewer",
        rules: &["get | /healthz, /livez, /readyz, /version, /version/"],
    },
    Role {
        name: "system:aggregate-to-admin",
        rules: &[
            "create | authorization.k8s.io | localsubjectaccessreviews",
            "read, write | rbac.authorization.k8s.io | rolebindings, roles",
        ],
    },
    Role {
        name: "system:aggregate-to-edit",
        rules: &[
            "read | core | pods/attach, pods/exec, pods/portforward, pods/proxy, secrets, services/proxy",
            "impersonate | core | serviceaccounts",
            "write | core | pods, pods/attach, pods/exec, pods/portforward, pods/proxy",
            "create | core | pods/eviction",
            "write | core | configmaps, persistentvolumeclaims, replicationcontrollers, \
             replicationcontrollers/scale, secrets, serviceaccounts, services, services/proxy",
            "create | core | serviceaccounts/token",
            "write | core, events.k8s.io | events",
            "write | apps | daemonsets, deployments, deployments/rollback, deployments/scale, replicasets, \
             replicasets/scale, statefulsets, statefulsets/scale",
            "write | autoscaling | horizontalpodautoscalers",
            "write | batch | cronjobs, jobs",
            "write | policy | poddisruptionbudgets",
            "write | extensions | daemonsets, deployments, deployments/rollback, deployments/scale, ingresses, \
             networkpolicies, replicasets, replicasets/scale, replicationcontrollers/scale",
            "write | networking.k8s.io | ingresses, networkpolicies",
            "read, write | coordination.k8s.io | leases",
            "write | resource.k8s.io | resourceclaims, resourceclaimtemplates",
        ],
    },
    Role {
        name: "system:aggregate-to-view",
        rules: &[
            "read | core | configmaps, endpoints, persistentvolumeclaims, persistentvolumeclaims/status, pods, \
             replicationcontrollers, replicationcontrollers/scale, serviceaccounts, services, services/status",
            "read | core | bindings, limitranges, namespaces/status, pods/log, pods/status, \
             replicationcontrollers/status, resourcequotas, resourcequotas/status",
            "read | core | namespaces",
            "read | core, events.k8s.io | events",
            "read | discovery.k8s.io | endpointslices",
            "read | apps | controllerrevisions, daemonsets, daemonsets/status, deployments, deployments/scale, \
             deployments/status, replicasets, replicasets/scale, replicasets/status, statefulsets, \
             statefulsets/scale, statefulsets/status",
            "read | autoscaling | horizontalpodautoscalers, horizontalpodautoscalers/status",
            "read | batch | cronjobs, cronjobs/status, jobs, jobs/status",
            "read | policy | poddisruptionbudgets, poddisruptionbudgets/status",
            "read | extensions | daemonsets, daemonsets/status, deployments, deployments/scale, deployments/status, \
             ingresses, ingresses/status, networkpolicies, replicasets, replicasets/scale, replicasets/status, \
             replicationcontrollers/scale",
            "read | networking.k8s.io | ingresses, ingresses/status, networkpolicies",
            "read | resource.k8s.io | resourceclaims, resourceclaims/status, resourceclaimtemplates",
        ],
    },
    Role {
        name: "system:heapster",
        rules: &["read | core | events, namespaces, nodes, pods", "read | extensions | deployments"],
    },
    Role {
        name: "system:node",
        rules: &[
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | localsubjectaccessreviews, subjectaccessreviews",
            "read | core | services",
            "create, read | core | nodes",
            "patch, update | core | nodes/status",
            "patch, update | core | nodes",
            "event | core, events.k8s.io | events",
            "read | core | pods",
            "create, delete | core | pods",
            "patch, update | core | pods/status",
            "create | core | pods/eviction",
            "read | core | configmaps, secrets",
            "get | core | persistentvolumeclaims, persistentvolumes",
            "get | core | endpoints",
            "create, read | certificates.k8s.io | certificatesigningrequests",
            "create, delete, get, patch, update | coordination.k8s.io | leases",
            "get | storage.k8s.io | volumeattachments",
            "create | core | serviceaccounts/token",
            "get, patch, update | core | persistentvolumeclaims/status",
            "read | storage.k8s.io | csidrivers",
            "create, delete, get, patch, update | storage.k8s.io | csinodes",
            "read | node.k8s.io | runtimeclasses",
            "get | resource.k8s.io | resourceclaims",
            "deletecollection | resource.k8s.io | resourceslices",
            "get | core | serviceaccounts",
        ],
    },
    Role {
        name: "system:seaway-agent",
        rules: &[
            "read | core | namespaces, nodes, pods, services",
            "read | discovery.k8s.io | endpointslices",
            "read | networking.k8s.io | networkpolicies, servicecidrs",
            "read | policy.networking.k8s.io | *",
            "read | crd.projectcalico.org, projectcalico.org | *",
            "patch, update | projectcalico.org | caliconodestatuses/status",
            "event | core, events.k8s.io | events",
        ],
    },
    Role {
        name: "system:node-problem-detector",
        rules: &["get | core | nodes", "patch | core | nodes/status", "event | core, events.k8s.io | events"],
    },
    Role {
        name: "system:node-bootstrapper",
        rules: &["create, read | certificates.k8s.io | certificatesigningrequests"],
    },
    Role {
        name: "system:node-proxier",
        rules: &[
            "list, watch | core | endpoints, services",
            "read | core | nodes",
            "event | core, events.k8s.io | events",
            "list, watch | networking.k8s.io | servicecidrs",
            "list, watch | discovery.k8s.io | endpointslices",
        ],
    },
    Role {
        name: "system:auth-delegator",
        rules: &[
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
        ],
    },
    Role { name: "system:kube-aggregator", rules: &["read | core | endpoints, services"] },
    Role { name: "system:kube-dns", rules: &["list, watch | core | endpoints, services"] },
    Role {
        name: "system:kube-controller-manager",
        rules: &[
            "event | core, events.k8s.io | events",
            "create | coordination.k8s.io | leases",
            "get, update | coordination.k8s.io | leases | kube-controller-manager",
            "create | core | secrets, serviceaccounts",
            "delete | core | secrets",
            "get | core | configmaps, namespaces, secrets, serviceaccounts",
            "update | core | secrets, serviceaccounts",
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
            "list, watch | * | *",
            "create | core | serviceaccounts/token",
        ],
    },
    Role {
        name: "system:kube-scheduler",
        rules: &[
            "event | core, events.k8s.io | events",
            "create | coordination.k8s.io | leases",
            "get, list, update, watch | coordination.k8s.io | leases | kube-scheduler",
            "read, write | coordination.k8s.io | leasecandidates",
            "read | core | nodes",
            "delete, read | core | pods",
            "create | core | bindings, pods/binding",
            "patch, update | core | pods/status",
            "read | core | replicationcontrollers, services",
            "read | apps, extensions | replicasets",
            "read | apps | statefulsets",
            "read | policy | poddisruptionbudgets",
            "read | core | persistentvolumeclaims, persistentvolumes",
            "create | authentication.k8s.io | tokenreviews",
            "create | authorization.k8s.io | subjectaccessreviews",
            "read | storage.k8s.io | csinodes",
            "read | storage.k8s.io | volumeattachments",
            "read | core | namespaces",
            "read | storage.k8s.io | csidrivers",
            "read | storage.k8s.io | csistoragecapacities",
            "read | resource.k8s.io | deviceclasses, resourceslices",
            "patch, read, update | resource.k8s.io | resourceclaims, resourceclaims/status",
            "create, delete | resource.k8s.io | resourceclaims",
            "patch, update | resource.k8s.io | resourceclaims/binding",
            "update | core | pods/finalizers",
        ],
    },
    Role {
        name: "system:volume-scheduler",
        rules: &[
            "patch, read, update | core | persistentvolumes",
            "read | storage.k8s.io | storageclasses",
            "patch, read, update | core | persistentvolumeclaims",
        ],
    },
    Role {
        name: "system:persistent-volume-provisioner",
        rules: &[
            "create, delete, read | core | persistentvolumes",
            "read, update | core | persistentvolumeclaims",
            "read | storage.k8s.io | storageclasses",
            "watch | core | events",
            "event | core, events.k8s.io | events",
        ],
    },
    Role {
        name: "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        rules: &["create | certificates.k8s.io | certificatesigningrequests/nodeclient"],
    },
    Role {
        name: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        rules: &["create | certificates.k8s.io | certificatesigningrequests/selfnodeclient"],
    },
    Role {
        name: "system:certificates.k8s.io:legacy-unknown-approver",
        rules: &["approve | certificates.k8s.io | signers | kubernetes.io/legacy-unknown"],
    },
    Role {
        name: "system:certificates.k8s.io:kubelet-serving-approver",
        rules: &["approve | certificates.k8s.io | signers | kubernetes.io/kubelet-serving"],
    },
    Role {
        name: "system:certificates.k8s.io:kube-apiserver-client-approver",
        rules: &["approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client"],
    },
    Role {
        name: "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        rules: &["approve | certificates.k8s.io | signers | kubernetes.io/kube-apiserver-client-kubelet"],
    },
    Role {
        name: "system:service-account-issuer-discovery",
        rules: &[
            "get | /.well-known/openid-configuration, /.well-known/openid-configuration/, /openid/v1/jwks, \
             /openid/v1/jwks/",
        ],
    },
    Role {
        name: "system:kubelet-api-admin",
        rules: &[
            "read | core | nodes",
            "proxy | core | nodes",
            "* | core | nodes/log, nodes/metrics, nodes/proxy, nodes/stats",
            "* | core | nodes/configz, nodes/healthz, nodes/pods",
        ],
    },
];

/// Of ClusterRoles, under their own names.
pub(super) const BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["group system:masters"]),
    ("system:monitoring", &["group system:monitoring"]),
    ("system:discovery", &["group system:authenticated"]),
    ("system:basic-user", &["group system:authenticated"]),
    ("system:public-info-viewer", &["group system:authenticated", "group system:unauthenticated"]),
    ("system:node-proxier", &["user system:kube-proxy"]),
    ("system:kube-controller-manager", &["user system:kube-controller-manager"]),
    ("system:kube-dns", &["account kube-system/kube-dns"]),
    ("system:kube-scheduler", &["user system:kube-scheduler"]),
    ("system:volume-scheduler", &["user system:kube-scheduler"]),
    // Nodes have the Node authorizer; the binding is there for those who look for it.
    ("system:node", &[]),
    ("system:seaway-agent", &["group system:nodes"]),
    ("system:service-account-issuer-discovery", &["group system:serviceaccounts"]),
];

pub(super) const NAMESPACED: &[(&str, Role)] = &[
    (
        SYSTEM,
        Role {
            name: "extension-apiserver-authentication-reader",
            rules: &["read | core | configmaps | extension-apiserver-authentication"],
        },
    ),
    (
        SYSTEM,
        Role {
            name: "system::leader-locking-kube-controller-manager",
            rules: &["create, read, update | coordination.k8s.io | leases, leasecandidates"],
        },
    ),
    (
        SYSTEM,
        Role {
            name: "system::leader-locking-kube-scheduler",
            rules: &["create, read, update | coordination.k8s.io | leases, leasecandidates"],
        },
    ),
    (SYSTEM, Role { name: "system:controller:bootstrap-signer", rules: &["read | core | secrets"] }),
    (SYSTEM, Role { name: "system:controller:cloud-provider", rules: &["create, read | core | configmaps"] }),
    (
        SYSTEM,
        Role {
            name: "system:controller:token-cleaner",
            rules: &["delete, read | core | secrets", "event | core, events.k8s.io | events"],
        },
    ),
    (
        SYSTEM,
        Role {
            name: "system:controller:block-controller",
            rules: &["delete, read, update | core | configmaps"],
        },
    ),
    // Address blocks are ConfigMaps whose names follow from the pools, so no rule can name them.
    (
        SYSTEM,
        Role {
            name: "system:seaway-agent",
            rules: &[
                "create, delete, patch, read, update | core | configmaps",
                // Each agent serves cluster DNS on its node and says so in a slice of its own.
                "create, patch, update | discovery.k8s.io | endpointslices",
            ],
        },
    ),
    (
        PUBLIC,
        Role {
            name: "system:controller:bootstrap-signer",
            rules: &[
                "read | core | configmaps",
                "update | core | configmaps | cluster-info",
                "event | core, events.k8s.io | events",
            ],
        },
    ),
];

/// Namespace, name, role, subjects.
pub(super) const NAMESPACED_BINDINGS: &[(&str, &str, &str, &[&str])] = &[
    (
        SYSTEM,
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &["user system:kube-controller-manager", "user system:kube-scheduler"],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &["user system:kube-controller-manager", "account kube-system/kube-controller-manager"],
    ),
    (
        SYSTEM,
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &["user system:kube-scheduler", "account kube-system/kube-scheduler"],
    ),
    (
        SYSTEM,
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["account kube-system/bootstrap-signer"],
    ),
    (
        SYSTEM,
        "system:controller:cloud-provider",
        "system:controller:cloud-provider",
        &["account kube-system/cloud-provider"],
    ),
    (
        SYSTEM,
        "system:controller:token-cleaner",
        "system:controller:token-cleaner",
        &["account kube-system/token-cleaner"],
    ),
    (
        SYSTEM,
        "system:controller:block-controller",
        "system:controller:block-controller",
        &["account kube-system/block-controller"],
    ),
    (SYSTEM, "system:seaway-agent", "system:seaway-agent", &["group system:nodes"]),
    (
        PUBLIC,
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["account kube-system/bootstrap-signer"],
    ),
];
