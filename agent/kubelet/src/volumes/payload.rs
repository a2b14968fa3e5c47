//! The files of configMap, secret, downwardAPI and projected volumes, from the objects they refer to. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Volume};

use super::atomic::{File, Files};
use crate::downward::{self, Facts};
use crate::env::Sources;
use crate::objects::Kind;
use crate::pod;

const MODE_DEFAULT: i32 = 0o644;

/// Tokens by (audience, seconds of life): what a projected volume asks the apiserver for.
pub type Tokens = BTreeMap<(Option<String>, i64), String>;
pub const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// Whether the files of the volume come from the API and follow it.
pub fn is_from_api(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Objects that the volume reads.
pub fn references(volume: &Volume) -> Vec<(Kind, String)> {
    let mut names = Vec::new();
    names.extend(volume.config_map.as_ref().map(|s| (Kind::ConfigMap, s.name.clone())));
    names.extend(volume.secret.as_ref().and_then(|s| Some((Kind::Secret, s.secret_name.clone()?))));
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        names.extend(source.config_map.as_ref().map(|s| (Kind::ConfigMap, s.name.clone())));
        names.extend(source.secret.as_ref().map(|s| (Kind::Secret, s.name.clone())));
    }
    names
}

/// Tokens that the volume shows.
pub fn token_requests(volume: &Volume) -> Vec<(Option<String>, i64)> {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources
        .filter_map(|source| source.service_account_token.as_ref())
        .map(|t| (t.audience.clone(), t.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT)))
        .collect()
}

/// The files of `volume`. The error is the sentence of a `FailedMount` event.
pub fn files(
    pod: &Pod,
    volume: &Volume,
    facts: &Facts,
    sources: &Sources,
    tokens: &Tokens,
) -> Result<Files, String> {
    let mut out = Files::new();
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        let of = Of { kind: Kind::ConfigMap, name: &source.name, optional: source.optional.unwrap_or(false) };
        of.collect(pod, sources, source.items.as_deref(), mode, &mut out)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let of = Of { kind: Kind::Secret, name, optional: source.optional.unwrap_or(false) };
        of.collect(pod, sources, source.items.as_deref(), mode, &mut out)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(MODE_DEFAULT);
        downward_files(pod, facts, source.items.as_deref().unwrap_or_default(), mode, &mut out)?;
    } else if let Some(source) = &volume.projected {
        projected(pod, source, facts, sources, tokens, &mut out)?;
    }
    Ok(out)
}

fn projected(
    pod: &Pod,
    volume: &ProjectedVolumeSource,
    facts: &Facts,
    sources: &Sources,
    tokens: &Tokens,
    out: &mut Files,
) -> Result<(), String> {
    let mode = volume.default_mode.unwrap_or(MODE_DEFAULT);
    for source in volume.sources.iter().flatten() {
        if let Some(map) = &source.config_map {
            let of = Of { kind: Kind::ConfigMap, name: &map.name, optional: map.optional.unwrap_or(false) };
            of.collect(pod, sources, map.items.as_deref(), mode, out)?;
        } else if let Some(secret) = &source.secret {
            let of =
                Of { kind: Kind::Secret, name: &secret.name, optional: secret.optional.unwrap_or(false) };
            of.collect(pod, sources, secret.items.as_deref(), mode, out)?;
        } else if let Some(items) = &source.downward_api {
            downward_files(pod, facts, items.items.as_deref().unwrap_or_default(), mode, out)?;
        } else if let Some(token) = &source.service_account_token {
            let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
            let content = tokens
                .get(&(token.audience.clone(), seconds))
                .ok_or_else(|| format!("no token for {} yet", token.path))?;
            out.insert(token.path.clone(), token_file(pod, content, mode));
        } else {
            return Err("a projected source of this kind is not supported".to_owned());
        }
    }
    Ok(())
}

/// A token is private to the one user that all containers run as, if there is one.
fn token_file(pod: &Pod, content: &str, mode: i32) -> File {
    let uid = common_user(pod);
    let fs_group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
    let private = uid.is_some() || fs_group.is_some();
    File {
        content: content.as_bytes().to_vec(),
        mode: if private { 0o600 } else { mode_bits(mode) },
        uid: uid.and_then(|uid| u32::try_from(uid).ok()),
    }
}

fn common_user(pod: &Pod) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = pod::entries(spec)
        .into_iter()
        .map(|entry| entry.container.security_context.and_then(|c| c.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first)
}

