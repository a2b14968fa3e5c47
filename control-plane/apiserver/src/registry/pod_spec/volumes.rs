//! Validation of the volumes of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::{fields::*, rules::Errors};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const TOKEN_EXPIRATION_SECONDS_MIN: i64 = 600;
const HOST_PATH_TYPES: [&str; 7] =
    ["DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];

/// Reports what is wrong with the volumes; returns the names of those that are right, which mounts may use.
pub(super) fn validate(errors: &mut Errors, spec: &Value, path: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (i, volume) in items(spec, "/volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{i}]");
        let before = errors.len();
        source(errors, volume, &path);
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else {
            errors.dns1123_label(&format!("{path}.name"), at(volume, "/name"));
        }
        if names.contains(name) {
            errors.duplicate(format!("{path}.name"), at(volume, "/name"));
        }
        if errors.len() == before {
            names.insert(name.to_owned());
        }
    }
    names
}

fn source(errors: &mut Errors, volume: &Value, path: &str) {
    let sources: Vec<_> =
        entries(volume, "").iter().filter(|(key, v)| *key != "name" && !v.is_null()).collect();
    if sources.is_empty() {
        errors.required(path, "must specify a volume type");
    }
    for (extra, _) in sources.iter().skip(1) {
        errors.forbidden(format!("{path}.{extra}"), "may not specify more than 1 volume type");
    }
    let Some((kind, source)) = sources.first() else { return };
    let path = format!("{path}.{kind}");
    match kind.as_str() {
        "emptyDir" if quantity(at(source, "/sizeLimit")).is_some_and(|limit| limit.milli() < 0) => {
            let detail = "SizeLimit field must be a valid resource quantity";
            errors.forbidden(format!("{path}.sizeLimit"), detail);
        }
        "hostPath" => host_path(errors, source, &path),
        "secret" => files_of(errors, source, &path, "secretName"),
        "configMap" => files_of(errors, source, &path, "name"),
        "persistentVolumeClaim" => required(errors, source, &path, &["claimName"]),
        "nfs" => {
            required(errors, source, &path, &["server", "path"]);
            if !text(source, "/path").is_empty() && !text(source, "/path").starts_with('/') {
                errors.invalid(format!("{path}.path"), at(source, "/path"), "must be an absolute path");
            }
        }
        "csi" => required(errors, source, &path, &["driver"]),
        "downwardAPI" => {
            mode(errors, at(source, "/defaultMode"), format!("{path}.defaultMode"));
            downward_files(errors, source, &path);
        }
        "projected" => projected(errors, source, &path),
        "ephemeral" if !present(source, "/volumeClaimTemplate") => {
            errors.required(format!("{path}.volumeClaimTemplate"), "");
        }
        "image" => required(errors, source, &path, &["reference"]),
        _ => {}
    }
}

fn required(errors: &mut Errors, source: &Value, path: &str, keys: &[&str]) {
    for key in keys {
        if text(source, &format!("/{key}")).is_empty() {
            errors.required(format!("{path}.{key}"), "");
        }
    }
}

fn host_path(errors: &mut Errors, source: &Value, path: &str) {
    if text(source, "/path").is_empty() {
        return errors.required(format!("{path}.path"), "");
    }
    no_backsteps(errors, at(source, "/path"), &format!("{path}.path"));
    errors.optional_one_of(format!("{path}.type"), at(source, "/type"), &HOST_PATH_TYPES);
}

fn files_of(errors: &mut Errors, source: &Value, path: &str, name: &str) {
    required(errors, source, path, &[name]);
    mode(errors, at(source, "/defaultMode"), format!("{path}.defaultMode"));
    key_paths(errors, source, path);
}

fn key_paths(errors: &mut Errors, source: &Value, path: &str) {
    for (i, item) in items(source, "/items").iter().enumerate() {
        let path = format!("{path}.items[{i}]");
        required(errors, item, &path, &["key", "path"]);
        local_path(errors, at(item, "/path"), &format!("{path}.path"));
        mode(errors, at(item, "/mode"), format!("{path}.mode"));
    }
}

