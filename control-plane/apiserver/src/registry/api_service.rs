//! `apiregistration.k8s.io` APIServices: one that names no Service is this server's own and always available.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    table::{AGE, NAME},
};

pub(super) struct ApiServices;

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Service", "string", |o, _| match at(o, "/spec/service") {
        Value::Null => "Local".into(),
        service => format!("{}/{}", text(service, "/namespace"), text(service, "/name")).into(),
    }),
    Column::new("Available", "string", |o, _| {
        let conditions = items(o, "/status/conditions");
        match conditions.iter().find(|condition| text(condition, "/type") == "Available") {
            None => "Unknown".into(),
            Some(condition) if text(condition, "/status") == "True" => "True".into(),
            Some(condition) => {
                format!("{} ({})", text(condition, "/status"), text(condition, "/reason")).into()
            }
        }
    }),
    AGE,
];

impl Strategy for ApiServices {
    fn default(&self, object: &mut Value) {
        if let Some(service) =
            existing(child(object, "spec"), "service").filter(|service| service.is_object())
        {
            set_default(service, "port", 443);
        }
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({}));
        if !at(object, "/spec/service").is_object() {
            let condition = json!({
                "type": "Available", "status": "True", "reason": "Local", "lastTransitionTime": context.now,
                "message": "Local APIServices are always available",
            });
            set(object, "status", json!({"conditions": [condition]}));
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        let (group, version) = (text(spec, "/group"), text(spec, "/version"));
        let required = format!("{version}.{group}");
        if text(object, "/metadata/name") != required {
            let why = format!("must be `spec.version+\".\"+spec.group`: {required:?}");
            errors.invalid("metadata.name", at(object, "/metadata/name"), why);
        }
        if group.is_empty() && version != "v1" {
            errors.required("spec.group", "only v1 may have an empty group and it better be legacy kube");
        }
        if !group.is_empty() {
            errors.dns1123_subdomain("spec.group", &json!(group));
        }
        errors.all_invalid("spec.version", &json!(version), api::names::dns1035_label(version, false));
        for (field, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
            let priority = int(spec, &format!("/{field}"));
            if !(1..=most).contains(&priority) {
                let why = format!("must be positive and less than {most}");
                errors.invalid(format!("spec.{field}"), &json!(priority), why);
            }
        }
        let service = at(spec, "/service");
        let (bundle, insecure) = (text(spec, "/caBundle"), flag(spec, "/insecureSkipTLSVerify"));
        if !service.is_object() {
            if !bundle.is_empty() {
                let size = json!(format!("{} bytes", bundle.len() / 4 * 3));
                errors.invalid("spec.caBundle", &size, "local APIServices may not have a caBundle");
            }
            if insecure {
                let why = "local APIServices may not have insecureSkipTLSVerify";
                errors.invalid("spec.insecureSkipTLSVerify", &json!(true), why);
            }
            return errors.into_vec();
        }
        for field in ["namespace", "name"] {
            if text(service, &format!("/{field}")).is_empty() {
                errors.required(format!("spec.service.{field}"), "");
            }
        }
        let wrong = api::names::port_number(int(service, "/port"));
        if !wrong.is_empty() {
            let why = format!("port is not valid: {}", wrong.join(", "));
            errors.invalid("spec.service.port", at(service, "/port"), why);
        }
        if insecure && !bundle.is_empty() {
            let why = "may not be true if caBundle is present";
            errors.invalid("spec.insecureSkipTLSVerify", &json!(true), why);
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, _old: &Value) -> Vec<FieldError> {
        if context.subresource.is_empty() {
            return self.validate(context, new);
        }
        let mut errors = Errors::default();
        for (index, condition) in items(new, "/status/conditions").iter().enumerate() {
            let place = format!("status.conditions[{index}].status");
            errors.one_of(place, at(condition, "/status"), &["True", "False", "Unknown"]);
        }
        errors.into_vec()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        api::names::path_segment(name, is_prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_version_and_group_and_a_local_one_needs_no_trust() {
        let resource =
            api::schema::builtin().resource("apiregistration.k8s.io", "v1", "apiservices").unwrap();
        let context = Context { resource, subresource: "", now: "2026-01-01T00:00:00Z", user: "" };
        let mut object = json!({
            "metadata": {"name": "v1.w.com"},
            "spec": {"group": "w.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 200},
        });
        ApiServices.prepare_create(&context, &mut object);
        assert_eq!(object["status"]["conditions"][0]["reason"], "Local");
        assert_eq!(ApiServices.validate(&context, &object).len(), 0);
        object["metadata"]["name"] = json!("w.com");
        object["spec"]["insecureSkipTLSVerify"] = json!(true);
        object["spec"]["versionPriority"] = json!(0);
        let bodies: Vec<String> = ApiServices
            .validate(&context, &object)
            .iter()
            .map(|error| format!("{}: {}", error.path, error.body()))
            .collect();
        assert_eq!(
            bodies,
            [
                "metadata.name: Invalid value: \"w.com\": must be `spec.version+\".\"+spec.group`: \"v1.w.com\"",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ]
        );
        object["spec"]["service"] = json!({"name": "a", "namespace": "b"});
        ApiServices.default(&mut object);
        assert_eq!(object["spec"]["service"]["port"], 443);
    }
}
