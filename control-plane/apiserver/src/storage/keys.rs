//! The shape of keys: `/registry/<group or core>/<plural>/[<namespace>/]<name>`.
//!
//! A resource prefix ends with `/`, so that no resource's keys are another's.

/// The prefix of everything that the API server stores.
pub const REGISTRY: &str = "/registry/";

/// The prefix of a resource's keys; `group` is empty for the core group.
pub fn resource_prefix(group: &str, plural: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("{REGISTRY}{group}/{plural}/")
}

/// The prefix of a resource's keys, within a namespace where one is given.
pub fn list_prefix(group: &str, plural: &str, namespace: Option<&str>) -> String {
    let mut prefix = resource_prefix(group, plural);
    if let Some(namespace) = namespace {
        prefix.push_str(namespace);
        prefix.push('/');
    }
    prefix
}

/// The key of one object.
pub fn object_key(group: &str, plural: &str, namespace: Option<&str>, name: &str) -> String {
    let mut key = list_prefix(group, plural, namespace);
    key.push_str(name);
    key
}

/// The resource prefix that a key or a longer prefix lies under; `None` when it has no resource part.
pub(crate) fn resource_of(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(REGISTRY)?;
    let group = rest.find('/')?;
    let plural = rest[group + 1..].find('/')?;
    Some(&key[..REGISTRY.len() + group + 1 + plural + 1])
}

/// The first string after every string that begins with `prefix`; `None` when there is none.
pub(crate) fn prefix_end(prefix: &str) -> Option<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_group_has_a_word_of_its_own() {
        assert_eq!(object_key("", "pods", Some("default"), "web"), "/registry/core/pods/default/web");
        assert_eq!(object_key("apps", "deployments", None, "x"), "/registry/apps/deployments/x");
    }

    #[test]
    fn a_key_names_its_resource() {
        assert_eq!(resource_of("/registry/core/pods/default/web"), Some("/registry/core/pods/"));
        assert_eq!(resource_of("/registry/core/pods/"), Some("/registry/core/pods/"));
        assert_eq!(resource_of("/registry/.barrier"), None);
        assert_eq!(resource_of("/other/core/pods/a"), None);
    }

    #[test]
    fn the_end_of_a_prefix_follows_all_its_keys() {
        assert_eq!(prefix_end("/a/"), Some(b"/a0".to_vec()));
    }
}
