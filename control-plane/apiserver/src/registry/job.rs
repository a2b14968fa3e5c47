//! Jobs: the generated selector, and what may change after creation.

use api::{field::FieldError, names};
use serde_json::{Value, json};

use super::{
    Column, Context, Propagation, Strategy,
    fields::*,
    pod_spec::{default_template, validate_template},
    rules::Errors,
    table::{AGE, CONTAINERS, IMAGES, NAME, SELECTOR, human_duration},
    workload::matches_template,
};

pub(super) struct Jobs;

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Status", "string", |o, _| status_word(o).into()),
    Column::new("Completions", "string", |o, _| completions(o).into()),
    Column::new("Duration", "string", |o, now| duration(o, now).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// Labels that tie the pods of a job to it; the short ones are older than label prefixes.
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        let labels = at(object, "/spec/template/metadata/labels").clone();
        if !is_zero(&labels) {
            set_if_zero(child(object, "metadata"), "labels", labels);
        }
        default_job_spec(child(object, "spec"));
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({}));
        if !flag(object, "/spec/manualSelector") {
            generate_selector(object);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if !flag(object, "/spec/manualSelector") {
            generated_labels(&mut errors, object);
        }
        errors.extend(validate_job_spec(at(object, "/spec"), "spec"));
        let selector = at(object, "/spec/selector");
        if selector.is_null() {
            errors.required("spec.selector", "");
        } else {
            errors.label_selector("spec.selector", selector);
            matches_template(&mut errors, object);
        }
        let completions = int(object, "/spec/completions");
        if text(object, "/spec/completionMode") == "Indexed" && completions > 0 {
            let hostname = format!("{}-{}", text(object, "/metadata/name"), completions - 1);
            if !names::dns1123_label(&hostname, false).is_empty() {
                let detail = format!("will not able to create pod with invalid DNS label: {hostname}");
                errors.invalid("metadata.name", at(object, "/metadata/name"), detail);
            }
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return status_update(new, old);
        }
        let mut errors = Errors::default();
        errors.extend(validate_job_spec(at(new, "/spec"), "spec"));
        for key in [
            "selector",
            "completionMode",
            "podFailurePolicy",
            "backoffLimitPerIndex",
            "managedBy",
            "successPolicy",
        ] {
            let pointer = format!("/spec/{key}");
            errors.immutable(format!("spec.{key}"), at(new, &pointer), at(old, &pointer));
        }
        let elastic = text(new, "/spec/completionMode") == "Indexed"
            && int(new, "/spec/completions") == int(new, "/spec/parallelism");
        if !elastic {
            errors.immutable("spec.completions", at(new, "/spec/completions"), at(old, "/spec/completions"));
        }
        template_update(&mut errors, new, old);
        errors.into_vec()
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn default_propagation(&self) -> Propagation {
        Propagation::Orphan
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.successful", int(object, "/status/succeeded").to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

/// Defaults of a job's spec, also inside a CronJob's template (there without what only a Job object gets).
pub(super) fn default_job_template_spec(spec: &mut Value) {
    if let Some(policy) = existing(spec, "podFailurePolicy") {
        for pattern in each(policy, "rules").flat_map(|rule| each(rule, "onPodConditions")) {
            set_if_zero(pattern, "status", "True");
        }
    }
    default_template(spec);
}

fn default_job_spec(spec: &mut Value) {
    if !present(spec, "/completions") && !present(spec, "/parallelism") {
        set(spec, "completions", 1);
    }
    set_default(spec, "parallelism", 1);
    let backoff = if present(spec, "/backoffLimitPerIndex") { i32::MAX } else { 6 };
    set_default(spec, "backoffLimit", backoff);
    set_default(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    let replacement = if present(spec, "/podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    set_default(spec, "podReplacementPolicy", replacement);
    set_default(spec, "manualSelector", false);
    default_job_template_spec(spec);
}

fn generate_selector(job: &mut Value) {
    let (name, uid) = (text(job, "/metadata/name").to_owned(), text(job, "/metadata/uid").to_owned());
    let spec = child(job, "spec");
    let labels = child(child(child(spec, "template"), "metadata"), "labels");
    for label in NAME_LABELS {
        set_default(labels, label, name.as_str());
    }
    for label in UID_LABELS {
        set_default(labels, label, uid.as_str());
    }
    set_default(child(child(spec, "selector"), "matchLabels"), UID_LABELS[1], uid);
    set(spec, "manualSelector", false);
}

fn generated_labels(errors: &mut Errors, job: &Value) {
    let labels = at(job, "/spec/template/metadata/labels");
    let expected = [(NAME_LABELS, "/metadata/name"), (UID_LABELS, "/metadata/uid")];
    for (label, pointer) in
        expected.into_iter().flat_map(|(pair, pointer)| pair.map(|label| (label, pointer)))
    {
        let (value, expected) = (labels.get(label), text(job, pointer));
        let path = format!("spec.template.metadata.labels[{label}]");
        match value.and_then(Value::as_str) {
            None => errors.required(path, &format!("must be '{expected}'")),
            Some(value) if value != expected => {
                errors.invalid(path, &value.into(), format!("must be '{expected}'"));
            }
            Some(_) => {}
        }
    }
}

/// What is wrong with a job's spec at `path`; the selector is checked by the caller.
pub(super) fn validate_job_spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        errors.not_negative(format!("{path}.{key}"), at(spec, &format!("/{key}")));
    }
    let indexed = text(spec, "/completionMode") == "Indexed";
    let modes = ["Indexed", "NonIndexed"];
    errors.optional_one_of(format!("{path}.completionMode"), at(spec, "/completionMode"), &modes);
    if indexed && !present(spec, "/completions") {
        errors.required(format!("{path}.completions"), "when completion mode is Indexed");
    }
    for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        let value = at(spec, &format!("/{key}"));
        if !indexed && !value.is_null() {
            errors.invalid(format!("{path}.{key}"), value, "requires indexed completion mode");
        }
    }
    let replacement = at(spec, "/podReplacementPolicy");
    let at_replacement = format!("{path}.podReplacementPolicy");
    if present(spec, "/podFailurePolicy") {
        errors.optional_one_of(at_replacement, replacement, &["Failed"]);
    } else {
        errors.optional_one_of(at_replacement, replacement, &["Failed", "TerminatingOrFailed"]);
    }
    errors.extend(validate_template(spec, path));
    let policy = at(spec, "/template/spec/restartPolicy");
    let at_policy = format!("{path}.template.spec.restartPolicy");
    match policy.as_str().unwrap_or("") {
        "Always" | "" => errors.required(at_policy, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if present(spec, "/podFailurePolicy") => {
            errors.invalid(
                at_policy,
                policy,
                "only \"Never\" is supported when podFailurePolicy is specified",
            );
        }
        "OnFailure" | "Never" => {}
        _ => errors.not_supported(at_policy, policy, &["OnFailure", "Never"]),
    }
    errors.into_vec()
}

/// The template is fixed once the job has started, but for a suspended job's scheduling directives.
fn template_update(errors: &mut Errors, new: &Value, old: &Value) {
    let (template, before) = (at(new, "/spec/template"), at(old, "/spec/template"));
    let mut unchanged = template.clone();
    let suspended = flag(old, "/spec/suspend") && !present(old, "/status/startTime");
    if suspended {
        for key in ["nodeSelector", "tolerations", "affinity", "schedulingGates"] {
            copy(child(&mut unchanged, "spec"), at(before, "/spec"), key);
        }
        for key in ["labels", "annotations"] {
            copy(child(&mut unchanged, "metadata"), at(before, "/metadata"), key);
        }
    }
    if !same(&unchanged, before) {
        errors.invalid("spec.template", template, super::rules::IMMUTABLE);
    }
}

fn status_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        errors.not_negative(format!("status.{key}"), at(new, &format!("/status/{key}")));
    }
    for condition in ["Complete", "Failed"] {
        if has_condition(old, condition) && !has_condition(new, condition) {
            let detail = format!("cannot disable the terminal {condition}=True condition");
            errors.invalid("status.conditions", at(new, "/status/conditions"), detail);
        }
    }
    if has_condition(new, "Complete") && has_condition(new, "Failed") {
        let detail = "cannot set Complete=True and Failed=true conditions";
        errors.invalid("status.conditions", at(new, "/status/conditions"), detail);
    }
    errors.into_vec()
}

fn has_condition(job: &Value, kind: &str) -> bool {
    let conditions = items(job, "/status/conditions");
    conditions.iter().any(|c| text(c, "/type") == kind && text(c, "/status") == "True")
}

fn status_word(job: &Value) -> &'static str {
    if has_condition(job, "Complete") {
        "Complete"
    } else if has_condition(job, "Failed") {
        "Failed"
    } else if present(job, "/metadata/deletionTimestamp") {
        "Terminating"
    } else {
        let words = ["Suspended", "FailureTarget", "SuccessCriteriaMet"];
        words.into_iter().find(|word| has_condition(job, word)).unwrap_or("Running")
    }
}

fn completions(job: &Value) -> String {
    let succeeded = int(job, "/status/succeeded");
    match (at(job, "/spec/completions").as_i64(), int(job, "/spec/parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn duration(job: &Value, now: i64) -> String {
    let Some(start) = seconds(at(job, "/status/startTime")) else { return String::new() };
    human_duration(seconds(at(job, "/status/completionTime")).unwrap_or(now) - start)
}
