//! Kinds whose rules are few: their columns and defaults as table rows, and the handful with a line of validation.

use api::field::FieldError;
use serde_json::Value;

use super::{
    Column, Context, Strategy, admission_policy, api_service,
    fields::*,
    rules::Errors,
    table::{AGE, NAME, NAME_AND_AGE, NAME_AND_CREATED, NONE, UNSET, number, or},
    webhooks::{self, default_match},
};

/// A kind that is data only.
struct Plain {
    columns: &'static [Column],
    default: fn(&mut Value),
    validate: fn(&Value, Option<&Value>) -> Vec<FieldError>,
    generation: bool,
    unconditional_update: bool,
    create_on_update: bool,
    path_segment_name: bool,
}

impl Strategy for Plain {
    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        (self.validate)(object, None)
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource.is_empty() { (self.validate)(new, Some(old)) } else { Vec::new() }
    }

    fn required_by_schema(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        self.generation
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn columns(&self) -> &'static [Column] {
        self.columns
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        if self.path_segment_name {
            api::names::path_segment(name, is_prefix)
        } else {
            api::names::dns1123_subdomain(name, is_prefix)
        }
    }
}

impl Plain {
    const fn new(columns: &'static [Column]) -> Self {
        Self {
            columns,
            default: |_| {},
            validate: |_, _| Vec::new(),
            generation: false,
            unconditional_update: true,
            create_on_update: false,
            path_segment_name: false,
        }
    }

    const fn default(mut self, default: fn(&mut Value)) -> Self {
        self.default = default;
        self
    }

    const fn validate(mut self, validate: fn(&Value, Option<&Value>) -> Vec<FieldError>) -> Self {
        self.validate = validate;
        self
    }

    const fn with_generation(mut self) -> Self {
        self.generation = true;
        self
    }

    const fn needs_resource_version(mut self) -> Self {
        self.unconditional_update = false;
        self
    }

    const fn create_on_update(mut self) -> Self {
        self.create_on_update = true;
        self
    }
}

/// The row of a kind; one of the two generic rows where there is none.
pub(super) fn strategy(group: &str, plural: &str) -> &'static dyn Strategy {
    match (group, plural) {
        ("", "serviceaccounts") => &SERVICE_ACCOUNTS,
        ("", "componentstatuses") => &COMPONENT_STATUSES,
        ("coordination.k8s.io", "leases") => &LEASES,
        ("scheduling.k8s.io", "priorityclasses") => &PRIORITY_CLASSES,
        ("node.k8s.io", "runtimeclasses") => &RUNTIME_CLASSES,
        ("networking.k8s.io", "ingressclasses") => &INGRESS_CLASSES,
        ("storage.k8s.io", "csinodes") => &CSI_NODES,
        ("storage.k8s.io", "csistoragecapacities") => &CSI_STORAGE_CAPACITIES,
        ("storage.k8s.io", "volumeattachments") => &VOLUME_ATTACHMENTS,
        ("storage.k8s.io", "volumeattributesclasses") => &VOLUME_ATTRIBUTES_CLASSES,
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations") => &webhooks::MUTATING,
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations") => &webhooks::VALIDATING,
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => &VALIDATING_POLICIES,
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies") => &MUTATING_POLICIES,
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings") => &VALIDATING_POLICY_BINDINGS,
        ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings") => &MUTATING_POLICY_BINDINGS,
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => &FLOW_SCHEMAS,
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => &PRIORITY_LEVELS,
        ("apiregistration.k8s.io", "apiservices") => &api_service::ApiServices,
        ("resource.k8s.io", "deviceclasses") => &DEVICE_CLASSES,
        ("resource.k8s.io", "resourceclaims") => &RESOURCE_CLAIMS,
        ("resource.k8s.io", "resourceclaimtemplates") => &CUSTOM,
        ("resource.k8s.io", "resourceslices") => &RESOURCE_SLICES,
        (group, _) if group.is_empty() || group.ends_with(".k8s.io") || !group.contains('.') => &BUILT_IN,
        _ => &CUSTOM,
    }
}

static BUILT_IN: Plain = Plain::new(NAME_AND_CREATED);
static CUSTOM: Plain = Plain::new(NAME_AND_AGE).with_generation().needs_resource_version();

static SERVICE_ACCOUNTS: Plain = Plain::new(NAME_AND_AGE);

