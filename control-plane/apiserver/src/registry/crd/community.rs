//! What the community asks of its own groups, and what a converter's `caBundle` must be. Pure.

use base64::Engine as _;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use serde_json::Value;

use super::{
    super::fields::{at, text},
    Condition, is_true,
};
use crate::registry::rules::Errors;

/// The annotation that says who approved of a definition in a group of the community.
pub const APPROVED: &str = "api-approved.kubernetes.io";
const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

/// Whether a definition in a protected group may be there.
enum Approval {
    Missing,
    Bypassed,
    Given,
    Invalid,
}

fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')))
}

fn annotation(object: &Value) -> &str {
    object["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default()
}

fn approval_of(text: &str) -> (Approval, String) {
    let is_url = text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme().is_some() && uri.host().is_some());
    match text {
        "" => (
            Approval::Missing,
            format!("protected groups must have approval annotation \"{APPROVED}\", {SEE}"),
        ),
        text if text.starts_with("unapproved") => (Approval::Bypassed, format!("not approved: {text:?}")),
        text if is_url => (Approval::Given, format!("approved in {text}")),
        _ => (
            Approval::Invalid,
            format!(
                "protected groups must have approval annotation \"{APPROVED}\" with either a URL or a reason starting \
                 with \"unapproved\", {SEE}"
            ),
        ),
    }
}

/// Groups of the community itself need an approval, as an annotation; one that was there before stays.
pub(super) fn validate_approval(errors: &mut Errors, object: &Value, old: Option<&Value>) {
    let written = annotation(object);
    if !is_protected(text(object, "/spec/group")) || old.is_some_and(|old| annotation(old) == written) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    match approval_of(written) {
        (Approval::Missing, why) => errors.required(path, &why),
        (Approval::Invalid, why) => errors.invalid(path, &written.into(), why),
        (Approval::Bypassed | Approval::Given, _) => {}
    }
}

/// Says in the status of a definition in a protected group whether it is approved; nothing for all others.
pub fn set_approval(object: &Value, status: &mut Value, now: &str) {
    if !is_protected(text(object, "/spec/group")) {
        return;
    }
    let (approval, message) = approval_of(annotation(object));
    let (is_true, reason) = match approval {
        Approval::Missing => (false, "MissingAnnotation"),
        Approval::Bypassed => (false, "UnapprovedAnnotation"),
        Approval::Given => (true, "ApprovedAnnotation"),
        Approval::Invalid => (false, "InvalidAnnotation"),
    };
    let kind = "KubernetesAPIApprovalPolicyConformant";
    Condition { kind, is_true, reason, message: &message }.set(status, now);
}

/// Why nobody could be trusted by the `caBundle` of a definition's converter; `None` for one that is good, or none.
pub fn bundle_problem(definition: &Value) -> Option<String> {
    let written = text(definition, "/spec/conversion/webhook/clientConfig/caBundle");
    if written.is_empty() {
        return None;
    }
    let bundle = base64::engine::general_purpose::STANDARD.decode(written).unwrap_or_default();
    let mut malformed = None;
    let mut has_block = false;
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(&bundle) {
        let Ok((kind, der)) = section else { break };
        has_block = true;
        if kind != SectionKind::Certificate {
            continue;
        }
        match x509_parser::parse_x509_certificate(&der) {
            Ok(_) => return None,
            Err(error) => malformed = malformed.or(Some(error)),
        }
    }
    let why = match malformed {
        Some(error) => format!("failed to parse certificate: {error}"),
        None if has_block => "no valid certificate authority data seen".to_owned(),
        None => "unable to parse bytes as PEM block".to_owned(),
    };
    Some(format!("unable to load root certificates: {why}"))
}

/// A definition that is served keeps a good `caBundle`; one that was bad before may stay so.
pub(super) fn validate_bundle(errors: &mut Errors, new: &Value, old: &Value) {
    if !is_true(old, "Established") || bundle_problem(old).is_some() {
        return;
    }
    if text(new, "/spec/conversion/strategy") == "Webhook"
        && let Some(why) = bundle_problem(new)
    {
        let value = at(new, "/spec/conversion/webhook/clientConfig/caBundle");
        errors.invalid("spec.conversion.webhookClientConfig.caBundle", value, why);
    }
}
