//! What admission policies, their bindings and webhooks may say: rules, selectors, and expressions that must compile.

use api::{field::FieldError, meta, names};
use cel::policy::{Returns, Scope, compile, compile_variables};
use serde_json::Value;

use super::{fields::*, rules::Errors, webhooks::check_rule};

const MUTATING_OPERATIONS: [&str; 3] = ["*", "CREATE", "UPDATE"];
const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const CONDITIONS_MAX: usize = 64;
const AUDIT_ANNOTATIONS_MAX: usize = 20;
/// Bytes of an audit annotation's expression.
const VALUE_EXPRESSION_MAX: usize = 5 * 1024;

/// A ValidatingAdmissionPolicy.
pub(super) fn validating_policy(object: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = at(object, "/spec");
    let mut scope = policy(spec, &mut errors);
    variables(spec, &mut scope, &mut errors);
    let (validations, annotations) = (items(spec, "/validations"), items(spec, "/auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for field in ["spec.validations", "spec.auditAnnotations"] {
            errors.required(field, "validations or auditAnnotations must contain at least one item");
        }
    }
    for (i, validation) in validations.iter().enumerate() {
        validation_errors(&format!("spec.validations[{i}]"), validation, &scope, &mut errors);
    }
    if annotations.len() > AUDIT_ANNOTATIONS_MAX {
        let why = format!("must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid("spec.auditAnnotations", at(spec, "/auditAnnotations"), why);
    }
    for (i, annotation) in annotations.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{i}]");
        audit_annotation(&path, text(object, "/metadata/name"), annotation, &scope, &mut errors);
        let key = at(annotation, "/key");
        if annotations[..i].iter().any(|other| at(other, "/key") == key) {
            errors.duplicate(format!("{path}.key"), key);
        }
    }
    errors.into_vec()
}

/// A MutatingAdmissionPolicy.
pub(super) fn mutating_policy(object: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = at(object, "/spec");
    let mut scope = policy(spec, &mut errors);
    for operation in
        items(spec, "/matchConstraints/resourceRules").iter().flat_map(|rule| items(rule, "/operations"))
    {
        if !operation.as_str().is_some_and(|operation| MUTATING_OPERATIONS.contains(&operation)) {
            let path = "spec.matchConstraints.resourceRules.operations";
            errors.not_supported(path, operation, &MUTATING_OPERATIONS);
        }
    }
    variables(spec, &mut scope, &mut errors);
    scope.patches = true;
    let mutations = items(spec, "/mutations");
    if mutations.is_empty() {
        errors.required("spec.mutations", "mutations must contain at least one item");
    }
    for (i, mutation) in mutations.iter().enumerate() {
        mutation_errors(&format!("spec.mutations[{i}]"), mutation, &scope, &mut errors);
    }
    errors.one_of("spec.reinvocationPolicy", at(spec, "/reinvocationPolicy"), &["IfNeeded", "Never"]);
    errors.into_vec()
}

/// A ValidatingAdmissionPolicyBinding.
pub(super) fn validating_binding(object: &Value, _: Option<&Value>) -> Vec<FieldError> {
    let mut errors = binding(object);
    let path = "spec.validationActions";
    let actions = items(object, "/spec/validationActions");
    for (i, action) in actions.iter().enumerate() {
        if !action.as_str().is_some_and(|action| ACTIONS.contains(&action)) {
            errors.not_supported(format!("{path}[{i}]"), action, &ACTIONS);
        }
        if actions[..i].contains(action) {
            errors.duplicate(format!("{path}[{i}]"), action);
        }
    }
    let has = |wanted: &str| actions.iter().any(|action| action == wanted);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        errors.invalid(path, at(object, "/spec/validationActions"), why);
    }
    if actions.is_empty() {
        errors.required(path, "at least one validation action is required");
    }
    errors.into_vec()
}

/// A MutatingAdmissionPolicyBinding.
pub(super) fn mutating_binding(object: &Value, _: Option<&Value>) -> Vec<FieldError> {
    binding(object).into_vec()
}

fn binding(object: &Value) -> Errors {
    let mut errors = Errors::default();
    let spec = at(object, "/spec");
    match text(spec, "/policyName") {
        "" => errors.required("spec.policyName", ""),
        _ => errors.dns1123_subdomain("spec.policyName", at(spec, "/policyName")),
    }
    let reference = at(spec, "/paramRef");
    if !reference.is_null() {
        param_reference("spec.paramRef", reference, &mut errors);
    }
    let resources = at(spec, "/matchResources");
    if !resources.is_null() {
        match_resources("spec.matchResources", resources, &mut errors);
    }
    errors
}