static COMPONENT_STATUSES: Plain = Plain::new(&[
    NAME,
    Column::new("Status", "string", |o, _| match healthy(o) {
        Value::Null => "Unknown".into(),
        condition if text(condition, "/status") == "True" => "Healthy".into(),
        _ => "Unhealthy".into(),
    }),
    Column::new("Message", "string", |o, _| text(healthy(o), "/message").into()),
    Column::new("Error", "string", |o, _| text(healthy(o), "/error").into()),
]);

fn healthy(status: &Value) -> &Value {
    let conditions = items(status, "/conditions");
    conditions.iter().find(|c| text(c, "/type") == "Healthy").unwrap_or(&Value::Null)
}

static LEASES: Plain =
    Plain::new(&[NAME, Column::new("Holder", "string", |o, _| text(o, "/spec/holderIdentity").into()), AGE])
        .validate(|new, _| {
            let mut errors = Errors::default();
            if let Some(seconds) =
                at(new, "/spec/leaseDurationSeconds").as_i64().filter(|seconds| *seconds <= 0)
            {
                errors.invalid("spec.leaseDurationSeconds", &seconds.into(), "must be greater than 0");
            }
            errors.not_negative("spec.leaseTransitions", at(new, "/spec/leaseTransitions"));
            errors.into_vec()
        })
        .needs_resource_version()
        .create_on_update();

static PRIORITY_CLASSES: Plain = Plain::new(&[
    NAME,
    Column::new("Value", "integer", |o, _| number(o, "/value")),
    Column::new("Global-Default", "boolean", |o, _| flag(o, "/globalDefault").into()),
    AGE,
    Column::new("PreemptionPolicy", "string", |o, _| text(o, "/preemptionPolicy").into()).wide(),
])
.default(|object| set_default(object, "preemptionPolicy", "PreemptLowerPriority"))
.validate(priority_class)
.with_generation();

/// Values above this are the system's own.
pub(crate) const USER_PRIORITY_MAX: i64 = 1_000_000_000;

fn priority_class(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if let Some(old) = old {
        for key in ["value", "preemptionPolicy"] {
            let pointer = format!("/{key}");
            if !same(at(new, &pointer), at(old, &pointer)) {
                errors.forbidden(key, "may not be changed in an update.");
            }
        }
        return errors.into_vec();
    }
    let (name, value) = (text(new, "/metadata/name"), int(new, "/value"));
    match name {
        "system-cluster-critical" | "system-node-critical" => {}
        name if name.starts_with("system-") => errors.forbidden(
            "metadata.name",
            "priority class names with 'system-' prefix are reserved for system use only",
        ),
        _ if value > USER_PRIORITY_MAX => {
            let detail = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
            errors.forbidden("value", detail);
        }
        _ => {}
    }
    let policies = ["Never", "PreemptLowerPriority"];
    errors.optional_one_of("preemptionPolicy", at(new, "/preemptionPolicy"), &policies);
    errors.into_vec()
}

static RUNTIME_CLASSES: Plain =
    Plain::new(&[NAME, Column::new("Handler", "string", |o, _| text(o, "/handler").into()), AGE])
        .validate(|new, old| {
            let mut errors = Errors::default();
            errors.dns1123_label("handler", at(new, "/handler"));
            if let Some(old) = old {
                errors.immutable("handler", at(new, "/handler"), at(old, "/handler"));
            }
            errors.into_vec()
        })
        .needs_resource_version()
        .create_on_update();

static INGRESS_CLASSES: Plain = Plain::new(&[
    Column { cell: |o, _| ingress_class_name(o).into(), ..NAME },
    Column::new("Controller", "string", |o, _| text(o, "/spec/controller").into()),
    Column::new("Parameters", "string", |o, _| ingress_class_parameters(o).into()),
    AGE,
])
.default(|object| {
    if let Some(parameters) = existing(child(object, "spec"), "parameters") {
        set_default(parameters, "scope", "Cluster");
    }
})
.validate(|new, old| {
    let mut errors = Errors::default();
    if text(new, "/spec/controller").is_empty() {
        errors.required("spec.controller", "");
    }
    if let Some(old) = old {
        errors.immutable("spec.controller", at(new, "/spec/controller"), at(old, "/spec/controller"));
    }
    errors.into_vec()
})
.with_generation();

