//! Groups and versions of aggregated servers, among ours in the order of their priorities.

use serde_json::{Value, json};

use super::version_rank;
use crate::{
    aggregation::registration::{CUSTOM_GROUP_PRIORITY, group_priority},
    registry::fields::*,
};

/// Of a version of ours in a group that an aggregated server shares.
const OWN_VERSION_PRIORITY: i64 = 100;

/// One group and version that another server answers for.
#[derive(Clone, Debug)]
pub struct RemoteVersion {
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    /// False while it cannot be asked: then this is what it served last.
    pub is_current: bool,
    /// In the form of APIVersionDiscovery.
    pub resources: Vec<Value>,
}

/// Adds remote versions to the items of an APIGroupDiscoveryList.
pub(super) fn merge(items: &mut Vec<Value>, remotes: &[RemoteVersion]) {
    let mut groups: Vec<&str> = remotes.iter().map(|remote| remote.group.as_str()).collect();
    groups.sort_unstable();
    groups.dedup();
    for group in groups {
        let of_group: Vec<&RemoteVersion> = remotes.iter().filter(|remote| remote.group == group).collect();
        let own = items.iter().position(|item| text(item, "/metadata/name") == group);
        let own = own.map(|at| items.remove(at));
        let own_versions = own.iter().flat_map(|item| self::items(item, "/versions")).cloned();
        let mut versions: Vec<(i64, Value)> = own_versions
            .filter(|version| of_group.iter().all(|remote| remote.version != text(version, "/version")))
            .map(|version| (OWN_VERSION_PRIORITY, version))
            .collect();
        versions.extend(of_group.iter().map(|remote| {
            let freshness = if remote.is_current { "Current" } else { "Stale" };
            let version =
                json!({"version": remote.version, "freshness": freshness, "resources": remote.resources});
            (remote.version_priority, version)
        }));
        versions.sort_by_key(|(priority, version)| {
            std::cmp::Reverse((*priority, version_rank(text(version, "/version"))))
        });
        let versions: Vec<Value> = versions.into_iter().map(|(_, version)| version).collect();
        let merged = json!({"metadata": {"name": group}, "versions": versions});
        let mut priority = of_group.iter().map(|remote| remote.group_priority).max().unwrap_or_default();
        if own.is_some() {
            priority = priority.max(group_priority(group));
        }
        // Behind all that come first, before all that come later; among equals by name.
        let at = items.iter().position(|item| {
            let name = text(item, "/metadata/name");
            let other = remotes
                .iter()
                .filter(|remote| remote.group == name)
                .map(|remote| remote.group_priority)
                .max()
                .unwrap_or_else(|| group_priority(name));
            other < priority || (other == priority && other <= CUSTOM_GROUP_PRIORITY && name > group)
        });
        items.insert(at.unwrap_or(items.len()), merged);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(group: &str, version: &str, priority: i64) -> RemoteVersion {
        RemoteVersion {
            group: group.to_owned(),
            version: version.to_owned(),
            group_priority: priority,
            version_priority: 15,
            is_current: version != "v1beta1",
            resources: Vec::new(),
        }
    }

    #[test]
    fn remote_groups_are_among_ours_by_priority() {
        let own = |name: &str| json!({"metadata": {"name": name}, "versions": [{"version": "v1"}]});
        let mut items = vec![own("apps"), own("batch"), own("example.com")];
        let remotes =
            [remote("w", "v1alpha1", 2000), remote("w", "v1beta1", 2000), remote("example.com", "v2", 100)];
        merge(&mut items, &remotes);
        let names: Vec<&str> = items.iter().map(|item| text(item, "/metadata/name")).collect();
        assert_eq!(names, ["apps", "batch", "w", "example.com"]);
        let versions: Vec<&str> = self::super::items(&items[2], "/versions")
            .iter()
            .map(|version| text(version, "/version"))
            .collect();
        assert_eq!(versions, ["v1beta1", "v1alpha1"]);
        assert_eq!(items[2]["versions"][0]["freshness"], "Stale");
        let versions = items[3]["versions"].as_array().unwrap();
        assert_eq!((&versions[0]["version"], &versions[1]["version"]), (&json!("v1"), &json!("v2")));
    }
}