fn param_reference(path: &str, reference: &Value, errors: &mut Errors) {
    let (name, selector) = (at(reference, "/name"), at(reference, "/selector"));
    let named = name.as_str().is_some_and(|name| !name.is_empty());
    let both = "name and selector are mutually exclusive";
    if named {
        let messages = names::path_segment(name.as_str().unwrap_or_default(), false);
        errors.all_invalid(&format!("{path}.name"), name, messages);
        if !selector.is_null() {
            errors.forbidden(format!("{path}.name"), both);
        }
    }
    if !selector.is_null() {
        errors.label_selector(&format!("{path}.selector"), selector);
        if named {
            errors.forbidden(format!("{path}.selector"), both);
        }
    }
    if !named && selector.is_null() {
        errors.required(path, "one of name or selector must be specified");
    }
    let action = at(reference, "/parameterNotFoundAction");
    errors.one_of(format!("{path}.parameterNotFoundAction"), action, &["Deny", "Allow"]);
}

/// What both kinds of policy have, up to their variables.
fn policy(spec: &Value, errors: &mut Errors) -> Scope {
    errors.one_of("spec.failurePolicy", at(spec, "/failurePolicy"), &FAILURE_POLICIES);
    let params = at(spec, "/paramKind");
    if !params.is_null() {
        param_kind("spec.paramKind", params, errors);
    }
    let constraints = at(spec, "/matchConstraints");
    if constraints.is_null() {
        errors.required("spec.matchConstraints", "");
    } else {
        match_resources("spec.matchConstraints", constraints, errors);
        if items(constraints, "/resourceRules").is_empty() {
            errors.required("spec.matchConstraints.resourceRules", "");
        }
    }
    match_conditions("spec.matchConditions", items(spec, "/matchConditions"), !params.is_null(), errors);
    Scope { params: !params.is_null(), authorizer: true, ..Scope::default() }
}

fn param_kind(path: &str, params: &Value, errors: &mut Errors) {
    let api_version = at(params, "/apiVersion");
    let version_path = format!("{path}.apiVersion");
    match api_version.as_str().unwrap_or_default() {
        "" => errors.required(version_path, ""),
        text if text.matches('/').count() > 1 => {
            errors.invalid(version_path, api_version, format!("unexpected GroupVersion string: {text}"));
        }
        text => {
            let (group, version) = meta::group_and_version(text);
            if !group.is_empty() {
                let messages = names::dns1123_subdomain(group, false);
                if !messages.is_empty() {
                    errors.invalid(&*version_path, &group.into(), messages.join(","));
                }
            }
            if version.is_empty() {
                errors.invalid(&*version_path, api_version, "version must be specified");
            } else {
                let messages = names::dns1035_label(version, false);
                if !messages.is_empty() {
                    errors.invalid(&*version_path, &version.into(), messages.join(","));
                }
            }
        }
    }
    match text(params, "/kind") {
        "" => errors.required(format!("{path}.kind"), ""),
        kind => {
            let messages = names::dns1035_label(&kind.to_lowercase(), false);
            if !messages.is_empty() {
                let why = format!("may have mixed case, but should otherwise match: {}", messages.join(","));
                errors.invalid(format!("{path}.kind"), &kind.into(), why);
            }
        }
    }
}