fn ingress_class_name(class: &Value) -> String {
    let name = text(class, "/metadata/name");
    let mark = entries(class, "/metadata/annotations").get("ingressclass.kubernetes.io/is-default-class");
    if mark.is_some_and(|value| value == "true") { format!("{name} (default)") } else { name.to_owned() }
}

fn ingress_class_parameters(class: &Value) -> String {
    let parameters = at(class, "/spec/parameters");
    match (parameters.is_null(), text(parameters, "/apiGroup")) {
        (true, _) => NONE.to_owned(),
        (false, "") => format!("{}/{}", text(parameters, "/kind"), text(parameters, "/name")),
        (false, group) => format!("{}.{group}/{}", text(parameters, "/kind"), text(parameters, "/name")),
    }
}

static CSI_NODES: Plain = Plain::new(&[
    NAME,
    Column::new("Drivers", "integer", |o, _| items(o, "/spec/drivers").len().into()),
    AGE,
])
.needs_resource_version();

static CSI_STORAGE_CAPACITIES: Plain = Plain::new(&[
    NAME,
    Column::new("StorageClassName", "string", |o, _| text(o, "/storageClassName").into()),
    Column::new("Capacity", "string", |o, _| or(text(o, "/capacity"), UNSET).into()),
])
.needs_resource_version();

static VOLUME_ATTACHMENTS: Plain = Plain::new(&[
    NAME,
    Column::new("Attacher", "string", |o, _| text(o, "/spec/attacher").into()),
    Column::new("PV", "string", |o, _| text(o, "/spec/source/persistentVolumeName").into()),
    Column::new("Node", "string", |o, _| text(o, "/spec/nodeName").into()),
    Column::new("Attached", "boolean", |o, _| flag(o, "/status/attached").into()),
    AGE,
])
.validate(|new, old| {
    let mut errors = Errors::default();
    for key in ["attacher", "nodeName"] {
        if text(new, &format!("/spec/{key}")).is_empty() {
            errors.required(format!("spec.{key}"), "");
        }
    }
    if let Some(old) = old
        && !same(at(new, "/spec"), at(old, "/spec"))
    {
        errors.invalid("spec", at(new, "/spec"), "field is immutable");
    }
    errors.into_vec()
})
.needs_resource_version();

static VOLUME_ATTRIBUTES_CLASSES: Plain =
    Plain::new(&[NAME, Column::new("DriverName", "string", |o, _| text(o, "/driverName").into()), AGE]);

fn default_policy(policy: &mut Value) {
    let spec = child(policy, "spec");
    set_default(spec, "failurePolicy", "Fail");
    for key in ["matchConstraints", "matchResources"] {
        if let Some(resources) = existing(spec, key) {
            default_match(resources);
            for rules in ["resourceRules", "excludeResourceRules"] {
                each(resources, rules).for_each(|rule| set_default(rule, "scope", "*"));
            }
        }
    }
}

const PARAM_KIND: Column = Column::new("ParamKind", "string", |o, _| match at(o, "/spec/paramKind") {
    Value::Null => UNSET.into(),
    kind => format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")).into(),
});

static VALIDATING_POLICIES: Plain = Plain::new(&[
    NAME,
    Column::new("Validations", "integer", |o, _| items(o, "/spec/validations").len().into()),
    PARAM_KIND,
    AGE,
])
.default(default_policy)
.validate(admission_policy::validating_policy)
.with_generation()
.needs_resource_version();
static MUTATING_POLICIES: Plain = Plain::new(&[
    NAME,
    Column::new("Mutations", "integer", |o, _| items(o, "/spec/mutations").len().into()),
    PARAM_KIND,
    AGE,
])
.default(default_policy)
.validate(admission_policy::mutating_policy)
.with_generation()
.needs_resource_version();
static VALIDATING_POLICY_BINDINGS: Plain = Plain::new(BINDING_COLUMNS)
    .default(default_policy_binding)
    .validate(admission_policy::validating_binding)
    .with_generation()
    .needs_resource_version();
static MUTATING_POLICY_BINDINGS: Plain = Plain::new(BINDING_COLUMNS)
    .default(default_policy_binding)
    .validate(admission_policy::mutating_binding)
    .with_generation()
    .needs_resource_version();

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    Column::new("PolicyName", "string", |o, _| text(o, "/spec/policyName").into()),
    Column::new("ParamRef", "string", |o, _| match at(o, "/spec/paramRef") {
        Value::Null => UNSET.into(),
        reference => match (text(reference, "/name"), text(reference, "/namespace")) {
            ("", _) => "*".into(),
            (name, "") => name.into(),
            (name, namespace) => format!("{namespace}/{name}").into(),
        },
    }),
    AGE,
];

