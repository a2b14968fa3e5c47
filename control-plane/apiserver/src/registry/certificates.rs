//! CertificateSigningRequests: the question stays as it was asked, who asked is what the server knows, and each
//! subresource may write its own part of the answer only.

use api::field::FieldError;
use base64::Engine as _;
use serde_json::{Value, json};
use x509_parser::{
    certification_request::X509CertificationRequest,
    pem::{Pem, parse_x509_pem},
    prelude::FromDer as _,
};

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    table::{AGE, NAME, NONE, human_duration, or},
};
use crate::security::Identity;

pub(super) struct CertificateSigningRequests;

const LEGACY: &str = "kubernetes.io/legacy-unknown";
const CONDITIONS: &str = "status.conditions";
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Strategy for CertificateSigningRequests {
    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({}));
        let spec = child(object, "spec");
        for key in ["uid", "groups", "extra"] {
            remove(spec, key);
        }
        set(spec, "username", context.user);
    }

    fn set_requester(&self, object: &mut Value, user: &Identity) {
        let spec = child(object, "spec");
        set(spec, "username", user.name.as_str());
        if !user.groups.is_empty() {
            set(spec, "groups", user.groups.clone());
        }
        if !user.uid.is_empty() {
            set(spec, "uid", user.uid.as_str());
        }
        if !user.extra.is_empty() {
            set(spec, "extra", json!(user.extra));
        }
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        copy(new, old, "spec");
        match context.subresource {
            "approval" => {
                stamp(new, old, context.now);
                copy(child(new, "status"), at(old, "/status"), "certificate");
            }
            "status" => {
                keep_decisions(new, old);
                stamp(new, old, context.now);
            }
            _ => copy(new, old, "status"),
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        request(&mut errors, object, None);
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        request(&mut errors, new, Some(old));
        for kind in ["Approved", "Denied", "Failed"] {
            let (before, after) = (conditions(old, kind), conditions(new, kind));
            if after.len() < before.len() {
                let detail = format!("updates may not remove a condition of type {kind:?}");
                errors.forbidden(CONDITIONS, detail);
            } else if DECISIONS.contains(&kind) && context.subresource != "approval" {
                if after.len() > before.len() {
                    errors.forbidden(CONDITIONS, format!("updates may not add a condition of type {kind:?}"));
                } else if !before.iter().zip(&after).all(|(before, after)| same(before, after)) {
                    errors.forbidden(
                        CONDITIONS,
                        format!("updates may not modify a condition of type {kind:?}"),
                    );
                }
            }
        }
        let (before, after) = (text(old, "/status/certificate"), text(new, "/status/certificate"));
        if before != after {
            if context.subresource != "status" {
                errors.forbidden("status.certificate", "updates may not set certificate content");
            } else if !before.is_empty() {
                errors.forbidden("status.certificate", "updates may not modify existing certificate content");
            }
        }
        errors.into_vec()
    }

    fn name_errors(&self, name: &str, is_prefix: bool) -> Vec<String> {
        api::names::path_segment(name, is_prefix)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", text(object, "/spec/signerName").to_owned())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            AGE,
            Column::new("SignerName", "string", |o, _| or(text(o, "/spec/signerName"), NONE).into()),
            Column::new("Requestor", "string", |o, _| text(o, "/spec/username").into()),
            Column::new("RequestedDuration", "string", |o, _| {
                at(o, "/spec/expirationSeconds")
                    .as_i64()
                    .map_or_else(|| NONE.into(), |s| human_duration(s).into())
            }),
            Column::new("Condition", "string", |o, _| request_state(o).into()),
        ];
        COLUMNS
    }
}

fn conditions<'a>(request: &'a Value, kind: &str) -> Vec<&'a Value> {
    items(request, "/status/conditions").iter().filter(|condition| text(condition, "/type") == kind).collect()
}

/// A client that writes the status as it read it may have an older view of the decision.
fn keep_decisions(new: &mut Value, old: &Value) {
    for kind in DECISIONS {
        let before = conditions(old, kind);
        if before.len() != conditions(new, kind).len() {
            continue;
        }
        let mut before = before.into_iter();
        let status = child(new, "status");
        for condition in each(status, "conditions").filter(|condition| text(condition, "/type") == kind) {
            if let Some(before) = before.next() {
                condition.clone_from(before);
            }
        }
    }
}

/// Fills the times that the writer of a condition left out.
fn stamp(new: &mut Value, old: &Value, now: &str) {
    for condition in each(child(new, "status"), "conditions") {
        set_if_zero(condition, "lastUpdateTime", now);
        let is_same = |before: &&&Value| text(before, "/status") == text(condition, "/status");
        let before = conditions(old, text(condition, "/type"));
        let since = before.iter().find(is_same).map_or("", |before| text(before, "/lastTransitionTime"));
        let since = if since.is_empty() { now } else { since }.to_owned();
        set_if_zero(condition, "lastTransitionTime", since);
    }
}