fn mode_bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

struct Of<'a> {
    kind: Kind,
    name: &'a str,
    optional: bool,
}

impl Of<'_> {
    fn collect(
        &self,
        pod: &Pod,
        sources: &Sources,
        items: Option<&[KeyToPath]>,
        mode: i32,
        out: &mut Files,
    ) -> Result<(), String> {
        let Some(payload) = sources.get(&(self.kind, self.name.to_owned())).and_then(Option::as_ref) else {
            return if self.optional { Ok(()) } else { Err(self.kind.not_found(self.name)) };
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, content) in &payload.data {
                out.insert(key.clone(), File { content: content.clone(), mode: mode_bits(mode), uid: None });
            }
            return Ok(());
        };
        for item in items {
            match payload.data.get(&item.key) {
                Some(content) => {
                    let mode = mode_bits(item.mode.unwrap_or(mode));
                    out.insert(item.path.clone(), File { content: content.clone(), mode, uid: None });
                }
                None if self.optional => {}
                None => {
                    let (kind, namespace) = (self.kind.as_str().to_lowercase(), pod::namespace(pod));
                    let key = &item.key;
                    return Err(format!(
                        "references non-existent {kind} key: {key} ({namespace}/{})",
                        self.name
                    ));
                }
            }
        }
        Ok(())
    }
}

fn downward_files(
    pod: &Pod,
    facts: &Facts,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    out: &mut Files,
) -> Result<(), String> {
    for item in items {
        let value = if let Some(selector) = &item.field_ref {
            downward::field(pod, facts, selector)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let spec = pod.spec.as_ref();
            let container = spec
                .into_iter()
                .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
                .find(|container| container.name == name)
                .ok_or_else(|| format!("container \"{name}\" of a downward API file does not exist"))?;
            downward::resource(container, facts, selector)?
        } else {
            return Err(format!("file {} of the downward API has no source", item.path));
        };
        let mode = mode_bits(item.mode.unwrap_or(mode));
        out.insert(item.path.clone(), File { content: value.into_bytes(), mode, uid: None });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::objects::Payload;

    fn sources() -> Sources {
        let data = [("k1", "v1"), ("k2", "v2")].map(|(k, v)| (k.to_owned(), v.as_bytes().to_vec()));
        let payload = Some(Arc::new(Payload { data: data.into(), kind: None }));
        Sources::from([((Kind::ConfigMap, "m".to_owned()), payload)])
    }

    fn files_of(volume: serde_json::Value) -> Result<Files, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "c"}]}
        }))
        .unwrap();
        let tokens = Tokens::from([((None, 3607), "jwt".to_owned())]);
        files(&pod, &serde_json::from_value(volume).unwrap(), &Facts::default(), &sources(), &tokens)
    }

    #[test]
    fn items_choose_keys_paths_and_modes() {
        let all = files_of(json!({"name": "v", "configMap": {"name": "m", "defaultMode": 0o400}})).unwrap();
        assert_eq!(all.keys().collect::<Vec<_>>(), ["k1", "k2"]);
        assert_eq!(all["k1"].mode, 0o400);
        let some = json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "k2", "path": "d/x", "mode": 0o777}]}});
        let some = files_of(some).unwrap();
        assert_eq!(some.len(), 1);
        assert_eq!((some["d/x"].mode, &some["d/x"].content[..]), (0o777, &b"v2"[..]));
    }

    #[test]
    fn missing_objects_and_keys_fail_unless_optional() {
        let missing = |optional| json!({"name": "v", "configMap": {"name": "nope", "optional": optional}});
        assert_eq!(files_of(missing(false)).unwrap_err(), "configmap \"nope\" not found");
        assert!(files_of(missing(true)).unwrap().is_empty());
        let key = |optional| json!({"name": "v", "configMap": {"name": "m", "optional": optional, "items": [{"key": "z", "path": "z"}]}});
        assert!(files_of(key(false)).unwrap_err().contains("non-existent configmap key: z"));
        assert!(files_of(key(true)).unwrap().is_empty());
    }

    #[test]
    fn the_usual_api_access_volume_has_token_and_namespace() {
        let volume = json!({"name": "kube-api-access", "projected": {"sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}});
        let files = files_of(volume).unwrap();
        assert_eq!(files["token"].content, b"jwt");
        assert_eq!(files["namespace"].content, b"n");
    }
}