fn default_policy_binding(object: &mut Value) {
    if let Some(resources) = existing(child(object, "spec"), "matchResources") {
        default_match(resources);
        for rules in ["resourceRules", "excludeResourceRules"] {
            each(resources, rules).for_each(|rule| set_default(rule, "scope", "*"));
        }
    }
}

static FLOW_SCHEMAS: Plain = Plain::new(&[
    NAME,
    Column::new("PriorityLevel", "string", |o, _| text(o, "/spec/priorityLevelConfiguration/name").into()),
    Column::new("MatchingPrecedence", "string", |o, _| number(o, "/spec/matchingPrecedence")),
    Column::new("DistinguisherMethod", "string", |o, _| {
        or(text(o, "/spec/distinguisherMethod/type"), NONE).into()
    }),
    AGE,
    Column::new("MissingPL", "string", |o, _| {
        let conditions = items(o, "/status/conditions");
        conditions.iter().find(|c| text(c, "/type") == "Dangling").map_or("?", |c| text(c, "/status")).into()
    }),
])
.default(|object| set_if_zero(child(object, "spec"), "matchingPrecedence", 1000))
.validate(|new, _| super::flow_control::schema(new))
.with_generation();

static PRIORITY_LEVELS: Plain = Plain::new(&[
    NAME,
    Column::new("Type", "string", |o, _| text(o, "/spec/type").into()),
    Column::new("NominalConcurrencyShares", "string", |o, _| {
        or_none(o, "/spec/limited/nominalConcurrencyShares")
    }),
    Column::new("Queues", "string", |o, _| or_none(o, "/spec/limited/limitResponse/queuing/queues")),
    Column::new("HandSize", "string", |o, _| or_none(o, "/spec/limited/limitResponse/queuing/handSize")),
    Column::new("QueueLengthLimit", "string", |o, _| {
        or_none(o, "/spec/limited/limitResponse/queuing/queueLengthLimit")
    }),
    AGE,
])
.default(|object| {
    let spec = child(object, "spec");
    if let Some(exempt) = existing(spec, "exempt") {
        set_default(exempt, "nominalConcurrencyShares", 0);
        set_default(exempt, "lendablePercent", 0);
    }
    if let Some(limited) = existing(spec, "limited") {
        set_default(limited, "nominalConcurrencyShares", 30);
        set_default(limited, "lendablePercent", 0);
        if let Some(queuing) =
            existing(limited, "limitResponse").and_then(|response| existing(response, "queuing"))
        {
            set_if_zero(queuing, "handSize", 8);
            set_if_zero(queuing, "queues", 64);
            set_if_zero(queuing, "queueLengthLimit", 50);
        }
    }
})
.validate(|new, _| super::flow_control::level(new))
.with_generation();

fn or_none(object: &Value, pointer: &str) -> Value {
    match at(object, pointer) {
        Value::Null => NONE.into(),
        value => value.clone(),
    }
}

static DEVICE_CLASSES: Plain = Plain::new(NAME_AND_AGE).with_generation();
static RESOURCE_CLAIMS: Plain =
    Plain::new(&[NAME, Column::new("State", "string", |o, _| claim_state(o).into()), AGE]);

fn claim_state(claim: &Value) -> String {
    let (deleted, allocated) =
        (present(claim, "/metadata/deletionTimestamp"), present(claim, "/status/allocation"));
    let reserved = allocated && !items(claim, "/status/reservedFor").is_empty();
    let states = [
        (deleted, "deleted"),
        (!allocated && !deleted, "pending"),
        (allocated, "allocated"),
        (reserved, "reserved"),
    ];
    states.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word).collect::<Vec<_>>().join(",")
}

static RESOURCE_SLICES: Plain = Plain::new(&[
    NAME,
    Column::new("Node", "string", |o, _| text(o, "/spec/nodeName").into()),
    Column::new("Driver", "string", |o, _| text(o, "/spec/driver").into()),
    Column::new("Pool", "string", |o, _| text(o, "/spec/pool/name").into()),
    AGE,
])
.with_generation();
