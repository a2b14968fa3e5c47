//! Persistent volumes, claims, storage classes and CSI drivers.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    keep_all_but_status, keep_status,
    rules::Errors,
    table::{AGE, NAME, NONE, UNSET, or},
};

pub(super) struct PersistentVolumes;
pub(super) struct PersistentVolumeClaims;
pub(super) struct StorageClasses;
pub(super) struct CsiDrivers;

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn terminating_or_phase(object: &Value) -> &str {
    if present(object, "/metadata/deletionTimestamp") { "Terminating" } else { text(object, "/status/phase") }
}

/// `RWO,RWX`, in upstream's order.
fn access_modes(modes: &[Value]) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let shown = short.iter().filter(|(mode, _)| modes.iter().any(|m| m == mode)).map(|(_, short)| *short);
    shown.collect::<Vec<_>>().join(",")
}

fn amount(value: &Value) -> String {
    quantity(value).map_or_else(|| "0".to_owned(), |quantity| quantity.to_string())
}

/// The class, by the old annotation or the field.
fn class(object: &Value) -> &str {
    let annotated = entries(object, "/metadata/annotations").get("volume.beta.kubernetes.io/storage-class");
    annotated.and_then(Value::as_str).unwrap_or_else(|| text(object, "/spec/storageClassName"))
}

const VOLUME_MODE: Column =
    Column::new("VolumeMode", "string", |o, _| or(text(o, "/spec/volumeMode"), UNSET).into()).wide();
const ATTRIBUTES_CLASS: Column = Column::new("VolumeAttributesClass", "string", |o, _| {
    or(text(o, "/spec/volumeAttributesClassName"), UNSET).into()
});

const VOLUME_COLUMNS: &[Column] = &[
    NAME,
    Column::new("Capacity", "string", |o, _| amount(at(o, "/spec/capacity/storage")).into()),
    Column::new("Access Modes", "string", |o, _| access_modes(items(o, "/spec/accessModes")).into()),
    Column::new("Reclaim Policy", "string", |o, _| text(o, "/spec/persistentVolumeReclaimPolicy").into()),
    Column::new("Status", "string", |o, _| terminating_or_phase(o).into()),
    Column::new("Claim", "string", |o, _| match at(o, "/spec/claimRef") {
        Value::Null => "".into(),
        claim => format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")).into(),
    }),
    Column::new("StorageClass", "string", |o, _| class(o).into()),
    ATTRIBUTES_CLASS,
    Column::new("Reason", "string", |o, _| text(o, "/status/reason").into()),
    AGE,
    VOLUME_MODE,
];

impl Strategy for PersistentVolumes {
    fn default(&self, object: &mut Value) {
        set_if_zero(child(object, "status"), "phase", "Pending");
        let spec = child(object, "spec");
        set_if_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
        set_default(spec, "volumeMode", "Filesystem");
        if let Some(host_path) = existing(spec, "hostPath") {
            set_default(host_path, "type", "");
        }
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({ "phase": "Pending", "lastPhaseTransitionTime": context.now }));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        if context.subresource != "status" {
            return keep_status(new, old);
        }
        keep_all_but_status(new, old);
        if text(new, "/status/phase") != text(old, "/status/phase") {
            set(child(new, "status"), "lastPhaseTransitionTime", context.now);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        modes(&mut errors, spec);
        let capacity = entries(spec, "/capacity");
        if capacity.is_empty() {
            errors.required("spec.capacity", "");
        } else if !capacity.contains_key("storage") || capacity.len() > 1 {
            errors.not_supported("spec.capacity", at(spec, "/capacity"), &["storage"]);
        }
        for (resource, value) in capacity {
            let path = format!("spec.capacity[{resource}]");
            if quantity(value).is_none_or(|quantity| quantity.milli() <= 0) {
                errors.invalid(path, value, "must be greater than zero");
            }
        }
        let policies = ["Delete", "Recycle", "Retain"];
        errors.one_of(
            "spec.persistentVolumeReclaimPolicy",
            at(spec, "/persistentVolumeReclaimPolicy"),
            &policies,
        );
        match sources(spec).len() {
            0 => errors.required("spec", "must specify a volume type"),
            1 => {}
            _ => {
                for extra in sources(spec).iter().skip(1) {
                    errors.forbidden(format!("spec.{extra}"), "may not specify more than 1 volume type");
                }
            }
        }
        if present(spec, "/hostPath") && text(spec, "/hostPath/path").is_empty() {
            errors.required("spec.hostPath.path", "");
        }
        if present(spec, "/local") && !present(spec, "/nodeAffinity") {
            errors.required("spec.nodeAffinity", "Local volume requires node affinity");
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return Vec::new();
        }
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        let source = |volume: &Value| {
            let spec = at(volume, "/spec");
            sources(spec)
                .into_iter()
                .map(|kind| (kind.to_owned(), at(spec, &format!("/{kind}")).clone()))
                .collect()
        };
        let (now, before): (Value, Value) = (Value::Object(source(new)), Value::Object(source(old)));
        if !same(&now, &before) {
            let detail = "spec.persistentvolumesource is immutable after creation";
            errors.forbidden("spec.persistentvolumesource", detail);
        }
        errors.immutable("volumeMode", at(new, "/spec/volumeMode"), at(old, "/spec/volumeMode"));
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        VOLUME_COLUMNS
    }
}

