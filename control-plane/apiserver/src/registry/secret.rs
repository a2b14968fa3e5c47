//! Secrets and ConfigMaps: maps of small files, which may be sealed with `immutable`.

use api::{field::FieldError, names};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    table::{AGE, NAME},
};

pub(super) struct ConfigMaps;
pub(super) struct Secrets;

const SIZE_BYTES_MAX: usize = 1024 * 1024;
const SEALED: &str = "field is immutable when `immutable` is set";

/// Length of a base64 text once decoded, in bytes.
fn decoded_len(value: &Value) -> usize {
    let encoded = value.as_str().unwrap_or("").trim_end_matches('=');
    encoded.len() * 3 / 4
}

fn keys(errors: &mut Errors, object: &Value, map: &str) {
    for key in entries(object, &format!("/{map}")).keys() {
        errors.all_invalid(&format!("{map}[{key}]"), &key.as_str().into(), names::config_map_key(key));
    }
}

/// Once sealed, an object stays as it is, and sealed.
fn sealed(errors: &mut Errors, new: &Value, old: &Value, maps: &[&str]) {
    if !flag(old, "/immutable") {
        return;
    }
    if !flag(new, "/immutable") {
        errors.forbidden("immutable", SEALED);
    }
    for map in maps {
        let pointer = format!("/{map}");
        if !same(at(new, &pointer), at(old, &pointer)) {
            errors.forbidden(*map, SEALED);
        }
    }
}

impl Strategy for ConfigMaps {
    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        keys(&mut errors, object, "data");
        keys(&mut errors, object, "binaryData");
        let (data, binary) = (entries(object, "/data"), entries(object, "/binaryData"));
        for key in data.keys().filter(|key| binary.contains_key(*key)) {
            errors.invalid(
                format!("data[{key}]"),
                &key.as_str().into(),
                "duplicate of key present in binaryData",
            );
        }
        let size: usize = data.values().map(|value| value.as_str().map_or(0, str::len)).sum::<usize>()
            + binary.values().map(decoded_len).sum::<usize>();
        if size > SIZE_BYTES_MAX {
            errors.extend([FieldError::too_long("", SIZE_BYTES_MAX)]);
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        sealed(&mut errors, new, old, &["data", "binaryData"]);
        errors.extend(self.validate(context, new));
        errors.into_vec()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Data", "string", |o, _| {
                (entries(o, "/data").len() + entries(o, "/binaryData").len()).into()
            }),
            AGE,
        ];
        COLUMNS
    }
}

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        set_if_zero(object, "type", "Opaque");
        let plain = entries(object, "/stringData").clone();
        remove(object, "stringData");
        for (key, value) in plain {
            let encoded = STANDARD.encode(value.as_str().unwrap_or(""));
            set(child(object, "data"), &key, encoded);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        keys(&mut errors, object, "data");
        let data = entries(object, "/data");
        if data.values().map(decoded_len).sum::<usize>() > SIZE_BYTES_MAX {
            errors.extend([FieldError::too_long("data", SIZE_BYTES_MAX)]);
        }
        required_data(&mut errors, object);
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.immutable("type", at(new, "/type"), at(old, "/type"));
        sealed(&mut errors, new, old, &["data"]);
        errors.extend(self.validate(context, new));
        errors.into_vec()
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("type", text(object, "/type").to_owned())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            NAME,
            Column::new("Type", "string", |o, _| text(o, "/type").into()),
            Column::new("Data", "string", |o, _| entries(o, "/data").len().into()),
            AGE,
        ];
        COLUMNS
    }
}

/// The keys that a well-known type of secret must have.
fn required_data(errors: &mut Errors, secret: &Value) {
    let data = entries(secret, "/data");
    let missing = |key: &&str| !data.contains_key(*key);
    match text(secret, "/type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            let name = entries(secret, "/metadata/annotations").get(key).and_then(Value::as_str);
            if name.is_none_or(str::is_empty) {
                errors.required(format!("metadata.annotations[{key}]"), "");
            }
        }
        "kubernetes.io/dockercfg" => json_file(errors, secret, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_file(errors, secret, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if ["username", "password"].iter().all(missing) => {
            errors.required("data[username]", "");
            errors.required("data[password]", "");
        }
        "kubernetes.io/ssh-auth" if data.get("ssh-privatekey").is_none_or(is_zero) => {
            errors.required("data[ssh-privatekey]", "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].iter().filter(|key| missing(key)) {
                errors.required(format!("data[{key}]"), "");
            }
        }
        _ => {}
    }
}

fn json_file(errors: &mut Errors, secret: &Value, key: &str) {
    let path = format!("data[{key}]");
    let Some(encoded) = entries(secret, "/data").get(key) else { return errors.required(path, "") };
    let decoded = STANDARD.decode(encoded.as_str().unwrap_or("")).unwrap_or_default();
    if let Err(why) = serde_json::from_slice::<serde_json::Map<String, Value>>(&decoded) {
        errors.invalid(path, &json!("<secret contents redacted>"), why.to_string());
    }
}