fn match_resources(path: &str, resources: &Value, errors: &mut Errors) {
    errors.one_of(format!("{path}.matchPolicy"), at(resources, "/matchPolicy"), &MATCH_POLICIES);
    for selector in ["namespaceSelector", "objectSelector"] {
        match resources.get(selector) {
            None | Some(Value::Null) => errors.required(format!("{path}.{selector}"), ""),
            Some(value) => errors.label_selector(&format!("{path}.{selector}"), value),
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in items(resources, &format!("/{field}")).iter().enumerate() {
            let path = format!("{path}.{field}[{i}]");
            resource_names(&format!("{path}.resourceNames"), items(rule, "/resourceNames"), errors);
            check_rule(errors, &path, rule, true);
        }
    }
}

fn resource_names(path: &str, names_given: &[Value], errors: &mut Errors) {
    for (i, name) in names_given.iter().enumerate() {
        let path = format!("{path}[{i}]");
        errors.all_invalid(&path, name, names::path_segment(name.as_str().unwrap_or_default(), false));
        if names_given[..i].contains(name) {
            errors.duplicate(path, name);
        }
    }
}

/// `matchConditions` of policies and of webhooks; only policies with parameters may name `params`.
pub(super) fn match_conditions(path: &str, conditions: &[Value], params: bool, errors: &mut Errors) {
    if conditions.is_empty() {
        return;
    }
    if conditions.len() > CONDITIONS_MAX {
        errors.extend([FieldError::too_many(path, conditions.len(), CONDITIONS_MAX)]);
    }
    let scope = Scope { params, authorizer: true, ..Scope::default() };
    for (i, condition) in conditions.iter().enumerate() {
        let path = format!("{path}[{i}]");
        match text(condition, "/expression").trim() {
            "" => errors.required(format!("{path}.expression"), ""),
            source => expression(&format!("{path}.expression"), source, &scope, Returns::Bool, errors),
        }
        let name = at(condition, "/name");
        match name.as_str().unwrap_or_default() {
            "" => errors.required(format!("{path}.name"), ""),
            text => {
                errors.label_name(&format!("{path}.name"), text);
                if conditions[..i].iter().any(|other| at(other, "/name") == name) {
                    errors.duplicate(format!("{path}.name"), name);
                }
            }
        }
    }
}

fn expression(path: &str, source: &str, scope: &Scope, returns: Returns, errors: &mut Errors) {
    if let Err(why) = compile(&scope.environment(), source, returns) {
        errors.invalid(path, &source.into(), why);
    }
}

fn is_identifier(name: &str) -> bool {
    let plain = name.starts_with(|first: char| first == '_' || first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    // A reserved word is escaped, and so differs from itself.
    plain && (name.contains("__") || cel::structural::escape(name).is_some_and(|escaped| escaped == name))
}

fn variables(spec: &Value, scope: &mut Scope, errors: &mut Errors) {
    let variables = items(spec, "/variables");
    if variables.is_empty() {
        return;
    }
    for (i, variable) in variables.iter().enumerate() {
        let path = format!("spec.variables[{i}]");
        let name = text(variable, "/name");
        if name.trim().is_empty() {
            errors.required(format!("{path}.name"), "name is not specified");
        } else if !is_identifier(name) {
            errors.invalid(format!("{path}.name"), &name.into(), "must be a valid CEL identifier");
        }
        let source = text(variable, "/expression");
        if source.trim().is_empty() {
            errors.required(format!("{path}.expression"), "expression is not specified");
            continue;
        }
        for (_, compiled) in compile_variables(scope, std::iter::once((name, source))) {
            if let Err(why) = compiled.program {
                errors.invalid(format!("{path}.expression"), &source.into(), why);
            }
        }
    }
}

fn validation_errors(path: &str, validation: &Value, scope: &Scope, errors: &mut Errors) {
    let source = text(validation, "/expression");
    if source.trim().is_empty() {
        errors.required(format!("{path}.expression"), "expression is not specified");
    } else {
        expression(&format!("{path}.expression"), source, scope, Returns::Bool, errors);
    }
    let message_expression = text(validation, "/messageExpression");
    let message_path = format!("{path}.messageExpression");
    if !message_expression.is_empty() && message_expression.trim().is_empty() {
        errors.invalid(message_path, &message_expression.into(), "must be non-empty if specified");
    } else if !message_expression.is_empty() {
        let scope = Scope { authorizer: false, ..scope.clone() };
        expression(&message_path, message_expression, &scope, Returns::String, errors);
    }
    let message = text(validation, "/message");
    if !message.is_empty() && message.trim().is_empty() {
        errors.invalid(format!("{path}.message"), &message.into(), "must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        errors.invalid(format!("{path}.message"), &message.into(), "must not contain line breaks");
    }
    errors.optional_one_of(format!("{path}.reason"), at(validation, "/reason"), &REASONS);
}

fn audit_annotation(path: &str, policy: &str, annotation: &Value, scope: &Scope, errors: &mut Errors) {
    let key = text(annotation, "/key");
    if policy.is_empty() {
        errors.invalid(format!("{path}.key"), &key.into(), "requires metadata.name be non-empty");
    } else {
        errors.label_name(&format!("{path}.key"), &format!("{policy}/{key}"));
    }
    let value_path = format!("{path}.valueExpression");
    match text(annotation, "/valueExpression").trim() {
        "" => errors.required(value_path, "valueExpression is not specified"),
        source if source.len() > VALUE_EXPRESSION_MAX => {
            errors.required(value_path, &format!("must not exceed {VALUE_EXPRESSION_MAX} bytes in length"));
        }
        source => expression(&value_path, source, scope, Returns::StringOrNull, errors),
    }
}

fn mutation_errors(path: &str, mutation: &Value, scope: &Scope, errors: &mut Errors) {
    let kinds = [
        ("ApplyConfiguration", "applyConfiguration", Returns::ApplyConfiguration),
        ("JSONPatch", "jsonPatch", Returns::JsonPatch),
    ];
    let patch_type = at(mutation, "/patchType");
    let given = patch_type.as_str().unwrap_or_default();
    let Some((_, field, returns)) = kinds.iter().find(|(name, ..)| *name == given) else {
        errors.one_of(format!("{path}.patchType"), patch_type, &["ApplyConfiguration", "JSONPatch"]);
        return;
    };
    match mutation.get(*field) {
        None | Some(Value::Null) => {
            errors
                .required(format!("{path}.{field}"), &format!("must be specified when patchType is {given}"));
        }
        Some(patch) => match text(patch, "/expression").trim() {
            "" => errors.required(format!("{path}.{field}.expression"), ""),
            source => expression(&format!("{path}.{field}.expression"), source, scope, *returns, errors),
        },
    }
    for (_, other, _) in kinds.iter().filter(|(name, ..)| *name != given) {
        if mutation.get(*other).is_some_and(|other| !other.is_null()) {
            let why = format!("must not be specified when patchType is {given}");
            errors.invalid(format!("{path}.{other}"), &format!("{{{other}}}").into(), why);
        }
    }
}