/// Which volume sources a PersistentVolume's spec has.
fn sources(spec: &Value) -> Vec<&str> {
    const NOT_SOURCES: [&str; 9] = [
        "capacity",
        "accessModes",
        "claimRef",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "mountOptions",
        "volumeMode",
        "nodeAffinity",
        "volumeAttributesClassName",
    ];
    let given = entries(spec, "").iter().filter(|(_, value)| !value.is_null());
    given.map(|(key, _)| key.as_str()).filter(|key| !NOT_SOURCES.contains(key)).collect()
}

fn modes(errors: &mut Errors, spec: &Value) {
    let modes = items(spec, "/accessModes");
    if modes.is_empty() {
        errors.required("spec.accessModes", "at least 1 access mode is required");
    }
    for mode in modes.iter().filter(|mode| !ACCESS_MODES.iter().any(|known| *mode == known)) {
        errors.not_supported("spec.accessModes", mode, &ACCESS_MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden("spec.accessModes", "may not use ReadWriteOncePod with other access modes");
    }
    errors.optional_one_of("spec.volumeMode", at(spec, "/volumeMode"), &["Block", "Filesystem"]);
}

/// Defaults of a claim, also of the claim templates of a StatefulSet.
pub(super) fn default_claim(claim: &mut Value) {
    set_if_zero(child(claim, "status"), "phase", "Pending");
    set_default(child(claim, "spec"), "volumeMode", "Filesystem");
}

const CLAIM_COLUMNS: &[Column] = &[
    NAME,
    Column::new("Status", "string", |o, _| terminating_or_phase(o).into()),
    Column::new("Volume", "string", |o, _| text(o, "/spec/volumeName").into()),
    Column::new("Capacity", "string", |o, _| match text(o, "/spec/volumeName") {
        "" => "".into(),
        _ => amount(at(o, "/status/capacity/storage")).into(),
    }),
    Column::new("Access Modes", "string", |o, _| match text(o, "/spec/volumeName") {
        "" => "".into(),
        _ => access_modes(items(o, "/status/accessModes")).into(),
    }),
    Column::new("StorageClass", "string", |o, _| class(o).into()),
    ATTRIBUTES_CLASS,
    AGE,
    VOLUME_MODE,
];

impl Strategy for PersistentVolumeClaims {
    fn default(&self, object: &mut Value) {
        default_claim(object);
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({ "phase": "Pending" }));
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        errors.label_selector("spec.selector", at(spec, "/selector"));
        modes(&mut errors, spec);
        let storage = at(spec, "/resources/requests/storage");
        if storage.is_null() {
            errors.required("spec.resources[storage]", "");
        } else if quantity(storage).is_none_or(|quantity| quantity.milli() <= 0) {
            errors.invalid("spec.resources[storage]", storage, "must be greater than zero");
        }
        for key in ["storageClassName", "volumeAttributesClassName"] {
            let value = at(spec, &format!("/{key}"));
            if !is_zero(value) {
                errors.dns1123_subdomain(&format!("spec.{key}"), value);
            }
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if context.subresource == "status" {
            return errors.into_vec();
        }
        errors.extend(self.validate(context, new));
        let (mut spec, before) = (at(new, "/spec").clone(), at(old, "/spec"));
        if text(before, "/volumeName").is_empty() {
            copy(&mut spec, before, "volumeName");
        }
        if !present(before, "/storageClassName") {
            copy(&mut spec, before, "storageClassName");
        }
        copy(&mut spec, before, "volumeAttributesClassName");
        if text(old, "/status/phase") == "Bound" {
            copy(&mut spec, before, "resources");
        }
        if !same(&spec, before) {
            let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName \
                          for bound claims";
            errors.forbidden("spec", detail);
        }
        let size =
            |claim: &Value, pointer: &str| quantity(at(claim, pointer)).map(|quantity| quantity.milli());
        let pointer = "/spec/resources/requests/storage";
        if size(new, pointer) < size(old, pointer) {
            errors.forbidden("spec.resources.requests.storage", "field can not be less than previous value");
        }
        errors.immutable("volumeMode", at(new, "/spec/volumeMode"), at(old, "/spec/volumeMode"));
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        CLAIM_COLUMNS
    }
}

fn name_with_default_mark(object: &Value, annotations: &[&str]) -> String {
    let own = entries(object, "/metadata/annotations");
    let is_default = annotations.iter().any(|key| own.get(*key).is_some_and(|value| value == "true"));
    let name = text(object, "/metadata/name");
    if is_default { format!("{name} (default)") } else { name.to_owned() }
}

pub(crate) const DEFAULT_CLASS_ANNOTATIONS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

impl Strategy for StorageClasses {
    fn default(&self, object: &mut Value) {
        set_default(object, "reclaimPolicy", "Delete");
        set_default(object, "volumeBindingMode", "Immediate");
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        match text(object, "/provisioner") {
            "" => errors.required("provisioner", ""),
            name => errors.label_name("provisioner", &name.to_lowercase()),
        }
        errors.optional_one_of("reclaimPolicy", at(object, "/reclaimPolicy"), &["Delete", "Retain"]);
        let modes = ["Immediate", "WaitForFirstConsumer"];
        errors.one_of("volumeBindingMode", at(object, "/volumeBindingMode"), &modes);
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for key in ["parameters", "provisioner", "reclaimPolicy"] {
            let pointer = format!("/{key}");
            if !same(at(new, &pointer), at(old, &pointer)) {
                errors.forbidden(key, format!("updates to {key} are forbidden."));
            }
        }
        errors.immutable("volumeBindingMode", at(new, "/volumeBindingMode"), at(old, "/volumeBindingMode"));
        errors.extend(self.validate(context, new));
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column { cell: |o, _| name_with_default_mark(o, &DEFAULT_CLASS_ANNOTATIONS).into(), ..NAME },
            Column::new("Provisioner", "string", |o, _| text(o, "/provisioner").into()),
            Column::new("ReclaimPolicy", "string", |o, _| or(text(o, "/reclaimPolicy"), "Delete").into()),
            Column::new("VolumeBindingMode", "string", |o, _| {
                or(text(o, "/volumeBindingMode"), "Immediate").into()
            }),
            Column::new("AllowVolumeExpansion", "string", |o, _| flag(o, "/allowVolumeExpansion").into()),
            AGE,
        ];
        COLUMNS
    }
}