fn downward_files(errors: &mut Errors, source: &Value, path: &str) {
    for item in items(source, "/items") {
        if text(item, "/path").is_empty() {
            errors.required(format!("{path}.path"), "");
        }
        local_path(errors, at(item, "/path"), &format!("{path}.path"));
        match (present(item, "/fieldRef"), present(item, "/resourceFieldRef")) {
            (true, true) => {
                errors.invalid(
                    path,
                    &"resource".into(),
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (false, false) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
            _ => {}
        }
        mode(errors, at(item, "/mode"), format!("{path}.mode"));
    }
}

fn projected(errors: &mut Errors, volume: &Value, path: &str) {
    mode(errors, at(volume, "/defaultMode"), format!("{path}.defaultMode"));
    let mut paths: BTreeSet<String> = BTreeSet::new();
    for (i, source) in items(volume, "/sources").iter().enumerate() {
        let at_source = format!("{path}.sources[{i}]");
        for kind in ["secret", "configMap", "downwardAPI"] {
            let files = at(source, &format!("/{kind}"));
            if files.is_null() {
                continue;
            }
            if kind == "downwardAPI" {
                downward_files(errors, files, &format!("{at_source}.{kind}"));
            } else {
                required(errors, files, &format!("{at_source}.{kind}"), &["name"]);
                key_paths(errors, files, &format!("{at_source}.{kind}"));
            }
            for item in items(files, "/items") {
                let file = text(item, "/path");
                if !file.is_empty() && !paths.insert(file.to_owned()) {
                    let shown = if kind == "downwardAPI" { file } else { text(files, "/name") };
                    errors.invalid(path, &shown.into(), "conflicting duplicate paths");
                }
            }
        }
        token(errors, at(source, "/serviceAccountToken"), path, &at_source);
        if entries(source, "").values().filter(|v| !v.is_null()).count() > 1 {
            errors.forbidden(at_source, "may not specify more than 1 volume type per source");
        }
    }
}

fn token(errors: &mut Errors, token: &Value, path: &str, at_source: &str) {
    if token.is_null() {
        return;
    }
    let expiration = at(token, "/expirationSeconds");
    let at_expiration = format!("{at_source}.serviceAccountToken.expirationSeconds");
    if expiration.as_i64().unwrap_or(0) < TOKEN_EXPIRATION_SECONDS_MIN {
        errors.invalid(&at_expiration, expiration, "may not specify a duration less than 10 minutes");
    } else if expiration.as_i64().unwrap_or(0) > 1 << 32 {
        errors.invalid(&at_expiration, expiration, "may not specify a duration larger than 2^32 seconds");
    }
    if text(token, "/path").is_empty() {
        errors.required(format!("{path}.path"), "");
    } else {
        local_path(errors, at(token, "/path"), &format!("{path}.path"));
    }
}

fn mode(errors: &mut Errors, mode: &Value, path: String) {
    if mode.as_i64().is_some_and(|bits| !(0..=0o777).contains(&bits)) {
        errors.invalid(path, mode, MODE);
    }
}

/// A path below the volume: relative, without `..`.
pub(super) fn descending_path(errors: &mut Errors, path: &Value, at_path: &str) {
    if path.as_str().is_some_and(|path| path.starts_with('/')) {
        errors.invalid(at_path, path, "must be a relative path");
    }
    no_backsteps(errors, path, at_path);
}

fn local_path(errors: &mut Errors, path: &Value, at_path: &str) {
    descending_path(errors, path, at_path);
    let name = path.as_str().unwrap_or("");
    if name.starts_with("..") && !name.starts_with("../") && name != ".." {
        errors.invalid(at_path, path, "must not start with '..'");
    }
}

fn no_backsteps(errors: &mut Errors, path: &Value, at_path: &str) {
    if path.as_str().is_some_and(|path| path.split('/').any(|part| part == "..")) {
        errors.invalid(at_path, path, "must not contain '..'");
    }
}