/// What is wrong with a request, where the stored one was not wrong in the same way already.
fn request(errors: &mut Errors, object: &Value, old: Option<&Value>) {
    let spec = at(object, "/spec");
    if let Err(detail) = signing_request(text(spec, "/request")) {
        errors.invalid("spec.request", at(spec, "/request"), detail);
    }
    let usages = items(spec, "/usages");
    if usages.is_empty() {
        errors.required("spec.usages", "");
    }
    if old.is_none() {
        for (i, usage) in usages.iter().enumerate() {
            if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
                errors.not_supported(format!("spec.usages[{i}]"), usage, &USAGES);
            }
            if usages[..i].contains(usage) {
                errors.duplicate(format!("spec.usages[{i}]"), usage);
            }
        }
    }
    signer_name(errors, spec, old.is_some_and(|old| text(old, "/spec/signerName") == LEGACY));
    if let Some(seconds) = at(spec, "/expirationSeconds").as_i64().filter(|seconds| *seconds < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid("spec.expirationSeconds", &seconds.into(), detail);
    }
    status_conditions(errors, object, old);
    let certificate = text(object, "/status/certificate");
    let is_new = old.is_none_or(|old| text(old, "/status/certificate") != certificate);
    if is_new && let Err(detail) = certificates(certificate) {
        errors.invalid("status.certificate", &json!("<certificate data>"), detail);
    }
}

fn signer_name(errors: &mut Errors, spec: &Value, is_legacy_allowed: bool) {
    let (path, value) = ("spec.signerName", at(spec, "/signerName"));
    let name = text(spec, "/signerName");
    if name == LEGACY && !is_legacy_allowed {
        return errors.invalid(path, value, "the legacy signerName is not allowed via this API version");
    }
    if name.is_empty() {
        return errors.required(path, "");
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, signer] = parts[..] else {
        let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.invalid(path, value, detail);
    };
    errors.all_invalid(path, value, api::names::dns1123_subdomain(domain, false));
    if !domain.contains('.') {
        errors.invalid(path, value, "should be a domain with at least two segments separated by dots");
    }
    errors.all_invalid(path, value, api::names::dns1123_subdomain(signer, false));
}

fn status_conditions(errors: &mut Errors, object: &Value, old: Option<&Value>) {
    let list = items(object, "/status/conditions");
    let had = |kind: &str| old.is_some_and(|old| !conditions(old, kind).is_empty());
    for (i, condition) in list.iter().enumerate() {
        let path = format!("{CONDITIONS}[{i}]");
        let kind = text(condition, "/type");
        if kind.is_empty() && !had("") {
            errors.required(format!("{path}.type"), "");
        }
        let only_true = matches!(kind, "Approved" | "Denied" | "Failed");
        let allowed: &[&str] = if only_true { &["True"] } else { &["False", "True", "Unknown"] };
        match text(condition, "/status") {
            "" => errors.required(format!("{path}.status"), ""),
            status if !allowed.contains(&status) => {
                errors.not_supported(format!("{path}.status"), at(condition, "/status"), allowed);
            }
            _ => {}
        }
        let other = DECISIONS.iter().find(|other| DECISIONS.contains(&kind) && **other != kind);
        let contradicts = other.is_some_and(|other| list[..i].iter().any(|c| text(c, "/type") == *other));
        if contradicts && !(had("Approved") && had("Denied")) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(CONDITIONS, &kind.into(), detail);
        }
        let is_second = list[..i].iter().any(|earlier| text(earlier, "/type") == kind);
        if is_second && old.is_none_or(|old| conditions(old, kind).len() < 2) {
            errors.duplicate(format!("{path}.type"), &kind.into());
        }
    }
}

fn decoded(base64: &str) -> Result<Vec<u8>, String> {
    base64::engine::general_purpose::STANDARD.decode(base64).map_err(|error| error.to_string())
}

/// A PEM block with a request whose signature is right.
fn signing_request(base64: &str) -> Result<(), String> {
    let pem = decoded(base64)?;
    let no_request = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let (_, pem) = parse_x509_pem(&pem).map_err(|_no_pem| no_request())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(no_request());
    }
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    request.verify_signature().map_err(|error| error.to_string())
}

/// PEM blocks of certificates alone, or nothing.
fn certificates(base64: &str) -> Result<(), String> {
    if base64.is_empty() {
        return Ok(());
    }
    let bytes = decoded(base64)?;
    let mut blocks = 0;
    for pem in Pem::iter_from_buffer(&bytes) {
        let Ok(pem) = pem else { break };
        if pem.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", pem.label));
        }
        pem.parse_x509().map_err(|error| error.to_string())?;
        blocks += 1;
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}

fn request_state(request: &Value) -> String {
    let has = |kind: &str| !conditions(request, kind).is_empty();
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !text(request, "/status/certificate").is_empty() {
        state.push_str(",Issued");
    }
    state
}