impl Strategy for CsiDrivers {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        set_default(spec, "attachRequired", true);
        set_default(spec, "podInfoOnMount", false);
        set_default(spec, "storageCapacity", false);
        set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        set_if_zero(spec, "volumeLifecycleModes", json!(["Persistent"]));
        set_default(spec, "requiresRepublish", false);
        set_default(spec, "seLinuxMount", false);
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("AttachRequired", "boolean", |o, _| (at(o, "/spec/attachRequired") != false).into()),
            Column::new("PodInfoOnMount", "boolean", |o, _| flag(o, "/spec/podInfoOnMount").into()),
            Column::new("StorageCapacity", "boolean", |o, _| flag(o, "/spec/storageCapacity").into()),
            Column::new("TokenRequests", "string", |o, _| token_requests(o).into()),
            Column::new("RequiresRepublish", "boolean", |o, _| flag(o, "/spec/requiresRepublish").into()),
            Column::new("Modes", "string", |o, _| {
                let modes = items(o, "/spec/volumeLifecycleModes").iter().filter_map(Value::as_str);
                or(&modes.collect::<Vec<_>>().join(","), NONE).into()
            }),
            AGE,
        ];
        COLUMNS
    }
}

fn token_requests(driver: &Value) -> String {
    match at(driver, "/spec/tokenRequests") {
        Value::Null => UNSET.to_owned(),
        requests => items(requests, "").iter().map(|r| text(r, "/audience")).collect::<Vec<_>>().join(","),
    }
}
